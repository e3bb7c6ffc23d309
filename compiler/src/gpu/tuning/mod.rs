//! Which of a kernel's ways runs at which size: as data, measured by `loopc tune`, written into the artefact when compiling.
//!
//! A table (`table.rs`) names ways for ranges of rows. Tables lie over each other: the user's file, what was remembered for the device,
//! what is shipped for it, for known rows what waves of tiles say (`waves.rs`), what is shipped for its target. Where none says anything a
//! kernel's ways are tried in their own order.
//! `ways.rs` turns the answer into a kernel's variants, so that the runtime has nothing to decide.

mod table;
mod waves;
mod ways;

pub use table::{Choice, Table, TableError, joined};
pub(super) use waves::{by_waves, shape};
pub use ways::{Space, Way};
pub(super) use ways::{arranged, key, named, space};

/// For a target, and for devices by name.
const SHIPPED: [(&str, &str); 3] = [
    ("h100.toml", include_str!("h100.toml")),
    ("h200.toml", include_str!("h200.toml")),
    ("sm_90a.toml", include_str!("sm_90a.toml")),
];

/// Everything that is known when a model is compiled. By default what is shipped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tuning {
    /// Whom it is compiled for, if that is known.
    pub device: Option<String>,
    /// The first one counts most; of any targets.
    pub tables: Vec<Table>,
}

impl Tuning {
    /// The tables for a target, what is shipped behind the others, what is shipped for the target itself last.
    pub(super) fn of(&self, target: &str) -> Vec<Table> {
        let own = self.tables.iter().filter(|t| t.target == target).cloned();
        own.chain(shipped(target, self.device.as_deref())).collect()
    }
}

/// Of tables for devices, the device's own; a device that has none is most like the first one.
fn shipped(target: &str, device: Option<&str>) -> Vec<Table> {
    let all =
        SHIPPED.map(|(name, text)| Table::parse(text, name).expect("a shipped table is sound, which a test sees to"));
    let (of_devices, of_target): (Vec<Table>, Vec<Table>) =
        (all.into_iter().filter(|t| t.target == target)).partition(|t| t.device.is_some());
    let own = of_devices.iter().find(|t| t.device.as_deref() == device);
    own.or(of_devices.first())
        .cloned()
        .into_iter()
        .chain(of_target)
        .collect()
}

/// All that it depends on, for a cache's key.
impl std::fmt::Display for Tuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.device)?;
        self.tables.iter().try_for_each(|t| write!(f, "\n{t}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_tables_by_device_and_target() {
        for (name, text) in SHIPPED {
            let table = Table::parse(text, name).unwrap();
            let known = crate::gpu::Target::ALL.iter().any(|t| t.name == table.target);
            assert!(known, "{name}: {}", table.target);
        }
        let devices = |target, device| -> Vec<Option<String>> {
            let tables = Tuning { device, tables: vec![] };
            tables.of(target).into_iter().map(|t| t.device).collect()
        };
        let (h100, h200) = ("NVIDIA H100 80GB HBM3".to_string(), "NVIDIA H200".to_string());
        assert_eq!(devices("sm_90a", Some(h200.clone())), [Some(h200), None]);
        assert_eq!(devices("sm_90a", Some("another".into())), [Some(h100.clone()), None]);
        assert_eq!(devices("sm_90a", None), [Some(h100), None]);
        assert_eq!(devices("sm_80", None), []);
    }

    #[test]
    fn the_user_s_tables_stand_before_the_shipped_ones() {
        let mine = |target: &str| Table {
            target: target.to_string(),
            ..Table::default()
        };
        let tuning = Tuning {
            device: None,
            tables: vec![mine("sm_80"), mine("sm_90a")],
        };
        assert_eq!(tuning.of("sm_80"), [mine("sm_80")]);
        assert_eq!(tuning.of("sm_90a")[0], mine("sm_90a"));
        assert_eq!(tuning.of("sm_90a").len(), 3);
        assert_ne!(tuning.to_string(), Tuning::default().to_string());
    }
}
