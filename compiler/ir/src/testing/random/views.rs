//! What moves values and computes none: other shapes, other orders of axes, parts, and values side by side.

use super::Generator;
use crate::graph::ValueId;
use crate::types::{Dim, TensorType};

impl Generator<'_> {
    /// x has rank at least `rank`: ones in front.
    pub(super) fn ranked(&mut self, x: ValueId, rank: usize) -> ValueId {
        let mut ty = self.f.ty(x).clone();
        if ty.rank() >= rank {
            return x;
        }
        while ty.rank() < rank {
            ty.shape.insert(0, Dim::Const(1));
        }
        self.f.reshape(x, ty)
    }

    pub(super) fn reshape(&mut self, x: ValueId, bound: f64) {
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

    pub(super) fn transpose(&mut self, x: ValueId, bound: f64) {
        let mut perm: Vec<i64> = (0..self.f.ty(x).rank() as i64).collect();
        for i in (1..perm.len()).rev() {
            perm.swap(i, self.rng.below(i as i64 + 1) as usize);
        }
        let y = self.f.transpose(x, &perm);
        self.keep(y, bound);
    }

    /// One whose size no symbol is in.
    fn constant_axis(&mut self, ty: &TensorType) -> Option<usize> {
        let is_constant = |i: &usize| matches!(ty.shape[*i], Dim::Const(_));
        let constant: Vec<usize> = (0..ty.rank()).filter(is_constant).collect();
        (!constant.is_empty()).then(|| *self.rng.choose(&constant))
    }

    pub(super) fn slice(&mut self, x: ValueId, bound: f64) {
        let mut ty = self.f.ty(x).clone();
        let Some(axis) = self.constant_axis(&ty) else {
            return self.keep(x, bound);
        };
        let n = self.size(&ty.shape[axis]);
        let begin = self.rng.below(n);
        ty.shape[axis] = Dim::Const(1 + self.rng.below(n - begin));
        let y = self.f.slice(x, axis as i64, begin, ty);
        self.keep(y, bound);
    }

    pub(super) fn concat(&mut self, x: ValueId, bound: f64) {
        let mut ty = self.f.ty(x).clone();
        let Some(axis) = self.constant_axis(&ty) else {
            return self.keep(x, bound);
        };
        ty.shape[axis] = Dim::Const(1 + self.rng.below(3));
        let other = self.fresh(ty);
        let y = if self.rng.below(2) == 0 {
            self.f.concat(&[x, other], axis as i64)
        } else {
            self.f.concat(&[other, x, other], axis as i64)
        };
        self.keep(y, bound.max(1.0));
    }
}
