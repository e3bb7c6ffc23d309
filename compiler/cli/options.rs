//! Options that several subcommands share.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ValueEnum;
use compiler::Target;
use compiler::gpu::tuning::Tuning;
use compiler::pipeline::Stage;
use ir::DType;
use passes::Program;
use runtime::Device;
use runtime::engine::device;

use crate::tuning;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeType {
    F32,
    Bf16,
}

impl ComputeType {
    pub fn dtype(self) -> DType {
        match self {
            ComputeType::F32 => DType::F32,
            ComputeType::Bf16 => DType::BF16,
        }
    }
}

/// How a model is compiled and run.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// Type of weights and activations [default: f32; an artefact has its own]
    #[arg(long, value_enum)]
    pub dtype: Option<ComputeType>,
    /// Longest sequence: prompt and generated tokens
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(i64).range(1..=1 << 20))]
    pub max_context: i64,
    /// Threads [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Where to run: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    /// Ways of GPU kernels, as `loopc tune` writes them; they go before what was remembered for the device
    #[arg(long, value_name = "FILE.toml")]
    pub tuning: Option<PathBuf>,
    /// One kernel per op, for comparison
    #[arg(long)]
    pub no_fuse: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Tell what happens on standard error
    #[arg(short, long)]
    pub verbose: bool,
}

impl Common {
    pub fn program(&self) -> Program {
        program(self.no_fuse)
    }

    pub fn dtype(&self) -> DType {
        self.dtype.map_or(DType::F32, ComputeType::dtype)
    }

    /// The best target of the device.
    pub fn target(&self) -> anyhow::Result<Target> {
        device_target(self.device)
    }

    /// How kernels for the device run.
    pub fn tuning(&self) -> anyhow::Result<Tuning> {
        tuning::for_device(self.device, self.tuning.as_deref())
    }

    pub fn engine(&self) -> runtime::Options {
        runtime::Options::on(self.device, self.threads())
    }

    pub fn threads(&self) -> usize {
        self.threads
            .map(usize::from)
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    }
}

pub fn program(no_fuse: bool) -> Program {
    if no_fuse { Program::op_by_op() } else { Program::fused() }
}

/// `STAGE=DIR`, STAGE one of graph, plan, mlir, llvm, all.
pub fn emit(text: &str) -> anyhow::Result<Vec<(Stage, PathBuf)>> {
    let (stage, dir) = text
        .split_once('=')
        .with_context(|| format!("--emit {text}: write STAGE=DIR"))?;
    let stages: Vec<Stage> = Stage::ALL
        .iter()
        .filter(|(name, _)| stage == "all" || stage == *name)
        .map(|(_, s)| *s)
        .collect();
    if stages.is_empty() {
        let names: Vec<&str> = Stage::ALL.iter().map(|(name, _)| *name).collect();
        bail!(
            "--emit {text}: there is no stage `{stage}`; choose {} or all",
            names.join(", ")
        );
    }
    Ok(stages.into_iter().map(|s| (s, PathBuf::from(dir))).collect())
}

/// The best target that a device of this machine runs.
pub fn device_target(device: Device) -> anyhow::Result<Target> {
    let Device::Cuda(number) = device else {
        return Ok(Target::native()?);
    };
    let gpu = device::gpu(number)?;
    let Some(name) = gpu.target() else {
        let (major, minor) = gpu.capability;
        bail!(
            "--device {device}: {} has compute capability {major}.{minor}, and loopc compiles for 8.0 and newer; use --device cpu",
            gpu.name
        );
    };
    Ok(Target::by_name(name)?)
}

/// Targets by name; none given means the machine itself.
pub fn targets(names: &[String]) -> anyhow::Result<Vec<Target>> {
    if names.is_empty() {
        return Ok(vec![Target::native()?]);
    }
    names.iter().map(|name| Ok(Target::by_name(name)?)).collect()
}

/// `1,2,3` as token ids.
pub fn tokens(text: &str) -> Result<Tokens, String> {
    let id = |t: &str| {
        let id = t.trim().parse::<u32>().ok().filter(|t| i32::try_from(*t).is_ok());
        id.ok_or_else(|| format!("`{t}` is not a token id"))
    };
    text.split(',').map(id).collect::<Result<_, _>>().map(Tokens)
}

/// One sequence of an option that may be given several times.
#[derive(Clone)]
pub struct Tokens(pub Vec<u32>);

/// Equally long sequences.
pub fn batch(rows: &[Tokens]) -> anyhow::Result<Vec<Vec<u32>>> {
    if rows.iter().any(|row| row.0.len() != rows[0].0.len()) {
        bail!("--tokens: sequences of unequal lengths are no batch; run them one by one");
    }
    Ok(rows.iter().map(|row| row.0.clone()).collect())
}

/// Bytes: a number, with K, M or G behind it for powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 1u64 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "a number of bytes, such as 500M or 2G".to_string())?;
    if number.is_finite() && number >= 0.0 {
        Ok((number * unit as f64) as u64)
    } else {
        Err("a number of bytes, such as 500M or 2G".to_string())
    }
}
