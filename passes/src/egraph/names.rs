//! Which ops have a term, and which dimensions of a function must share a name.

use ir::{Function, Op, ValueId};

use super::import::{edges, transposed};
use crate::attrs::{int, ints};

/// Ops that have a term. A matmul by a weight has none: where activations meet a weight, data crosses rows of the batch, and
/// kernels end there. Neither has what moves data between positions.
pub fn is_term(f: &Function, op: &Op) -> bool {
    match op.name.as_str() {
        "add" | "sub" | "mul" | "div" | "max" | "neg" | "exp" | "log" | "rsqrt" | "sigmoid" | "silu" | "cast"
        | "softmax" | "reduce_sum" | "reduce_max" | "transpose" => f.ty(op.results[0]).dtype.is_float(),
        "constant" => f.ty(op.results[0]).dtype.is_float(),
        // A domain's cells fit a word.
        "where" => f.ty(op.results[0]).dtype.is_float() && is_mask(f, op.operands[0]) && edges(f).len() < 63,
        "matmul" => f.ty(op.operands[1]).rank() > 2,
        "reshape" => same_but_ones(f, op).is_some(),
        _ => false,
    }
}

pub fn is_one(f: &Function, v: ValueId, d: usize) -> bool {
    f.ty(v).shape[d].size().as_const() == Some(1)
}

/// The dimension of the first operand that the op runs over.
pub fn reduced(f: &Function, op: &Op) -> Option<usize> {
    match op.name.as_str() {
        "reduce_sum" | "reduce_max" => Some(int(op, "axis") as usize),
        "softmax" | "matmul" => Some(f.ty(op.operands[0]).rank() - 1),
        _ => None,
    }
}

pub fn is_mask(f: &Function, v: ValueId) -> bool {
    f.ops.iter().any(|o| o.results[0] == v && o.name == "mask")
}

/// For a reshape that only adds or drops dimensions of size 1: the operand's dimension for each of the result's.
///
/// A one of the result is a one of the operand's in the same place, from the right, as far as there are any: keys stay keys if there
/// is only one.
pub fn same_but_ones(f: &Function, op: &Op) -> Option<Vec<Option<usize>>> {
    let (from, to) = (op.operands[0], op.results[0]);
    let mut list = vec![None; f.ty(to).rank()];
    let mut left = f.ty(from).rank();
    for (d, own) in list.iter_mut().enumerate().rev() {
        let wanted = is_one(f, to, d);
        while !wanted && left > 0 && is_one(f, from, left - 1) {
            left -= 1;
        }
        if left > 0 && f.ty(from).shape[left - 1] == f.ty(to).shape[d] {
            left -= 1;
            *own = Some(left);
        } else if !wanted {
            return None;
        }
    }
    (0..left).all(|d| is_one(f, from, d)).then_some(list)
}

/// Dimensions that must have one name, by union-find over (value, dimension).
pub struct Names {
    offset: Vec<usize>,
    parent: Vec<usize>,
}

impl Names {
    pub fn new(f: &Function) -> Names {
        let mut offset = vec![];
        let mut n = 0;
        for v in &f.values {
            offset.push(n);
            n += v.ty.rank();
        }
        let mut names = Names {
            offset,
            parent: (0..n).collect(),
        };
        for op in f.ops.iter().filter(|op| is_term(f, op) || op.name == "mask") {
            names.op(f, op);
        }
        names
    }

    pub fn find(&self, v: ValueId, d: usize) -> usize {
        let mut at = self.offset[v.0 as usize] + d;
        while self.parent[at] != at {
            at = self.parent[at];
        }
        at
    }

    fn join(&mut self, a: (ValueId, usize), b: (ValueId, usize)) {
        let (a, b) = (self.find(a.0, a.1), self.find(b.0, b.1));
        self.parent[a.max(b)] = a.min(b);
    }

    fn op(&mut self, f: &Function, op: &Op) {
        let Some(&to) = op.results.first() else { return };
        let rank = f.ty(to).rank();
        // Broadcast dimensions stay apart; ones that meet ones are joined, since a reduction may run over them.
        let alike = |v: ValueId, d: usize| is_one(f, v, d) == is_one(f, to, d + rank - f.ty(v).rank());
        match op.name.as_str() {
            "transpose" => {
                for (d, p) in ints(op, "perm").iter().enumerate() {
                    self.join((to, d), (op.operands[0], *p as usize));
                }
            }
            "reshape" => {
                for (d, o) in same_but_ones(f, op).into_iter().flatten().enumerate() {
                    if let Some(o) = o {
                        self.join((to, d), (op.operands[0], o));
                    }
                }
            }
            "matmul" => {
                let (a, b) = (op.operands[0], op.operands[1]);
                let (ra, rb) = (f.ty(a).rank(), f.ty(b).rank());
                let (n, k) = if transposed(op) {
                    (rb - 2, rb - 1)
                } else {
                    (rb - 1, rb - 2)
                };
                self.join((a, ra - 1), (b, k));
                self.join((to, rank - 1), (b, n));
                for d in 0..ra - 1 {
                    if alike(a, d) {
                        self.join((to, d + rank - ra), (a, d));
                    }
                }
                for d in (0..rb - 2).filter(|d| alike(b, *d)) {
                    self.join((to, d + rank - rb), (b, d));
                }
            }
            "constant" | "mask" => {}
            _ => {
                for v in &op.operands {
                    let skip = rank - f.ty(*v).rank();
                    for d in (0..f.ty(*v).rank()).filter(|d| alike(*v, *d)) {
                        self.join((to, d + skip), (*v, d));
                    }
                }
            }
        }
    }
}
