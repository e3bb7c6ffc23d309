//! The walk back over a function's ops: each op's rule gives what its operands' gradients gain, and a call's twin does for a call.
//! Whoever asked decides what becomes of the sums.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::demand::{Demand, callee, inputs, stored};
use super::{Differentiation, GradientError, measure};
use crate::graph::{Attr, Function, Op, ValueId};
use crate::ops::{self, Chain};

/// Gradients that a walk ended with.
pub(super) struct Sums {
    pub(super) inputs: Vec<(usize, ValueId)>,
    /// By name, `{i}` replaced in entry points and as it is in layers.
    pub(super) weights: BTreeMap<String, ValueId>,
}

impl Differentiation<'_> {
    /// Walks the ops back from `seeds`, which are gradients of values; new ops go to the end of `out`, a copy of the function.
    pub(super) fn chain(
        &mut self,
        out: &mut Function,
        demand: &Demand,
        active: &HashSet<ValueId>,
        seeds: Vec<(ValueId, ValueId)>,
    ) -> Result<Sums, GradientError> {
        let f = self.function(&demand.function)?;
        let mut grads: HashMap<ValueId, ValueId> = HashMap::new();
        let mut sums = BTreeMap::new();
        let mut measures = measure::Measures::default();
        for (v, d) in seeds.into_iter().filter(|(v, _)| active.contains(v)) {
            add(out, &mut grads, v, d);
        }
        for op in f.ops.iter().rev() {
            if let Some(inner) = self.demand(op, active)? {
                self.call(out, op, inner, &mut grads, &mut sums)?;
                continue;
            }
            if op.name == "sweep" {
                let found = measures.sweep(out, op, active).map_err(|e| failed(out, op, e))?;
                for (v, d) in found {
                    add(out, &mut grads, v, d);
                }
                continue;
            }
            let Some(dy) = op.results.first().and_then(|v| grads.get(v)).copied() else {
                continue;
            };
            if op.name == "mean" {
                measures.mean(out, op, dy);
                continue;
            }
            for (at, v) in op.operands.iter().enumerate().filter(|(_, v)| active.contains(v)) {
                let d = rule(out, op, dy, at)?;
                add(out, &mut grads, *v, d);
            }
        }
        for ((v, p), wanted) in f.params.iter().zip(&demand.weights) {
            if let (true, Some(name), Some(d)) = (*wanted, stored(p), grads.get(v)) {
                add(out, &mut sums, name.to_string(), *d);
            }
        }
        let with_gradient = |(i, (v, _)): (usize, (ValueId, &str))| Some((i, *grads.get(&v)?));
        let inputs = inputs(f).into_iter().enumerate().filter(|(i, _)| demand.inputs[*i]);
        Ok(Sums {
            inputs: inputs.filter_map(with_gradient).collect(),
            weights: sums,
        })
    }

    /// Through a call: the twin's results are the gradients of its arguments and weights.
    fn call(
        &mut self,
        out: &mut Function,
        op: &Op,
        mut inner: Demand,
        grads: &mut HashMap<ValueId, ValueId>,
        sums: &mut BTreeMap<String, ValueId>,
    ) -> Result<(), GradientError> {
        for (known, v) in inner.results.iter_mut().zip(&op.results) {
            *known = grads.contains_key(v);
        }
        let Some(twin) = self.twin(inner)? else { return Ok(()) };
        let args = twin.given.iter().map(|i| op.operands[*i]);
        let mut args: Vec<ValueId> = args.chain(twin.taken.iter().map(|i| grads[&op.results[*i]])).collect();
        if let Some((keeper, count)) = &twin.keeper {
            let first = keeper.returns.len() - count;
            let kept: Vec<ValueId> = keeper.returns[first..]
                .iter()
                .map(|(_, v)| out.new_value(keeper.ty(*v).clone(), None))
                .collect();
            args.extend(&kept);
            let call = out.ops.iter_mut().find(|o| o.results == op.results);
            let call = call.expect("the walk goes over a copy of the function");
            call.attrs.insert("callee".to_string(), Attr::Str(keeper.name.clone()));
            call.results.extend(kept);
        }
        let layer = callee(op).map_or(0, |c| c.1);
        let results = out.call(&twin.function, layer, &args);
        for (i, d) in twin.inputs.iter().zip(&results) {
            add(out, grads, op.operands[*i], *d);
        }
        for (name, d) in twin.weights.iter().zip(&results[twin.inputs.len()..]) {
            add(out, sums, name.replace("{i}", &layer.to_string()), *d);
        }
        Ok(())
    }
}

fn rule(out: &mut Function, op: &Op, dy: ValueId, at: usize) -> Result<ValueId, GradientError> {
    let Some(rule) = ops::op(&op.name).and_then(|def| def.gradient) else {
        return Err(failed(out, op, String::new()));
    };
    rule(&mut Chain { f: out, op, dy, at }).map_err(|e| failed(out, op, e))
}

fn failed(f: &Function, op: &Op, reason: String) -> GradientError {
    GradientError::Op {
        function: f.name.clone(),
        op: op.name.clone(),
        reason: if reason.is_empty() {
            reason
        } else {
            format!(": {reason}")
        },
    }
}

/// One more contribution.
fn add<K: Clone + Eq + Ord, M: Contributions<K>>(out: &mut Function, to: &mut M, key: K, d: ValueId) {
    let sum = match to.known(&key) {
        Some(sum) => out.add(sum, d),
        None => d,
    };
    to.put(key, sum);
}

/// A map of sums.
trait Contributions<K> {
    fn known(&self, key: &K) -> Option<ValueId>;
    fn put(&mut self, key: K, sum: ValueId);
}

impl Contributions<ValueId> for HashMap<ValueId, ValueId> {
    fn known(&self, key: &ValueId) -> Option<ValueId> {
        self.get(key).copied()
    }
    fn put(&mut self, key: ValueId, sum: ValueId) {
        self.insert(key, sum);
    }
}

impl Contributions<String> for BTreeMap<String, ValueId> {
    fn known(&self, key: &String) -> Option<ValueId> {
        self.get(key).copied()
    }
    fn put(&mut self, key: String, sum: ValueId) {
        self.insert(key, sum);
    }
}
