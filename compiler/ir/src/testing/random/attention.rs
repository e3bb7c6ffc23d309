//! Attention and its parts: masks, masked softmaxes, rotated positions, and the whole as a model writes it.

use super::super::ENTRY;
use super::Generator;
use crate::graph::ValueId;
use crate::types::{DType, Dim, TensorType};

use DType::{BF16, F32, I1, I32};

impl Generator<'_> {
    /// Over the last two axes of x (rank 2 at least), with and without a window and positions.
    pub(super) fn mask(&mut self, x: ValueId) -> ValueId {
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

    /// A masked softmax; rows in which all is masked included.
    pub(super) fn attention_weights(&mut self, x: ValueId) {
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
    pub(super) fn attention(&mut self, x: ValueId, bound: f64) {
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

    pub(super) fn rope(&mut self, x: ValueId, bound: f64) {
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
}
