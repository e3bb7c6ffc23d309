//! What is asked of a function's gradient, and which of its values that concerns. Makes no op.

use std::collections::HashSet;

use super::{Differentiation, GradientError};
use crate::graph::{Attr, Function, Op, Param, ValueId};

/// A function and what is asked of its twin. Two layers that ask for the same share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Demand {
    pub(super) function: String,
    /// Which inputs have a gradient.
    pub(super) inputs: Vec<bool>,
    /// Which weights are wanted, by parameter.
    pub(super) weights: Vec<bool>,
    /// Which results' gradients are known.
    pub(super) results: Vec<bool>,
}

pub(super) fn inputs(f: &Function) -> Vec<(ValueId, &str)> {
    f.params
        .iter()
        .filter_map(|(v, p)| match p {
            Param::Input(name) => Some((*v, name.as_str())),
            _ => None,
        })
        .collect()
}

/// The name of a weight or state.
pub(super) fn stored(p: &Param) -> Option<&str> {
    match p {
        Param::Weight(name) | Param::State(name) => Some(name),
        Param::Input(_) => None,
    }
}

pub(super) fn weights(f: &Function, layer: i64, wanted: &dyn Fn(&str) -> bool) -> Vec<bool> {
    let is_wanted = |(v, p): &(ValueId, Param)| {
        let name = stored(p).map(|n| n.replace("{i}", &layer.to_string()));
        f.ty(*v).dtype.is_float() && name.is_some_and(|n| wanted(&n))
    };
    f.params.iter().map(is_wanted).collect()
}

pub(super) fn callee(op: &Op) -> Option<(&str, i64)> {
    match (op.attrs.get("callee"), op.attrs.get("layer")) {
        (Some(Attr::Str(name)), Some(Attr::Int(layer))) if op.name == "call" => Some((name, *layer)),
        _ => None,
    }
}

impl Differentiation<'_> {
    /// What the called function is asked for, its results' gradients left open.
    pub(super) fn demand(&self, op: &Op, active: &HashSet<ValueId>) -> Result<Option<Demand>, GradientError> {
        let Some((name, layer)) = callee(op) else {
            return Ok(None);
        };
        let f = self.function(name)?;
        Ok(Some(Demand {
            function: name.to_string(),
            inputs: op.operands.iter().map(|v| active.contains(v)).collect(),
            weights: weights(f, layer, self.wanted),
            results: vec![false; f.returns.len()],
        }))
    }

    /// The values that depend on an active input or a wanted weight.
    pub(super) fn active(&self, demand: &Demand) -> Result<HashSet<ValueId>, GradientError> {
        let f = self.function(&demand.function)?;
        let mut active = HashSet::new();
        active.extend(
            inputs(f)
                .iter()
                .zip(&demand.inputs)
                .filter(|(_, a)| **a)
                .map(|(i, _)| i.0),
        );
        active.extend(
            f.params
                .iter()
                .zip(&demand.weights)
                .filter(|(_, w)| **w)
                .map(|(p, _)| p.0),
        );
        for op in &f.ops {
            match self.demand(op, &active)? {
                Some(inner) => {
                    let reached = self.active(&inner)?;
                    let returns = &self.function(&inner.function)?.returns;
                    let hit = op.results.iter().zip(returns).filter(|(_, (_, r))| reached.contains(r));
                    active.extend(hit.map(|(v, _)| *v));
                }
                None if op.operands.iter().any(|v| active.contains(v)) => {
                    active.extend(op.results.iter().filter(|v| f.ty(**v).dtype.is_float()));
                }
                None => {}
            }
        }
        Ok(active)
    }
}
