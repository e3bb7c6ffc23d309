//! Small kernels that follow each other and do not need each other run as one function: a launch costs more than they do.
//!
//!     if block < tiles(a) { a } else if block < tiles(a) + tiles(b) { b } ...
//!
//! Only element-wise and row kernels; what needs another's result, or its memory, is left apart. Those in front of a token's attention begin
//! its function (`Plan::prologue`).

use std::ops::Range;

use ir::plan::{BufferKind, Kernel, Plan};
use runtime::artefact::Step;

use super::kernels::sweep;
use super::map::{self, Shape};
use super::ptx::{self, I32, Signature};
use super::{Emitted, Target, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};

/// Parameters of a function take up to 4 KiB; this many pointers are far below.
const ARGS: usize = 96;
const KERNELS: usize = 12;

/// Launches that run as one.
pub struct Group {
    pub launches: Range<usize>,
    /// The last one is a sweep, and the others its prologue: of each of them, a batch point's points.
    pub points: Vec<i64>,
}

/// Launches of the plan that may run as one, two or more at a time.
pub fn groups(plan: &Plan) -> Vec<Group> {
    let mut groups = vec![];
    let mut begin = 0;
    for at in 0..plan.launches.len() {
        let points = prologue(plan, at);
        if !points.is_empty() {
            let first = at - points.len();
            groups.extend(side_by_side(plan, begin..first));
            let launches = first..at + 1;
            groups.push(Group { launches, points });
            begin = at + 1;
        }
    }
    groups.extend(side_by_side(plan, begin..plan.launches.len()));
    groups
}

/// Small launches that need nothing of each other.
fn side_by_side(plan: &Plan, of: Range<usize>) -> Vec<Group> {
    let mut groups = vec![];
    let mut begin = of.start;
    while begin < of.end {
        let mut end = begin + 1;
        while end < of.end && fits(plan, begin, end) {
            end += 1;
        }
        if end - begin > 1 {
            groups.push(Group {
                launches: begin..end,
                points: vec![],
            });
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
    kernel(begin).is_small()
        && kernel(next).is_small()
        && all.len() <= KERNELS
        && args <= ARGS
        && (begin..next).all(|i| independent(plan, i, next))
}

/// The last launches in front of sweep `at` that it can begin with, as kernels are here and with the slots that buffers have.
fn prologue(plan: &Plan, at: usize) -> Vec<i64> {
    let mut points = plan.prologue(at);
    let kernel = |i: usize| &plan.kernels[plan.launches[i].kernel];
    let taken = |n: &usize| {
        let first = at - n;
        let kernels: Vec<&Kernel> = (first..at).map(kernel).collect();
        sweep::takes(kernel(at), &kernels)
            && (first..at).all(|i| (i + 1..at).all(|j| independent(plan, i, j)) && keeps(plan, i, at))
    };
    let n = (0..=points.len()).rev().find(|n| *n == 0 || taken(n)).unwrap_or(0);
    points.split_off(points.len() - n)
}

/// Is what launch `a` reads or writes none of the memory that launch `b` writes?
fn keeps(plan: &Plan, a: usize, b: usize) -> bool {
    let (all, written) = (uses(plan, a), uses(plan, b));
    let mut written = written.iter().filter(|(_, written)| *written);
    written.all(|(y, _)| all.iter().all(|(x, _)| !is_same(plan, *x, *y)))
}

/// Does neither write what the other touches?
fn independent(plan: &Plan, a: usize, b: usize) -> bool {
    keeps(plan, a, b) && keeps(plan, b, a)
}

/// A launch's buffers, and whether it writes them.
fn uses(plan: &Plan, launch: usize) -> Vec<(usize, bool)> {
    let launch = &plan.launches[launch];
    let written = plan.kernels[launch.kernel].args.iter().map(|a| a.written);
    launch.args.iter().copied().zip(written).collect()
}

/// Temporaries of one slot are one memory.
fn is_same(plan: &Plan, x: usize, y: usize) -> bool {
    let slot = |b: usize| match plan.buffers[b].kind {
        BufferKind::Temp { slot } => Some(slot),
        _ => None,
    };
    x == y || (slot(x).is_some() && slot(x) == slot(y))
}

/// PTX names have neither dots nor plus signs. Two underscores, which no kernel's own name has: `add` with `rms_norm` is not `add_rms_norm`.
fn function_name(kernel: &str) -> String {
    kernel.replace('.', "_").replace('+', "__")
}

/// One function of the group's kernels; its buffers are theirs, one kernel after the other.
pub fn emit(name: &str, kernels: &[Kernel], points: &[i64], target: &Target) -> Emitted {
    let function = function_name(name);
    if let ([prologue @ .., swept], false) = (kernels, points.is_empty()) {
        let prologue: Vec<(&Kernel, i64)> = prologue.iter().zip(points.iter().copied()).collect();
        return sweep::with_prologue(name, &function, swept, &prologue, target);
    }
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
