//! Attention graphs of many kinds, written naively: what the rules must find the fused form of.
#![allow(dead_code)]

pub mod check;

use ir::{DType, Dim, Function, Param, TensorType, ValueId};

pub const HEAD: i64 = 4;

/// The axes of a toy model's attention.
#[derive(Clone, Debug)]
pub struct Shape {
    /// One token, S keys, at position `start`.
    pub decode: bool,
    pub batch: Dim,
    /// Key heads, and queries of each.
    pub kv: i64,
    pub group: i64,
    pub rows: Dim,
    pub keys: Dim,
    pub head: i64,
    /// As a model writes it: all heads one axis before attention and behind it, one axis of all features in the end.
    pub flat: bool,
}

impl Shape {
    pub fn new(decode: bool) -> Shape {
        Shape {
            decode,
            batch: Dim::sym("B"),
            kv: 2,
            group: 2,
            rows: if decode { Dim::Const(1) } else { Dim::sym("T") },
            keys: Dim::sym(if decode { "S" } else { "T" }),
            head: HEAD,
            flat: false,
        }
    }
}

pub struct Graph {
    pub f: Function,
    pub shape: Shape,
    start: Option<ValueId>,
}

impl Graph {
    pub fn new(shape: &Shape) -> Graph {
        let mut f = Function::new("attention");
        let start = shape.decode.then(|| {
            let ty = TensorType::new([shape.batch.clone()], DType::I32);
            f.param("start", ty, Param::Input("start".into()))
        });
        Graph {
            f,
            shape: shape.clone(),
            start,
        }
    }

    pub fn input(&mut self, name: &str, shape: Vec<Dim>) -> ValueId {
        let ty = TensorType {
            shape,
            dtype: DType::F32,
        };
        self.f.param(name, ty, Param::Input(name.into()))
    }

    fn reshape(&mut self, x: ValueId, shape: Vec<Dim>) -> ValueId {
        let dtype = self.f.ty(x).dtype;
        self.f.reshape(x, TensorType { shape, dtype })
    }

    /// [B, KV, G, T, D]
    pub fn q(&mut self, name: &str) -> ValueId {
        let s = self.shape.clone();
        let grouped = vec![
            s.batch.clone(),
            s.kv.into(),
            s.group.into(),
            s.rows.clone(),
            s.head.into(),
        ];
        if !s.flat {
            return self.input(name, grouped);
        }
        let all = self.input(name, vec![s.batch, (s.kv * s.group).into(), s.rows, s.head.into()]);
        self.reshape(all, grouped)
    }

    /// Keys or values, [B, KV, 1, S, D].
    pub fn k(&mut self, name: &str) -> ValueId {
        let s = self.shape.clone();
        let grouped = vec![s.batch.clone(), s.kv.into(), 1i64.into(), s.keys.clone(), s.head.into()];
        if !s.flat {
            return self.input(name, grouped);
        }
        let all = self.input(name, vec![s.batch, s.kv.into(), s.keys, s.head.into()]);
        self.reshape(all, grouped)
    }

    /// One key or value that comes as [B, KV, D], in one step or two.
    pub fn one_key(&mut self, name: &str, steps: usize) -> ValueId {
        let s = self.shape.clone();
        let mut x = self.input(name, vec![s.batch.clone(), s.kv.into(), s.head.into()]);
        if steps == 2 {
            x = self.reshape(x, vec![s.batch.clone(), s.kv.into(), 1i64.into(), s.head.into()]);
        }
        self.reshape(x, vec![s.batch, s.kv.into(), 1i64.into(), 1i64.into(), s.head.into()])
    }

    /// A value of one number per batch, head and feature as one key.
    pub fn as_one_key(&mut self, x: ValueId) -> ValueId {
        let s = self.shape.clone();
        let x = self.reshape(x, vec![s.batch.clone(), s.kv.into(), s.head.into()]);
        self.reshape(x, vec![s.batch, s.kv.into(), 1i64.into(), 1i64.into(), s.head.into()])
    }

    /// A number per head and token, in (0, 1); or per element.
    pub fn gate(&mut self, name: &str, size: i64) -> ValueId {
        let s = self.shape.clone();
        let x = self.input(name, vec![s.batch, s.kv.into(), s.group.into(), s.rows, size.into()]);
        self.f.unary("sigmoid", x)
    }

    pub fn returns(&mut self, out: ValueId) {
        let s = self.shape.clone();
        let out = if s.flat {
            let heads = s.kv * s.group;
            let all = self.reshape(out, vec![s.batch.clone(), heads.into(), s.rows.clone(), s.head.into()]);
            let turned = self.f.transpose(all, &[0, 2, 1, 3]);
            self.reshape(turned, vec![s.batch, s.rows, (heads * s.head).into()])
        } else {
            out
        };
        self.f.returns("out", out);
    }

    pub fn mask(&mut self, window: Option<i64>) -> ValueId {
        let one = Dim::Const(1);
        let shape = match self.start {
            Some(_) => vec![
                self.shape.batch.clone(),
                one.clone(),
                one.clone(),
                one,
                self.shape.keys.clone(),
            ],
            None => vec![self.shape.rows.clone(), self.shape.keys.clone()],
        };
        let ty = TensorType {
            shape,
            dtype: DType::I1,
        };
        self.f.mask(self.start, window, ty)
    }

    /// q k^T * scale
    pub fn scores(&mut self, q: ValueId, k: ValueId, scale: f64) -> ValueId {
        let scores = self.f.matmul(q, k, true, DType::F32);
        let scale = self.f.scalar(scale, DType::F32);
        self.f.mul(scores, scale)
    }

    /// x, and -inf behind the mask.
    pub fn masked(&mut self, x: ValueId, window: Option<i64>) -> ValueId {
        let mask = self.mask(window);
        let never = self.f.scalar(f64::NEG_INFINITY, DType::F32);
        self.f.select(mask, x, never)
    }

    /// softmax(mask(q k^T * scale)) v
    pub fn attend(&mut self, q: ValueId, k: ValueId, v: ValueId, window: Option<i64>, scale: f64) -> ValueId {
        let scores = self.scores(q, k, scale);
        let masked = self.masked(scores, window);
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
pub fn base(shape: &Shape) -> Function {
    let mut g = Graph::new(shape);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let out = g.attend(q, k, v, None, SCALE);
    g.returns(out);
    g.f
}

/// Both passes over one layer's keys; the gate is a number per head and token, or per element.
pub fn layer(shape: &Shape, window: i64, gate_size: i64) -> Function {
    let mut g = Graph::new(shape);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let gate = g.gate("gate", gate_size);
    let far = g.attend(q, k, v, None, SCALE);
    let near = g.attend(q, k, v, Some(window), SCALE);
    let out = g.blend(gate, far, near);
    g.returns(out);
    g.f
}

/// Each pass with keys and values of its own.
pub fn streams(shape: &Shape, window: i64) -> Function {
    let mut g = Graph::new(shape);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let (k2, v2) = (g.k("k2"), g.k("v2"));
    let gate = g.gate("gate", 1);
    let far = g.attend(q, k, v, None, SCALE);
    let near = g.attend(q, k2, v2, Some(window), SCALE);
    let out = g.blend(gate, far, near);
    g.returns(out);
    g.f
}

/// The local pass has its own scale.
pub fn own_scale(shape: &Shape, window: i64) -> Function {
    let mut g = Graph::new(shape);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let gate = g.gate("gate", 1);
    let far = g.attend(q, k, v, None, SCALE);
    let near = g.attend(q, k, v, Some(window), 2.0 * SCALE);
    let out = g.blend(gate, far, near);
    g.returns(out);
    g.f
}

/// Three nested windows, blended by a softmax over three logits.
pub fn three_windows(shape: &Shape, windows: [i64; 2]) -> Function {
    let mut g = Graph::new(shape);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let s = g.shape.clone();
    let logits = g.input(
        "logits",
        vec![s.batch, s.kv.into(), s.group.into(), s.rows, 3i64.into()],
    );
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
    g.returns(out.expect("there are three"));
    g.f
}
