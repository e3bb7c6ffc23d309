//! Gradients as a graph: reverse-mode differentiation of an entry point, function by function. Runs nothing.
//!
//! A function that is called gets a backward twin `{name}_backward`: it takes what the function took and the gradients of its results
//! (`d.{result}`), and gives the gradients of inputs (`d.{input}`) and weights (`grad.{weight}`). What it needs in between it takes
//! from a copy of the function that returns more (`{name}_keeping`, see `keep`), or computes again. Only what something wanted depends on has a gradient: a frozen matrix costs nothing, and neither does a layer
//! below the first trained one. Twins are made per demand, so the lowest layer's may be smaller than the others'.

use std::collections::{BTreeMap, HashMap, HashSet};

mod keep;
mod lives;
mod measure;

use crate::graph::{Attr, Function, Module, Op, Param, ValueId};
use crate::ops::{self, Chain};
use crate::types::{DType, TensorType};

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

/// A function and what is asked of its twin. Two layers that ask for the same share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Demand {
    function: String,
    /// Which inputs have a gradient.
    inputs: Vec<bool>,
    /// Which weights are wanted, by parameter.
    weights: Vec<bool>,
    /// Which results' gradients are known.
    results: Vec<bool>,
}

/// A function that was made for a demand.
#[derive(Clone)]
struct Twin {
    function: Function,
    /// The function that keeps values for it, and how many.
    keeper: Option<(Function, usize)>,
    /// The original's inputs that it still needs.
    given: Vec<usize>,
    /// The original's results whose gradients it takes.
    taken: Vec<usize>,
    /// The inputs whose gradients it gives, then the weights'.
    inputs: Vec<usize>,
    weights: Vec<String>,
}

/// Gradients that a walk ended with.
struct Sums {
    inputs: Vec<(usize, ValueId)>,
    /// By name, `{i}` replaced in entry points and as it is in layers.
    weights: BTreeMap<String, ValueId>,
}

struct Differentiation<'m> {
    module: &'m Module,
    wanted: &'m dyn Fn(&str) -> bool,
    /// `memory`: bytes that a call may keep.
    keeping: Keeping,
    twins: HashMap<Demand, Option<Twin>>,
    made: Vec<Function>,
}

fn inputs(f: &Function) -> Vec<(ValueId, &str)> {
    f.params
        .iter()
        .filter_map(|(v, p)| match p {
            Param::Input(name) => Some((*v, name.as_str())),
            _ => None,
        })
        .collect()
}

/// The name of a weight or state.
fn stored(p: &Param) -> Option<&str> {
    match p {
        Param::Weight(name) | Param::State(name) => Some(name),
        Param::Input(_) => None,
    }
}

fn weights(f: &Function, layer: i64, wanted: &dyn Fn(&str) -> bool) -> Vec<bool> {
    let is_wanted = |(v, p): &(ValueId, Param)| {
        let name = stored(p).map(|n| n.replace("{i}", &layer.to_string()));
        f.ty(*v).dtype.is_float() && name.is_some_and(|n| wanted(&n))
    };
    f.params.iter().map(is_wanted).collect()
}

fn callee(op: &Op) -> Option<(&str, i64)> {
    match (op.attrs.get("callee"), op.attrs.get("layer")) {
        (Some(Attr::Str(name)), Some(Attr::Int(layer))) if op.name == "call" => Some((name, *layer)),
        _ => None,
    }
}

impl<'m> Differentiation<'m> {
    fn function(&self, name: &str) -> Result<&'m Function, GradientError> {
        self.module
            .function(name)
            .ok_or_else(|| GradientError::NoFunction(name.to_string()))
    }

    /// What the called function is asked for, its results' gradients left open.
    fn demand(&self, op: &Op, active: &HashSet<ValueId>) -> Result<Option<Demand>, GradientError> {
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
    fn active(&self, demand: &Demand) -> Result<HashSet<ValueId>, GradientError> {
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

    /// Walks the ops back from `seeds`, which are gradients of values; new ops go to the end of `out`, a copy of the function.
    fn chain(
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

    /// The function that gives what is demanded; `None` if there is nothing to give.
    fn twin(&mut self, demand: Demand) -> Result<Option<Twin>, GradientError> {
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

/// Drops what no result needs: ops, and parameters.
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
