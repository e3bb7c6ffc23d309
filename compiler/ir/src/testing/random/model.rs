//! What every random program has of a model: embedded tokens, a layer's cache and its residual, a head's loss.

use super::super::floats;
use super::{Generator, LAYERS};
use crate::graph::{Param, ValueId};
use crate::types::{DType, Dim, TensorType};

use DType::{BF16, F16, F32, I32};

impl Generator<'_> {
    /// Embedded tokens [B, T, H] f32, the table in any float type.
    pub(super) fn tokens(&mut self, hidden: i64) -> ValueId {
        let vocab = 3 + self.rng.below(9);
        let table_type = *self.rng.choose(&[F32, BF16, F16]);
        let ids = self.integer("tokens", TensorType::new(["B", "T"], I32), 0, vocab);
        let table = self.fresh(TensorType::new([vocab, hidden], table_type));
        let x = self.f.embed(table, ids, F32);
        self.pool.push((x, 1.0));
        x
    }

    /// A cache of the layer is written and read: plain or a ring shorter than the new rows may be.
    pub(super) fn state(&mut self) {
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
    pub(super) fn residual(&mut self, x: ValueId, hidden: i64) -> ValueId {
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

    /// The last rows, and the loss of a small head.
    pub(super) fn loss(&mut self, x: ValueId) {
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
}
