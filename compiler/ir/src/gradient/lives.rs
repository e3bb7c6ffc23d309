//! The order of a gradient's ops: what frees memory comes as early as it can. Changes no value.
//!
//! The walk back appends its ops to a whole forward, so that every value of the forward would wait for the end. Where the loss is
//! summed from parts (blocks of rows whose logits are large), a part's backward can follow its forward at once.

use std::collections::{HashMap, HashSet};

use crate::graph::{Function, Op, ValueId};
use crate::types::Sizes;

/// Typical sizes, only to compare values of unlike symbols.
pub(super) fn typical() -> Sizes {
    [("B", 1), ("T", 512), ("S", 1024), ("C", 4096)]
        .map(|(k, v)| (k.to_string(), v))
        .into()
}

pub(super) fn bytes(f: &Function, v: ValueId, sizes: &Sizes) -> i64 {
    let ty = f.ty(v);
    ty.elements()
        .eval(sizes)
        .unwrap_or(i64::MAX / 1024)
        .saturating_mul(ty.dtype.bytes())
}

/// Lists the ops anew: of those whose operands are there, the one that adds least to the values that wait; the earlier one if equal.
/// Functions that write states keep their order.
pub fn shorten(f: &mut Function) {
    if f.ops.iter().any(Op::writes_state) {
        return;
    }
    let sizes = typical();
    let mut uses: HashMap<ValueId, usize> = HashMap::new();
    let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for (i, op) in f.ops.iter().enumerate() {
        for v in op.operands.iter().collect::<HashSet<_>>() {
            *uses.entry(*v).or_default() += 1;
            readers.entry(*v).or_default().push(i);
        }
    }
    for (_, v) in &f.returns {
        *uses.entry(*v).or_default() += 1;
    }
    let made: HashSet<ValueId> = f.ops.iter().flat_map(|op| op.results.iter().copied()).collect();
    let mut missing: Vec<usize> = f
        .ops
        .iter()
        .map(|op| distinct(op).filter(|v| made.contains(v)).count())
        .collect();
    let mut ready: Vec<usize> = (0..f.ops.len()).filter(|i| missing[*i] == 0).collect();
    let mut order = vec![];
    while !ready.is_empty() {
        let growth = |i: usize| -> i64 {
            let op = &f.ops[i];
            let new: i64 = op.results.iter().map(|v| bytes(f, *v, &sizes)).sum();
            let last = distinct(op).filter(|v| made.contains(v) && uses[v] == 1);
            new - last.map(|v| bytes(f, v, &sizes)).sum::<i64>()
        };
        let best = ready.iter().copied().min_by_key(|i| (growth(*i), *i)).unwrap_or(0);
        ready.retain(|i| *i != best);
        order.push(best);
        for v in distinct(&f.ops[best]) {
            if let Some(n) = uses.get_mut(&v) {
                *n -= 1;
            }
        }
        for v in &f.ops[best].results {
            for reader in readers.get(v).into_iter().flatten() {
                missing[*reader] -= 1;
                if missing[*reader] == 0 {
                    ready.push(*reader);
                }
            }
        }
    }
    let mut ops: Vec<Option<Op>> = std::mem::take(&mut f.ops).into_iter().map(Some).collect();
    f.ops = order.into_iter().filter_map(|i| ops[i].take()).collect();
}

fn distinct(op: &Op) -> impl Iterator<Item = ValueId> + '_ {
    let all = op.operands.iter().enumerate();
    all.filter(|(i, v)| !op.operands[..*i].contains(v)).map(|(_, v)| *v)
}
