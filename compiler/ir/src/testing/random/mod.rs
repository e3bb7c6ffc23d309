//! Random programs: every op, every rank, sizes of 1, attention of one and two passes, an entry point that calls a layer function.
//! Values stay small and the ops smooth, so that two correct ways to run a program differ by rounding only.
//!
//! Here is how a program grows: from a layer and an entry point around it, by steps that draw an op and a value to take it of. The ops
//! are in files by kind, what every program has of a model in `model`, what it is given to run in `data`. A seed means the same program
//! as long as numbers are drawn in the same order.

mod attention;
mod data;
mod elementwise;
mod model;
mod reductions;
mod training;
mod views;

use std::collections::BTreeMap;

use super::{Case, ENTRY, Rng, sizes};
use crate::graph::{Function, Module, Param, ValueId};
use crate::types::{DType, Dim, TensorType};
use data::Data;

use DType::{BF16, F32};

const LAYERS: i64 = 2;
/// No value grows beyond this: what would goes through `sigmoid` first.
const LIMIT: f64 = 32.0;

/// A valid program; the same for the same seed.
pub fn random(seed: u64) -> Case {
    program(seed, false)
}

/// One with more of what training brings: values with several readers, sums over any axis, states that are updated in place.
pub fn random_training(seed: u64) -> Case {
    program(seed, true)
}

fn program(seed: u64, training: bool) -> Case {
    let mut rng = Rng::new(seed);
    let sizes = sizes(&mut rng);
    let hidden = *rng.choose(&[1, 2, 5, 8]);
    let mut data = Data {
        training,
        sizes,
        inputs: BTreeMap::new(),
        weights: BTreeMap::new(),
        states: BTreeMap::new(),
    };
    let x_type = TensorType::new([Dim::sym("B"), Dim::sym("T"), hidden.into()], F32);

    let mut g = Generator::new("layer", &mut rng, &mut data);
    let x = g.f.param("x", x_type.clone(), Param::Input("x".to_string()));
    g.pool.push((x, 4.0));
    for _ in 0..3 + g.rng.below(6) {
        g.step();
    }
    g.state();
    // The residual: what the layer did to x, kept small.
    let y = g.residual(x, hidden);
    g.f.returns("y", y);
    let layer = g.f;

    let mut g = Generator::new(ENTRY, &mut rng, &mut data);
    let mut x = g.tokens(hidden);
    let seen = g.fresh(TensorType::new(
        [Dim::sym("B"), 2i64.into(), Dim::sym("S"), 4i64.into()],
        F32,
    ));
    g.pool.push((seen, 1.0));
    for i in 0..LAYERS {
        let args: Vec<ValueId> = [x].into();
        x = g.f.call(&layer, i, &args)[0];
        g.pool.push((x, 4.0 + 2.0 * (i + 1) as f64));
        for _ in 0..2 + g.rng.below(6) {
            g.step();
        }
    }
    g.loss(x);
    g.finish();
    let functions = vec![layer, g.f];
    Case {
        module: Module { functions },
        sizes: data.sizes,
        inputs: data.inputs,
        weights: data.weights,
        states: data.states,
    }
}

struct Generator<'a> {
    f: Function,
    rng: &'a mut Rng,
    data: &'a mut Data,
    /// Float values, each with a bound of its magnitude.
    pool: Vec<(ValueId, f64)>,
}

impl<'a> Generator<'a> {
    fn new(name: &str, rng: &'a mut Rng, data: &'a mut Data) -> Self {
        Generator {
            f: Function::new(name),
            rng,
            data,
            pool: vec![],
        }
    }

    /// One or a few ops on values of the pool.
    fn step(&mut self) {
        let (x, bound) = self.pick();
        if self.data.training && self.rng.below(2) == 0 {
            return match self.rng.below(3) {
                0 => self.optimizer(x, bound),
                _ => self.product(x, bound),
            };
        }
        let dtype = self.f.ty(x).dtype;
        match self.rng.below(16) {
            0 => self.pairwise(x, bound),
            1 => self.smooth(x, bound),
            2 => {
                let to = *self.rng.choose(&[F32, BF16]);
                let y = self.f.cast(x, to);
                self.keep(y, bound * 1.01);
            }
            3 => self.select(x, bound),
            4 => self.reduce(x, bound),
            5 => self.attention_weights(x),
            6 => self.norm(x),
            7 => self.rope(x, bound),
            8 => self.reshape(x, bound),
            9 => self.transpose(x, bound),
            10 => self.slice(x, bound),
            11 => self.concat(x, bound),
            12 | 13 => self.matmul(x, bound),
            14 => self.attention(x, bound),
            _ => {
                let value = self.rng.unit() * 4.0 - 2.0;
                let c = self.f.scalar(value, dtype);
                let y = self.f.mul(x, c);
                self.keep(y, bound * 2.0);
            }
        }
    }

    /// A value of the pool, the newer the likelier.
    fn pick(&mut self) -> (ValueId, f64) {
        let n = self.pool.len() as i64;
        let back = self.rng.below(n).min(self.rng.below(n));
        self.pool[(n - 1 - back) as usize]
    }

    fn keep(&mut self, v: ValueId, bound: f64) {
        if bound > LIMIT {
            let small = self.f.unary("sigmoid", v);
            self.pool.push((small, 1.0));
        } else {
            self.pool.push((v, bound));
        }
    }

    fn shape(&self, x: ValueId) -> Vec<Dim> {
        self.f.ty(x).shape.clone()
    }

    fn size(&self, d: &Dim) -> i64 {
        d.size().eval(&self.data.sizes).unwrap_or(1)
    }

    /// Returns most values that nothing uses; the rest is dead code.
    fn finish(&mut self) {
        let used: Vec<ValueId> = self.f.ops.iter().flat_map(|op| op.operands.clone()).collect();
        let unused: Vec<ValueId> = self
            .pool
            .iter()
            .map(|(v, _)| *v)
            .filter(|v| !used.contains(v))
            .collect();
        for (i, v) in unused.iter().enumerate() {
            let duplicate = unused[..i].contains(v);
            if !duplicate && (i + 1 == unused.len() || self.rng.below(4) > 0) {
                self.f.returns(&format!("r{i}"), *v);
            }
        }
    }
}
