//! Any sweep, the plain way: any types, sizes and strides; right before it is fast.
//!
//!     warp = row                               its query in shared memory, f32
//!       for segment                            its (m, l, O) starts empty, or as a copy of the one that it continues
//!         for 32 keys in the segment's range   thread = key: score; then thread = columns: O = O * factor + p v
//!       the kernel's stages on O / l           thread = columns
//!
//! No tensor cores, no sharing of keys between rows but what the caches do.

use ir::plan::{Kernel, Segment, Sweep};
use ir::{DType, Size};
use runtime::artefact::Step;

use super::stages::{self, Team};
use crate::gpu::ptx::{self, F32, I32, Params, Signature};
use crate::gpu::{Emitted, Target, math, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, Math, Point, memory, widen};

const THREADS: i64 = 128;
const WARP: i64 = 32;
/// Rows of a block.
const ROWS: i64 = THREADS / WARP;

pub fn emit(kernel: &Kernel, sweep: &Sweep, target: &Target) -> Emitted {
    let signature = Signature {
        buffers: kernel.args.len(),
        threads: THREADS as u32,
        overlap: target.hopper,
        ..Signature::default()
    };
    let text = ptx::function(&kernel.name, signature, |e, params| block(e, kernel, sweep, params));
    let step = Step {
        function: kernel.name.clone(),
        tiles: tiles(&[(Size::product(&kernel.outer), ROWS)]),
        threads: THREADS as u32,
        shared: (ROWS * sweep.depth * 4) as u32,
        overlap: target.hopper,
        ..Step::default()
    };
    Emitted::one(&kernel.name, step, text)
}

/// One row's warp.
struct Row<'b, 'k> {
    body: &'b Body<'k>,
    sweep: &'k Sweep,
    lane: Val,
    point: Point,
    position: Val,
    /// The query in shared memory.
    query: Val,
}

/// What an accumulator holds: the row's maximum (of scores in units of log2), the thread's part of the mass, its columns of O.
#[derive(Clone)]
struct State {
    max: Val,
    mass: Val,
    o: Vec<Val>,
}

impl State {
    fn values(&self) -> Vec<Val> {
        [self.max, self.mass]
            .into_iter()
            .chain(self.o.iter().copied())
            .collect()
    }

    fn from(values: &[Val]) -> State {
        State {
            max: values[0],
            mass: values[1],
            o: values[2..].to_vec(),
        }
    }
}

fn block(e: &mut Emit, kernel: &Kernel, sweep: &Sweep, params: Params) {
    let body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
    let (block, thread, warp) = (ptx::block(e), ptx::thread(e), e.int(WARP, I32));
    let (lane, number, rows) = (e.rem(thread, warp), e.div(thread, warp), e.int(ROWS, I32));
    let base = e.mul(block, rows);
    let row = e.add(base, number);
    let row = e.extend_signed(row, Elem::I64);
    let count = body.size(e, &Size::product(&kernel.outer));
    let is_there = e.cmp(Cmp::Lt, row, count);
    let one = e.i64(1);
    let last = e.sub(count, one);
    let row = e.min(row, last);
    let index = body.unravel(e, row, &kernel.outer);
    let mut position = super::start(e, &body, sweep, &index[..sweep.batch]);
    if sweep.tokens {
        position = e.add(position, index[index.len() - 1]);
    }
    let (shared, depth) = (ptx::shared(e), e.int(sweep.depth, I32));
    let at = e.mul(number, depth);
    let query = e.at(shared, at, Elem::F32);
    let mut row = Row {
        body: &body,
        sweep,
        lane,
        point: body.point(index),
        position,
        query,
    };
    row.stage_query(e);
    ptx::barrier(e);
    let team = Team {
        threads: WARP,
        member: e.extend_signed(lane, Elem::I64),
    };
    let vectors = team.vectors(&body);
    let mut states: Vec<State> = vec![];
    for segment in &sweep.segments {
        let init = match segment.after {
            Some(before) => states[before].clone(),
            None => {
                let nothing = e.f32(0.0, F32);
                State {
                    max: e.f32(f32::NEG_INFINITY, F32),
                    mass: nothing,
                    o: vec![nothing; vectors as usize],
                }
            }
        };
        let state = row.segment(e, segment, init);
        states.push(state);
    }
    let mut swept = vec![];
    for state in &states {
        let mass = across(e, state.mass, Emit::add);
        let nothing = e.f32(0.0, F32);
        let some = e.cmp(Cmp::Gt, mass, nothing);
        let one = e.f32(1.0, F32);
        let share = e.div(one, mass);
        let share = e.select(some, share, nothing);
        swept.push(
            (state.o.iter())
                .map(|o| {
                    let o = e.mul(*o, share);
                    e.vector(&[o])
                })
                .collect(),
        );
        let (log, unit) = (math::log(e, mass), e.f32(std::f32::consts::LN_2, F32));
        let lse = e.fma(state.max, unit, log);
        let lowest = e.f32(-1e30, F32);
        row.point.lse.push(e.select(some, lse, lowest));
    }
    let row = stages::Row {
        point: row.point,
        is_there,
        swept,
    };
    team.run(e, &body, vec![row]);
}

/// Of all threads of the warp.
fn across(e: &mut Emit, mut x: Val, combine: fn(&mut Emit, Val, Val) -> Val) -> Val {
    for bits in [16, 8, 4, 2, 1] {
        let other = ptx::shuffle_xor(e, x, bits);
        x = combine(e, x, other);
    }
    x
}

impl Row<'_, '_> {
    fn dtype(&self, arg: usize) -> DType {
        self.body.kernel.args[arg].dtype
    }

    fn load(&self, e: &mut Emit, arg: usize, at: Val) -> Val {
        let dtype = self.dtype(arg);
        let ptr = e.at(self.body.args[arg], at, memory(dtype));
        let raw = e.load(ptr, Ty::scalar(memory(dtype)));
        widen(e, raw, dtype)
    }

    fn stage_query(&mut self, e: &mut Emit) {
        let base = self.body.base(e, &mut self.point, &self.sweep.q);
        let depth = e.int(self.sweep.depth, I32);
        e.for_loop(self.lane, depth, WARP, &[], |e, d, _| {
            let at = e.extend_signed(d, Elem::I64);
            let at = e.add(base, at);
            let x = self.load(e, self.sweep.q.arg, at);
            let to = e.at(self.query, d, Elem::F32);
            e.store(x, to);
            vec![]
        });
    }

    fn segment(&self, e: &mut Emit, s: &Segment, init: State) -> State {
        let rows = |e: &mut Emit, rows: &ir::plan::Rows| {
            let (stride, batch) = rows.strides.split_last().expect("rows have a stride");
            let base = self
                .body
                .linear(e, &rows.offset, &self.point.index[..self.sweep.batch], batch);
            (base, self.body.size(e, stride))
        };
        let (keys, values) = (rows(e, &s.k), rows(e, &s.v));
        // Keys that the row sees: from..to.
        let (zero, one, near) = (e.i64(0), e.i64(1), e.i64(s.near));
        let from = match s.far {
            None => zero,
            Some(far) => {
                let reach = e.i64(far.saturating_sub(1));
                let from = e.sub(self.position, reach);
                e.max(from, zero)
            }
        };
        let to = e.sub(self.position, near);
        let to = e.add(to, one);
        let all = self.body.size(e, &s.keys);
        let to = e.min(to, all);
        let lane = e.extend_signed(self.lane, Elem::I64);
        let end = e.f32(f32::NEG_INFINITY, F32);
        let last = e.for_loop(from, to, WARP, &init.values(), |e, first, state| {
            let mut state = State::from(state);
            let key = e.add(first, lane);
            let seen = e.cmp(Cmp::Lt, key, to);
            let limit = e.sub(to, one);
            let key = e.min(key, limit);
            let score = self.score(e, s, keys, key);
            let score = e.select(seen, score, end);
            let highest = across(e, score, Emit::max);
            let max = e.max(state.max, highest);
            let fall = e.sub(state.max, max);
            let factor = math::exp2(e, fall);
            let x = e.sub(score, max);
            let p = math::exp2(e, x);
            state.mass = e.fma(state.mass, factor, p);
            state.max = max;
            let scaled: Vec<Val> = state.o.iter().map(|o| e.mul(*o, factor)).collect();
            let n = e.sub(to, first);
            let whole = e.i64(WARP);
            let n = e.min(n, whole);
            state.o = e.for_loop(zero, n, 1, &scaled, |e, j, o| {
                let number = e.truncate_int(j, Elem::I32);
                let weight = ptx::shuffle(e, p, number);
                let at = e.add(first, j);
                let at = e.mul(at, values.1);
                let at = e.add(values.0, at);
                o.iter()
                    .enumerate()
                    .map(|(i, o)| self.value(e, s, at, i as i64, weight, *o))
                    .collect()
            });
            state.values()
        });
        State::from(&last)
    }

    /// The score of the thread's key, in units of log2.
    fn score(&self, e: &mut Emit, s: &Segment, (base, stride): (Val, Val), key: Val) -> Val {
        let at = e.mul(key, stride);
        let at = e.add(base, at);
        let (zero, depth, nothing) = (e.int(0, I32), e.int(self.sweep.depth, I32), e.f32(0.0, F32));
        let dot = e.for_loop(zero, depth, 1, &[nothing], |e, d, dot| {
            let wide = e.extend_signed(d, Elem::I64);
            let at = e.add(at, wide);
            let y = self.load(e, s.k.arg, at);
            let from = e.at(self.query, d, Elem::F32);
            let x = e.load(from, F32);
            vec![e.fma(x, y, dot[0])]
        });
        let scale = e.f32(f32::from_bits(s.scale) * std::f32::consts::LOG2_E, F32);
        e.mul(dot[0], scale)
    }

    /// O of the thread's vector i with the value row at `at`.
    fn value(&self, e: &mut Emit, s: &Segment, at: Val, i: i64, weight: Val, o: Val) -> Val {
        let cols = self.body.kernel.cols.as_const().expect("a sweep's columns are known");
        let (number, last) = (e.int(i * WARP, I32), e.int(cols - 1, I32));
        let column = e.add(self.lane, number);
        let column = e.min(column, last);
        let column = e.extend_signed(column, Elem::I64);
        let at = e.add(at, column);
        let v = self.load(e, s.v.arg, at);
        e.fma(weight, v, o)
    }
}
