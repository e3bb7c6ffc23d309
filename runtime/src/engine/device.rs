//! Where code runs: the CPU, or one of the machine's NVIDIA GPUs. Names and capabilities; running is the engine's.

use crate::error::RuntimeError;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// By the driver's number.
    Cuda(u32),
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match (text, number) {
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", _) => Ok(Device::Cuda(0)),
            (_, Some(n)) => Ok(Device::Cuda(n)),
            _ => Err("choose cpu, cuda or cuda:N".to_string()),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// A GPU, as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    pub memory: usize,
    /// Compute capability: (9, 0) is Hopper.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// CUDA version up to which the driver goes: (12, 4).
    pub driver: (u32, u32),
}

impl Gpu {
    /// The best target that runs here, by its name; none on what is older than Ampere.
    pub fn target(&self) -> Option<&'static str> {
        ["sm_90a", "sm_80"].into_iter().find(|t| runs(t, self.capability))
    }
}

/// Is this the name of a GPU's target?
pub fn is_gpu(target: &str) -> bool {
    target.starts_with("sm_")
}

/// Does PTX for `target` run on this capability? `sm_80` on all from (8, 0) on; `sm_90a` on (9, 0) alone, that is what the `a` means.
pub fn runs(target: &str, capability: (u32, u32)) -> bool {
    let Some(number) = target.strip_prefix("sm_") else {
        return false;
    };
    let (digits, alone) = number.strip_suffix('a').map_or((number, false), |n| (n, true));
    let Ok(version) = digits.parse::<u32>() else {
        return false;
    };
    let wanted = (version / 10, version % 10);
    if alone {
        capability == wanted
    } else {
        capability >= wanted
    }
}

/// The machine's GPUs in the driver's order, or in one line why there are none.
pub fn gpus() -> Result<Vec<Gpu>, RuntimeError> {
    #[cfg(feature = "cuda")]
    return crate::cuda::gpus();
    #[cfg(not(feature = "cuda"))]
    Err(absent())
}

#[cfg(not(feature = "cuda"))]
pub fn absent() -> RuntimeError {
    RuntimeError::Cuda("this program was built without the feature `cuda`".to_string())
}

/// One GPU by its number.
pub fn gpu(number: u32) -> Result<Gpu, RuntimeError> {
    let all = gpus()?;
    let count = all.len();
    all.into_iter().nth(number as usize).ok_or_else(|| {
        RuntimeError::Cuda(format!(
            "there is no device cuda:{number}; this machine has {count}, from cuda:0 on"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
        assert_eq!(Device::Cuda(1).to_string(), "cuda:1");
    }

    #[test]
    fn targets_by_capability() {
        let best = |capability| {
            let gpu = Gpu {
                name: String::new(),
                memory: 0,
                capability,
                multiprocessors: 1,
                driver: (12, 0),
            };
            gpu.target()
        };
        assert_eq!(best((7, 5)), None);
        assert_eq!(best((8, 0)), Some("sm_80"));
        assert_eq!(best((8, 9)), Some("sm_80"));
        assert_eq!(best((9, 0)), Some("sm_90a"));
        assert_eq!(best((10, 0)), Some("sm_80"));
        assert!(!runs("sm_", (9, 0)) && !runs("x86-64-v3", (9, 0)) && !runs("sm_9x", (9, 0)));
        assert!(runs("sm_86", (8, 9)) && !runs("sm_86", (8, 0)));
    }
}
