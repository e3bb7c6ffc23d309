//! A block's keys and values: read once, each to scores, weights and sums of all rows that share it.

use ir::plan::Segment;

use super::{Block, LINE, LOAD, LOWEST, State, WARPS};
use crate::gpu::ptx::{self, F32, I32};
use crate::gpu::{hopper, math};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};

impl Block<'_, '_> {
    /// This split's keys: each warp's part to shared memory.
    pub(super) fn split(&self, e: &mut Emit, batch: &[Val], split: Val, splits: Val) {
        let shares = self.shares(e, batch, split, splits);
        let queries = self.queries(e, batch);
        for (i, (s, [low, high])) in self.plan.sweep.segments.iter().zip(shares).enumerate() {
            let state = self.segment(e, s, batch, &queries, low, high);
            self.put(e, i as i64, state);
        }
    }

    /// A chunk of the warp's keys and values to the second cache, whatever is written there later.
    pub(super) fn prefetch(&self, e: &mut Emit, batch: &[Val], split: Val, splits: Val) {
        let plan = self.plan;
        let shares = self.shares(e, batch, split, splits);
        for (s, [low, high]) in plan.sweep.segments.iter().zip(shares) {
            for (r, width) in [(&s.k, plan.sweep.depth), (&s.v, plan.cols)] {
                let (stride, batch_strides) = r.strides.split_last().expect("rows have a stride");
                let base = self.body.linear(e, &r.offset, batch, batch_strides);
                let base = e.at(self.body.args[r.arg], base, Elem::I16);
                let stride = self.body.size(e, stride);
                let lines = (width / LINE).max(1);
                for first in (0..plan.chunk * lines).step_by(32) {
                    let (first, lines) = (e.int(first, I32), e.int(lines, I32));
                    let at = e.add(self.lane, first);
                    let (key, line) = (e.div(at, lines), e.rem(at, lines));
                    let key = e.add(low, key);
                    let inside = e.cmp(Cmp::Lt, key, high);
                    let key = e.extend_signed(key, Elem::I64);
                    let row = e.mul(key, stride);
                    let row = e.at(base, row, Elem::I16);
                    let line = e.shl(line, LINE.trailing_zeros().into());
                    let line = e.at(row, line, Elem::I16);
                    e.if_then(inside, &[], |e| {
                        ptx::prefetch(e, line);
                        vec![]
                    });
                }
            }
        }
    }

    /// By segment, the warp's keys low..high.
    fn shares(&self, e: &mut Emit, batch: &[Val], split: Val, splits: Val) -> Vec<[Val; 2]> {
        let (plan, body) = (self.plan, &self.body);
        let position = super::super::start(e, body, plan.sweep, batch);
        let position = e.truncate_int(position, Elem::I32);
        // Each segment's keys from..to, and how many stand before them.
        let (mut ranges, mut total) = (vec![], e.int(0, I32));
        for s in &plan.sweep.segments {
            let (zero, one) = (e.int(0, I32), e.int(1, I32));
            let from = match s.far.and_then(|far| i32::try_from(far).ok()) {
                None => zero,
                Some(far) => {
                    let reach = e.int(i64::from(far) - 1, I32);
                    let from = e.sub(position, reach);
                    e.max(from, zero)
                }
            };
            let near = e.int(s.near.min(1 << 30), I32);
            let to = e.sub(position, near);
            let to = e.add(to, one);
            let keys = body.size(e, &s.keys);
            let keys = e.truncate_int(keys, Elem::I32);
            let to = e.min(to, keys);
            let to = e.max(to, from);
            ranges.push((from, total));
            let n = e.sub(to, from);
            total = e.add(total, n);
        }
        // A warp's share: whole chunks.
        let warps = e.int(WARPS, I32);
        let workers = e.mul(splits, warps);
        let (one, chunk) = (e.int(1, I32), e.int(plan.chunk, I32));
        let all = e.mul(workers, chunk);
        let less = e.sub(all, one);
        let share = e.add(total, less);
        let share = e.div(share, all);
        let share = e.mul(share, chunk);
        let at = e.mul(split, warps);
        let at = e.add(at, self.warp);
        let begin = e.mul(at, share);
        let begin = e.min(begin, total);
        let end = e.add(begin, share);
        let end = e.min(end, total);
        (0..ranges.len())
            .map(|i| {
                let (from, before) = ranges[i];
                let behind = ranges.get(i + 1).map_or(total, |r| r.1);
                let (low, high) = (e.max(begin, before), e.min(end, behind));
                let (low, high) = (e.sub(low, before), e.sub(high, before));
                [e.add(from, low), e.add(from, high)]
            })
            .collect()
    }

    /// Each row's elements that the thread multiplies, in f32.
    fn queries(&self, e: &mut Emit, batch: &[Val]) -> Vec<Vec<Val>> {
        let plan = self.plan;
        let rows = &plan.kernel.outer[plan.sweep.batch..];
        let q = &plan.sweep.q;
        let threads = e.int(plan.key_threads, I32);
        let member = e.rem(self.lane, threads);
        let member = e.shl(member, 3);
        (0..plan.rows)
            .map(|row| {
                let row = e.i64(row);
                let mut index = batch.to_vec();
                index.extend(self.body.unravel(e, row, rows));
                let base = self.body.linear(e, &q.offset, &index, &q.strides[..index.len()]);
                let base = e.at(self.body.args[q.arg], base, Elem::I16);
                let base = e.at(base, member, Elem::I16);
                (0..plan.sweep.depth / (LOAD * plan.key_threads))
                    .flat_map(|i| {
                        let raw = self.load(e, base, i * LOAD * plan.key_threads);
                        floats(e, raw)
                    })
                    .collect()
            })
            .collect()
    }

    /// Eight elements, `more` behind the pointer.
    fn load(&self, e: &mut Emit, base: Val, more: i64) -> Val {
        let more = e.int(more, I32);
        let at = e.at(base, more, Elem::I16);
        e.load_aligned(at, Ty::vector(Elem::I32, 4), 16)
    }

    fn segment(&self, e: &mut Emit, s: &Segment, batch: &[Val], queries: &[Vec<Val>], from: Val, to: Val) -> State {
        let plan = self.plan;
        let rows = plan.rows as usize;
        let (lowest, zero) = (e.f32(LOWEST, F32), e.f32(0.0, F32));
        let init = State {
            max: vec![lowest; rows],
            mass: vec![zero; rows],
            o: vec![zero; rows * LOAD as usize],
        };
        let matrix = |e: &mut Emit, r: &ir::plan::Rows, threads: i64, most: i64| {
            let (stride, batch_strides) = r.strides.split_last().expect("rows have a stride");
            let base = self.body.linear(e, &r.offset, batch, batch_strides);
            let base = e.at(self.body.args[r.arg], base, Elem::I16);
            let n = e.int(threads, I32);
            let member = e.rem(self.lane, n);
            let column = e.shl(member, 3);
            let last = e.int(most - LOAD, I32);
            let column = e.min(column, last);
            (
                e.at(base, column, Elem::I16),
                self.body.size(e, stride),
                e.div(self.lane, n),
            )
        };
        let keys = matrix(e, &s.k, plan.key_threads, plan.sweep.depth);
        let values = matrix(e, &s.v, plan.value_threads, plan.cols);
        let scale = f32::from_bits(s.scale) * std::f32::consts::LOG2_E;
        let last = e.for_loop(from, to, plan.chunk, &init.values(), |e, first, carried| {
            let state = State::from(carried, rows);
            let one = e.int(1, I32);
            let limit = e.sub(to, one);
            let row = |e: &mut Emit, (base, stride, own): (Val, Val, Val), number: i64| {
                let number = e.int(number, I32);
                let at = e.add(first, number);
                let key = e.add(at, own);
                let inside = e.cmp(Cmp::Lt, key, to);
                let key = e.min(key, limit);
                let key = e.extend_signed(key, Elem::I64);
                let at = e.mul(key, stride);
                (e.at(base, at, Elem::I16), inside)
            };
            let (at_once, values_at_once) = (32 / plan.key_threads, 32 / plan.value_threads);
            let loads: Vec<(Vec<Val>, Val)> = (0..plan.chunk / at_once)
                .map(|j| {
                    let (at, inside) = row(e, keys, j * at_once);
                    let parts = plan.sweep.depth / (LOAD * plan.key_threads);
                    (
                        (0..parts)
                            .map(|i| self.load(e, at, i * LOAD * plan.key_threads))
                            .collect(),
                        inside,
                    )
                })
                .collect();
            let value_loads: Vec<Val> = (0..plan.chunk / values_at_once)
                .map(|j| {
                    let (at, _) = row(e, values, j * values_at_once);
                    self.load(e, at, 0)
                })
                .collect();
            let scores = self.scores(e, &loads, queries, scale);
            let (state, weights) = self.weights(e, state, &scores);
            self.sums(e, state, &weights, &value_loads).values()
        });
        State::from(&last, rows)
    }

    /// By row, then by step: the score of the thread's key.
    fn scores(&self, e: &mut Emit, loads: &[(Vec<Val>, Val)], queries: &[Vec<Val>], scale: f32) -> Vec<Vec<Val>> {
        let mut scores = vec![vec![]; queries.len()];
        for (parts, inside) in loads {
            let mut sums: Vec<Option<Val>> = vec![None; queries.len()];
            for (i, raw) in parts.iter().enumerate() {
                for (j, x) in floats(e, *raw).into_iter().enumerate() {
                    for (q, sum) in queries.iter().zip(&mut sums) {
                        let q = q[i * LOAD as usize + j];
                        *sum = Some(match *sum {
                            None => e.mul(q, x),
                            Some(s) => e.fma(q, x, s),
                        });
                    }
                }
            }
            for (row, sum) in sums.into_iter().enumerate() {
                let mut sum = sum.expect("a key has elements");
                let mut bits = self.plan.key_threads / 2;
                while bits > 0 {
                    let other = ptx::shuffle_xor(e, sum, bits);
                    sum = e.add(sum, other);
                    bits /= 2;
                }
                let (scale, nothing) = (e.f32(scale, F32), e.f32(f32::NEG_INFINITY, F32));
                let x = e.mul(sum, scale);
                scores[row].push(e.select(*inside, x, nothing));
            }
        }
        scores
    }

    /// Exponentials, by row and step; what was there is scaled.
    fn weights(&self, e: &mut Emit, mut s: State, scores: &[Vec<Val>]) -> (State, Vec<Vec<Val>>) {
        let mut weights = vec![];
        for (row, scores) in scores.iter().enumerate() {
            let mut most = scores[0];
            for x in &scores[1..] {
                most = hopper::max(e, most, *x);
            }
            let mut bits = 16;
            while bits >= self.plan.key_threads {
                let other = ptx::shuffle_xor(e, most, bits);
                most = hopper::max(e, most, other);
                bits /= 2;
            }
            let max = hopper::max(e, s.max[row], most);
            let fall = e.sub(s.max[row], max);
            let factor = math::exp2(e, fall);
            s.max[row] = max;
            s.mass[row] = e.mul(s.mass[row], factor);
            let mut own = vec![];
            for x in scores {
                let x = e.sub(*x, max);
                let p = math::exp2(e, x);
                s.mass[row] = e.add(s.mass[row], p);
                own.push(p);
            }
            weights.push(own);
            for o in &mut s.o[row * LOAD as usize..(row + 1) * LOAD as usize] {
                *o = e.mul(*o, factor);
            }
        }
        (s, weights)
    }

    /// O + weights * values.
    fn sums(&self, e: &mut Emit, mut s: State, weights: &[Vec<Val>], loads: &[Val]) -> State {
        let (keys, values) = (32 / self.plan.key_threads, 32 / self.plan.value_threads);
        let threads = e.int(self.plan.value_threads, I32);
        let own = e.div(self.lane, threads);
        for (j, raw) in loads.iter().enumerate() {
            // The weight of key j * values + own: which step of the key threads has it, and which thread.
            let first = j as i64 * values;
            let step = (first / keys) as usize;
            let number = e.int(first % keys, I32);
            let number = e.add(number, own);
            let lane = e.shl(number, self.plan.key_threads.trailing_zeros().into());
            let x = floats(e, *raw);
            for (row, weights) in weights.iter().enumerate() {
                let p = ptx::shuffle(e, weights[step], lane);
                for (i, x) in x.iter().enumerate() {
                    let o = &mut s.o[row * LOAD as usize + i];
                    *o = e.fma(p, *x, *o);
                }
            }
        }
        s
    }
}

/// Eight bf16, as loaded, in f32.
fn floats(e: &mut Emit, raw: Val) -> Vec<Val> {
    let mut all = vec![];
    for i in 0..4 {
        let pair = e.extract(raw, i);
        let low = e.shl(pair, 16);
        let high = e.int(0xffff_0000u32 as i32 as i64, I32);
        let high = e.and(pair, high);
        all.push(e.bitcast(low, F32));
        all.push(e.bitcast(high, F32));
    }
    all
}
