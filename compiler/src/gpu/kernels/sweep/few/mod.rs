//! Attention of one token a sequence (decoding), bf16: keys and values are read once, at the memory's speed; the keys are split over blocks
//! (flash decoding, Dao et al.).
//!
//!     block = (batch point, split)                 as many splits as blocks fit on the GPU; what is split is what the position sees
//!       warp = keys from..to of all segments' keys, one segment behind the other
//!         for segment, for chunk of keys           16 bytes a load; all of a chunk are on their way together
//!           threads of a key: scores of all rows that share it; maximum, weights
//!           threads of eight columns: O = O * factor + p v
//!       (m, l, O) of each segment and row: the warps' parts, in shared memory, to one; into a workspace if the point is split
//!     the last block of a batch point: the splits' parts to one; segments to results, the kernel's stages
//!
//! Parts are merged four columns a thread and several parts at a time, their loads under way together: a merge costs the memory's latency
//! once, not once a part. Sums are taken in a fixed order, whichever block is last.

use ir::plan::{Kernel, Segment, Sweep};
use ir::{DType, Size};
use runtime::artefact::{self, Step, Variant};

use super::super::super::ptx::{self, F32, I32, Params, Signature};
use super::super::super::{Target, hopper, math, tiles};
use super::stages::{Row, Team};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::pipeline;
use crate::scalar::{Body, Math};

const WARPS: i64 = 4;
const THREADS: i64 = 32 * WARPS;
/// Blocks for each multiprocessor.
const AT_ONCE: i64 = 2;
/// More blocks have no place in the workspace.
const MOST: i64 = 512;
/// Elements of a load.
const LOAD: i64 = 8;
/// Splits' parts that are loaded together.
const PARTS: i64 = 16;
/// Columns of a thread where parts are merged: a load of 16 bytes.
const QUAD: i64 = 4;
/// A maximum before any key was seen.
const LOWEST: f32 = -1e30;

struct Plan<'k> {
    kernel: &'k Kernel,
    sweep: &'k Sweep,
    rows: i64,
    cols: i64,
    /// Threads of a key, and of a value.
    key_threads: i64,
    value_threads: i64,
    /// Keys that a warp takes at a time.
    chunk: i64,
}

impl<'k> Plan<'k> {
    fn new(kernel: &'k Kernel, sweep: &'k Sweep, even: &mut Vec<Size>) -> Option<Plan<'k>> {
        let cols = kernel.cols.as_const()?;
        let depth = sweep.depth;
        let rows = Size::product(&kernel.outer[sweep.batch..]).as_const()?;
        let bf16 = |arg: usize| kernel.args[arg].dtype == DType::BF16;
        let all = bf16(sweep.q.arg) && sweep.segments.iter().all(|s| bf16(s.k.arg) && bf16(s.v.arg));
        let fits = |n: i64| n % LOAD == 0 && (16..=256).contains(&n);
        if sweep.tokens || !all || !fits(depth) || !fits(cols) || sweep.q.indirect.is_some() {
            return None;
        }
        let log = |s: &ir::plan::Stage| {
            matches!(
                s,
                ir::plan::Stage::Reduce {
                    op: ir::plan::Reduction::LogSumExp,
                    ..
                }
            )
        };
        if kernel.stages.iter().any(log) {
            return None;
        }
        let value_threads = (cols as u64 / LOAD as u64).next_power_of_two() as i64;
        // Queries stay in registers.
        let key_threads = [2, 4, 8, 16, 32]
            .into_iter()
            .find(|n| depth % (LOAD * n) == 0 && depth / n * rows <= 80)
            .filter(|n| *n <= value_threads && rows <= 8)?;
        let columns = kernel.outer.len();
        let mut sizes: Vec<&Size> = sweep.q.strides[..columns].iter().chain([&sweep.q.offset]).collect();
        for r in sweep.segments.iter().flat_map(|s| [&s.k, &s.v]) {
            sizes.extend(r.strides.iter().chain([&r.offset]));
        }
        for s in sizes.into_iter().filter(|s| s.coef % LOAD != 0) {
            if s.as_const().is_some() {
                return None;
            }
            even.push(s.clone());
        }
        Some(Plan {
            kernel,
            sweep,
            rows,
            cols,
            key_threads,
            value_threads,
            chunk: (2048 / depth.max(cols)).max(32 / key_threads) / (32 / key_threads) * (32 / key_threads),
        })
    }

    /// Of a block, at least: a chunk for each warp. More blocks than have work are more parts to merge.
    fn keys(&self) -> i64 {
        WARPS * self.chunk
    }

    fn segments(&self) -> i64 {
        self.sweep.segments.len() as i64
    }

    /// Floats of one block's, or warp's, results: O by segment and row, then maxima and masses. Whole loads of 16 bytes.
    fn part(&self) -> i64 {
        (self.segments() * self.rows * (self.cols + 2) + QUAD - 1) / QUAD * QUAD
    }
}

/// The variant and its function, if the kernel is for this file.
pub fn variant(kernel: &Kernel, sweep: &Sweep, name: &str, target: &Target) -> Option<(Variant, String)> {
    let mut even = vec![];
    let plan = Plan::new(kernel, sweep, &mut even)?;
    let signature = Signature {
        buffers: kernel.args.len(),
        workspaces: 1,
        counters: true,
        threads: THREADS as u32,
        overlap: target.hopper,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| block(e, &plan, params));
    let most = sweep
        .segments
        .iter()
        .map(|s| &s.keys)
        .max_by_key(|s| (s.syms.len(), s.coef))?;
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&[
            (Size::product(&kernel.outer[..sweep.batch]), 1),
            (most.clone(), plan.keys()),
        ]),
        per_multiprocessor: AT_ONCE as u32,
        threads: THREADS as u32,
        shared: (((WARPS + 1) * plan.part() + 1) * 4) as u32,
        overlap: target.hopper,
        ..Step::default()
    };
    let variant = Variant {
        multiples: even.iter().map(|s| (pipeline::size(s), LOAD)).collect(),
        workspaces: vec![artefact::Size {
            coef: MOST * plan.part() * 4,
            syms: vec![],
        }],
        counters: MOST as u32,
        steps: vec![step],
        ..Variant::default()
    };
    Some((variant, text))
}

/// What all parts of a block know; numbers are i32.
struct Block<'b, 'k> {
    plan: &'b Plan<'k>,
    body: Body<'k>,
    thread: Val,
    lane: Val,
    warp: Val,
    /// The warps' parts, f32.
    shared: Val,
    /// Behind them the point's part, in the block that finishes it.
    result: Val,
}

/// A warp's accumulator of a segment, by row: in units of log2. Masses by key thread, O by value thread.
#[derive(Clone)]
struct State {
    max: Vec<Val>,
    mass: Vec<Val>,
    o: Vec<Val>,
}

impl State {
    fn values(&self) -> Vec<Val> {
        self.max.iter().chain(&self.mass).chain(&self.o).copied().collect()
    }

    fn from(values: &[Val], rows: usize) -> State {
        State {
            max: values[..rows].to_vec(),
            mass: values[rows..2 * rows].to_vec(),
            o: values[2 * rows..].to_vec(),
        }
    }
}

fn block(e: &mut Emit, plan: &Plan, params: Params) {
    let (workspace, counters) = (params.workspaces[0], params.counters.expect("they were asked for"));
    let body = Body::over(plan.kernel, 1, params.buffers, params.symbols, Math::Gpu);
    let (thread, warp) = (ptx::thread(e), e.int(31, I32));
    let (shared, behind) = (ptx::shared(e), e.int(WARPS * plan.part(), I32));
    let b = Block {
        plan,
        body,
        thread,
        lane: e.and(thread, warp),
        warp: e.shr(thread, 5),
        shared,
        result: e.at(shared, behind, Elem::F32),
    };
    let batch = &plan.kernel.outer[..plan.sweep.batch];
    let points = b.body.size(e, &Size::product(batch));
    let points = e.truncate_int(points, Elem::I32);
    let (first, blocks, most, one) = (ptx::block(e), ptx::blocks(e), e.int(MOST, I32), e.int(1, I32));
    let places = e.min(blocks, most);
    let splits = e.div(places, points);
    let splits = e.max(splits, one);
    let tasks = e.mul(points, splits);
    // Mostly one each.
    let left = e.sub(tasks, first);
    let more = e.add(left, blocks);
    let more = e.sub(more, one);
    let zero = e.int(0, I32);
    let some = e.cmp(Cmp::Gt, left, zero);
    let count = e.div(more, blocks);
    let count = e.select(some, count, zero);
    e.for_loop(zero, count, 1, &[], |e, i, _| {
        let at = e.mul(i, blocks);
        let task = e.add(first, at);
        let (point, split) = (e.div(task, splits), e.rem(task, splits));
        b.task(e, [workspace, counters], point, split, splits, task);
        vec![]
    });
}

impl Block<'_, '_> {
    fn task(&self, e: &mut Emit, [workspace, counters]: [Val; 2], point: Val, split: Val, splits: Val, task: Val) {
        let plan = self.plan;
        let outer = &plan.kernel.outer[..plan.sweep.batch];
        let linear = e.extend_signed(point, Elem::I64);
        let batch = self.body.unravel(e, linear, outer);
        self.split(e, &batch, split, splits);
        ptx::barrier(e);
        let (zero, one, warps) = (e.int(0, I32), e.int(1, I32), e.int(WARPS, I32));
        let alone = e.cmp(Cmp::Eq, splits, one);
        let yes = e.int(1, Ty::scalar(Elem::I1));
        let last = e.if_else(
            alone,
            &[yes.ty],
            |e| {
                self.merge(e, warps, WARPS, self.shared, self.result);
                vec![yes]
            },
            |e| {
                let part = e.int(plan.part(), I32);
                let at = e.mul(task, part);
                let to = e.at(workspace, at, Elem::F32);
                self.merge(e, warps, WARPS, self.shared, to);
                // The block's writes are before its first thread's fence, by the barrier (PTX ISA, "Causality order").
                ptx::barrier(e);
                let first = e.cmp(Cmp::Eq, self.thread, zero);
                let counter = e.at(counters, point, Elem::I32);
                let flag = e.int(plan.part(), I32);
                let flag = e.at(self.result, flag, Elem::I32);
                e.if_then(first, &[], |e| {
                    hopper::fence(e);
                    let before = hopper::count(e, counter);
                    hopper::fence(e);
                    e.store(before, flag);
                    vec![]
                });
                ptx::barrier(e);
                let before = e.load(flag, I32);
                let others = e.sub(splits, one);
                let last = e.cmp(Cmp::Eq, before, others);
                e.if_then(last, &[], |e| {
                    e.if_then(first, &[], |e| {
                        e.store(zero, counter);
                        vec![]
                    });
                    let first = e.mul(point, splits);
                    let at = e.mul(first, part);
                    let from = e.at(workspace, at, Elem::F32);
                    self.merge(e, splits, PARTS, from, self.result);
                    vec![]
                });
                vec![last]
            },
        )[0];
        e.if_then(last, &[], |e| {
            ptx::barrier(e);
            self.finish(e, &batch);
            vec![]
        });
        // Another task may write where this one reads.
        ptx::barrier(e);
    }

    /// This split's keys: each warp's part to shared memory.
    fn split(&self, e: &mut Emit, batch: &[Val], split: Val, splits: Val) {
        let (plan, body) = (self.plan, &self.body);
        let position = super::start(e, body, plan.sweep, batch);
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
        let queries = self.queries(e, batch);
        for (i, s) in plan.sweep.segments.iter().enumerate() {
            let (from, before) = ranges[i];
            let behind = ranges.get(i + 1).map_or(total, |r| r.1);
            let (low, high) = (e.max(begin, before), e.min(end, behind));
            let (low, high) = (e.sub(low, before), e.sub(high, before));
            let (low, high) = (e.add(from, low), e.add(from, high));
            let state = self.segment(e, s, batch, &queries, low, high);
            self.put(e, i as i64, state);
        }
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
    fn put(&self, e: &mut Emit, segment: i64, s: State) {
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
    fn merge(&self, e: &mut Emit, n: Val, together: i64, base: Val, to: Val) {
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
    fn finish(&self, e: &mut Emit, batch: &[Val]) {
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
