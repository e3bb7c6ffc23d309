//! The order of a function's ops: who makes a value, putting ops behind what they read; and who calls whom.

use std::collections::{HashMap, HashSet};

use ir::{Attr, Function, Module, Op, ValueId};

/// The place of the op that makes a value.
pub fn makers(f: &Function) -> HashMap<ValueId, usize> {
    let each = f.ops.iter().enumerate();
    each.flat_map(|(i, op)| op.results.iter().map(move |v| (*v, i)))
        .collect()
}

/// Every op behind its operands, otherwise in the order it stood.
pub fn sort(f: &mut Function) {
    let defined_by = makers(f);
    let mut done = vec![false; f.ops.len()];
    let mut order = vec![];
    for root in 0..f.ops.len() {
        let mut stack = vec![root];
        while let Some(&at) = stack.last() {
            if done[at] {
                stack.pop();
                continue;
            }
            let operands = f.ops[at].operands.iter().filter_map(|v| defined_by.get(v).copied());
            let mut waits: Vec<usize> = operands.filter(|i| !done[*i]).collect();
            if waits.is_empty() {
                done[at] = true;
                order.push(at);
                stack.pop();
            } else {
                waits.reverse();
                stack.extend(waits);
            }
        }
    }
    let mut ops: Vec<Option<Op>> = std::mem::take(&mut f.ops).into_iter().map(Some).collect();
    f.ops = order.into_iter().filter_map(|i| ops[i].take()).collect();
}

/// The functions that others call.
pub fn called(module: &Module) -> HashSet<String> {
    let ops = module.functions.iter().flat_map(|f| &f.ops);
    let callees = ops
        .filter(|op| op.name == "call")
        .filter_map(|op| match op.attrs.get("callee") {
            Some(Attr::Str(name)) => Some(name.clone()),
            _ => None,
        });
    callees.collect()
}
