//! What training brings: values with several readers, and an optimizer's updates in place.

use super::Generator;
use crate::graph::ValueId;

impl Generator<'_> {
    /// A value with several readers, one of them its sum over any axis.
    pub(super) fn product(&mut self, x: ValueId, bound: f64) {
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
    pub(super) fn optimizer(&mut self, x: ValueId, bound: f64) {
        let ty = self.f.ty(x).clone();
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
}
