//! `join-rows`: matmuls by one weight that do not wait for each other become one over all their rows (the trips of `restart`).
//!
//! The activations are stacked (`rows`), the results are rows of the stack. What happens alike to all rows then happens to the whole
//! (`lift`), and layers hand the whole on (`carry`), so that matmuls, norms and residuals stay joined from the first layer to the last.

mod carry;
mod lift;
mod rows;

use std::collections::HashSet;

use ir::{Function, Op, Size, ValueId};

use self::rows::{row, stack};
use crate::attrs::flag;
use crate::dce::DCE;
use crate::order::{makers, sort};
use crate::schedule::view::sizes;
use crate::{Pass, PassError};

pub const JOIN_ROWS: Pass = Pass {
    name: "join-rows",
    about: "read a weight once for all activations that it multiplies",
    run: |module| {
        for f in &mut module.functions {
            while join_one(f)? {}
            lift::lift(f);
        }
        carry::carry(module)?;
        // Rows that nobody reads any more would count as readers of a norm.
        (DCE.run)(module)
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
            join(f, &group)?;
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

/// One matmul over the stacked activations; the old results become rows.
fn join(f: &mut Function, group: &[usize]) -> Result<(), PassError> {
    let matmuls: Vec<Op> = group.iter().map(|i| f.ops[*i].clone()).collect();
    let parts: Vec<ValueId> = matmuls.iter().map(|m| m.operands[0]).collect();
    let whole = stack(f, &parts)?;
    let all = f
        .try_op("matmul", &[whole, matmuls[0].operands[1]], matmuls[0].attrs.clone())
        .map_err(failed)?;
    for (i, m) in matmuls.iter().enumerate() {
        row(f, all, i, m.results[0]);
    }
    remove(f, group);
    Ok(())
}

fn remove(f: &mut Function, places: &[usize]) {
    let mut at = 0..;
    f.ops.retain(|_| at.next().is_none_or(|i| !places.contains(&i)));
}
