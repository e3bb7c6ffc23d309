//! Parts of one softmax to one: a block's warps in shared memory, then a batch point's splits in the workspace, in a fixed order,
//! whichever block is last; and what the kernel does with the results.
//!
//! Four columns a thread and several parts at a time, their loads under way together: a merge costs the memory's latency once, not once a part.

use super::super::stages::{Row, Team};
use super::{Block, LOAD, LOWEST, QUAD, State, THREADS, WARPS};
use crate::gpu::ptx::{self, F32, I32};
use crate::gpu::{hopper, math};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};

impl Block<'_, '_> {
    /// Float `i` (i32) of a part: of O at (segment, row, column), of maxima and masses at (segment, row).
    fn o_at(&self, e: &mut Emit, segment: i64, row: Val) -> Val {
        let (rows, cols) = (self.plan.rows, e.int(self.plan.cols, I32));
        let first = e.int(segment * rows, I32);
        let at = e.add(first, row);
        e.mul(at, cols)
    }

    fn max_at(&self, segment: i64, row: i64) -> i64 {
        self.plan.segments() * self.plan.rows * self.plan.cols + 2 * (segment * self.plan.rows + row)
    }

    /// The warp's accumulator of a segment to its part.
    pub(super) fn put(&self, e: &mut Emit, segment: i64, s: State) {
        let plan = self.plan;
        let part = e.int(plan.part(), I32);
        let at = e.mul(self.warp, part);
        let base = e.at(self.shared, at, Elem::F32);
        let (zero, threads) = (e.int(0, I32), e.int(plan.value_threads, I32));
        let is_first = e.cmp(Cmp::Eq, self.lane, zero);
        let column = e.shl(self.lane, 3);
        let (mine, cols) = (e.cmp(Cmp::Lt, self.lane, threads), e.int(plan.cols, I32));
        let inside = e.cmp(Cmp::Lt, column, cols);
        let mine = e.and(mine, inside);
        for row in 0..plan.rows {
            let mut mass = s.mass[row as usize];
            let mut bits = 16;
            while bits >= plan.key_threads {
                let other = ptx::shuffle_xor(e, mass, bits);
                mass = e.add(mass, other);
                bits /= 2;
            }
            let to = e.int(self.max_at(segment, row), I32);
            let to = e.at(base, to, Elem::F32);
            let pair = e.vector(&[s.max[row as usize], mass]);
            e.if_then(is_first, &[], |e| {
                e.store(pair, to);
                vec![]
            });
            let mut o = s.o[row as usize * LOAD as usize..(row as usize + 1) * LOAD as usize].to_vec();
            for o in &mut o {
                let mut bits = 16;
                while bits >= plan.value_threads {
                    let other = ptx::shuffle_xor(e, *o, bits);
                    *o = e.add(*o, other);
                    bits /= 2;
                }
            }
            let row = e.int(row, I32);
            let at = self.o_at(e, segment, row);
            let at = e.add(at, column);
            let to = e.at(base, at, Elem::F32);
            e.if_then(mine, &[], |e| {
                for (i, o) in o.chunks(4).enumerate() {
                    let x = e.vector(o);
                    let i = e.int(4 * i as i64, I32);
                    let to = e.at(to, i, Elem::F32);
                    e.store_aligned(x, to, 16);
                }
                vec![]
            });
        }
    }

    /// Maximum, and mass, of (segment, row) number `pair` of the part at `base`.
    fn measure(&self, e: &mut Emit, base: Val, pair: Val) -> (Val, Val) {
        let from = self.measure_at(e, base, pair);
        let both = e.load(from, Ty::vector(Elem::F32, 2));
        (e.extract(both, 0), e.extract(both, 1))
    }

    fn measure_at(&self, e: &mut Emit, base: Val, pair: Val) -> Val {
        let first = e.int(self.max_at(0, 0), I32);
        let at = e.shl(pair, 1);
        let at = e.add(first, at);
        e.at(base, at, Elem::F32)
    }

    /// `n` parts, one behind the other from `base`, to one; `together` are loaded at a time.
    pub(super) fn merge(&self, e: &mut Emit, n: Val, together: i64, base: Val, to: Val) {
        let plan = self.plan;
        let quads = plan.segments() * plan.rows * plan.cols / QUAD;
        let (end, per_row) = (e.int(quads, I32), e.int(plan.cols / QUAD, I32));
        e.for_loop(self.thread, end, THREADS, &[], |e, quad, _| {
            let (pair, place) = (e.div(quad, per_row), e.rem(quad, per_row));
            let at = e.shl(quad, QUAD.trailing_zeros().into());
            let (zero, one) = (e.int(0, I32), e.int(1, I32));
            let (lowest, nothing) = (e.f32(LOWEST, F32), e.f32(0.0, F32));
            let mut init = vec![lowest, nothing];
            init.extend([nothing; QUAD as usize]);
            let merged = e.for_loop(zero, n, together, &init, |e, first, carried| {
                let final_part = e.sub(n, one);
                let loads: Vec<(Val, Val, Val)> = (0..together)
                    .map(|i| {
                        let i = e.int(i, I32);
                        let i = e.add(first, i);
                        let is_there = e.cmp(Cmp::Lt, i, n);
                        let i = e.min(i, final_part);
                        let size = e.int(plan.part(), I32);
                        let i = e.mul(i, size);
                        let part = e.at(base, i, Elem::F32);
                        let (max, mass) = self.measure(e, part, pair);
                        let from = e.at(part, at, Elem::F32);
                        let o = e.load_aligned(from, Ty::vector(Elem::F32, QUAD as usize), 16);
                        // A part that is not there is one without keys.
                        (e.select(is_there, max, lowest), e.select(is_there, mass, nothing), o)
                    })
                    .collect();
                let mut max = carried[0];
                for (m, ..) in &loads {
                    max = hopper::max(e, max, *m);
                }
                let fall = e.sub(carried[0], max);
                let factor = math::exp2(e, fall);
                let mut sums: Vec<Val> = carried[1..].iter().map(|x| e.mul(*x, factor)).collect();
                for (m, mass, o) in loads {
                    let fall = e.sub(m, max);
                    let factor = math::exp2(e, fall);
                    sums[0] = e.fma(mass, factor, sums[0]);
                    for i in 0..QUAD as usize {
                        let x = e.extract(o, i);
                        sums[1 + i] = e.fma(x, factor, sums[1 + i]);
                    }
                }
                [vec![max], sums].concat()
            });
            let o = e.vector(&merged[2..]);
            let place_of_o = e.at(to, at, Elem::F32);
            e.store_aligned(o, place_of_o, 16);
            let is_first = e.cmp(Cmp::Eq, place, zero);
            e.if_then(is_first, &[], |e| {
                let both = e.vector(&merged[..2]);
                let at = self.measure_at(e, to, pair);
                e.store(both, at);
                vec![]
            });
            vec![]
        });
    }

    /// Segments to results; the kernel's stages, a warp a row.
    pub(super) fn finish(&self, e: &mut Emit, batch: &[Val]) {
        let plan = self.plan;
        let outer = &plan.kernel.outer;
        let team = Team {
            threads: 32,
            member: e.extend_signed(self.lane, Elem::I64),
        };
        let end = e.int(plan.rows, I32);
        e.for_loop(self.warp, end, WARPS, &[], |e, row, _| {
            let mut index = batch.to_vec();
            let wide = e.extend_signed(row, Elem::I64);
            index.extend(self.body.unravel(e, wide, &outer[plan.sweep.batch..]));
            let mut point = self.body.point(index);
            let columns: Vec<Val> = (0..team.vectors(&self.body))
                .map(|i| {
                    let at = team.column(e, &self.body, i).0;
                    e.truncate_int(at, Elem::I32)
                })
                .collect();
            let mut swept = vec![];
            for p in 0..plan.sweep.segments.len() {
                let mut chain = vec![p];
                while let Some(before) = plan.sweep.segments[chain[chain.len() - 1]].after {
                    chain.push(before);
                }
                let measures: Vec<(Val, Val)> = (chain.iter())
                    .map(|s| {
                        let first = e.int(*s as i64 * plan.rows, I32);
                        let pair = e.add(first, row);
                        self.measure(e, self.result, pair)
                    })
                    .collect();
                let mut max = measures[0].0;
                for (m, _) in &measures[1..] {
                    max = hopper::max(e, max, *m);
                }
                let (mut mass, mut factors) = (e.f32(0.0, F32), vec![]);
                for (m, l) in &measures {
                    let fall = e.sub(*m, max);
                    let factor = math::exp2(e, fall);
                    mass = e.fma(*l, factor, mass);
                    factors.push(factor);
                }
                let (one, nothing) = (e.f32(1.0, F32), e.f32(0.0, F32));
                let some = e.cmp(Cmp::Gt, mass, nothing);
                let share = e.div(one, mass);
                let share = e.select(some, share, nothing);
                let (log, unit) = (math::log(e, mass), e.f32(std::f32::consts::LN_2, F32));
                let log = e.fma(max, unit, log);
                let lowest = e.f32(LOWEST, F32);
                point.lse.push(e.select(some, log, lowest));
                let values = columns
                    .iter()
                    .map(|column| {
                        let mut sum = e.f32(0.0, F32);
                        for (s, factor) in chain.iter().zip(&factors) {
                            let at = self.o_at(e, *s as i64, row);
                            let at = e.add(at, *column);
                            let from = e.at(self.result, at, Elem::F32);
                            let x = e.load(from, F32);
                            sum = e.fma(x, *factor, sum);
                        }
                        let x = e.mul(sum, share);
                        e.vector(&[x])
                    })
                    .collect();
                swept.push(values);
            }
            let is_there = e.int(1, Ty::scalar(Elem::I1));
            team.run(e, &self.body, vec![Row { point, is_there, swept }]);
            vec![]
        });
    }
}
