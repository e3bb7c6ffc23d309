//! A block's scores to weights, row by row: what a row does not see, maximum, exponentials, sum, and the factor for what was there.

use ir::plan::Segment;

use super::super::keys::BLOCK;
use super::super::vmath;
use super::{LOWEST, Tile};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::F32;

impl Tile<'_> {
    /// Where the whole block is seen by all rows there is nothing to mask.
    pub(super) fn masked_softmax(&self, e: &mut Emit, number: usize, s: &Segment, block: Val, keys: Val) {
        let size = e.i64(BLOCK);
        let end = e.add(block, size);
        let inside = e.cmp(Cmp::Le, end, keys);
        // The first row against the last key, and the last row against the first.
        let less = e.i64(BLOCK - 1 + s.near);
        let nearest = e.add(block, less);
        let seen = e.cmp(Cmp::Le, nearest, self.position);
        let mut whole = e.and(inside, seen);
        if let Some(far) = s.far {
            let last = e.add(self.position, self.count);
            let distance = e.sub(last, block);
            let far = e.i64(far);
            let close = e.cmp(Cmp::Le, distance, far);
            whole = e.and(whole, close);
        }
        e.if_then(whole, &[], |e| {
            self.softmax(e, number, s, &|_, _, _| None);
            vec![]
        });
        let yes = e.int(1, Ty::scalar(Elem::I1));
        let not = e.sub(yes, whole);
        e.if_then(not, &[], |e| {
            self.softmax(e, number, s, &|e, token, at| {
                let lanes = self.target.lanes;
                let ty = Ty::vector(Elem::I32, lanes);
                let at = e.i64(at);
                let key = e.add(block, at);
                let left = e.sub(keys, key);
                let there = e.first_lanes(left, lanes);
                let p = e.add(self.position, token);
                let distance = e.sub(p, key);
                let distance = e.truncate_int(distance, Elem::I32);
                let distance = e.broadcast(distance, lanes);
                let lane = e.iota(Elem::I32, lanes);
                let distance = e.sub(distance, lane);
                let near = e.int(s.near, ty);
                let seen = e.cmp(Cmp::Le, near, distance);
                let mut mask = e.and(there, seen);
                if let Some(far) = s.far.and_then(|far| i32::try_from(far).ok()) {
                    let far = e.int(i64::from(far), ty);
                    let close = e.cmp(Cmp::Lt, distance, far);
                    mask = e.and(mask, close);
                }
                Some(mask)
            });
            vec![]
        });
    }

    /// Scores of each row to weights; m, l and the factor for O follow. `mask` gets the token and a column of the block.
    pub(super) fn softmax(
        &self,
        e: &mut Emit,
        number: usize,
        s: &Segment,
        mask: &dyn Fn(&mut Emit, Val, i64) -> Option<Val>,
    ) {
        let lanes = self.target.lanes;
        let ty = Ty::vector(Elem::F32, lanes);
        let zero = e.i64(0);
        let scale = f32::from_bits(s.scale) * std::f32::consts::LOG2_E;
        self.groups(e, &mut |e, _, base| {
            e.for_loop(zero, self.count, 1, &[], |e, token, _| {
                let row = e.add(base, token);
                let from = self.element(e, self.lay.scores, row, BLOCK, Elem::F32);
                let mut scores = vec![];
                let mut masks = vec![];
                for at in (0..BLOCK).step_by(lanes) {
                    let column = e.i64(at);
                    let p = e.at(from, column, Elem::F32);
                    let x = e.load(p, ty);
                    let factor = e.f32(scale, ty);
                    let mut x = e.mul(x, factor);
                    let m = mask(e, token, at);
                    if let Some(m) = m {
                        let lowest = e.f32(LOWEST, ty);
                        x = e.select(m, x, lowest);
                    }
                    scores.push(x);
                    masks.push(m);
                }
                let highest = tree(e, &scores, Emit::max);
                let highest = e.largest(highest);
                let place = self.maximum(e, number, row);
                let old = e.load(place, F32);
                let new = e.max(old, highest);
                e.store(new, place);
                let shift = e.sub(old, new);
                let factor = vmath::exp2_negative(e, shift);
                let to = self.element(e, self.lay.factors, row, 1, Elem::F32);
                e.store(factor, to);
                let new = e.broadcast(new, lanes);
                let weights: Vec<Val> = scores
                    .iter()
                    .zip(&masks)
                    .map(|(x, m)| {
                        let x = e.sub(*x, new);
                        let p = vmath::exp2_negative(e, x);
                        match m {
                            None => p,
                            Some(m) => {
                                let nothing = e.f32(0.0, ty);
                                e.select(*m, p, nothing)
                            }
                        }
                    })
                    .collect();
                let sum = tree(e, &weights, Emit::add);
                let sum = e.reduce_add(sum);
                let place = self.mass(e, number, row);
                let old = e.load(place, F32);
                let mass = e.fma(old, factor, sum);
                e.store(mass, place);
                let pairs = self.in_pairs(s);
                let (bytes, elem) = if pairs {
                    (self.lay.weights, Elem::I16)
                } else {
                    (self.lay.scores, Elem::F32)
                };
                let to = self.element(e, bytes, row, BLOCK, elem);
                for (i, p) in weights.into_iter().enumerate() {
                    let column = e.i64((i * lanes) as i64);
                    let to = e.at(to, column, elem);
                    let p = if pairs { self.round(e, p) } else { p };
                    e.store(p, to);
                }
                vec![]
            });
        });
    }

    /// bf16 bits.
    pub(super) fn round(&self, e: &mut Emit, x: Val) -> Val {
        if self.target.bf16_dot && self.target.lanes == 16 {
            e.round_bf16(x)
        } else {
            vmath::bf16_bits(e, x)
        }
    }
}

/// Pairwise, for short chains.
fn tree(e: &mut Emit, values: &[Val], f: fn(&mut Emit, Val, Val) -> Val) -> Val {
    match values {
        [one] => *one,
        _ => {
            let (a, b) = values.split_at(values.len() / 2);
            let (a, b) = (tree(e, a, f), tree(e, b, f));
            f(e, a, b)
        }
    }
}
