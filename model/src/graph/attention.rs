//! One attention pass, and which keys it sees: fresh ones, a cache, or a ring of the last W.

use ir::{DType, Dim, Param, TensorType, ValueId};

use super::Phase;
use super::layer::Block;

/// Keys and values [B, KV, S, D] and who sees which: mask [T, S], or [B, 1, 1, 1, S] in `decode`.
pub(super) struct Keys {
    pub k: ValueId,
    pub v: ValueId,
    pub mask: ValueId,
}

impl Block<'_> {
    /// softmax(mask(q k^T / sqrt(D))) v [B, KV, G, T, D] in `dtype`; q [B, KV, G, T, D].
    pub fn attend(&mut self, q: ValueId, keys: &Keys, dtype: DType) -> ValueId {
        let k = self.per_group(keys.k);
        let v = self.per_group(keys.v);
        let scores = self.f.matmul(q, k, true, DType::F32);
        let scale = self.f.scalar(1.0 / (self.c.head_dim as f64).sqrt(), DType::F32);
        let scaled = self.f.mul(scores, scale);
        let never = self.f.scalar(f64::NEG_INFINITY, DType::F32);
        let masked = self.f.select(keys.mask, scaled, never);
        let p = self.f.softmax(masked, self.o.dtype);
        self.f.matmul(p, v, false, dtype)
    }

    /// [B, KV, S, D] -> [B, KV, 1, S, D], to broadcast over the G queries of a key head.
    fn per_group(&mut self, x: ValueId) -> ValueId {
        let mut ty = self.f.ty(x).clone();
        ty.shape.insert(2, Dim::Const(1));
        self.f.reshape(x, ty)
    }

    /// How many keys the global pass sees.
    pub fn keys_dim(&self) -> Dim {
        if self.phase == Phase::Decode {
            Dim::sym("S")
        } else {
            Dim::sym("T")
        }
    }

    /// [B, KV, rows, D] in the compute type.
    pub fn keys_type(&self, rows: Dim) -> TensorType {
        TensorType::new(
            [Dim::sym("B"), self.c.kv_heads.into(), rows, self.c.head_dim.into()],
            self.o.dtype,
        )
    }

    /// All keys up to the token itself; `prefill` and `decode` put the new ones into the cache.
    pub fn global_keys(&mut self, k: ValueId, v: ValueId) -> Keys {
        let k = self.remember("k_cache", k);
        let v = self.remember("v_cache", v);
        Keys {
            k,
            v,
            mask: self.global_mask(None),
        }
    }

    /// The same keys through the window.
    pub fn windowed(&mut self, keys: &Keys) -> Keys {
        Keys {
            k: keys.k,
            v: keys.v,
            mask: self.global_mask(Some(self.c.attention.window)),
        }
    }

    /// Causal, and only the last `window` keys if there is one.
    pub fn global_mask(&mut self, window: Option<i64>) -> ValueId {
        let keys = self.keys_dim();
        self.mask(window, keys)
    }

    /// The last W keys of a later trip: fresh ones through the window, or a ring of W slots.
    ///
    /// In the ring's first round the slots after `start` are empty, which is what the causal mask says; later every slot counts.
    /// Keys carry their positions (RoPE), so their order in the ring does not matter.
    pub fn local_keys(&mut self, k: ValueId, v: ValueId, trip: i64) -> Keys {
        let slots = self.c.attention.window.min(self.o.max_context);
        let k = self.remember_last(&format!("local_k.{trip}"), k, slots);
        let v = self.remember_last(&format!("local_v.{trip}"), v, slots);
        let mask = match self.phase {
            Phase::Decode => self.mask(None, slots.into()),
            _ => self.global_mask(Some(self.c.attention.window)),
        };
        Keys { k, v, mask }
    }

    fn mask(&mut self, window: Option<i64>, keys: Dim) -> ValueId {
        let one = Dim::Const(1);
        let shape = match self.start {
            Some(_) => vec![Dim::sym("B"), one.clone(), one.clone(), one, keys],
            None => vec![self.phase.rows(), keys],
        };
        self.f.mask(
            self.start,
            window,
            TensorType {
                shape,
                dtype: DType::I1,
            },
        )
    }

    /// `new` written to the cache of this name; gives the rows to attend to.
    fn remember(&mut self, name: &str, new: ValueId) -> ValueId {
        if self.phase == Phase::Full {
            return new;
        }
        let ty = self.keys_type(Dim::sym("C"));
        let cache = self.f.param(name, ty, Param::State(format!("{name}.{{i}}")));
        let written = self.f.cache_write(cache, new, self.start, false);
        match self.phase {
            Phase::Decode => self.f.slice(written, 2, 0, self.keys_type(Dim::sym("S"))),
            _ => new,
        }
    }

    fn remember_last(&mut self, name: &str, new: ValueId, slots: i64) -> ValueId {
        if self.phase == Phase::Full {
            return new;
        }
        let ty = self.keys_type(slots.into());
        let ring = self
            .f
            .param(&name.replace('.', "_"), ty, Param::State(format!("{name}.{{i}}")));
        let written = self.f.cache_write(ring, new, self.start, true);
        if self.phase == Phase::Decode { written } else { new }
    }
}
