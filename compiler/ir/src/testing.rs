//! Programs for tests: one per op and sample, and random ones. Each comes with sizes, inputs, weights and states, so that any two
//! ways to run a program can be compared on it. Used by tests and by `loopc check` alone.

mod random;

use std::collections::BTreeMap;

pub use random::{random, random_training};

use crate::eval::{self, Context, EvalError};
use crate::graph::{Function, Module, Param};
use crate::ops::{OpDef, Sample};
use crate::tensor::Tensor;
use crate::types::{DType, Sizes, TensorType};

/// The entry point of every case.
pub const ENTRY: &str = "main";

/// A program with all it needs to run once.
#[derive(Clone, Debug)]
pub struct Case {
    pub module: Module,
    pub sizes: Sizes,
    pub inputs: BTreeMap<String, Tensor>,
    /// By name, `{i}` replaced by the layer.
    pub weights: BTreeMap<String, Tensor>,
    pub states: BTreeMap<String, Tensor>,
}

/// What a run leaves behind: results by name, and the states after it.
pub type Outcome = (BTreeMap<String, Tensor>, BTreeMap<String, Tensor>);

impl Case {
    pub fn run(&self, exact: bool) -> Result<Outcome, EvalError> {
        self.run_as(&self.module, exact)
    }

    /// The same data through another module: a rewritten or a parsed one.
    pub fn run_as(&self, module: &Module, exact: bool) -> Result<Outcome, EvalError> {
        let weights = |name: &str| self.weights.get(name).cloned();
        let context = Context {
            module,
            sizes: &self.sizes,
            weights: &weights,
            exact,
        };
        let mut states = self.states.clone();
        let results = eval::run(&context, ENTRY, &self.inputs, &mut states)?;
        Ok((results, states))
    }
}

/// One op between inputs `x0`, `x1`, .. and the result `y`; sizes are small.
pub fn sample_case(op: &OpDef, sample: &Sample, seed: u64) -> Result<Case, String> {
    let mut rng = Rng::new(seed);
    let sizes = sizes(&mut rng);
    sized_case(op, sample, sizes, rng)
}

/// As `sample_case`, with sizes that are given: B, T <= S <= C.
pub fn sized_case(op: &OpDef, sample: &Sample, sizes: Sizes, mut rng: Rng) -> Result<Case, String> {
    let (mut f, mut inputs) = (Function::new(ENTRY), BTreeMap::new());
    let mut operands = vec![];
    for (i, ty) in sample.operands.iter().enumerate() {
        let name = format!("x{i}");
        inputs.insert(name.clone(), operand(op.name, i, sample, &sizes, &mut rng));
        operands.push(f.param(&name, ty.clone(), Param::Input(name.clone())));
    }
    let result = f.try_op(op.name, &operands, sample.attrs.clone())?;
    f.returns("y", result);
    let module = Module { functions: vec![f] };
    Ok(Case {
        module,
        sizes,
        inputs,
        weights: BTreeMap::new(),
        states: BTreeMap::new(),
    })
}

/// Values that the op accepts: indices in range, positive numbers where only these have a result.
fn operand(op: &str, index: usize, sample: &Sample, sizes: &Sizes, rng: &mut Rng) -> Tensor {
    let ty = &sample.operands[index];
    let extent = |operand: usize, axis: usize| sample.operands[operand].shape[axis].size().eval(sizes).unwrap_or(1);
    match (op, index) {
        ("embed", 1) => integers(ty, sizes, rng, 0, extent(0, 0)),
        ("scatter_rows", 1) => integers(ty, sizes, rng, 0, 5),
        ("take_rows", 1) => integers(ty, sizes, rng, 0, extent(0, 1)),
        ("cross_entropy", 1) => integers(ty, sizes, rng, -1, extent(0, 2)),
        ("one_hot" | "is_target", 0) => integers(ty, sizes, rng, -1, 7),
        // A ring takes any position; without one, all rows must fit.
        ("cache_write", 2) if sample.attrs.contains_key("ring") => integers(ty, sizes, rng, 0, 9),
        ("cache_write", 2) => integers(ty, sizes, rng, 0, extent(0, 2) - extent(1, 2) + 1),
        ("log" | "rsqrt", _) => floats(ty, sizes, rng, 0.5, 3.0),
        ("div", 1) => floats(ty, sizes, rng, 0.5, 2.0),
        _ if ty.dtype == DType::I1 => integers(ty, sizes, rng, 0, 2),
        _ if ty.dtype == DType::I32 => integers(ty, sizes, rng, 0, 5),
        _ => floats(ty, sizes, rng, -2.0, 2.0),
    }
}

/// B sequences of T new tokens in a cache of C rows, of which S are seen.
fn sizes(rng: &mut Rng) -> Sizes {
    let (b, t) = (1 + rng.below(3), 1 + rng.below(6));
    let s = t + rng.below(4);
    let c = s + rng.below(3);
    [("B", b), ("T", t), ("S", s), ("C", c)]
        .map(|(name, n)| (name.to_string(), n))
        .into()
}

/// Evenly in `[low, high)`, rounded to the type.
fn floats(ty: &TensorType, sizes: &Sizes, rng: &mut Rng, low: f64, high: f64) -> Tensor {
    Tensor::from_fn(&resolved(ty, sizes), ty.dtype, |_| low + (high - low) * rng.unit()).rounded()
}

fn integers(ty: &TensorType, sizes: &Sizes, rng: &mut Rng, low: i64, end: i64) -> Tensor {
    Tensor::from_fn(&resolved(ty, sizes), ty.dtype, |_| (low + rng.below(end - low)) as f64)
}

fn resolved(ty: &TensorType, sizes: &Sizes) -> Vec<usize> {
    ty.resolve(sizes)
        .unwrap_or_default()
        .into_iter()
        .map(|n| n.max(0) as usize)
        .collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `0..n`; 0 if n is less than 1.
    pub fn below(&mut self, n: i64) -> i64 {
        (self.next() % n.max(1) as u64) as i64
    }

    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn choose<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as i64) as usize]
    }
}
