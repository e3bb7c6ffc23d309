//! Attention graphs of many kinds, written naively: what the rules must find the fused form of.
#![allow(dead_code)]

use ir::{DType, Dim, Function, Param, TensorType, ValueId};

/// Heads of a toy model: batch, key heads, queries per key head, head size.
pub const KV: i64 = 2;
pub const GROUP: i64 = 2;
pub const HEAD: i64 = 4;

pub struct Graph {
    pub f: Function,
    pub decode: bool,
    start: Option<ValueId>,
}

impl Graph {
    /// `decode`: one token, S keys, at position `start`.
    pub fn new(decode: bool) -> Graph {
        let mut f = Function::new("attention");
        let start = decode.then(|| {
            let ty = TensorType::new(["B"], DType::I32);
            f.param("start", ty, Param::Input("start".into()))
        });
        Graph { f, decode, start }
    }

    pub fn input(&mut self, name: &str, shape: Vec<Dim>) -> ValueId {
        let ty = TensorType {
            shape,
            dtype: DType::F32,
        };
        self.f.param(name, ty, Param::Input(name.into()))
    }

    pub fn rows(&self) -> Dim {
        if self.decode { Dim::Const(1) } else { Dim::sym("T") }
    }

    pub fn keys(&self) -> Dim {
        if self.decode { Dim::sym("S") } else { Dim::sym("T") }
    }

    pub fn q(&mut self, name: &str) -> ValueId {
        let rows = self.rows();
        self.input(name, vec!["B".into(), KV.into(), GROUP.into(), rows, HEAD.into()])
    }

    /// Keys or values, [B, KV, 1, S, D].
    pub fn k(&mut self, name: &str) -> ValueId {
        let keys = self.keys();
        self.input(name, vec!["B".into(), KV.into(), 1i64.into(), keys, HEAD.into()])
    }

    /// A number per head and token, in (0, 1); or per element.
    pub fn gate(&mut self, name: &str, size: i64) -> ValueId {
        let rows = self.rows();
        let x = self.input(name, vec!["B".into(), KV.into(), GROUP.into(), rows, size.into()]);
        self.f.unary("sigmoid", x)
    }

    pub fn mask(&mut self, window: Option<i64>) -> ValueId {
        let one = Dim::Const(1);
        let shape = match self.start {
            Some(_) => vec![Dim::sym("B"), one.clone(), one.clone(), one, self.keys()],
            None => vec![self.rows(), self.keys()],
        };
        let ty = TensorType {
            shape,
            dtype: DType::I1,
        };
        self.f.mask(self.start, window, ty)
    }

    /// softmax(mask(q k^T * scale)) v
    pub fn attend(&mut self, q: ValueId, k: ValueId, v: ValueId, window: Option<i64>, scale: f64) -> ValueId {
        let scores = self.f.matmul(q, k, true, DType::F32);
        let scale = self.f.scalar(scale, DType::F32);
        let scaled = self.f.mul(scores, scale);
        let mask = self.mask(window);
        let never = self.f.scalar(f64::NEG_INFINITY, DType::F32);
        let masked = self.f.select(mask, scaled, never);
        let p = self.f.softmax(masked, DType::F32);
        self.f.matmul(p, v, false, DType::F32)
    }

    /// g * a + (1 - g) * b
    pub fn blend(&mut self, g: ValueId, a: ValueId, b: ValueId) -> ValueId {
        let one = self.f.scalar(1.0, DType::F32);
        let rest = self.f.sub(one, g);
        let (a, b) = (self.f.mul(g, a), self.f.mul(rest, b));
        self.f.add(a, b)
    }
}

pub const SCALE: f64 = 0.5;

/// One pass.
pub fn base(decode: bool) -> Function {
    let mut g = Graph::new(decode);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let out = g.attend(q, k, v, None, SCALE);
    g.f.returns("out", out);
    g.f
}

/// Both passes over one layer's keys; the gate is a number per head and token, or per element.
pub fn layer(decode: bool, window: i64, gate_size: i64) -> Function {
    let mut g = Graph::new(decode);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let gate = g.gate("gate", gate_size);
    let far = g.attend(q, k, v, None, SCALE);
    let near = g.attend(q, k, v, Some(window), SCALE);
    let out = g.blend(gate, far, near);
    g.f.returns("out", out);
    g.f
}

/// Each pass with keys and values of its own.
pub fn streams(decode: bool, window: i64) -> Function {
    let mut g = Graph::new(decode);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let (k2, v2) = (g.k("k2"), g.k("v2"));
    let gate = g.gate("gate", 1);
    let far = g.attend(q, k, v, None, SCALE);
    let near = g.attend(q, k2, v2, Some(window), SCALE);
    let out = g.blend(gate, far, near);
    g.f.returns("out", out);
    g.f
}

/// The local pass has its own scale.
pub fn own_scale(decode: bool, window: i64) -> Function {
    let mut g = Graph::new(decode);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let gate = g.gate("gate", 1);
    let far = g.attend(q, k, v, None, SCALE);
    let near = g.attend(q, k, v, Some(window), 2.0 * SCALE);
    let out = g.blend(gate, far, near);
    g.f.returns("out", out);
    g.f
}

/// Three nested windows, blended by a softmax over three logits.
pub fn three_windows(decode: bool, windows: [i64; 2]) -> Function {
    let mut g = Graph::new(decode);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let rows = g.rows();
    let logits = g.input("logits", vec!["B".into(), KV.into(), GROUP.into(), rows, 3i64.into()]);
    let weights = g.f.softmax(logits, DType::F32);
    let passes = [None, Some(windows[0]), Some(windows[1])];
    let mut out = None;
    for (i, window) in passes.into_iter().enumerate() {
        let mut ty = g.f.ty(weights).clone();
        ty.shape[4] = Dim::Const(1);
        let w = g.f.slice(weights, 4, i as i64, ty);
        let a = g.attend(q, k, v, window, SCALE);
        let part = g.f.mul(w, a);
        out = Some(out.map_or(part, |o| g.f.add(o, part)));
    }
    g.f.returns("out", out.expect("there are three"));
    g.f
}
