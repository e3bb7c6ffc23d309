//! What goes over an axis: sums, maxima, norms, matmuls.

use super::Generator;
use crate::graph::ValueId;
use crate::types::{DType, Dim, TensorType};

use DType::{BF16, F32};

impl Generator<'_> {
    pub(super) fn reduce(&mut self, x: ValueId, bound: f64) {
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

    pub(super) fn norm(&mut self, x: ValueId) {
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

    /// By a weight, by itself transposed, or with a broadcast batch.
    pub(super) fn matmul(&mut self, x: ValueId, bound: f64) {
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
}
