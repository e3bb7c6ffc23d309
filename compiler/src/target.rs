//! Whom code is made for: a level of x86-64 or a generation of NVIDIA GPUs, by the names that users and artefacts use.

use crate::cpu::{self, CodeError};
use crate::gpu;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Cpu(cpu::Target),
    Gpu(gpu::Target),
}

impl Target {
    /// All names, without `native`.
    pub fn names() -> Vec<&'static str> {
        let cpus = cpu::Target::ALL.iter().map(|t| t.name);
        cpus.chain(gpu::Target::ALL.iter().map(|t| t.name)).collect()
    }

    /// `native` is this machine's CPU at its best.
    pub fn by_name(name: &str) -> Result<Target, CodeError> {
        if name == "native" {
            return Target::native();
        }
        let cpu = cpu::Target::ALL
            .iter()
            .find(|t| t.name == name)
            .cloned()
            .map(Target::Cpu);
        let gpu = || {
            gpu::Target::ALL
                .iter()
                .find(|t| t.name == name)
                .cloned()
                .map(Target::Gpu)
        };
        cpu.or_else(gpu).ok_or_else(|| {
            CodeError(format!(
                "there is no target `{name}`; choose native, {}",
                Target::names().join(", ")
            ))
        })
    }

    pub fn native() -> Result<Target, CodeError> {
        cpu::Target::native().map(Target::Cpu)
    }

    pub fn name(&self) -> &'static str {
        match self {
            Target::Cpu(t) => t.name,
            Target::Gpu(t) => t.name,
        }
    }
}
