//! Which tables of ways a compilation goes by (`compiler::gpu::tuning`), and where `loopc tune` leaves its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use compiler::Target;
use compiler::gpu::tuning::{Table, Tuning};
use runtime::Device;
use runtime::engine::device;

use crate::{cache, options};

/// For code that this machine's device runs: the file that was named, then what was remembered for the device.
pub fn for_device(device: Device, file: Option<&Path>) -> anyhow::Result<Tuning> {
    let Device::Cuda(number) = device else {
        if let Some(file) = file {
            bail!(
                "--tuning {}: there is nothing to tune on the CPU; add --device cuda",
                file.display()
            );
        }
        return Ok(Tuning::default());
    };
    let target = options::device_target(device)?;
    let mut tuning = for_targets(std::slice::from_ref(&target), file)?;
    let name = device::gpu(number)?.name;
    let path = remembered(&name, target.name());
    if path.exists() {
        match read(&path) {
            Ok(table) => tuning.tables.push(table),
            Err(e) => eprintln!("loopc: {e:#}; it is not used, and `loopc tune` writes it anew"),
        }
    }
    tuning.device = Some(name);
    Ok(tuning)
}

/// For code that any device of these targets runs: the file that was named, which must be for one of them.
pub fn for_targets(targets: &[Target], file: Option<&Path>) -> anyhow::Result<Tuning> {
    let mut tuning = Tuning::default();
    if let Some(file) = file {
        let table = read(file)?;
        if !targets.iter().any(|t| t.name() == table.target) {
            let names: Vec<&str> = targets.iter().map(Target::name).collect();
            bail!(
                "--tuning {}: it is for {}, and this is compiled for {}; make one with `loopc tune`",
                file.display(),
                table.target,
                names.join(", ")
            );
        }
        tuning.tables.push(table);
    }
    Ok(tuning)
}

/// The cache's file for a device.
pub fn remembered(device: &str, target: &str) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let device: String = device.chars().map(plain).collect();
    cache::folder().join("tuning").join(format!("{device}.{target}.toml"))
}

pub fn read(path: &Path) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Table::parse(&text, &path.to_string_lossy())?)
}

/// Writes a table, whole or not at all.
pub fn write(path: &Path, table: &Table) -> anyhow::Result<()> {
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let text = format!("# Which way each kernel runs, by rows; measured by `loopc tune`.\n\n{table}");
    Ok(runtime::weights::write_whole(path, &[text.as_bytes()])?)
}
