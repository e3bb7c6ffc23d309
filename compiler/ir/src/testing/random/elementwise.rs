//! Element by element: two values that broadcast, smooth functions of one, a choice by a mask.

use super::Generator;
use crate::graph::ValueId;
use crate::ops::broadcast;
use crate::types::{Dim, TensorType};

impl Generator<'_> {
    pub(super) fn pairwise(&mut self, x: ValueId, bound: f64) {
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
                broadcast(&ty.shape, &self.shape(*v)).is_ok_and(|s| {
                    broadcast(&s, &self.shape(x)).is_ok_and(|s| s == self.shape(x)) && self.f.ty(*v).dtype == ty.dtype
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

    pub(super) fn smooth(&mut self, x: ValueId, bound: f64) {
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

    pub(super) fn select(&mut self, x: ValueId, bound: f64) {
        let x = self.ranked(x, 2);
        let other = self.fresh(TensorType {
            shape: vec![],
            dtype: self.f.ty(x).dtype,
        });
        let mask = self.mask(x);
        let y = self.f.select(mask, x, other);
        self.keep(y, bound.max(1.0));
    }
}
