//! Small kernels that follow each other and do not need each other run as one function: a launch costs more than they do.
//!
//!     if block < tiles(a) { a } else if block < tiles(a) + tiles(b) { b } ...
//!
//! Only element-wise and row kernels; what needs another's result, or its memory, is left apart.

use std::ops::Range;

use ir::plan::{BufferKind, Kernel, Plan};
use runtime::artefact::Step;

use super::map::{self, Shape};
use super::ptx::{self, I32, Signature};
use super::{Emitted, Target, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};

/// Parameters of a function take up to 4 KiB; this many pointers are far below.
const ARGS: usize = 96;
const KERNELS: usize = 12;

fn is_small(kernel: &Kernel) -> bool {
    kernel.contraction.is_none() && kernel.sweep.is_none() && kernel.sweep_gradient.is_none() && kernel.ordered == 0
}

/// Launches of the plan that may run as one, two or more at a time.
pub fn groups(plan: &Plan) -> Vec<Range<usize>> {
    let mut groups = vec![];
    let mut begin = 0;
    while begin < plan.launches.len() {
        let mut end = begin + 1;
        while end < plan.launches.len() && fits(plan, begin, end) {
            end += 1;
        }
        if end - begin > 1 {
            groups.push(begin..end);
        }
        begin = end;
    }
    groups
}

/// May launch `next` join those from `begin` on?
fn fits(plan: &Plan, begin: usize, next: usize) -> bool {
    let all = &plan.launches[begin..=next];
    let kernel = |i: usize| &plan.kernels[plan.launches[i].kernel];
    let args: usize = all.iter().map(|l| l.args.len()).sum();
    is_small(kernel(begin))
        && is_small(kernel(next))
        && all.len() <= KERNELS
        && args <= ARGS
        && (begin..next).all(|i| independent(plan, i, next))
}

/// Does neither write what the other touches? Temporaries of one slot are one memory.
fn independent(plan: &Plan, a: usize, b: usize) -> bool {
    let uses = |i: usize| {
        let launch = &plan.launches[i];
        let written = plan.kernels[launch.kernel].args.iter().map(|a| a.written);
        launch.args.iter().copied().zip(written).collect::<Vec<_>>()
    };
    let same = |x: usize, y: usize| {
        let slot = |b: usize| match plan.buffers[b].kind {
            BufferKind::Temp { slot } => Some(slot),
            _ => None,
        };
        x == y || (slot(x).is_some() && slot(x) == slot(y))
    };
    let uses_b = uses(b);
    uses(a).iter().all(|(x, writes_x)| {
        uses_b
            .iter()
            .all(|(y, writes_y)| !(same(*x, *y) && (*writes_x || *writes_y)))
    })
}

/// PTX names have neither dots nor plus signs. Two underscores, which no kernel's own name has: `add` with `rms_norm` is not `add_rms_norm`.
fn function_name(kernel: &str) -> String {
    kernel.replace('.', "_").replace('+', "__")
}

/// One function of these kernels; its buffers are theirs, one kernel after the other.
pub fn emit(name: &str, kernels: &[Kernel], target: &Target) -> Emitted {
    let function = function_name(name);
    let shapes: Vec<Shape> = kernels.iter().map(Shape::new).collect();
    let signature = Signature {
        buffers: kernels.iter().map(|k| k.args.len()).sum(),
        threads: map::THREADS as u32,
        overlap: target.hopper,
        ..Signature::default()
    };
    let text = ptx::function(&function, signature, |e, params| {
        let block = ptx::block(e);
        let zero = e.int(0, I32);
        let parts: Vec<(&Kernel, &Shape)> = kernels.iter().zip(&shapes).collect();
        part(e, &parts, &params.buffers, &params.symbols, block, zero);
    });
    let grids: Vec<_> = kernels.iter().zip(&shapes).map(|(k, s)| tiles(&s.grid(k))).collect();
    let step = Step {
        function,
        tiles: grids[0].clone(),
        more_tiles: grids[1..].to_vec(),
        threads: map::THREADS as u32,
        shared: kernels.iter().zip(&shapes).map(|(k, s)| s.shared(k)).max().unwrap_or(0),
        overlap: target.hopper,
        ..Step::default()
    };
    Emitted::one(name, step, text)
}

/// The first of these kernels, if the block is one of its own, which begin at `begin`; else the others.
fn part(
    e: &mut Emit,
    parts: &[(&Kernel, &Shape)],
    buffers: &[Val],
    symbols: &[(&'static str, Val)],
    block: Val,
    begin: Val,
) {
    let [(kernel, shape), rest @ ..] = parts else { return };
    let (mine, others) = buffers.split_at(kernel.args.len());
    let body = shape.body(kernel, mine.to_vec(), symbols.to_vec());
    if rest.is_empty() {
        let at = e.sub(block, begin);
        shape.emit(e, &body, at);
        return;
    }
    let mut count = e.i64(1);
    for (size, block) in shape.grid(kernel) {
        let n = body.size(e, &size);
        let (less, block) = (e.i64(block - 1), e.i64(block));
        let n = e.add(n, less);
        let n = e.div(n, block);
        count = e.mul(count, n);
    }
    let count = e.truncate_int(count, Elem::I32);
    let end = e.add(begin, count);
    let is_mine = e.cmp(Cmp::Lt, block, end);
    e.if_then(is_mine, &[], |e| {
        let at = e.sub(block, begin);
        shape.emit(e, &body, at);
        vec![]
    });
    let is_other = e.cmp(Cmp::Le, end, block);
    e.if_then(is_other, &[], |e| {
        part(e, rest, others, symbols, block, end);
        vec![]
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_joined_function_is_named_like_no_kernel() {
        let named = super::function_name;
        assert_eq!(named("add+rms_norm.2"), "add__rms_norm_2");
        assert_ne!(named("add+rms_norm"), named("add_rms_norm"));
        assert_ne!(named("add+rms_norm"), named("add_rms+norm"));
    }
}
