//! What a function hands to its backward twin instead of having it computed again.
//!
//! Candidates are what is dear to make: products and reductions over keys. What is cheap is computed again from them: a stored
//! activation is written and read, and an element-wise chain is read by the kernel that needs it anyway. Under a limit those go first
//! that save the fewest operations per byte.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::graph::{Attr, Function, Op, Param, ValueId};
use crate::types::{DType, Sizes, TensorType};

use super::Keeping;
use super::lives::bytes;

/// A value that is kept, and the type it has meanwhile.
pub(super) type Kept = (ValueId, DType);

/// The type that the result of an op is kept in.
fn kept_in(f: &Function, op: &Op, v: ValueId, keeping: Keeping) -> DType {
    let own = f.ty(v).dtype;
    let rounded = matches!(op.name.as_str(), "matmul" | "mean") && keeping.dtype.bytes() < own.bytes();
    if rounded { keeping.dtype } else { own }
}

/// Is its result worth memory?
fn is_dear(op: &Op) -> bool {
    matches!(op.name.as_str(), "matmul" | "mean" | "lse" | "softmax")
}

/// Operations that an op takes, roughly.
fn operations(f: &Function, op: &Op, sizes: &Sizes) -> f64 {
    let out = op
        .results
        .first()
        .map_or(0.0, |v| bytes(f, *v, sizes) as f64 / f.ty(*v).dtype.bytes() as f64);
    match op.name.as_str() {
        "matmul" => {
            let k = f
                .ty(op.operands[0])
                .shape
                .last()
                .and_then(|d| d.size().eval(sizes))
                .unwrap_or(1);
            2.0 * out * k as f64
        }
        // Each row meets all keys that it sees.
        "mean" | "lse" => {
            let state = &f.ty(op.operands[0]).shape;
            let rows = state
                .iter()
                .rev()
                .nth(1)
                .and_then(|d| d.size().eval(sizes))
                .unwrap_or(1);
            let depth = state.last().and_then(|d| d.size().eval(sizes)).unwrap_or(1);
            let row = if op.name == "lse" { depth } else { 1 };
            2.0 * out * rows as f64 * row as f64
        }
        _ => 8.0 * out,
    }
}

/// Values of the ops before `forward` that the ops behind need and that are to be kept.
pub(super) fn choose(f: &Function, forward: usize, keeping: Keeping, sizes: &Sizes) -> Vec<Kept> {
    let maker: HashMap<ValueId, usize> = f.ops[..forward]
        .iter()
        .enumerate()
        .flat_map(|(i, op)| op.results.iter().map(move |v| (*v, i)))
        .collect();
    let needed: BTreeSet<ValueId> = f.ops[forward..]
        .iter()
        .flat_map(|op| op.operands.iter().copied())
        .chain(f.returns.iter().map(|r| r.1))
        .filter(|v| maker.contains_key(v))
        .collect();
    let mut given_up: HashSet<ValueId> = HashSet::new();
    loop {
        // Dear values on the way back from what is needed.
        let mut kept: BTreeSet<ValueId> = BTreeSet::new();
        let mut seen: HashSet<ValueId> = HashSet::new();
        let mut stack: Vec<ValueId> = needed.iter().copied().collect();
        while let Some(v) = stack.pop() {
            let Some(op) = maker.get(&v).map(|i| &f.ops[*i]).filter(|_| seen.insert(v)) else {
                continue;
            };
            if is_dear(op) && !given_up.contains(&v) {
                kept.insert(v);
            } else {
                stack.extend(&op.operands);
            }
        }
        let dtype = |v: &ValueId| kept_in(f, &f.ops[maker[v]], *v, keeping);
        let room = |v: &ValueId| bytes(f, *v, sizes) / f.ty(*v).dtype.bytes() * dtype(v).bytes();
        if kept.iter().map(room).sum::<i64>() as u64 <= keeping.memory {
            return kept.into_iter().map(|v| (v, dtype(&v))).collect();
        }
        let worth = |v: &ValueId| operations(f, &f.ops[maker[v]], sizes) / room(v).max(1) as f64;
        let least = kept.iter().copied().min_by(|a, b| worth(a).total_cmp(&worth(b)));
        given_up.extend(least);
    }
}

/// The function that computes `f`'s ops before `forward` and returns what `original` returned, then the kept values.
pub(super) fn keeper(original: &Function, f: &Function, forward: usize, kept: &[Kept], name: String) -> Function {
    let mut out = f.clone();
    out.name = name;
    out.ops.truncate(forward);
    out.params = original.params.clone();
    out.returns = original.returns.clone();
    for (i, (v, dtype)) in kept.iter().enumerate() {
        let v = out.cast(*v, *dtype);
        out.returns(&format!("kept.{i}"), v);
    }
    out
}

/// Makes the kept values parameters of the twin.
pub(super) fn given(twin: &mut Function, kept: &[Kept]) {
    twin.ops
        .retain(|op| !op.results.iter().any(|v| kept.iter().any(|(k, _)| k == v)));
    let mut widened = vec![];
    for (i, (v, dtype)) in kept.iter().enumerate() {
        let ty = twin.ty(*v).clone();
        let param = if ty.dtype == *dtype {
            *v
        } else {
            let param = twin.new_value(
                TensorType {
                    dtype: *dtype,
                    ..ty.clone()
                },
                None,
            );
            widened.push(Op {
                name: "cast".to_string(),
                operands: vec![param],
                attrs: [("dtype".to_string(), Attr::Str(ty.dtype.name().to_string()))].into(),
                results: vec![*v],
            });
            param
        };
        twin.params.push((param, Param::Input(format!("kept.{i}"))));
    }
    twin.ops.splice(0..0, widened);
}
