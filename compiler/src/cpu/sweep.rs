//! Kernels with a sweep: attention over ranges of keys, streamed once.

use ir::plan::{Kernel, Sweep};

use super::Target;

pub fn scratch_bytes(_kernel: &Kernel, _sweep: &Sweep) -> i64 {
    0
}

pub fn emit(kernel: &Kernel, _sweep: &Sweep, _target: &Target) -> String {
    panic!("kernel {}: no lowering for sweeps yet", kernel.name)
}
