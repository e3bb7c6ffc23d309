//! What happens alike to all rows of a stack happens to the stack; and a stack of all rows of another, in order, is the other.

use std::collections::{BTreeMap, HashMap, HashSet};

use ir::{Function, Op, ValueId};

use super::remove;
use super::rows::{height, parts_of, row, row_of, shared};
use crate::order::{makers, sort};
use crate::schedule::expression::is_elementwise;

pub fn lift(f: &mut Function) {
    while unstack_one(f) || lift_one(f) {}
}

/// Does an op treat a row without looking at others, whatever lies in front of the last dimension?
fn is_by_row(op: &Op) -> bool {
    !op.operands.is_empty() && (is_elementwise(&op.name) || matches!(op.name.as_str(), "rms_norm" | "rms_scale"))
}

/// An op's operands: a row of a stack, or what all rows share.
type Operands = Vec<(ValueId, bool)>;

/// An op on row `place` of some stacks.
struct Alike {
    place: i64,
    at: usize,
}

fn lift_one(f: &mut Function) -> bool {
    let made_by = makers(f);
    let mut alike: BTreeMap<String, (Operands, Vec<Alike>)> = BTreeMap::new();
    for (at, op) in f.ops.iter().enumerate().filter(|(_, op)| is_by_row(op)) {
        let Some((place, operands)) = on_rows(f, &made_by, op) else {
            continue;
        };
        let key = format!("{} {:?} {operands:?}", op.name, op.attrs);
        let group = alike.entry(key).or_insert_with(|| (operands, vec![]));
        group.1.push(Alike { place, at });
    }
    let mut groups: Vec<(Operands, Vec<Alike>)> = alike.into_values().collect();
    groups.sort_by_key(|(_, group)| group[0].at);
    for (operands, group) in groups {
        let first = f.ops[group[0].at].clone();
        let part = f.ty(first.results[0]).clone();
        let places: HashSet<i64> = group.iter().map(|g| g.place).collect();
        let stacks = operands.iter().filter(|(_, is_row)| *is_row);
        let mut heights = stacks.map(|(v, _)| height(f, *v, &part));
        let whole = heights.all(|h| h == Some(places.len() as i64)) && places.len() == group.len();
        if !whole {
            continue;
        }
        let mut wholes = vec![];
        for (v, is_row) in operands {
            wholes.push(if is_row { v } else { shared(f, v) });
        }
        // An op that wants operands of a rank stays as it is.
        let Ok(all) = f.try_op(&first.name, &wholes, first.attrs.clone()) else {
            continue;
        };
        for g in &group {
            let result = f.ops[g.at].results[0];
            row(f, all, g.place as usize, result);
        }
        let old: Vec<usize> = group.iter().map(|g| g.at).collect();
        remove(f, &old);
        sort(f);
        return true;
    }
    false
}

/// Which row the op treats, and its operands with their rows taken off.
fn on_rows(f: &Function, made_by: &HashMap<ValueId, usize>, op: &Op) -> Option<(i64, Operands)> {
    let result = f.ty(op.results[0]);
    let mut place = None;
    let mut operands = vec![];
    for v in &op.operands {
        let row = row_of(f, made_by, *v).filter(|_| f.ty(*v).rank() == result.rank());
        let Some((all, i)) = row else {
            // What is broadcast keeps its place beside the last dimension.
            let is_shared = f.ty(*v).rank() <= 1 || f.ty(*v).rank() == result.rank();
            if !is_shared {
                return None;
            }
            operands.push((*v, false));
            continue;
        };
        if place.is_some_and(|p| p != i) {
            return None;
        }
        place = Some(i);
        operands.push((all, true));
    }
    Some((place?, operands))
}

fn unstack_one(f: &mut Function) -> bool {
    let made_by = makers(f);
    for (i, op) in f.ops.iter().enumerate() {
        let Some(parts) = parts_of(f, &made_by, op) else {
            continue;
        };
        let rows: Option<Vec<(ValueId, i64)>> = parts.iter().map(|v| row_of(f, &made_by, *v)).collect();
        let Some(rows) = rows.filter(|rows| !rows.is_empty()) else {
            continue;
        };
        let whole = rows[0].0;
        let in_order = rows.iter().enumerate().all(|(n, r)| *r == (whole, n as i64));
        if in_order && f.ty(whole) == f.ty(op.results[0]) {
            let old = op.results[0];
            f.ops.remove(i);
            let operands = f.ops.iter_mut().flat_map(|op| &mut op.operands);
            let returns = f.returns.iter_mut().map(|(_, v)| v);
            operands.chain(returns).filter(|v| **v == old).for_each(|v| *v = whole);
            return true;
        }
    }
    false
}
