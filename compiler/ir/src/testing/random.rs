//! Random programs: every op, every rank, sizes of 1, attention of one and two passes, an entry point that calls a layer function.
//! Values stay small and the ops smooth, so that two correct ways to run a program differ by rounding only.

use std::collections::BTreeMap;

use super::{Case, ENTRY, Rng, floats, integers, sizes};
use crate::graph::{Function, Module, Param, ValueId};
use crate::tensor::Tensor;
use crate::types::{DType, Dim, Sizes, TensorType};

use DType::{BF16, F16, F32, I1, I32};

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

struct Data {
    training: bool,
    sizes: Sizes,
    inputs: BTreeMap<String, Tensor>,
    weights: BTreeMap<String, Tensor>,
    states: BTreeMap<String, Tensor>,
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

    /// A new tensor within [-1, 1]: a weight where the shape is constant, else an input; a layer gets no inputs but x.
    fn fresh(&mut self, ty: TensorType) -> ValueId {
        let name = format!("a{}", self.f.values.len());
        let constant = ty.shape.iter().all(|d| matches!(d, Dim::Const(_)));
        match (self.f.name == ENTRY, constant) {
            (true, false) => {
                self.data
                    .inputs
                    .insert(name.clone(), floats(&ty, &self.data.sizes, self.rng, -1.0, 1.0));
                self.f.param(&name, ty, Param::Input(name.clone()))
            }
            (true, true) => {
                self.data.weights.insert(
                    format!("{name}.weight"),
                    floats(&ty, &self.data.sizes, self.rng, -1.0, 1.0),
                );
                self.f.param(&name, ty, Param::Weight(format!("{name}.weight")))
            }
            (false, true) => {
                for i in 0..LAYERS {
                    self.data.weights.insert(
                        format!("layers.{i}.{name}"),
                        floats(&ty, &self.data.sizes, self.rng, -1.0, 1.0),
                    );
                }
                self.f.param(&name, ty, Param::Weight(format!("layers.{{i}}.{name}")))
            }
            (false, false) => self.f.constant(0.375, ty),
        }
    }

    /// `start`, `last`, ..: an integer input of the entry point.
    fn integer(&mut self, name: &str, ty: TensorType, low: i64, end: i64) -> ValueId {
        self.data
            .inputs
            .insert(name.to_string(), integers(&ty, &self.data.sizes, self.rng, low, end));
        self.f.param(name, ty, Param::Input(name.to_string()))
    }

    fn shape(&self, x: ValueId) -> Vec<Dim> {
        self.f.ty(x).shape.clone()
    }

    /// x has rank at least `rank`: ones in front.
    fn ranked(&mut self, x: ValueId, rank: usize) -> ValueId {
        let mut ty = self.f.ty(x).clone();
        if ty.rank() >= rank {
            return x;
        }
        while ty.rank() < rank {
            ty.shape.insert(0, Dim::Const(1));
        }
        self.f.reshape(x, ty)
    }

    fn size(&self, d: &Dim) -> i64 {
        d.size().eval(&self.data.sizes).unwrap_or(1)
    }

    fn pairwise(&mut self, x: ValueId, bound: f64) {
        let mut ty = self.f.ty(x).clone();
        for d in &mut ty.shape {
            if self.rng.below(3) == 0 {
                *d = Dim::Const(1);
            }
        }
        ty.shape.drain(..self.rng.below(ty.rank() as i64 + 1) as usize);
        // Another value of the pool if one fits, else a new one.
        let fitting: Vec<(ValueId, f64)> = self
            .pool
            .iter()
            .copied()
            .filter(|(v, _)| {
                crate::ops::broadcast(&ty.shape, &self.shape(*v)).is_ok_and(|s| {
                    crate::ops::broadcast(&s, &self.shape(x)).is_ok_and(|s| s == self.shape(x))
                        && self.f.ty(*v).dtype == ty.dtype
                })
            })
            .collect();
        let (y, other) = match fitting.is_empty() || self.rng.below(2) == 0 {
            true => (self.fresh(ty), 1.0),
            false => *self.rng.choose(&fitting),
        };
        let (a, b) = if self.rng.below(2) == 0 { (x, y) } else { (y, x) };
        let (z, bound) = match self.rng.below(5) {
            0 => (self.f.add(a, b), bound + other),
            1 => (self.f.sub(a, b), bound + other),
            2 => (self.f.mul(a, b), bound * other),
            3 => (self.f.max(a, b), bound.max(other)),
            _ => {
                let s = self.f.unary("sigmoid", y);
                let one = self.f.scalar(1.0, self.f.ty(y).dtype);
                let below = self.f.add(s, one);
                (self.f.div(x, below), bound)
            }
        };
        self.keep(z, bound);
    }

    fn smooth(&mut self, x: ValueId, bound: f64) {
        let dtype = self.f.ty(x).dtype;
        let (y, bound) = match self.rng.below(6) {
            0 => (self.f.unary("neg", x), bound),
            1 => (self.f.unary("sigmoid", x), 1.0),
            2 => (self.f.unary("silu", x), bound),
            3 => {
                let s = self.f.unary("sigmoid", x);
                (self.f.unary("exp", s), 2.8)
            }
            op => {
                let square = self.f.mul(x, x);
                let one = self.f.scalar(1.0, dtype);
                let above = self.f.add(square, one);
                (
                    self.f.unary(if op == 4 { "log" } else { "rsqrt" }, above),
                    bound.max(1.0),
                )
            }
        };
        self.keep(y, bound);
    }

    fn select(&mut self, x: ValueId, bound: f64) {
        let x = self.ranked(x, 2);
        let other = self.fresh(TensorType {
            shape: vec![],
            dtype: self.f.ty(x).dtype,
        });
        let mask = self.mask(x);
        let y = self.f.select(mask, x, other);
        self.keep(y, bound.max(1.0));
    }

    /// Over the last two axes of x (rank 2 at least), with and without a window and positions.
    fn mask(&mut self, x: ValueId) -> ValueId {
        let window = (self.rng.below(2) == 0).then(|| 1 + self.rng.below(4));
        let shape = self.shape(x);
        let rank = shape.len();
        let with_start = rank > 2 && self.f.name == ENTRY && self.rng.below(2) == 0;
        let mut ty = TensorType {
            shape: shape[rank - 2..].to_vec(),
            dtype: I1,
        };
        let mut start = None;
        if with_start {
            ty = TensorType {
                shape: shape.clone(),
                dtype: I1,
            };
            ty.shape[1..rank - 2].fill(Dim::Const(1));
            let name = format!("start{}", self.f.values.len());
            start = Some(self.integer(
                &name,
                TensorType {
                    shape: vec![shape[0].clone()],
                    dtype: I32,
                },
                0,
                4,
            ));
        }
        self.f.mask(start, window, ty)
    }

    fn reduce(&mut self, x: ValueId, bound: f64) {
        let x = self.ranked(x, 1);
        let shape = self.shape(x);
        let axis = self.rng.below(shape.len() as i64);
        let n = self.size(&shape[axis as usize]);
        match self.rng.below(2) {
            0 => {
                let y = self.f.reduce_sum(x, axis);
                self.keep(y, bound * n as f64);
            }
            _ => {
                let y = self.f.reduce_max(x, axis);
                self.keep(y, bound);
            }
        }
    }

    /// A value with several readers, one of them its sum over any axis.
    fn product(&mut self, x: ValueId, bound: f64) {
        let x = self.ranked(x, 1);
        let shape = self.shape(x);
        let axis = self.rng.below(shape.len() as i64);
        let n = self.size(&shape[axis as usize]);
        let part = self.f.unary("sigmoid", x);
        let y = self.f.mul(x, part);
        let sum = self.f.reduce_sum(y, axis);
        self.keep(sum, bound * n as f64);
        let more = self.f.add(y, part);
        self.keep(more, bound + 1.0);
        self.keep(y, bound);
    }

    /// An optimizer's step: a state is updated in place, and another one by the first one's new value.
    fn optimizer(&mut self, x: ValueId, bound: f64) {
        let ty = self.f.ty(x).clone();
        if ty.shape.last() == Some(&Dim::Const(1)) {
            // Beside a reduction or a product, one column is stored with a stride and loaded without: not the same place to the verifier.
            return;
        }
        let scaled = |g: &mut Self, v: ValueId, by: f64| {
            let by = g.f.scalar(by, ty.dtype);
            g.f.mul(v, by)
        };
        let (moment, param) = (self.new_state(&ty), self.new_state(&ty));
        let (old, new) = (scaled(self, moment, 0.5), scaled(self, x, 0.25));
        let sum = self.f.add(old, new);
        let moment = self.f.update(moment, sum);
        let step = scaled(self, moment, 0.5);
        let less = self.f.sub(param, step);
        let param = self.f.update(param, less);
        self.keep(param, 2.0 + bound);
    }

    /// A state of its own, in every layer if it is a layer's.
    fn new_state(&mut self, ty: &TensorType) -> ValueId {
        let name = format!("state{}", self.f.values.len());
        let (layers, full) = match self.f.name == ENTRY {
            true => (1, name.clone()),
            false => (LAYERS, format!("layers.{{i}}.{name}")),
        };
        for i in 0..layers {
            let values = floats(ty, &self.data.sizes, self.rng, -1.0, 1.0);
            let name = full.replace("{i}", &i.to_string());
            self.data.states.insert(name, values);
        }
        self.f.param(&name, ty.clone(), Param::State(full))
    }

    /// A masked softmax; rows in which all is masked included.
    fn attention_weights(&mut self, x: ValueId) {
        let mut x = self.ranked(x, 2);
        if self.rng.below(3) > 0 {
            let mask = self.mask(x);
            let out = self.f.scalar(f64::NEG_INFINITY, self.f.ty(x).dtype);
            x = self.f.select(mask, x, out);
        }
        let to = *self.rng.choose(&[F32, BF16]);
        let y = self.f.softmax(x, to);
        self.keep(y, 1.0);
    }

    /// Attention over the rows of x, as a model writes it; every axis may be of size 1. A second pass is blended with the first by a
    /// gate, or is not there.
    fn attention(&mut self, x: ValueId, bound: f64) {
        let x = self.ranked(x, 3);
        let shape = self.shape(x);
        let width = shape[shape.len() - 1].size().as_const();
        let (3, Some(width)) = (shape.len(), width) else {
            return self.keep(x, bound);
        };
        let dtype = self.f.ty(x).dtype;
        let (kv, group) = (1 + self.rng.below(2), 1 + self.rng.below(2));
        let head = *self.rng.choose(&[1, 3, 4]);
        let typed = |dims: &[Dim]| TensorType {
            shape: dims.to_vec(),
            dtype,
        };
        let (b, t) = (shape[0].clone(), shape[1].clone());
        let one = Dim::Const(1);
        // [B, heads, T, head], then [B, KV, G or 1, T, head].
        let heads = |g: &mut Self, groups: i64, small: bool| {
            let w = g.fresh(typed(&[(kv * groups * head).into(), width.into()]));
            let mut y = g.f.matmul(x, w, true, dtype);
            if small {
                // Sharp maxima would make rounding decide.
                y = g.f.unary("sigmoid", y);
            }
            let y =
                g.f.reshape(y, typed(&[b.clone(), t.clone(), (kv * groups).into(), head.into()]));
            let y = g.f.transpose(y, &[0, 2, 1, 3]);
            g.f.reshape(y, typed(&[b.clone(), kv.into(), groups.into(), t.clone(), head.into()]))
        };
        let q = heads(self, group, true);
        let (mut k, mut v) = (heads(self, 1, true), heads(self, 1, false));
        let pass = |g: &mut Self, k: ValueId, v: ValueId, window: Option<i64>| {
            let scores = g.f.matmul(q, k, true, F32);
            let scale = g.f.scalar(0.5, F32);
            let scaled = g.f.mul(scores, scale);
            let ty = TensorType {
                shape: vec![t.clone(), t.clone()],
                dtype: I1,
            };
            let mask = g.f.mask(None, window, ty);
            let never = g.f.scalar(f64::NEG_INFINITY, F32);
            let masked = g.f.select(mask, scaled, never);
            let p = g.f.softmax(masked, dtype);
            g.f.matmul(p, v, false, F32)
        };
        let mut out = pass(self, k, v, None);
        if self.rng.below(3) > 0 {
            if self.rng.below(3) == 0 {
                (k, v) = (heads(self, 1, true), heads(self, 1, false));
            }
            let window = 1 + self.rng.below(4);
            let near = pass(self, k, v, Some(window));
            let w = self.fresh(TensorType {
                shape: vec![kv.into(), group.into(), one, head.into()],
                dtype: F32,
            });
            let q = self.f.cast(q, F32);
            let product = self.f.mul(q, w);
            let logit = self.f.reduce_sum(product, 4);
            let gate = self.f.unary("sigmoid", logit);
            let all = self.f.scalar(1.0, F32);
            let rest = self.f.sub(all, gate);
            let (a, b) = (self.f.mul(gate, out), self.f.mul(rest, near));
            out = self.f.add(a, b);
        }
        let out = self.f.cast(out, dtype);
        let out = self
            .f
            .reshape(out, typed(&[b.clone(), (kv * group).into(), t.clone(), head.into()]));
        let out = self.f.transpose(out, &[0, 2, 1, 3]);
        let out = self.f.reshape(out, typed(&[b, t, (kv * group * head).into()]));
        self.keep(out, width as f64 * bound);
    }

    fn norm(&mut self, x: ValueId) {
        let mut x = self.ranked(x, 1);
        let mut n = self.shape(x).last().cloned().unwrap_or(Dim::Const(1));
        if matches!(n, Dim::Sym(_)) {
            // The width of a norm is constant: a last axis of 1.
            let mut ty = self.f.ty(x).clone();
            n = Dim::Const(1);
            ty.shape.push(n.clone());
            x = self.f.reshape(x, ty);
        }
        let bound = self.size(&n) as f64;
        let w = self.fresh(TensorType {
            shape: vec![n],
            dtype: F32,
        });
        let to = *self.rng.choose(&[F32, BF16]);
        // A large eps keeps the slope small where x is near zero.
        let y = self.f.rms_norm(x, w, 1e-2, to);
        self.keep(y, bound.sqrt());
    }

    fn rope(&mut self, x: ValueId, bound: f64) {
        let x = self.ranked(x, 2);
        let shape = self.shape(x);
        let even = shape
            .last()
            .and_then(|d| d.size().as_const())
            .is_some_and(|d| d % 2 == 0);
        // An even last axis: as it is, or the first axis doubled and brought to the end.
        let x = match shape[0] {
            _ if even => x,
            Dim::Const(_) => {
                let doubled = self.f.concat(&[x, x], 0);
                let perm: Vec<i64> = (1..shape.len() as i64).chain([0]).collect();
                self.f.transpose(doubled, &perm)
            }
            Dim::Sym(_) => return self.keep(x, bound),
        };
        let x = self.ranked(x, 3);
        let start = (self.f.name == ENTRY && self.rng.below(2) == 0).then(|| {
            let name = format!("start{}", self.f.values.len());
            let ty = TensorType {
                shape: vec![self.shape(x)[0].clone()],
                dtype: I32,
            };
            self.integer(&name, ty, 0, 8)
        });
        let to = *self.rng.choose(&[F32, BF16]);
        let y = self.f.rope(x, start, 100.0, 64, to);
        self.keep(y, bound * 1.5);
    }

    fn reshape(&mut self, x: ValueId, bound: f64) {
        let mut ty = self.f.ty(x).clone();
        let at = self.rng.below(ty.rank() as i64 + 1) as usize;
        match self.rng.below(3) {
            // Two axes become one, where the product is a constant.
            0 if at + 1 < ty.rank() && ty.shape[at..at + 2].iter().all(|d| matches!(d, Dim::Const(_))) => {
                let n: i64 = ty.shape[at..at + 2].iter().map(|d| self.size(d)).product();
                ty.shape.splice(at..at + 2, [Dim::Const(n)]);
            }
            1 if at < ty.rank() && ty.shape[at].size().as_const().is_some_and(|n| n % 2 == 0) => {
                let n = self.size(&ty.shape[at]);
                ty.shape.splice(at..at + 1, [Dim::Const(2), Dim::Const(n / 2)]);
            }
            _ if ty.rank() < 5 => ty.shape.insert(at, Dim::Const(1)),
            _ => {}
        }
        let y = self.f.reshape(x, ty);
        self.keep(y, bound);
    }

    fn transpose(&mut self, x: ValueId, bound: f64) {
        let mut perm: Vec<i64> = (0..self.f.ty(x).rank() as i64).collect();
        for i in (1..perm.len()).rev() {
            perm.swap(i, self.rng.below(i as i64 + 1) as usize);
        }
        let y = self.f.transpose(x, &perm);
        self.keep(y, bound);
    }

    fn slice(&mut self, x: ValueId, bound: f64) {
        let mut ty = self.f.ty(x).clone();
        let constant: Vec<usize> = (0..ty.rank())
            .filter(|i| matches!(ty.shape[*i], Dim::Const(_)))
            .collect();
        if constant.is_empty() {
            return self.keep(x, bound);
        }
        let axis = *self.rng.choose(&constant);
        let n = self.size(&ty.shape[axis]);
        let begin = self.rng.below(n);
        ty.shape[axis] = Dim::Const(1 + self.rng.below(n - begin));
        let y = self.f.slice(x, axis as i64, begin, ty);
        self.keep(y, bound);
    }

    fn concat(&mut self, x: ValueId, bound: f64) {
        let mut ty = self.f.ty(x).clone();
        let constant: Vec<usize> = (0..ty.rank())
            .filter(|i| matches!(ty.shape[*i], Dim::Const(_)))
            .collect();
        if constant.is_empty() {
            return self.keep(x, bound);
        }
        let axis = *self.rng.choose(&constant);
        ty.shape[axis] = Dim::Const(1 + self.rng.below(3));
        let other = self.fresh(ty);
        let y = if self.rng.below(2) == 0 {
            self.f.concat(&[x, other], axis as i64)
        } else {
            self.f.concat(&[other, x, other], axis as i64)
        };
        self.keep(y, bound.max(1.0));
    }

    /// By a weight, by itself transposed, or with a broadcast batch.
    fn matmul(&mut self, x: ValueId, bound: f64) {
        let x = self.ranked(x, 2);
        let (shape, dtype) = (self.shape(x), self.f.ty(x).dtype);
        let rank = shape.len();
        let k = shape[rank - 1].clone();
        let n = Dim::Const(*self.rng.choose(&[1, 2, 3, 7, 17]));
        let to = *self.rng.choose(&[F32, dtype]);
        let sum = self.size(&k) as f64 * bound;
        let (y, bound) = match self.rng.below(4) {
            0 => (self.f.matmul(x, x, true, to), sum * bound),
            1 => {
                let w = self.fresh(TensorType {
                    shape: vec![k, n],
                    dtype,
                });
                (self.f.matmul(x, w, false, to), sum)
            }
            2 if rank > 2 => {
                let mut batch = shape[..rank - 2].to_vec();
                let last = batch.len() - 1;
                batch[last] = Dim::Const(1);
                batch.extend([n, k]);
                let b = self.fresh(TensorType { shape: batch, dtype });
                (self.f.matmul(x, b, true, to), sum)
            }
            _ => {
                let w = self.fresh(TensorType {
                    shape: vec![n, k],
                    dtype,
                });
                (self.f.matmul(x, w, true, to), sum)
            }
        };
        self.keep(y, bound);
    }

    /// A cache of the layer is written and read: plain or a ring shorter than the new rows may be.
    fn state(&mut self) {
        let ring = self.rng.below(2) == 0;
        let capacity = if ring {
            Dim::Const(1 + self.rng.below(4))
        } else {
            Dim::sym("C")
        };
        let (heads, width) = (1 + self.rng.below(2), *self.rng.choose(&[1i64, 3, 4]));
        let dtype = *self.rng.choose(&[F32, BF16]);
        let ty = TensorType {
            shape: vec![Dim::sym("B"), heads.into(), capacity, width.into()],
            dtype,
        };
        for i in 0..LAYERS {
            self.data.states.insert(
                format!("k_cache.{i}"),
                floats(&ty, &self.data.sizes, self.rng, -1.0, 1.0),
            );
        }
        let cache = self
            .f
            .param("cache", ty.clone(), Param::State("k_cache.{i}".to_string()));
        let mut row = ty;
        row.shape[2] = Dim::sym("T");
        let new = self.fresh(row.clone());
        let scale = self.fresh(TensorType {
            shape: vec![width.into()],
            dtype,
        });
        let new = self.f.mul(new, scale);
        let written = self.f.cache_write(cache, new, None, ring);
        self.pool.push((written, 1.0));
    }

    /// x plus something bounded that depends on the newest value.
    fn residual(&mut self, x: ValueId, hidden: i64) -> ValueId {
        let w = self.fresh(TensorType {
            shape: vec![hidden.into(), hidden.into()],
            dtype: F32,
        });
        let y = self.f.matmul(x, w, true, F32);
        let y = self.f.unary("sigmoid", y);
        // The newest value as one number per sequence element: reduced to [1, .., 1], which broadcasts.
        let mut all = self.f.cast(self.pool[self.pool.len() - 1].0, F32);
        for axis in 0..self.f.ty(all).rank() {
            all = self.f.reduce_max(all, axis as i64);
        }
        let all = self.f.reshape(
            all,
            TensorType {
                shape: vec![],
                dtype: F32,
            },
        );
        let gate = self.f.unary("sigmoid", all);
        let y = self.f.mul(y, gate);
        self.f.add(x, y)
    }

    /// Embedded tokens [B, T, H] f32, the table in any float type.
    fn tokens(&mut self, hidden: i64) -> ValueId {
        let vocab = 3 + self.rng.below(9);
        let table_type = *self.rng.choose(&[F32, BF16, F16]);
        let ids = self.integer("tokens", TensorType::new(["B", "T"], I32), 0, vocab);
        let table = self.fresh(TensorType::new([vocab, hidden], table_type));
        let x = self.f.embed(table, ids, F32);
        self.pool.push((x, 1.0));
        x
    }

    /// The last rows, and the loss of a small head.
    fn loss(&mut self, x: ValueId) {
        let last = self.integer("last", TensorType::new(["B"], I32), 0, self.data.sizes["T"]);
        let rows = self.f.take_rows(x, last);
        self.pool.push((rows, 8.0));
        let vocab = 2 + self.rng.below(20);
        let hidden = self.shape(x)[2].clone();
        let head = self.fresh(TensorType {
            shape: vec![vocab.into(), hidden],
            dtype: F32,
        });
        let logits = self.f.matmul(x, head, true, F32);
        let targets = self.integer("targets", TensorType::new(["B", "T"], I32), -1, vocab);
        let nll = self.f.cross_entropy(logits, targets);
        self.pool.push((nll, 64.0));
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
