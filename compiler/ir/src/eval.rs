//! The reference evaluator: what a graph means, op by op, in f64. Slow on purpose; the oracle for everything else.

use std::collections::{BTreeMap, HashMap};

use crate::graph::{Attr, Function, Module, Op, Param, ValueId};
use crate::ops::{self, Call};
pub use crate::tensor::Tensor;
use crate::types::{Sizes, TensorType};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("there is no function @{0}")]
    NoFunction(String),
    #[error("@{function}: no value for {what}")]
    Missing { function: String, what: String },
    #[error("@{function}: {what} is {found:?}, wants {wanted}")]
    Shape {
        function: String,
        what: String,
        found: Vec<usize>,
        wanted: String,
    },
}

/// A checkpoint: tensors by name.
pub type Weights<'a> = &'a dyn Fn(&str) -> Option<Tensor>;

/// What a run needs besides the function's inputs.
pub struct Context<'a> {
    pub module: &'a Module,
    pub sizes: &'a Sizes,
    pub weights: Weights<'a>,
    /// Keep f64 everywhere: what the program would give in exact arithmetic.
    pub exact: bool,
}

/// Runs an entry point; returns its results by name and updates `states` in place.
pub fn run(
    context: &Context,
    entry: &str,
    inputs: &BTreeMap<String, Tensor>,
    states: &mut BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>, EvalError> {
    let f = context
        .module
        .function(entry)
        .ok_or_else(|| EvalError::NoFunction(entry.to_string()))?;
    let given = |name: &str| inputs.get(name).cloned();
    let results = function(context, f, 0, &given, states)?;
    Ok(f.returns.iter().map(|(name, _)| name.clone()).zip(results).collect())
}

fn function(
    context: &Context,
    f: &Function,
    layer: i64,
    inputs: &dyn Fn(&str) -> Option<Tensor>,
    states: &mut BTreeMap<String, Tensor>,
) -> Result<Vec<Tensor>, EvalError> {
    let mut values: HashMap<ValueId, Tensor> = HashMap::new();
    // Which state a value is a version of: `cache_write` and `update` change it.
    let mut state_of: HashMap<ValueId, String> = HashMap::new();
    for (v, param) in &f.params {
        let at_layer = |name: &String| name.replace("{i}", &layer.to_string());
        let (what, found) = match param {
            Param::Input(name) => (name.clone(), inputs(name)),
            Param::Weight(name) => (at_layer(name), (context.weights)(&at_layer(name))),
            Param::State(name) => {
                state_of.insert(*v, at_layer(name));
                (at_layer(name), states.get(&at_layer(name)).cloned())
            }
        };
        let mut tensor = found.ok_or_else(|| EvalError::Missing {
            function: f.name.clone(),
            what: what.clone(),
        })?;
        let wanted = shape(context, f, f.ty(*v))?;
        if tensor.shape != wanted {
            return Err(EvalError::Shape {
                function: f.name.clone(),
                what,
                found: tensor.shape,
                wanted: f.ty(*v).to_string(),
            });
        }
        tensor.dtype = f.ty(*v).dtype;
        values.insert(*v, if context.exact { tensor } else { tensor.rounded() });
    }
    for op in &f.ops {
        if op.name == "call" {
            for (v, result) in op.results.iter().zip(call(context, op, f, &values, states)?) {
                values.insert(*v, result);
            }
            continue;
        }
        let v = op.results[0];
        let def = ops::op(&op.name).ok_or_else(|| EvalError::NoFunction(op.name.clone()))?;
        let operands: Vec<&Tensor> = op.operands.iter().map(|o| &values[o]).collect();
        let wanted = shape(context, f, f.ty(v))?;
        let result = (def.eval)(&Call {
            operands: &operands,
            attrs: &op.attrs,
            shape: &wanted,
            dtype: f.ty(v).dtype,
        });
        let result = if context.exact { result } else { result.rounded() };
        if let Some(state) = state_of
            .get(&op.operands.first().copied().unwrap_or(v))
            .cloned()
            .filter(|_| op.writes_state())
        {
            states.insert(state.clone(), result.clone());
            state_of.insert(v, state);
        }
        values.insert(v, result);
    }
    Ok(f.returns.iter().map(|(_, v)| values[v].clone()).collect())
}

fn call(
    context: &Context,
    op: &Op,
    caller: &Function,
    values: &HashMap<ValueId, Tensor>,
    states: &mut BTreeMap<String, Tensor>,
) -> Result<Vec<Tensor>, EvalError> {
    let (Some(Attr::Str(name)), Some(Attr::Int(layer))) = (op.attrs.get("callee"), op.attrs.get("layer")) else {
        return Err(EvalError::Missing {
            function: caller.name.clone(),
            what: "callee or layer of a call".to_string(),
        });
    };
    let callee = context
        .module
        .function(name)
        .ok_or_else(|| EvalError::NoFunction(name.clone()))?;
    let names = callee.params.iter().filter_map(|(_, p)| match p {
        Param::Input(name) => Some(name.clone()),
        _ => None,
    });
    let args: HashMap<String, Tensor> = names.zip(op.operands.iter().map(|v| values[v].clone())).collect();
    function(context, callee, *layer, &|name| args.get(name).cloned(), states)
}

fn shape(context: &Context, f: &Function, ty: &TensorType) -> Result<Vec<usize>, EvalError> {
    let resolved = ty
        .resolve(context.sizes)
        .and_then(|s| s.into_iter().map(|n| usize::try_from(n).ok()).collect());
    resolved.ok_or_else(|| EvalError::Missing {
        function: f.name.clone(),
        what: format!("a symbol of {ty}"),
    })
}
