//! Layers hand stacks on. Where a function that others call has joined rows, the activations that it takes are one parameter and those
//! that it returns one result; callers stack what they give, and take rows of what they get.

use std::collections::BTreeSet;

use ir::{Attr, Function, Module, Op, Param, TensorType, ValueId};

use super::lift::lift;
use super::rows::{parts_of, row, stack, stack_type};
use crate::PassError;
use crate::order::{called, makers, sort};

pub fn carry(module: &mut Module) -> Result<(), PassError> {
    for name in BTreeSet::from_iter(called(module)) {
        let Some(at) = module.functions.iter().position(|f| f.name == name) else {
            continue;
        };
        let callee = &mut module.functions[at];
        let Some(carried) = Carried::of(callee) else { continue };
        carried.inside(callee)?;
        lift(callee);
        for caller in module.functions.iter_mut().filter(|f| f.name != name) {
            while carried.outside(caller, &name)? {}
            lift(caller);
        }
    }
    Ok(())
}

/// Activations that a function takes and gives side by side, by their places among its inputs and its results.
struct Carried {
    part: TensorType,
    inputs: Vec<usize>,
    results: Vec<usize>,
}

impl Carried {
    fn of(f: &Function) -> Option<Carried> {
        let made_by = makers(f);
        let inputs: Vec<ValueId> = inputs(f).collect();
        let of_type = |all: &[ValueId], ty: &TensorType| -> Vec<usize> {
            let places = all.iter().enumerate().filter(|(_, v)| f.ty(**v) == ty);
            places.map(|(i, _)| i).collect()
        };
        let returned: Vec<ValueId> = f.returns.iter().map(|(_, v)| *v).collect();
        let joins = |n: usize| {
            f.ops
                .iter()
                .any(|op| parts_of(f, &made_by, op).is_some_and(|p| p.len() == n))
        };
        inputs.iter().find_map(|v| {
            let part = f.ty(*v).clone();
            let (inputs, results) = (of_type(&inputs, &part), of_type(&returned, &part));
            let carries = inputs.len() > 1 && inputs.len() == results.len() && part.rank() > 1 && joins(inputs.len());
            carries.then_some(Carried { part, inputs, results })
        })
    }

    /// In the function itself.
    fn inside(&self, f: &mut Function) -> Result<(), PassError> {
        let all: Vec<ValueId> = inputs(f).collect();
        let parts: Vec<ValueId> = self.inputs.iter().map(|i| all[*i]).collect();
        let name = free_name(f);
        let whole = f.new_value(stack_type(&self.part, parts.len()), Some(&name));
        let first = f.params.iter().position(|(v, _)| *v == parts[0]).unwrap_or(0);
        f.params[first] = (whole, Param::Input(name.clone()));
        f.params.retain(|(v, _)| !parts.contains(v));
        for (i, v) in parts.iter().enumerate() {
            row(f, whole, i, *v);
        }
        let values: Vec<ValueId> = self.results.iter().map(|i| f.returns[*i].1).collect();
        let returned = stack(f, &values)?;
        f.returns[self.results[0]] = (name, returned);
        remove_others(&mut f.returns, &self.results);
        sort(f);
        Ok(())
    }

    /// In who calls it: the first call that still hands on one by one.
    fn outside(&self, f: &mut Function, callee: &str) -> Result<bool, PassError> {
        let wanted = Attr::Str(callee.to_string());
        let is_call = |op: &Op| op.name == "call" && op.attrs.get("callee") == Some(&wanted);
        let apart = |op: &Op| op.operands.get(self.inputs[0]).is_some_and(|v| *f.ty(*v) == self.part);
        let Some(at) = f.ops.iter().position(|op| is_call(op) && apart(op)) else {
            return Ok(false);
        };
        let mut call = f.ops.remove(at);
        let given: Vec<ValueId> = self.inputs.iter().map(|i| call.operands[*i]).collect();
        let gotten: Vec<ValueId> = self.results.iter().map(|i| call.results[*i]).collect();
        call.operands[self.inputs[0]] = stack(f, &given)?;
        remove_others(&mut call.operands, &self.inputs);
        let whole = f.new_value(stack_type(&self.part, gotten.len()), None);
        call.results[self.results[0]] = whole;
        remove_others(&mut call.results, &self.results);
        f.ops.insert(at, call);
        for (i, v) in gotten.iter().enumerate() {
            row(f, whole, i, *v);
        }
        sort(f);
        Ok(true)
    }
}

/// What a stack is called among inputs and results.
fn free_name(f: &Function) -> String {
    let known = |name: &String| {
        let is_input = |(_, kind): &(ValueId, Param)| matches!(kind, Param::Input(n) if n == name);
        f.params.iter().any(is_input) || f.returns.iter().any(|(n, _)| n == name)
    };
    let numbered = (2..).map(|i| format!("rows{i}"));
    let mut names = std::iter::once("rows".to_string()).chain(numbered);
    names.find(|name| !known(name)).unwrap_or_default()
}

fn inputs(f: &Function) -> impl Iterator<Item = ValueId> {
    let inputs = f.params.iter().filter(|(_, kind)| matches!(kind, Param::Input(_)));
    inputs.map(|(v, _)| *v)
}

/// Of these places the first alone is left.
fn remove_others<T>(list: &mut Vec<T>, places: &[usize]) {
    let mut at = 0..;
    list.retain(|_| at.next().is_none_or(|i| !places[1..].contains(&i)));
}
