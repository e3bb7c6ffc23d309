//! `join-projections`: matmuls of one activation by several weights become one matmul by the weights stacked (q | k | v).
//!
//! The stack is made when weights are loaded. Results that meet again element by element (gate and up) are left alone: one kernel
//! computes both, see `schedule::groups`.

use ir::{Attr, Attrs, Function, Op, Param, TensorType, ValueId};

use crate::schedule::expression::is_elementwise;
use crate::schedule::flag;
use crate::{Pass, PassError};

pub const JOIN_PROJECTIONS: Pass = Pass {
    name: "join-projections",
    about: "multiply an activation once by all weights that it meets",
    run: |module| module.functions.iter_mut().try_for_each(join),
};

fn join(f: &mut Function) -> Result<(), PassError> {
    let mut at = 0;
    while at < f.ops.len() {
        let group = group(f, at);
        if group.len() < 2 {
            at += 1;
            continue;
        }
        let failed = |e: String| PassError(format!("joined matmul: {e}"));
        let matmuls: Vec<Op> = group.iter().map(|i| f.ops[*i].clone()).collect();
        let weights: Vec<ValueId> = matmuls.iter().map(|m| m.operands[1]).collect();
        let rest = f.ops.split_off(at);
        let stacked = f
            .try_op("concat", &weights, Attrs::from([("axis".to_string(), Attr::Int(0))]))
            .map_err(failed)?;
        let all = f
            .try_op("matmul", &[matmuls[0].operands[0], stacked], matmuls[0].attrs.clone())
            .map_err(failed)?;
        let mut begin = 0;
        for m in &matmuls {
            // The slice takes the matmul's place under its name.
            let ty: TensorType = f.ty(m.results[0]).clone();
            let axis = ty.rank() as i64 - 1;
            let n = ty.shape[axis as usize].size().coef;
            f.ops.push(Op {
                name: "slice".to_string(),
                operands: vec![all],
                attrs: Attrs::from([
                    ("axis".to_string(), Attr::Int(axis)),
                    ("begin".to_string(), Attr::Int(begin)),
                    ("type".to_string(), Attr::Type(ty)),
                ]),
                results: m.results.clone(),
            });
            begin += n;
        }
        let from = at;
        at = f.ops.len();
        let others = rest
            .into_iter()
            .enumerate()
            .filter(|(i, _)| !group.contains(&(i + from)));
        f.ops.extend(others.map(|(_, op)| op));
    }
    Ok(())
}

/// The matmul at `at` and those behind it that join it.
fn group(f: &Function, at: usize) -> Vec<usize> {
    let joins = |op: &Op| {
        let weight = |v: &ValueId| {
            f.params
                .iter()
                .any(|(p, kind)| p == v && matches!(kind, Param::Weight(_)))
        };
        op.name == "matmul"
            && flag(op, "transpose_b")
            && weight(&op.operands[1])
            && f.ty(op.operands[1]).rank() == 2
            && f.ty(op.results[0]).rank() > 1
            && !f.returns.iter().any(|(_, v)| *v == op.results[0])
            && !f
                .ops
                .iter()
                .any(|r| r.operands.contains(&op.results[0]) && is_elementwise(&r.name))
    };
    let first = &f.ops[at];
    if !joins(first) {
        return vec![];
    }
    let mut seen = vec![];
    (at..f.ops.len())
        .filter(|i| {
            let op = &f.ops[*i];
            let like = joins(op)
                && op.operands[0] == first.operands[0]
                && op.attrs == first.attrs
                && f.ty(op.operands[1]).dtype == f.ty(first.operands[1]).dtype
                && !seen.contains(&op.operands[1]);
            if like {
                seen.push(op.operands[1]);
            }
            like
        })
        .collect()
}
