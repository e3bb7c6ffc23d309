//! What no program can beat, measured beside what is compared: the rate of large products, and of memory. A CPU reads weights and does
//! nothing else; a GPU copies a large buffer, and both reading and writing count.
//!
//! Both are of this machine, this minute: a CPU shares its caches, a GPU's clock follows its power.

use anyhow::bail;
use ir::{DType, Dim, Function, Module, Param, TensorType};
use runtime::engine::Engine;
use runtime::{Device, Input};

use crate::options::Common;
use crate::session::{Request, Source};

pub struct Ceilings {
    products: Engine,
    /// With more weights than any cache holds; a GPU's copy needs none.
    weights: Option<Engine>,
    sizes: Vec<(&'static str, i64)>,
    inputs: Vec<(&'static str, Vec<f32>)>,
    operations: f64,
}

/// Seconds of one operation, and of one byte.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Limits {
    pub operation: f64,
    pub byte: f64,
}

/// Pairs of products in a CPU's chain.
const PAIRS: i64 = 8;
/// Rows, columns and k of a GPU's product: enough for every multiprocessor, many times.
const LARGE: [i64; 3] = [8192, 8192, 4096];
/// Measurements; the best counts.
const TRIES: usize = 3;

impl Ceilings {
    /// For what `request` compiles: its targets, type and ways.
    pub fn new(source: &Source, request: &Request, common: &Common) -> anyhow::Result<Ceilings> {
        let request = Request {
            entries: vec!["peak".to_string()],
            targets: request.targets.clone(),
            program: request.program.clone(),
            tuning: request.tuning.clone(),
            emit: vec![],
            ..*request
        };
        let engine = |module: Module| -> anyhow::Result<Engine> {
            let artefact = source.compile_module(module, &request)?;
            Ok(Engine::load(&artefact, &source.checkpoint, common.engine())?)
        };
        if common.device == Device::Cpu {
            let (rows, hidden, inner) = (512, source.config.hidden, source.config.intermediate);
            let first = &mut std::iter::repeat_n(0, PAIRS as usize);
            return Ok(Ceilings {
                products: engine(chain(source, request.dtype, first))?,
                weights: Some(engine(chain(source, request.dtype, &mut (0..source.config.layers)))?),
                sizes: vec![("B", 1), ("T", rows)],
                // Zeros: the sums of a long chain stay finite, and no multiplier of a CPU is faster for it.
                inputs: vec![("x", vec![0.0; (rows * hidden) as usize])],
                operations: (4 * PAIRS * rows * hidden * inner) as f64,
            });
        }
        let [m, n, k] = LARGE;
        Ok(Ceilings {
            products: engine(large(request.dtype))?,
            weights: None,
            sizes: vec![],
            inputs: vec![("a", noise(m * k)), ("b", noise(n * k))],
            operations: (2 * m * n * k) as f64,
        })
    }

    /// What runs the products, for people.
    pub fn machine(&self) -> String {
        self.products.machine()
    }

    pub fn measure(&self) -> anyhow::Result<Limits> {
        let mut best = Limits {
            operation: f64::INFINITY,
            byte: f64::INFINITY,
        };
        let inputs: Vec<(&str, Input)> = self.inputs.iter().map(|(name, x)| (*name, Input::F32(x))).collect();
        for _ in 0..TRIES {
            self.products.profile(true);
            self.products.call_for(&[], "peak", &self.sizes, &inputs, None)?;
            // The products alone: a GPU's host copies inputs, which no chain of kernels does.
            let rows = self.products.profile(false).into_iter();
            let products = rows.filter(|r| r.ran.kernel.contains("matmul")).map(|r| r.time);
            let time = products.sum::<std::time::Duration>().as_secs_f64();
            best.operation = best.operation.min(time / self.operations);
            let (bytes, time) = self.weights.as_ref().unwrap_or(&self.products).read_weights();
            if bytes == 0 {
                bail!("there is no memory left to measure how fast memory is");
            }
            best.byte = best.byte.min(time.as_secs_f64() / bytes as f64);
        }
        Ok(best)
    }
}

/// Multiplies by the projections of these layers, one after the other.
fn chain(source: &Source, dtype: DType, layers: &mut dyn Iterator<Item = i64>) -> Module {
    let (hidden, inner) = (source.config.hidden, source.config.intermediate);
    let mut f = Function::new("peak");
    let ty = TensorType::new([Dim::sym("B"), Dim::sym("T"), hidden.into()], DType::F32);
    let x = f.param("x", ty, Param::Input("x".to_string()));
    let mut y = f.cast(x, dtype);
    for layer in layers {
        let mut weight = |name: &str, shape: [i64; 2]| {
            let kind = Param::Weight(format!("model.layers.{layer}.mlp.{name}.weight"));
            let known = f.params.iter().find(|p| p.1 == kind).map(|p| p.0);
            known.unwrap_or_else(|| f.param(&format!("{name}{layer}"), TensorType::new(shape, dtype), kind))
        };
        let (up, down) = (weight("up_proj", [inner, hidden]), weight("down_proj", [hidden, inner]));
        let wide = f.matmul(y, up, true, dtype);
        y = f.matmul(wide, down, true, dtype);
    }
    let y = f.cast(y, DType::F32);
    f.returns("y", y);
    Module { functions: vec![f] }
}

/// One large product, whatever the model's shapes.
fn large(dtype: DType) -> Module {
    let [m, n, k] = LARGE;
    let mut f = Function::new("peak");
    let mut input = |name: &str, rows: i64| {
        let ty = TensorType::new([rows, k], dtype);
        f.param(name, ty, Param::Input(name.to_string()))
    };
    let (a, b) = (input("a", m), input("b", n));
    let y = f.matmul(a, b, true, dtype);
    f.returns("y", y);
    Module { functions: vec![f] }
}

/// Numbers in -1..1 whose bits differ: a GPU that multiplies zeros needs less power and runs faster than it ever will.
fn noise(n: i64) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
