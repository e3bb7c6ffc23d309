//! Parts of one softmax to one: a block's warps in shared memory, then a batch point's splits in the workspace, in a fixed order,
//! whichever block is last; and what the kernel does with the results.
//!
//! Four columns a thread and several parts at a time, their loads under way together: a merge costs the memory's latency once, not once a part.

use super::super::stages::{Begun, Row, Team};
use super::{Block, LOAD, LOWEST, QUAD, State, THREADS, WARPS};
use crate::gpu::ptx::{self, F32, I32};
use crate::gpu::{awaited, hopper, math};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::Point;

/// Splits' parts that are waited for together: their words stay in registers meanwhile.
const AWAITED: i64 = 12;

/// Parts of a softmax, one behind the other.
#[derive(Clone, Copy)]
pub enum Parts {
    /// They are there; so many are loaded at a time.
    Own(i64, Val),
    /// The block's warps', of which others wait for the sum.
    Made(Val),
    /// Other blocks', as they come.
    Awaited(Val),
}

impl Parts {
    fn base(self) -> Val {
        match self {
            Parts::Own(_, base) | Parts::Made(base) | Parts::Awaited(base) => base,
        }
    }

    fn together(self) -> i64 {
        match self {
            Parts::Own(n, _) => n,
            Parts::Made(_) => super::WARPS,
            Parts::Awaited(_) => AWAITED,
        }
    }
}

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

    /// `n` parts to one.
    pub(super) fn merge(&self, e: &mut Emit, n: Val, parts: Parts, to: Val) {
        let (base, together) = (parts.base(), parts.together());
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
                let places: Vec<(Val, Val, Val)> = (0..together)
                    .map(|i| {
                        let i = e.int(i, I32);
                        let i = e.add(first, i);
                        let is_there = e.cmp(Cmp::Lt, i, n);
                        let i = e.min(i, final_part);
                        let size = e.int(plan.part(), I32);
                        let i = e.mul(i, size);
                        let part = e.at(base, i, Elem::F32);
                        (self.measure_at(e, part, pair), e.at(part, at, Elem::F32), is_there)
                    })
                    .collect();
                let values = match parts {
                    Parts::Awaited(_) => self.awaited(e, &places),
                    _ => (places.iter())
                        .map(|(measures, o, _)| {
                            let pair = e.load(*measures, Ty::vector(Elem::F32, 2));
                            (pair, e.load_aligned(*o, Ty::vector(Elem::F32, QUAD as usize), 16))
                        })
                        .collect(),
                };
                let loads: Vec<(Val, Val, Val)> = (places.iter().zip(values))
                    .map(|((_, _, is_there), (pair, o))| {
                        let (max, mass) = (e.extract(pair, 0), e.extract(pair, 1));
                        // A part that is not there is one without keys.
                        (e.select(*is_there, max, lowest), e.select(*is_there, mass, nothing), o)
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
            let is_made = matches!(parts, Parts::Made(_));
            match is_made {
                true => awaited::store(e, o, place_of_o),
                false => e.store_aligned(o, place_of_o, 16),
            }
            let is_first = e.cmp(Cmp::Eq, place, zero);
            e.if_then(is_first, &[], |e| {
                let both = e.vector(&merged[..2]);
                let at = self.measure_at(e, to, pair);
                match is_made {
                    true => awaited::store(e, both, at),
                    false => e.store(both, at),
                }
                vec![]
            });
            vec![]
        });
    }

    /// Maxima and masses, and columns of O, of all these parts.
    fn awaited(&self, e: &mut Emit, places: &[(Val, Val, Val)]) -> Vec<(Val, Val)> {
        let mut asked = vec![];
        for (measures, o, _) in places {
            asked.push(awaited::ask(e, *measures, 8, 4));
            asked.push(awaited::ask(e, *o, 16, 4));
        }
        let words = awaited::settle(e, &asked);
        (words.chunks(2))
            .map(|both| {
                let pair = awaited::value(e, &both[0], Ty::vector(Elem::F32, 2));
                (pair, awaited::value(e, &both[1], Ty::vector(Elem::F32, QUAD as usize)))
            })
            .collect()
    }

    /// The memory of `n` parts, which nobody else reads, is as before the call again. All threads have read it.
    pub(super) fn forget(&self, e: &mut Emit, n: Val, parts: Val) {
        let each = e.int(self.plan.part() / QUAD, I32);
        let end = e.mul(n, each);
        e.for_loop(self.thread, end, THREADS, &[], |e, quad, _| {
            let at = e.shl(quad, QUAD.trailing_zeros().into());
            let at = e.at(parts, at, Elem::F32);
            awaited::forget(e, at);
            vec![]
        });
    }

    /// Rows of warps that have one, with what their stages need no segment's result for: on its way while parts are.
    pub(super) fn prepare(&self, e: &mut Emit, batch: &[Val]) -> Option<(Val, Begun)> {
        if self.plan.rows > WARPS {
            return None;
        }
        let (rows, last) = (e.int(self.plan.rows, I32), e.int(self.plan.rows - 1, I32));
        let is_there = e.cmp(Cmp::Lt, self.warp, rows);
        let row = e.min(self.warp, last);
        let point = self.point(e, batch, row);
        Some((row, self.team(e).begin(e, &self.body, point, is_there)))
    }

    /// Segments to results; the kernel's stages, a warp a row.
    pub(super) fn finish(&self, e: &mut Emit, batch: &[Val], prepared: Option<(Val, Begun)>) {
        let team = self.team(e);
        if let Some((row, mut begun)) = prepared {
            let swept = self.swept(e, row, &mut begun.row.point);
            return team.end(e, &self.body, begun, swept);
        }
        let end = e.int(self.plan.rows, I32);
        e.for_loop(self.warp, end, WARPS, &[], |e, row, _| {
            let mut point = self.point(e, batch, row);
            let swept = self.swept(e, row, &mut point);
            let is_there = e.int(1, Ty::scalar(Elem::I1));
            team.run(e, &self.body, vec![Row { point, is_there, swept }]);
            vec![]
        });
    }

    fn team(&self, e: &mut Emit) -> Team {
        Team {
            threads: 32,
            member: e.extend_signed(self.lane, Elem::I64),
        }
    }

    fn point(&self, e: &mut Emit, batch: &[Val], row: Val) -> Point {
        let mut index = batch.to_vec();
        let wide = e.extend_signed(row, Elem::I64);
        index.extend(
            self.body
                .unravel(e, wide, &self.plan.kernel.outer[self.plan.sweep.batch..]),
        );
        self.body.point(index)
    }

    /// Each segment's result for each of the thread's vectors of a row; and the row's log-sum-exps.
    fn swept(&self, e: &mut Emit, row: Val, point: &mut Point) -> Vec<Vec<Val>> {
        let (plan, team) = (self.plan, self.team(e));
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
        swept
    }
}
