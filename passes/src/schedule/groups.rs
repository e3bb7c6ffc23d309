//! Which ops share a kernel: an op waits if every reader of its value will be computed in one kernel that can hold it too.
//!
//! A kernel has one root, whose shape it runs over. Element-wise ops, reductions of rows, sweeps and one matmul may wait in it.

use std::collections::{HashMap, HashSet};

use ir::{Dim, Function, Op, Param, ValueId};

use super::expression::is_elementwise;
use super::{Scheduling, flag, int};

/// Values that wait for a kernel with another root.
pub struct Groups {
    waiting: HashSet<ValueId>,
    /// Roots of kernels with a matmul, a sweep or a reduction inside: their last dimension stays the columns.
    heavy: HashSet<ValueId>,
}

/// What a kernel already holds.
#[derive(Default)]
struct Held {
    matmul: Option<ValueId>,
    /// A second one, of the same rows by another weight.
    also: bool,
    reduces: bool,
    /// Queries and start of its sweeps.
    sweep: Option<(ValueId, Option<ValueId>)>,
    sweeps: usize,
}

impl Groups {
    pub fn waits(&self, v: ValueId) -> bool {
        self.waiting.contains(&v)
    }

    pub fn is_heavy(&self, root: ValueId) -> bool {
        self.heavy.contains(&root)
    }

    pub fn new(f: &Function, options: &Scheduling) -> Groups {
        let mut readers: HashMap<ValueId, Vec<(usize, usize)>> = HashMap::new();
        for (i, op) in f.ops.iter().enumerate() {
            for (at, v) in op.operands.iter().enumerate() {
                readers.entry(*v).or_default().push((i, at));
            }
        }
        let returned: HashSet<ValueId> = f.returns.iter().map(|(_, v)| *v).collect();
        let mut groups = Groups {
            waiting: HashSet::new(),
            heavy: HashSet::new(),
        };
        // The root of the kernel that computes an op, by the op's place.
        let mut root: HashMap<usize, ValueId> = HashMap::new();
        let mut held: HashMap<ValueId, Held> = HashMap::new();
        for (i, op) in f.ops.iter().enumerate().rev() {
            let Some(&v) = op.results.first() else { continue };
            let read = readers.get(&v).map_or(&[][..], |r| r);
            let all_absorb = !read.is_empty()
                && !returned.contains(&v)
                && read.iter().all(|(r, at)| absorbs(&groups, &f.ops[*r], *at, options));
            let wanted: HashSet<ValueId> = read.iter().filter_map(|(r, _)| root.get(r).copied()).collect();
            let free = matches!(op.name.as_str(), "constant" | "mask" | "sweep");
            if all_absorb && free {
                groups.waiting.insert(v);
                // Its own operands must be free to wait too: a sweep's state has no memory.
                root.insert(i, wanted.iter().copied().min().unwrap_or(v));
                continue;
            }
            // A norm is computed where its row is turned.
            let turned = |(r, at): &(usize, usize)| f.ops[*r].name == "rope" && *at == 0;
            if op.name == "rms_norm"
                && options.epilogues
                && read.len() == 1
                && turned(&read[0])
                && !returned.contains(&v)
            {
                groups.waiting.insert(v);
                root.insert(i, v);
                continue;
            }
            // The loss walks the columns of its logits once: they need no memory.
            let of_loss = |r: &Op| r.name == "cross_entropy" && options.epilogues;
            if all_absorb && op.name == "matmul" && read.len() == 1 && of_loss(&f.ops[read[0].0]) {
                groups.waiting.insert(v);
                root.insert(i, wanted.iter().copied().min().unwrap_or(v));
                continue;
            }
            let alone = !options.epilogues && read.len() > 1;
            let joined = match wanted.iter().next() {
                Some(&r) if all_absorb && wanted.len() == 1 && !alone && !is_loss(f, r) => {
                    let kernel = held.entry(r).or_default();
                    fits(f, op, r, kernel, options).then_some(r)
                }
                _ => None,
            };
            let own = joined.unwrap_or(v);
            if joined.is_some() {
                groups.waiting.insert(v);
            }
            root.insert(i, own);
            let kernel = held.entry(own).or_default();
            match op.name.as_str() {
                "matmul" => match kernel.matmul {
                    None => kernel.matmul = Some(v),
                    Some(_) => kernel.also = true,
                },
                "mean" => {
                    kernel.sweep = streams(f, op);
                    kernel.sweeps += 1;
                }
                "reduce_sum" | "reduce_max" if joined.is_some() => kernel.reduces = true,
                _ => {}
            }
            let reduces = joined.is_some() && op.name.starts_with("reduce");
            if reduces || matches!(op.name.as_str(), "matmul" | "mean") {
                groups.heavy.insert(own);
            }
        }
        groups
    }
}

/// A loss holds the matmul of its logits and nothing else.
fn is_loss(f: &Function, root: ValueId) -> bool {
    f.ops
        .iter()
        .any(|op| op.results.first() == Some(&root) && op.name == "cross_entropy")
}

/// Can the kernel of `reader` compute its operand `at` itself?
fn absorbs(groups: &Groups, reader: &Op, at: usize, options: &Scheduling) -> bool {
    match reader.name.as_str() {
        name if is_elementwise(name) => true,
        "mean" => true,
        "cross_entropy" => at == 0 && options.epilogues,
        "sweep" => flag(reader, "continues") && at + 1 == reader.operands.len(),
        // A reduction that is a kernel of its own reads memory.
        "reduce_sum" | "reduce_max" => groups.waits(reader.results[0]),
        _ => false,
    }
}

/// May `op` be computed in the kernel with this root?
fn fits(f: &Function, op: &Op, root: ValueId, held: &Held, options: &Scheduling) -> bool {
    let (shape, over) = (&f.ty(op.results[0]).shape, &f.ty(root).shape);
    if !broadcasts(shape, over) {
        return false;
    }
    match op.name.as_str() {
        name if is_elementwise(name) => true,
        "reduce_sum" | "reduce_max" => {
            let x = &f.ty(op.operands[0]).shape;
            let last = int(op, "axis") + 1 == x.len() as i64;
            // Its row is the kernel's row.
            options.epilogues && last && held.matmul.is_none() && broadcasts(x, over) && x.last() == over.last()
        }
        "matmul" => {
            let room = match held.matmul {
                None => true,
                Some(first) => !held.also && twins(f, op, first),
            };
            options.epilogues && shape == over && room && !held.reduces && held.sweep.is_none()
        }
        "mean" => {
            let one = options.joined_sweeps || held.sweeps == 0;
            let alike = held.sweep.is_none() || held.sweep == streams(f, op);
            options.epilogues && shape == over && held.matmul.is_none() && one && alike
        }
        _ => false,
    }
}

/// Do two matmuls multiply the same rows by two weights of one type?
fn twins(f: &Function, op: &Op, first: ValueId) -> bool {
    let weight = |v: ValueId| {
        let known = f
            .params
            .iter()
            .any(|(p, kind)| *p == v && matches!(kind, Param::Weight(_)));
        (known && f.ty(v).rank() == 2).then(|| f.ty(v).clone())
    };
    let Some(other) = f.ops.iter().find(|o| o.results.first() == Some(&first)) else {
        return false;
    };
    let both = weight(op.operands[1]).zip(weight(other.operands[1]));
    op.operands[0] == other.operands[0]
        && flag(op, "transpose_b")
        && flag(other, "transpose_b")
        && both.is_some_and(|(a, b)| a == b)
}

/// What all sweeps of one kernel share: queries and start.
fn streams(f: &Function, mean: &Op) -> Option<(ValueId, Option<ValueId>)> {
    let sweep = f.ops.iter().find(|o| o.results.first() == Some(&mean.operands[0]))?;
    (sweep.name == "sweep").then(|| (sweep.operands[0], flag(sweep, "starts").then(|| sweep.operands[3])))
}

/// Aligned at the end, every dimension is the larger shape's or 1.
fn broadcasts(small: &[Dim], large: &[Dim]) -> bool {
    small.len() <= large.len()
        && small
            .iter()
            .rev()
            .zip(large.iter().rev())
            .all(|(s, l)| s == l || *s == Dim::Const(1))
}
