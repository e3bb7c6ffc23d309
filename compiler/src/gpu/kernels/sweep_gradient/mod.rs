//! The backward of attention: which way a `sweep_gradient` kernel is run.
//!
//! The meaning is `ir::plan::SweepGradient`'s. The simple way always holds; `flash` takes its place where its conditions hold.

mod consumer;
mod flash;
mod order;
mod producer;
mod simple;

use ir::plan::{Kernel, SweepGradient};

use super::super::{Emitted, Target};

pub fn emit(kernel: &Kernel, g: &SweepGradient, target: &Target) -> Emitted {
    let mut emitted = simple::emit(kernel, g, target);
    let name = format!("{}_flash", kernel.name);
    if let Some((variant, text)) = flash::variant(kernel, g, &name, target) {
        emitted.before_all(variant, name, text, true);
    }
    emitted
}
