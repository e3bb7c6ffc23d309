//! Which ops share a kernel: an op waits if every reader of its value will be computed in one kernel that can hold it too.
//!
//! A kernel has one root, whose shape it runs over. Element-wise ops, reductions of rows, sweeps and one matmul may wait in it.

use std::collections::{HashMap, HashSet};

use ir::{DType, Dim, Function, Op, ValueId};

use super::Scheduling;
use super::expression::is_elementwise;
use crate::attrs::{flag, int};
use crate::fold_norms::made_at_load;

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
                && !op.writes_state()
                && !returned.contains(&v)
                && read.iter().all(|(r, at)| absorbs(&groups, &f.ops[*r], *at, options));
            let wanted: HashSet<ValueId> = read.iter().filter_map(|(r, _)| root.get(r).copied()).collect();
            let free = matches!(
                op.name.as_str(),
                "constant" | "mask" | "one_hot" | "is_target" | "sweep"
            );
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
            // What a matmul rounds as it reads: a value whose norm has moved past the product.
            if op.name == "cast" && options.epilogues && !returned.contains(&v) && is_rounded_row(f, op, read) {
                groups.waiting.insert(v);
                root.insert(i, v);
                continue;
            }
            let alone = !options.epilogues && read.len() > 1;
            let joined = match wanted.iter().next() {
                Some(&r) if all_absorb && wanted.len() == 1 && !alone => {
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

fn maker(f: &Function, v: ValueId) -> Option<&Op> {
    f.ops.iter().find(|op| op.results.first() == Some(&v))
}

/// Is the op a cast of rows that an `rms_scale` measures, read by nothing but matmuls by weights?
fn is_rounded_row(f: &Function, op: &Op, read: &[(usize, usize)]) -> bool {
    let x = op.operands[0];
    let by_weight = |(r, at): &(usize, usize)| {
        let reader = &f.ops[*r];
        reader.name == "matmul" && *at == 0 && flag(reader, "transpose_b") && made_at_load(f, reader.operands[1])
    };
    let measured = f.ops.iter().any(|o| o.name == "rms_scale" && o.operands[0] == x);
    let types = (f.ty(x).dtype, f.ty(op.results[0]).dtype);
    types == (DType::F32, DType::BF16) && measured && !read.is_empty() && read.iter().all(by_weight)
}

/// Does the contraction of a matmul by weights read the rows that `rms_scale` measures?
fn measures(f: &Function, scale: &Op, matmul: ValueId) -> bool {
    let Some(matmul) = maker(f, matmul) else { return false };
    let a = matmul.operands[0];
    let cast = maker(f, a).filter(|op| op.name == "cast").map(|op| op.operands[0]);
    let by_weight = flag(matmul, "transpose_b") && made_at_load(f, matmul.operands[1]);
    by_weight && (a == scale.operands[0] || cast == Some(scale.operands[0]))
}

/// A loss walks the columns of its logits once, so that they need no memory: the matmul, or the matmul by its rows' scales.
fn fits_loss(f: &Function, op: &Op, logits: ValueId, held: &Held) -> bool {
    let is = |v: ValueId, name: &str| maker(f, v).is_some_and(|op| op.name == name);
    match op.name.as_str() {
        "matmul" => held.matmul.is_none() && f.ty(op.results[0]).shape == f.ty(logits).shape,
        "mul" => op.results[0] == logits && is(op.operands[0], "matmul") && is(op.operands[1], "rms_scale"),
        "rms_scale" => held.matmul.is_some_and(|m| measures(f, op, m)),
        _ => false,
    }
}

/// Can the kernel of `reader` compute its operand `at` itself?
fn absorbs(groups: &Groups, reader: &Op, at: usize, options: &Scheduling) -> bool {
    match reader.name.as_str() {
        name if is_elementwise(name) => true,
        "mean" | "lse" => true,
        "cross_entropy" => at == 0 && options.epilogues,
        "update" => at == 1,
        "sweep" => flag(reader, "continues") && at + 1 == reader.operands.len(),
        // A reduction that is a kernel of its own reads memory.
        "reduce_sum" | "reduce_max" => groups.waits(reader.results[0]),
        _ => false,
    }
}

/// May `op` be computed in the kernel with this root?
fn fits(f: &Function, op: &Op, root: ValueId, held: &Held, options: &Scheduling) -> bool {
    if let Some(loss) = maker(f, root).filter(|op| op.name == "cross_entropy") {
        return fits_loss(f, op, loss.operands[0], held);
    }
    let (shape, over) = (&f.ty(op.results[0]).shape, &f.ty(root).shape);
    if !broadcasts(shape, over) {
        return false;
    }
    match op.name.as_str() {
        name if is_elementwise(name) => true,
        "rms_scale" => options.epilogues && held.matmul.is_some_and(|m| measures(f, op, m)),
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
            // Where a backward wants masses, all that it wants of the sweeps is stored by one kernel.
            let stored = f.ops.iter().any(|op| op.name == "lse");
            options.epilogues && shape == over && held.matmul.is_none() && one && alike && !stored
        }
        _ => false,
    }
}

/// Do two matmuls multiply the same rows by two weights of one type?
fn twins(f: &Function, op: &Op, first: ValueId) -> bool {
    let weight = |v: ValueId| made_at_load(f, v).then(|| f.ty(v).clone());
    let Some(other) = maker(f, first) else {
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
