//! Attention: which way a sweep kernel is run, and what all ways share.
//!
//! The meaning is `ir::plan::Sweep`'s. A way (`Emitted` with one variant) is taken if its conditions hold; the simple one always does.

mod simple;
mod stages;

use ir::plan::{Kernel, Sweep};

use super::super::{Emitted, Target};
use crate::mlir::emit::{Elem, Emit, Val};
use crate::scalar::Body;

pub fn emit(kernel: &Kernel, sweep: &Sweep, target: &Target) -> Emitted {
    simple::emit(kernel, sweep, target)
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
