//! Gradients as a graph: reverse-mode differentiation of an entry point, function by function. Runs nothing.
//!
//! What is asked for goes down the calls (`demand`): only what something wanted depends on has a gradient, so that a frozen matrix costs
//! nothing, and neither does a layer below the first trained one. The walk back over a function's ops is in `chain`; a function that is
//! called gets a backward twin (`twin`), which takes values that the forward keeps (`keep`) or computes them again. Attention's part,
//! whose gradients are measures over keys, is in `measure`; the order of the ops that come out, in `lives`.

use std::collections::{HashMap, HashSet};

mod chain;
mod demand;
mod keep;
mod lives;
mod measure;
mod twin;

use crate::graph::{Function, Module, Op, ValueId};
use crate::types::{DType, TensorType};
use demand::{Demand, inputs, weights};
use twin::Twin;

/// Why there is no gradient.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GradientError {
    #[error("the graph has no function @{0}")]
    NoFunction(String),
    #[error("@{function} returns no `{name}`, or not one f32")]
    NoLoss { function: String, name: String },
    #[error("@{function}: `{op}` has no gradient{reason}")]
    Op {
        function: String,
        op: String,
        reason: String,
    },
    #[error("the loss depends on none of the wanted weights")]
    Nothing,
}

/// What of a forward's values is kept for the backward; the others are computed again.
#[derive(Clone, Copy, Debug)]
pub struct Keeping {
    /// At most so many bytes.
    pub memory: u64,
    /// Products and means are kept in this type if theirs is wider: what a matrix unit multiplies. Masses, which are exponents, stay.
    pub dtype: DType,
}

/// Prefix of the results that are gradients.
pub const GRAD: &str = "grad.";

/// The module with one more entry point `name`: what `entry` returns, and `grad.{weight}` (f32, in the weight's shape) of its result
/// `loss` for every weight or state that `wanted` names.
///
/// Contributions are added in program order, last use first, so that the sums' order is fixed.
pub fn gradient(
    module: &Module,
    entry: &str,
    loss: &str,
    wanted: &dyn Fn(&str) -> bool,
    name: &str,
    keeping: Keeping,
) -> Result<Module, GradientError> {
    let f = module
        .function(entry)
        .ok_or_else(|| GradientError::NoFunction(entry.to_string()))?;
    let one = |ty: &TensorType| ty.elements().as_const() == Some(1) && ty.dtype == DType::F32;
    let at = f.returns.iter().position(|(n, v)| n == loss && one(f.ty(*v)));
    let at = at.ok_or_else(|| GradientError::NoLoss {
        function: entry.to_string(),
        name: loss.to_string(),
    })?;
    let mut all = Differentiation {
        module,
        wanted,
        keeping: Keeping {
            memory: keeping.memory / f.ops.iter().filter(|op| op.name == "call").count().max(1) as u64,
            ..keeping
        },
        twins: HashMap::new(),
        made: vec![],
    };
    let demand = Demand {
        function: entry.to_string(),
        inputs: vec![false; inputs(f).len()],
        weights: weights(f, 0, wanted),
        results: (0..f.returns.len()).map(|i| i == at).collect(),
    };
    let active = all.active(&demand)?;
    let mut out = f.clone();
    out.name = name.to_string();
    let seed = out.constant(1.0, f.ty(f.returns[at].1).clone());
    let sums = all.chain(&mut out, &demand, &active, vec![(f.returns[at].1, seed)])?;
    if sums.weights.is_empty() {
        return Err(GradientError::Nothing);
    }
    for (weight, v) in sums.weights {
        out.returns(&format!("{GRAD}{weight}"), v);
    }
    trim(&mut out);
    lives::shorten(&mut out);
    let mut result = module.clone();
    result.functions.extend(all.made);
    result.functions.push(out);
    Ok(result)
}

struct Differentiation<'m> {
    module: &'m Module,
    wanted: &'m dyn Fn(&str) -> bool,
    /// `memory`: bytes that a call may keep.
    keeping: Keeping,
    twins: HashMap<Demand, Option<Twin>>,
    made: Vec<Function>,
}

impl<'m> Differentiation<'m> {
    fn function(&self, name: &str) -> Result<&'m Function, GradientError> {
        self.module
            .function(name)
            .ok_or_else(|| GradientError::NoFunction(name.to_string()))
    }
}

/// Drops what no result needs: ops, and parameters.
fn trim(f: &mut Function) {
    let mut needed: HashSet<ValueId> = f.returns.iter().map(|r| r.1).collect();
    let mut kept: Vec<Op> = vec![];
    for op in std::mem::take(&mut f.ops).into_iter().rev() {
        // A state is written for those who come later.
        if op.writes_state() || op.results.iter().any(|v| needed.contains(v)) {
            needed.extend(&op.operands);
            kept.push(op);
        }
    }
    kept.reverse();
    f.ops = kept;
    f.params.retain(|(v, _)| needed.contains(v));
}
