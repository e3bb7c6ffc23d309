//! `join-rows`: matmuls by one weight that do not wait for each other become one over all their rows (the trips of `restart`).
//!
//! The activations are stacked along a new first dimension, the results are slices of it. What happens alike to all slices then
//! happens to the whole, so that a chain of matmuls and element-wise ops stays joined from end to end.

use std::collections::{HashMap, HashSet};

use ir::{Attr, Attrs, Dim, Function, Op, Size, TensorType, ValueId};

use crate::attrs::{flag, int};
use crate::order::{makers, sort};
use crate::schedule::expression::is_elementwise;
use crate::schedule::view::sizes;
use crate::{Pass, PassError};

pub const JOIN_ROWS: Pass = Pass {
    name: "join-rows",
    about: "read a weight once for all activations that it multiplies",
    run: |module| {
        for f in &mut module.functions {
            while join_one(f)? {}
            while lift_one(f)? {}
            while unstack_one(f) {}
        }
        Ok(())
    },
};

fn failed(e: String) -> PassError {
    PassError(format!("joined rows: {e}"))
}

/// Joins the first matmuls that can be.
fn join_one(f: &mut Function) -> Result<bool, PassError> {
    let needs = dependencies(f);
    for at in 0..f.ops.len() {
        let first = &f.ops[at];
        if !joins(f, first) {
            continue;
        }
        let mut group = vec![at];
        for (i, op) in f.ops.iter().enumerate().skip(at + 1) {
            let like = joins(f, op)
                && op.operands[1] == first.operands[1]
                && op.attrs == first.attrs
                && f.ty(op.operands[0]) == f.ty(first.operands[0])
                && op.operands[0] != first.operands[0]
                && group.iter().all(|g| !needs[i].contains(g));
            if like {
                group.push(i);
            }
        }
        // All operands of the joined matmul come before all that reads any of its results.
        if group.len() > 1 {
            stack(f, &group)?;
            sort(f);
            return Ok(true);
        }
    }
    Ok(false)
}

/// So many rows make up for reading the weight: blocks of rows that a graph keeps apart (a loss that never has all its logits) stay apart.
const ENOUGH: i64 = 256;

fn joins(f: &Function, op: &Op) -> bool {
    let rows = |v: ValueId| Size::product(&sizes(&f.ty(v).shape[..2])).as_const();
    op.name == "matmul"
        && flag(op, "transpose_b")
        && f.ty(op.operands[1]).rank() == 2
        && f.ty(op.operands[0]).rank() == 3
        && rows(op.operands[0]).is_none_or(|n| n < ENOUGH)
}

/// For every op, the ops it cannot run without.
fn dependencies(f: &Function) -> Vec<HashSet<usize>> {
    let made_by = makers(f);
    let mut all: Vec<HashSet<usize>> = vec![];
    for op in &f.ops {
        let mut own = HashSet::new();
        for d in op.operands.iter().filter_map(|v| made_by.get(v)) {
            own.insert(*d);
            own.extend(all[*d].iter().copied());
        }
        all.push(own);
    }
    all
}

/// One matmul over the stacked activations; the old results become slices.
fn stack(f: &mut Function, group: &[usize]) -> Result<(), PassError> {
    let matmuls: Vec<Op> = group.iter().map(|i| f.ops[*i].clone()).collect();
    let parts: Vec<ValueId> = matmuls.iter().map(|m| m.operands[0]).collect();
    let whole = stacked(f, &parts)?;
    let all = f
        .try_op("matmul", &[whole, matmuls[0].operands[1]], matmuls[0].attrs.clone())
        .map_err(failed)?;
    for (i, m) in matmuls.iter().enumerate() {
        slice(f, all, i, m.results[0])?;
    }
    let group: HashSet<usize> = group.iter().copied().collect();
    let mut at = 0;
    f.ops.retain(|_| {
        at += 1;
        !group.contains(&(at - 1))
    });
    Ok(())
}

/// [n, ..] of n values of one type; the one that is there already if there is one.
fn stacked(f: &mut Function, parts: &[ValueId]) -> Result<ValueId, PassError> {
    let made_by = makers(f);
    let source = |v: &ValueId| made_by.get(v).map(|i| &f.ops[*i]).filter(|op| op.name == "reshape");
    for op in f.ops.iter().filter(|op| op.name == "concat" && int(op, "axis") == 0) {
        let sources: Vec<Option<ValueId>> = op.operands.iter().map(|v| Some(source(v)?.operands[0])).collect();
        let rank = f.ty(op.results[0]).rank();
        if sources.iter().copied().eq(parts.iter().map(|p| Some(*p))) && f.ty(parts[0]).rank() + 1 == rank {
            return Ok(op.results[0]);
        }
    }
    let mut rows = vec![];
    for v in parts {
        let mut ty = f.ty(*v).clone();
        ty.shape.insert(0, Dim::Const(1));
        rows.push(f.reshape(*v, ty));
    }
    f.try_op("concat", &rows, Attrs::from([("axis".to_string(), Attr::Int(0))]))
        .map_err(failed)
}

/// `result` becomes row i of `all`.
fn slice(f: &mut Function, all: ValueId, i: usize, result: ValueId) -> Result<(), PassError> {
    let mut ty = f.ty(all).clone();
    ty.shape[0] = Dim::Const(1);
    let row = f.slice(all, 0, i as i64, ty);
    let ty: TensorType = f.ty(result).clone();
    f.ops.push(Op {
        name: "reshape".to_string(),
        operands: vec![row],
        attrs: Attrs::from([("type".to_string(), Attr::Type(ty))]),
        results: vec![result],
    });
    Ok(())
}

/// Row i of which stack a value is.
fn row_of(f: &Function, made_by: &HashMap<ValueId, usize>, v: ValueId) -> Option<(ValueId, i64)> {
    let reshape = &f.ops[*made_by.get(&v)?];
    let slice = &f.ops[*made_by.get(reshape.operands.first()?)?];
    let all = *slice.operands.first()?;
    let is_row = reshape.name == "reshape"
        && slice.name == "slice"
        && int(slice, "axis") == 0
        && f.ty(slice.results[0]).shape[0] == Dim::Const(1)
        && f.ty(all).shape[1..] == f.ty(v).shape[..];
    is_row.then(|| (all, int(slice, "begin")))
}

/// Element-wise ops that do the same to every row of the same stacks become one op on the stacks.
fn lift_one(f: &mut Function) -> Result<bool, PassError> {
    let made_by = makers(f);
    // By op, attributes, and operands with their rows taken off.
    let mut alike: HashMap<String, Vec<(i64, usize)>> = HashMap::new();
    for (i, op) in f.ops.iter().enumerate() {
        if !is_elementwise(&op.name) || op.operands.is_empty() {
            continue;
        }
        let rows: Vec<_> = op.operands.iter().map(|v| row_of(f, &made_by, *v)).collect();
        let mut places = rows.iter().flatten().map(|r| r.1);
        let Some(place) = places.next() else { continue };
        if places.any(|p| p != place) {
            continue;
        }
        let full = |v: &ValueId| f.ty(*v).rank() <= f.ty(op.results[0]).rank();
        if !op.operands.iter().all(full) {
            continue;
        }
        let names: Vec<String> = rows
            .iter()
            .zip(&op.operands)
            .map(|(r, v)| r.map_or(format!("{v:?}"), |(all, _)| format!("row of {all:?}")))
            .collect();
        let key = format!("{} {:?} {names:?}", op.name, op.attrs);
        alike.entry(key).or_default().push((place, i));
    }
    let mut groups: Vec<Vec<(i64, usize)>> = alike.into_values().collect();
    groups.sort();
    for group in groups {
        let first = f.ops[group[0].1].clone();
        let stacks: Vec<_> = first.operands.iter().map(|v| row_of(f, &made_by, *v)).collect();
        let height = stacks
            .iter()
            .flatten()
            .map(|(all, _)| f.ty(*all).shape[0].clone())
            .next();
        let places: HashSet<i64> = group.iter().map(|g| g.0).collect();
        if height != Some(Dim::Const(group.len() as i64)) || places.len() != group.len() {
            continue;
        }
        let operands: Vec<ValueId> = stacks
            .iter()
            .zip(&first.operands)
            .map(|(s, v)| s.map_or(*v, |(all, _)| all))
            .collect();
        let all = f.try_op(&first.name, &operands, first.attrs.clone()).map_err(failed)?;
        let results: Vec<(i64, ValueId)> = group.iter().map(|(p, i)| (*p, f.ops[*i].results[0])).collect();
        let old: HashSet<usize> = group.iter().map(|g| g.1).collect();
        for (place, v) in results {
            slice(f, all, place as usize, v)?;
        }
        let mut at = 0;
        f.ops.retain(|_| {
            at += 1;
            !old.contains(&(at - 1))
        });
        sort(f);
        return Ok(true);
    }
    Ok(false)
}

/// A stack of all rows of another, in order, is the other.
fn unstack_one(f: &mut Function) -> bool {
    let made_by = makers(f);
    for (i, op) in f.ops.iter().enumerate() {
        if op.name != "concat" || int(op, "axis") != 0 {
            continue;
        }
        let rows: Option<Vec<(ValueId, i64)>> = op
            .operands
            .iter()
            .map(|v| {
                let reshape = &f.ops[*made_by.get(v)?];
                (reshape.name == "reshape").then(|| row_of(f, &made_by, reshape.operands[0]))?
            })
            .collect();
        let Some(rows) = rows else { continue };
        let whole = rows[0].0;
        let in_order = rows.iter().enumerate().all(|(n, r)| *r == (whole, n as i64));
        if in_order && f.ty(whole) == f.ty(op.results[0]) {
            let old = op.results[0];
            f.ops.remove(i);
            for op in &mut f.ops {
                op.operands.iter_mut().filter(|v| **v == old).for_each(|v| *v = whole);
            }
            f.returns
                .iter_mut()
                .filter(|(_, v)| *v == old)
                .for_each(|(_, v)| *v = whole);
            return true;
        }
    }
    false
}
