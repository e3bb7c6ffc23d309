//! Do two pass lists mean the same? Both results run in the evaluator, on the same random data. Proves nothing, finds much.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};

use ir::eval::{Context, Tensor, run};
use ir::{Attr, DType, Dim, Function, Module, Op, Param, Sizes, TensorType, ValueId};

use crate::{PASSES, PassError};

/// Where the graph differs after the two lists, `None` if nowhere.
///
/// Errors: a list names no pass of `PASSES`, a pass gives up or leaves a graph that does not verify, or there are no inputs the graph
/// can be run on. The module must verify.
pub fn disagree(module: &Module, list_a: &[&str], list_b: &[&str], seed: u64) -> Result<Option<String>, PassError> {
    compare(module, &after(module, list_a)?, &after(module, list_b)?, seed)
}

fn after(module: &Module, list: &[&str]) -> Result<Module, PassError> {
    let mut module = module.clone();
    for name in list {
        let pass = PASSES.iter().find(|p| p.name == *name).ok_or_else(|| {
            let names: Vec<&str> = PASSES.iter().map(|p| p.name).collect();
            PassError(format!("there is no pass `{name}`; choose from {}", names.join(", ")))
        })?;
        (pass.run)(&mut module).map_err(|e| PassError(format!("pass {name}: {e}")))?;
        if let Some(e) = ir::verify::verify(&module).first() {
            return Err(PassError(format!("after pass {name}: {e}")));
        }
    }
    Ok(module)
}

/// As [`disagree`], for two modules that were made of `module` and verify. Every function of `module` that nobody calls is run, on data
/// that depends on the seed and on the parameters' names only.
pub fn compare(module: &Module, a: &Module, b: &Module, seed: u64) -> Result<Option<String>, PassError> {
    let drawn = sizes(module, seed);
    // A cache of fixed length may be too short for the rows drawn; one row fits all.
    let one = drawn.keys().map(|name| (name.clone(), 1)).collect();
    let (sizes, data) = match Data::new(module, &drawn, seed) {
        Ok(data) => (drawn, data),
        Err(_) => Data::new(module, &one, seed).map(|data| (one, data))?,
    };
    let callees: BTreeSet<&str> = module
        .functions
        .iter()
        .flat_map(|f| &f.ops)
        .filter_map(callee)
        .collect();
    for f in module.functions.iter().filter(|f| !callees.contains(f.name.as_str())) {
        let outcome = |module: &Module| -> Result<BTreeMap<String, Tensor>, PassError> {
            let context = Context {
                module,
                sizes: &sizes,
                weights: &|name| data.weights.get(name).cloned(),
                exact: false,
            };
            let mut states = data.states.clone();
            let results = run(&context, &f.name, &data.inputs[&f.name], &mut states)
                .map_err(|e| PassError(format!("the evaluator: {e}")))?;
            let results = results.into_iter().map(|(name, x)| (format!("result {name}"), x));
            let states = states.into_iter().map(|(name, x)| (format!("state {name}"), x));
            Ok(results.chain(states).collect())
        };
        let (left, right) = (outcome(a)?, outcome(b)?);
        let tolerance = [module, a, b].map(tolerance).into_iter().fold(0.0, f64::max);
        if let Some(what) = differ(&left, &right, tolerance) {
            return Ok(Some(format!("@{}: {what}, sizes {sizes:?}", f.name)));
        }
    }
    Ok(None)
}

/// Of the coarsest float type that any value has: two right ways to compute may round differently anywhere.
pub fn tolerance(module: &Module) -> f64 {
    let values = module.functions.iter().flat_map(|f| &f.values);
    let of = |dtype| match dtype {
        DType::BF16 => 3e-2,
        DType::F16 => 4e-3,
        _ => 1e-5,
    };
    values.map(|v| of(v.ty.dtype)).fold(1e-5, f64::max)
}

/// The first element that is off by more than `tolerance` of the tensor's largest (at least 1), by tensor's name.
pub fn differ(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>, tolerance: f64) -> Option<String> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().find_map(|name| {
        let (Some(x), Some(y)) = (a.get(name), b.get(name)) else {
            return Some(format!("{name} is there in one of the two only"));
        };
        if x.shape != y.shape || x.dtype != y.dtype {
            return Some(format!(
                "{name} is {:?} {} or {:?} {}",
                x.shape, x.dtype, y.shape, y.dtype
            ));
        }
        let all = || x.data.iter().chain(&y.data).filter(|x| x.is_finite());
        let near = if x.dtype.is_float() {
            tolerance * all().fold(1.0, |m: f64, x| m.max(x.abs()))
        } else {
            0.0
        };
        let alike = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= near;
        let at = x.data.iter().zip(&y.data).position(|(x, y)| !alike(*x, *y))?;
        Some(format!("{name}[{at}] is {} or {}", x.data[at], y.data[at]))
    })
}

/// Random values for all parameters: what the readers of each accept.
pub struct Data {
    /// By function.
    pub inputs: HashMap<String, BTreeMap<String, Tensor>>,
    /// By name, `{i}` replaced by each layer that is called.
    pub weights: BTreeMap<String, Tensor>,
    pub states: BTreeMap<String, Tensor>,
}

/// Half open.
type Range = (f64, f64);

impl Data {
    pub fn new(module: &Module, sizes: &Sizes, seed: u64) -> Result<Data, PassError> {
        let mut data = Data {
            inputs: HashMap::new(),
            weights: BTreeMap::new(),
            states: BTreeMap::new(),
        };
        let mut inputs: HashMap<&str, Vec<Range>> = HashMap::new();
        for f in &module.functions {
            let ranges = ranges(f, sizes, &inputs)?;
            let layers = module.functions.iter().flat_map(|g| &g.ops).filter_map(|op| {
                let layer = op.attrs.get("layer").filter(|_| callee(op) == Some(&f.name));
                layer.and_then(|l| if let Attr::Int(l) = l { Some(*l) } else { None })
            });
            let layers: BTreeSet<i64> = layers.chain([0]).collect();
            let mut given = BTreeMap::new();
            for (v, param) in &f.params {
                let (ty, range) = (f.ty(*v), ranges.get(v).copied().unwrap_or(usual(f.ty(*v).dtype)));
                let fill = |name: &str| random(name, ty, range, sizes, seed);
                match param {
                    Param::Input(name) => drop(given.insert(name.clone(), fill(name)?)),
                    Param::Weight(name) | Param::State(name) => {
                        let all = match param {
                            Param::Weight(_) => &mut data.weights,
                            _ => &mut data.states,
                        };
                        for layer in &layers {
                            let name = name.replace("{i}", &layer.to_string());
                            let tensor = fill(&name)?;
                            // Read twice, under two types perhaps: the first will do.
                            all.entry(name).or_insert(tensor);
                        }
                    }
                }
            }
            data.inputs.insert(f.name.clone(), given);
            let of = |(v, _): &(ValueId, Param)| ranges.get(v).copied().unwrap_or(usual(f.ty(*v).dtype));
            let is_input = |p: &&(ValueId, Param)| matches!(p.1, Param::Input(_));
            inputs.insert(&f.name, f.params.iter().filter(is_input).map(of).collect());
        }
        Ok(data)
    }
}

/// B sequences of T rows in caches of C, of which S are seen; any other symbol is small.
pub fn sizes(module: &Module, seed: u64) -> Sizes {
    let draw = |name: &str, n: u64| (noise(name, 0, seed) % n) as i64;
    let (b, t) = (1 + draw("B", 3), 2 + draw("T", 4));
    let s = t + draw("S", 4);
    let known = [("B", b), ("T", t), ("S", s), ("C", s + draw("C", 3))];
    let values = module.functions.iter().flat_map(|f| &f.values);
    let symbols = values.flat_map(|v| &v.ty.shape).filter_map(|d| match d {
        Dim::Sym(name) => Some((name.clone(), 1 + draw(name, 4))),
        Dim::Const(_) => None,
    });
    symbols.chain(known.map(|(n, x)| (n.to_string(), x))).collect()
}

fn usual(dtype: DType) -> Range {
    match dtype {
        DType::I1 => (0.0, 2.0),
        DType::I32 => (0.0, 5.0),
        _ => (-2.0, 2.0),
    }
}

/// What the readers of each value accept: indices in range, positive numbers where only these have a result. From the end to the front,
/// through ops that only move elements. `inputs`: what the functions above accept.
fn ranges(
    f: &Function,
    sizes: &Sizes,
    inputs: &HashMap<&str, Vec<Range>>,
) -> Result<HashMap<ValueId, Range>, PassError> {
    let mut ranges: HashMap<ValueId, Range> = HashMap::new();
    for op in f.ops.iter().rev() {
        let extent = |operand: usize, axis: usize| -> f64 {
            let dim = op.operands.get(operand).and_then(|v| f.ty(*v).shape.get(axis));
            dim.and_then(|d| d.size().eval(sizes)).unwrap_or(1) as f64
        };
        let ring = op.attrs.get("ring") == Some(&Attr::Bool(true));
        let result = op.results.first().and_then(|v| ranges.get(v).copied());
        if op.name == "cache_write" && !ring && extent(1, 2) > extent(0, 2) {
            return Err(PassError(format!(
                "@{}: no size fits a cache of {} rows",
                f.name,
                extent(0, 2)
            )));
        }
        for (i, v) in op.operands.iter().enumerate() {
            let wanted = match (op.name.as_str(), i) {
                ("embed", 1) => Some((0.0, extent(0, 0))),
                ("take_rows", 1) => Some((0.0, extent(0, 1))),
                ("cross_entropy", 1) => Some((-1.0, extent(0, 2))),
                ("cache_write", 2) if !ring => Some((0.0, extent(0, 2) - extent(1, 2) + 1.0)),
                ("rope", 1) => match op.attrs.get("max") {
                    Some(Attr::Int(max)) => {
                        let rank = f.ty(op.operands[0]).rank();
                        Some((0.0, *max as f64 - extent(0, rank.saturating_sub(2)) + 1.0))
                    }
                    _ => None,
                },
                ("log" | "rsqrt", _) | ("div", 1) => Some((0.5, 2.0)),
                ("reshape" | "transpose" | "slice" | "concat" | "cache_write", _)
                | ("take_rows", 0)
                | ("where", 1 | 2)
                    if f.ty(*v).dtype == f.ty(op.results[0]).dtype =>
                {
                    result
                }
                ("call", _) => callee(op).and_then(|name| inputs.get(name)?.get(i).copied()),
                _ => None,
            };
            if let Some((low, high)) = wanted {
                let usual = if f.ty(*v).dtype == DType::I32 {
                    (low, high)
                } else {
                    usual(f.ty(*v).dtype)
                };
                let known = ranges.get(v).copied().unwrap_or(usual);
                ranges.insert(*v, (known.0.max(low), known.1.min(high)));
            }
        }
        if let (Some((low, high)), Some(Attr::Float(x))) = (result, op.attrs.get("value"))
            && f.ty(op.results[0]).dtype == DType::I32
            && !(low..high).contains(x)
        {
            return Err(PassError(format!("@{}: {x} is no index of what reads it", f.name)));
        }
    }
    Ok(ranges)
}

fn callee(op: &Op) -> Option<&str> {
    match op.attrs.get("callee") {
        Some(Attr::Str(name)) => Some(name),
        _ => None,
    }
}

fn random(name: &str, ty: &TensorType, (low, high): Range, sizes: &Sizes, seed: u64) -> Result<Tensor, PassError> {
    let refused = || PassError(format!("no random data for {name}: {ty} in {low}..{high}"));
    let shape = ty.resolve(sizes).ok_or_else(refused)?;
    let shape: Option<Vec<usize>> = shape.into_iter().map(|n| usize::try_from(n).ok()).collect();
    let shape = shape.filter(|_| low < high).ok_or_else(refused)?;
    let mut index = 0;
    let draw = |_: &[usize]| {
        index += 1;
        let unit = (noise(name, index, seed) >> 11) as f64 / (1u64 << 53) as f64;
        let x = low + (high - low) * unit;
        if ty.dtype.is_float() { x } else { x.floor() }
    };
    Ok(Tensor::from_fn(&shape, ty.dtype, draw).rounded())
}

/// The same for the same arguments.
fn noise(name: &str, index: u64, seed: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, index, seed).hash(&mut hasher);
    hasher.finish()
}
