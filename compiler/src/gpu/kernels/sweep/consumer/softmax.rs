//! A block's scores to weights: what a row does not see, maxima, exponentials, masses. No product is made here.

// Rows g and g + 8 of a fragment: their number places them in several lists at once.
#![allow(clippy::needless_range_loop)]

use super::super::walk::{self, HALF, KEYS, Part, Visit};
use super::{Acc, Consumer, Walk};
use crate::gpu::ptx::{self, F32, I32};
use crate::gpu::{hopper, math};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};

/// A maximum may lag behind by so much (in units of log2): exponentials stay below 2^8, and most blocks need no rescaling.
const LAG: f32 = 8.0;

pub(super) struct Weights {
    pub raw: Vec<Val>,
    /// Must what was there be scaled, i1, and by what?
    pub risen: Option<Val>,
    pub factors: [Val; 2],
}

impl Consumer<'_, '_> {
    /// Scores of keys that are not there (before the first, behind the last) to nothing; seldom.
    pub(super) fn checked(&self, e: &mut Emit, w: &Walk, scores: &[Val], sides: &[i64], at: Val) -> Vec<Val> {
        let (one, size, zero) = (e.int(1, I32), e.int(KEYS, I32), e.int(0, I32));
        let next = e.add(at, one);
        let back = e.mul(next, size);
        let key = e.sub(w.reach.top, back);
        let mut some = e.cmp(Cmp::Lt, key, zero);
        let count = self.b.plan.bounded.then(|| {
            let keys = &self.b.plan.sweep.segments[w.stream.segments[0]].keys;
            let keys = self.b.body.size(e, keys);
            e.truncate_int(keys, Elem::I32)
        });
        if let Some(count) = count {
            let end = e.add(key, size);
            let behind = e.cmp(Cmp::Gt, end, count);
            some = e.or(some, behind);
        }
        e.if_then(some, scores, |e| {
            let quad = e.int(3, I32);
            let column = e.and(self.lane, quad);
            let column = e.shl(column, 1);
            let first = e.add(key, column);
            let nothing = e.f32(f32::NEG_INFINITY, F32);
            let mut out = vec![];
            for (i, x) in scores.iter().enumerate() {
                let column = sides[0] * HALF + (i as i64) / 4 * 8 + i as i64 % 2;
                let column = e.int(column, I32);
                let key = e.add(first, column);
                let mut there = e.cmp(Cmp::Le, zero, key);
                if let Some(count) = count {
                    let inside = e.cmp(Cmp::Lt, key, count);
                    there = e.and(there, inside);
                }
                out.push(e.select(there, *x, nothing));
            }
            out
        })
    }

    /// Scores that the segment does not see to nothing: by their distances.
    pub(super) fn masked(&self, e: &mut Emit, w: &Walk, scores: &[Val], v: &Visit, half: i64) -> Vec<Val> {
        if v.halves[half as usize] != Part::Edge {
            return scores.to_vec();
        }
        let bounds = w.stream.bounds[v.segment];
        let d = walk::halves(v.block, self.shift)[half as usize];
        let nothing = e.f32(f32::NEG_INFINITY, F32);
        let mut out = vec![];
        for (i, x) in scores.iter().enumerate() {
            // distance = 64 d + row - column; row - column = lead + 8 (second row) - what is known of the column.
            let i = i as i64;
            let known = HALF * d + 8 * (i / 2 % 2) - (i / 4 * 8 + i % 2);
            let mut x = *x;
            if HALF * d - HALF + 1 < bounds.near {
                let least = e.int(bounds.near - known, I32);
                let far_enough = e.cmp(Cmp::Le, least, self.lead);
                x = e.select(far_enough, x, nothing);
            }
            if let Some(far) = bounds.far.filter(|far| HALF * d + HALF > *far) {
                let end = e.int(far - known, I32);
                let close = e.cmp(Cmp::Lt, self.lead, end);
                x = e.select(close, x, nothing);
            }
            out.push(x);
        }
        out
    }

    /// Weights of a block; maxima and masses follow. `first`: nothing was seen before. `hard`: a row may see nothing.
    pub(super) fn softmax(
        &self,
        e: &mut Emit,
        scale: f32,
        acc: &mut Acc,
        scores: Vec<Val>,
        first: bool,
        hard: bool,
    ) -> Weights {
        let scale = e.f32(scale * std::f32::consts::LOG2_E, F32);
        let mut highest = [0, 1].map(|row| {
            let own: Vec<Val> = scores
                .iter()
                .enumerate()
                .filter(|(i, _)| i / 2 % 2 == row)
                .map(|(_, x)| *x)
                .collect();
            let mut most = tree(e, &own, hopper::max);
            for bits in [1, 2] {
                let other = ptx::shuffle_xor(e, most, bits);
                most = hopper::max(e, most, other);
            }
            most
        });
        let mut risen = None;
        let mut factors = [scale; 2];
        if !first {
            let lag = e.f32(LAG, F32);
            let mut some = None;
            for row in 0..2 {
                highest[row] = hopper::max(e, acc.max[row], highest[row]);
                let rise = e.sub(highest[row], acc.max[row]);
                let rise = e.mul(rise, scale);
                let much = e.cmp(Cmp::Gt, rise, lag);
                some = Some(some.map_or(much, |s| e.or(s, much)));
            }
            let some = hopper::any(e, some.expect("two rows"));
            for row in 0..2 {
                highest[row] = e.select(some, highest[row], acc.max[row]);
            }
            risen = Some(some);
        }
        let mut shifts = [scale; 2];
        for row in 0..2 {
            let minus = e.f32(-1.0, F32);
            let shift = e.mul(highest[row], scale);
            let mut shift = e.mul(shift, minus);
            if hard {
                let (end, zero) = (e.f32(f32::INFINITY, F32), e.f32(0.0, F32));
                let none = e.cmp(Cmp::Eq, shift, end);
                shift = e.select(none, zero, shift);
            }
            shifts[row] = shift;
            if !first {
                let fall = e.fma(acc.max[row], scale, shift);
                factors[row] = math::exp2(e, fall);
            }
        }
        let weights: Vec<Val> = (scores.iter().enumerate())
            .map(|(i, x)| {
                let x = e.fma(*x, scale, shifts[i / 2 % 2]);
                math::exp2(e, x)
            })
            .collect();
        for row in 0..2 {
            let own: Vec<Val> = weights
                .iter()
                .enumerate()
                .filter(|(i, _)| i / 2 % 2 == row)
                .map(|(_, x)| *x)
                .collect();
            let sum = tree(e, &own, Emit::add);
            acc.mass[row] = if first {
                sum
            } else {
                e.fma(acc.mass[row], factors[row], sum)
            };
            acc.max[row] = highest[row];
        }
        let raw = weights;
        Weights { raw, risen, factors }
    }
}

/// Four chains, then pairwise.
fn tree(e: &mut Emit, values: &[Val], f: fn(&mut Emit, Val, Val) -> Val) -> Val {
    let mut sums: Vec<Val> = values[..4].to_vec();
    for (i, x) in values[4..].iter().enumerate() {
        sums[i % 4] = f(e, sums[i % 4], *x);
    }
    let (a, b) = (f(e, sums[0], sums[1]), f(e, sums[2], sums[3]));
    f(e, a, b)
}
