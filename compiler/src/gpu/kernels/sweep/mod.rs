//! Attention: which way a sweep kernel is run, and what all ways share.
//!
//! The meaning is `ir::plan::Sweep`'s. A way (`Emitted` with one variant) is taken if its conditions hold; the simple one always does.

mod consumer;
mod few;
mod flash;
mod mma;
mod plan;
mod producer;
mod rows;
mod simple;
mod stages;
mod walk;

use ir::plan::{Kernel, Sweep};
use runtime::artefact::GpuKernel;

use crate::gpu::map::Shape;
use crate::gpu::{Emitted, Target};
use crate::mlir::emit::{Elem, Emit, Val};
use crate::scalar::Body;

pub fn emit(kernel: &Kernel, sweep: &Sweep, target: &Target) -> Emitted {
    let mut emitted = simple::emit(kernel, sweep, target);
    if let Some(even) = mma::takes(kernel, sweep) {
        let name = format!("{}_mma", kernel.name);
        let (variant, text) = mma::variant(kernel, sweep, &even, &name, target);
        emitted.before_all(variant, name, text, even.is_empty());
    }
    let name = format!("{}_few", kernel.name);
    if let Some((variant, text)) = few::variant(kernel, sweep, &name, &[], target) {
        let always = variant.multiples.is_empty();
        emitted.before_all(variant, name, text, always);
    }
    let name = format!("{}_flash", kernel.name);
    if let Some((variant, text)) = flash::variant(kernel, sweep, &name, target) {
        let always = variant.multiples.is_empty();
        emitted.before_all(variant, name, text, always);
    }
    emitted
}

/// Is there a function of this sweep that begins with these kernels, for all sizes? (`with_prologue`)
pub fn takes(kernel: &Kernel, prologue: &[&Kernel]) -> bool {
    let few = prologue.len() <= few::WARPS as usize && prologue.iter().all(|k| Shape::new(k).is_of_warps());
    few && kernel.sweep.as_ref().is_some_and(|sweep| few::takes(kernel, sweep))
}

/// The function of a sweep that `takes` these kernels, each with how many of its points are a batch point's.
pub fn with_prologue(
    name: &str,
    function: &str,
    kernel: &Kernel,
    prologue: &[(&Kernel, i64)],
    target: &Target,
) -> Emitted {
    let sweep = kernel.sweep.as_ref().expect("a sweep has a prologue");
    let (variant, text) = few::variant(kernel, sweep, function, prologue, target).expect("it was asked for");
    Emitted {
        kernel: GpuKernel {
            name: name.to_string(),
            variants: vec![variant],
        },
        functions: vec![(function.to_string(), text)],
    }
}

/// The position of the batch point's first token, i64.
fn start(e: &mut Emit, body: &Body, sweep: &Sweep, batch: &[Val]) -> Val {
    let zero = e.i64(0);
    let Some(start) = sweep.start else { return zero };
    let mut index = batch.to_vec();
    index.resize(body.kernel.outer.len(), zero);
    let mut point = body.point(index);
    let start = body.scalar(e, &mut point, start);
    e.extend_signed(start, Elem::I64)
}
