//! `join-projections`: matmuls of one activation by several weights become one matmul by the weights stacked (q | k | v).
//!
//! The stack is made when weights are loaded; weights that are trained are rounded straight into it. Results that meet again element by
//! element (gate and up) are left alone: one kernel computes both, see `schedule::groups`.

use std::collections::HashSet;

use ir::{DType, Function, Op, ValueId};

use crate::attrs::flag;
use crate::order::{called, sort};
use crate::schedule::expression::is_elementwise;
use crate::stack::{self, Source};
use crate::{Pass, PassError};

pub const JOIN_PROJECTIONS: Pass = Pass {
    name: "join-projections",
    about: "multiply an activation once by all weights that it meets",
    run: |module| {
        let called = called(module);
        for f in &mut module.functions {
            let is_called = called.contains(&f.name);
            while let Some(group) = (0..f.ops.len()).find_map(|at| group(f, at, is_called)) {
                join(f, &group).map_err(|e| PassError(format!("joined matmul: {e}")))?;
            }
        }
        Ok(())
    },
};

/// One matmul in the place of the first; the others' results are slices of its columns.
fn join(f: &mut Function, group: &[usize]) -> Result<(), String> {
    let matmuls: Vec<Op> = group.iter().map(|i| f.ops[*i].clone()).collect();
    let from = group.iter().copied().min().unwrap_or_default();
    let rest = f.ops.split_off(from);
    let weights: Vec<ValueId> = matmuls.iter().map(|m| m.operands[1]).collect();
    let stacked = stack::concat(f, &weights, 0)?;
    let all = f.try_op("matmul", &[matmuls[0].operands[0], stacked], matmuls[0].attrs.clone())?;
    let results: Vec<ValueId> = matmuls.iter().map(|m| m.results[0]).collect();
    let columns = f.ty(all).rank() - 1;
    stack::slices(f, all, columns, &results);
    let others = rest.into_iter().enumerate();
    let others = others.filter(|(i, _)| !group.contains(&(i + from)));
    f.ops.extend(others.map(|(_, op)| op));
    stack::read_rows(f, stacked, &weights);
    sort(f);
    Ok(())
}

/// The matmul at `at` and those behind it that join it, in the order of their weights.
fn group(f: &Function, at: usize, is_called: bool) -> Option<Vec<usize>> {
    let first = joins(f, &f.ops[at], is_called)?;
    let mut alike: Vec<(usize, usize)> = vec![];
    for i in at..f.ops.len() {
        let (op, one) = (&f.ops[i], &f.ops[at]);
        let same = op.operands.first() == one.operands.first() && op.attrs == one.attrs;
        let Some(joins) = Some(op).filter(|_| same).and_then(|op| joins(f, op, is_called)) else {
            continue;
        };
        let again = alike
            .iter()
            .any(|(_, other)| f.ops[*other].operands[1] == op.operands[1]);
        if joins.of == first.of && joins.kept == first.kept && joins.dtype == first.dtype && !again {
            alike.push((joins.place, i));
        }
    }
    let made: Vec<HashSet<usize>> = alike.iter().map(|(_, i)| made_of(f, f.ops[*i].results[0])).collect();
    let meets = |n: &usize| {
        made.iter()
            .enumerate()
            .any(|(m, other)| m != *n && !made[*n].is_disjoint(other))
    };
    let mut group: Vec<(usize, usize)> = (0..alike.len()).filter(|n| !meets(n)).map(|n| alike[n]).collect();
    group.sort_unstable();
    let group: Vec<usize> = group.into_iter().map(|(_, i)| i).collect();
    let weights: Vec<ValueId> = group.iter().map(|i| f.ops[*i].operands[1]).collect();
    (group.len() > 1 && group.contains(&at) && stack::is_free(f, &weights)).then_some(group)
}

/// What matmuls of a group have in common, beside their operand and attributes.
struct Joins {
    of: Source,
    place: usize,
    dtype: DType,
    /// What is kept for a backward is kept whole, so nothing else is kept with it.
    kept: bool,
}

fn joins(f: &Function, op: &Op, is_called: bool) -> Option<Joins> {
    if op.name != "matmul" || !flag(op, "transpose_b") || f.ty(op.results[0]).rank() < 2 {
        return None;
    }
    let kept = f.returns.iter().any(|(_, v)| *v == op.results[0]);
    // A caller reads slices; what leaves the program would be copied.
    let stays = !kept || is_called;
    let (of, place) = stack::source(f, op.operands[1]).filter(|_| stays)?;
    let dtype = f.ty(op.operands[1]).dtype;
    Some(Joins { of, place, dtype, kept })
}

/// The element-wise ops that a value reaches through element-wise ops.
fn made_of(f: &Function, v: ValueId) -> HashSet<usize> {
    let mut values = HashSet::from([v]);
    let mut ops = HashSet::new();
    for (i, op) in f.ops.iter().enumerate() {
        if is_elementwise(&op.name) && op.operands.iter().any(|v| values.contains(v)) {
            values.extend(&op.results);
            ops.insert(i);
        }
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::{Module, Param, TensorType};

    /// q, k, gate and up of one activation; `trained` weights are states that are rounded.
    fn layer(trained: bool, kept: &[&str]) -> Function {
        let mut f = Function::new("layer");
        let ty = TensorType::new([2i64, 3, 8], DType::BF16);
        let x = f.param("x", ty, Param::Input("x".into()));
        let mut results = vec![];
        for (name, n) in [("q", 8i64), ("k", 4), ("gate", 12), ("up", 12)] {
            let weight = if trained {
                let w = f.param(name, TensorType::new([n, 8], DType::F32), Param::State(name.into()));
                f.cast(w, DType::BF16)
            } else {
                f.param(name, TensorType::new([n, 8], DType::BF16), Param::Weight(name.into()))
            };
            results.push(f.matmul(x, weight, true, DType::F32));
        }
        let silu = f.unary("silu", results[2]);
        let h = f.mul(silu, results[3]);
        f.returns("h", h);
        for (name, v) in ["q", "k"].into_iter().zip(&results) {
            // Element by element, but apart.
            let y = f.cast(*v, DType::BF16);
            f.returns(name, y);
            if kept.contains(&name) {
                f.returns(&format!("kept.{name}"), *v);
            }
        }
        f
    }

    /// How many matmuls are left, and how many rows the stack has.
    fn joined(layer: Function) -> (usize, Option<i64>) {
        let x = layer.ty(layer.params[0].0).clone();
        let mut main = Function::new("main");
        let x = main.param("x", x, Param::Input("x".into()));
        let results = main.call(&layer, 0, &[x]);
        main.returns("h", results[0]);
        let mut module = Module {
            functions: vec![layer, main],
        };
        (JOIN_PROJECTIONS.run)(&mut module).unwrap();
        assert_eq!(ir::verify::verify(&module), [], "{module}");
        let f = &module.functions[0];
        let rows = f.ops.iter().find(|op| op.name == "concat");
        let rows = rows.and_then(|op| f.ty(op.results[0]).shape[0].size().as_const());
        (f.ops.iter().filter(|op| op.name == "matmul").count(), rows)
    }

    #[test]
    fn results_that_meet_are_left_alone() {
        for trained in [false, true] {
            assert_eq!(joined(layer(trained, &[])), (3, Some(12)));
        }
    }

    #[test]
    fn what_is_kept_is_kept_alone() {
        assert_eq!(joined(layer(false, &["q"])), (4, None));
        assert_eq!(joined(layer(false, &["q", "k"])), (3, Some(12)));
    }

    #[test]
    fn what_leaves_the_program_is_no_slice() {
        let mut module = Module {
            functions: vec![layer(false, &["q", "k"])],
        };
        let before = module.to_string();
        (JOIN_PROJECTIONS.run)(&mut module).unwrap();
        assert_eq!(module.to_string(), before);
    }
}
