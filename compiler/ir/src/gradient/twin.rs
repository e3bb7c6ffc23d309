//! The backward twins of functions that are called.
//!
//! `{name}_backward` takes what the function took and the gradients of its results (`d.{result}`), and gives the gradients of inputs
//! (`d.{input}`) and weights (`grad.{weight}`). What it needs in between it takes from a copy of the function that returns more
//! (`{name}_keeping`, see `keep`), or computes again. Twins are made per demand, so the lowest layer's may be smaller than the others'.

use std::collections::HashSet;

use super::demand::{Demand, inputs};
use super::{Differentiation, GRAD, GradientError, keep, lives, trim};
use crate::graph::{Function, Op, Param, ValueId};
use crate::types::{DType, TensorType};

/// A function that was made for a demand.
#[derive(Clone)]
pub(super) struct Twin {
    pub(super) function: Function,
    /// The function that keeps values for it, and how many.
    pub(super) keeper: Option<(Function, usize)>,
    /// The original's inputs that it still needs.
    pub(super) given: Vec<usize>,
    /// The original's results whose gradients it takes.
    pub(super) taken: Vec<usize>,
    /// The inputs whose gradients it gives, then the weights'.
    pub(super) inputs: Vec<usize>,
    pub(super) weights: Vec<String>,
}

impl Differentiation<'_> {
    /// The function that gives what is demanded; `None` if there is nothing to give.
    pub(super) fn twin(&mut self, demand: Demand) -> Result<Option<Twin>, GradientError> {
        if let Some(known) = self.twins.get(&demand) {
            return Ok(known.clone());
        }
        let f = self.function(&demand.function)?;
        let active = self.active(&demand)?;
        let mut out = f.clone();
        out.returns.clear();
        let mut seeds = vec![];
        let mut taken = vec![];
        for (i, (name, v)) in f.returns.iter().enumerate() {
            if demand.results[i] && active.contains(v) {
                let ty = TensorType {
                    shape: f.ty(*v).shape.clone(),
                    dtype: DType::F32,
                };
                let d = out.param(&format!("d_{name}"), ty, Param::Input(format!("d.{name}")));
                seeds.push((*v, d));
                taken.push(i);
            }
        }
        let sums = self.chain(&mut out, &demand, &active, seeds)?;
        let names = inputs(f);
        for (i, d) in &sums.inputs {
            out.returns(&format!("d.{}", names[*i].1), *d);
        }
        for (name, d) in &sums.weights {
            out.returns(&format!("{GRAD}{name}"), *d);
        }
        let name = |role: &str, made: &[Function]| {
            let stem = format!("{}_{role}", f.name);
            match made.iter().filter(|m| m.name.starts_with(&stem)).count() {
                0 => stem,
                n => format!("{stem}{}", n + 1),
            }
        };
        let count = masses_first(&mut out, f.ops.len());
        // What a call within keeps has no way out yet.
        let nested = f.ops.iter().any(|op| op.name == "call");
        let whole = out.clone();
        trim(&mut out);
        let made: HashSet<ValueId> = whole.ops[..count]
            .iter()
            .flat_map(|op| op.results.iter().copied())
            .collect();
        let forward = out.ops.iter().take_while(|op| made.contains(&op.results[0])).count();
        let kept = match nested {
            true => vec![],
            false => keep::choose(&out, forward, self.keeping, &lives::typical()),
        };
        let keeper = (!kept.is_empty()).then(|| keep::keeper(f, &whole, count, &kept, name("keeping", &self.made)));
        self.made.extend(keeper.clone());
        keep::given(&mut out, &kept);
        let twin = (!out.returns.is_empty()).then(|| {
            let before: Vec<ValueId> = names.iter().map(|i| i.0).collect();
            trim(&mut out);
            let params: HashSet<ValueId> = out.params.iter().map(|p| p.0).collect();
            let place = |d: usize| {
                out.params
                    .iter()
                    .any(|p| p.1 == Param::Input(format!("d.{}", f.returns[d].0)))
            };
            let taken: Vec<usize> = taken.into_iter().filter(|d| place(*d)).collect();
            out.name = name("backward", &self.made);
            self.made.push(out.clone());
            Twin {
                keeper: keeper.map(|k| (k, kept.len())),
                given: (0..before.len()).filter(|i| params.contains(&before[*i])).collect(),
                taken,
                inputs: sums.inputs.iter().map(|i| i.0).collect(),
                weights: sums.weights.into_keys().collect(),
                function: out,
            }
        });
        self.twins.insert(demand, twin.clone());
        Ok(twin)
    }
}

/// The masses of sweeps go behind the `forward` ops that they are of: the kernel that sweeps has them, and may hand them on. How many ops
/// stand in front of the backward then.
fn masses_first(f: &mut Function, forward: usize) -> usize {
    let of_forward: HashSet<ValueId> = f.ops[..forward]
        .iter()
        .flat_map(|op| op.results.iter().copied())
        .collect();
    let is_mass = |op: &Op| op.name == "lse" && of_forward.contains(&op.operands[0]);
    let (masses, rest): (Vec<Op>, Vec<Op>) = f.ops.split_off(forward).into_iter().partition(is_mass);
    f.ops.extend(masses);
    let count = f.ops.len();
    f.ops.extend(rest);
    count
}
