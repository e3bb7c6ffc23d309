//! Attention by `mma.sync` in bf16, on every GPU from sm_80 on: FlashAttention-2's shape (Dao, arXiv 2307.08691) for a plan's segments.
//!
//!     block = (64 rows of one head, batch point)       four warps of 16 rows; the last rows, which see most, first
//!       queries to shared memory
//!       for segment                                    its accumulator starts at zero, or as a copy of the one that it continues
//!         for block of 64 keys in its range            keys and values by cp.async, the next block's under way
//!           s = q k; mask at the edges alone; p = 2^(s - max); o = o * 2^(max before - max) + p v
//!       the kernel's stages on o / l, in registers
//!
//! Results of all segments stay in registers: two segments at most. Fewer rows than a tile are computed all the same.

use ir::plan::{Kernel, Reduction, Rows, Segment, Stage, Sweep};
use ir::{DType, Size};
use runtime::artefact::{Step, Variant};

use super::epilogue::clamped;
use super::mma::{SWIZZLED, lane_bits, place};
use super::ptx::{self, F32, I32, Params, Signature};
use super::{Target, math, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::pipeline;
use crate::scalar::{Body, Columns, Math, Point, widen};

const THREADS: i64 = 128;
/// Rows of a block, and keys of a step.
const TILE: i64 = 64;
/// A maximum before any key was seen: below every score, and far from where subtracting it overflows.
const LOWEST: f32 = -1e30;
const LOG2E: f32 = std::f32::consts::LOG2_E;

/// The sizes that must be multiples of 8 elements for it; none if it cannot be.
pub fn takes(kernel: &Kernel, sweep: &Sweep) -> Option<Vec<Size>> {
    let is_bf16 = |arg: usize| kernel.args[arg].dtype == DType::BF16;
    let width = |n: i64| n == 64 || n == 128;
    let fits = width(sweep.depth) && kernel.cols.as_const().is_some_and(width) && sweep.q.indirect.is_none();
    let chains = sweep.segments.len() <= 2 && kernel.allows_lanes(2);
    let mut sizes: Vec<&Size> = sweep.q.strides[..kernel.outer.len()]
        .iter()
        .chain([&sweep.q.offset])
        .collect();
    for rows in sweep.segments.iter().flat_map(|s| [&s.k, &s.v]) {
        sizes.extend(rows.strides.iter().chain([&rows.offset]));
    }
    let types = is_bf16(sweep.q.arg) && sweep.segments.iter().all(|s| is_bf16(s.k.arg) && is_bf16(s.v.arg));
    let odd = sizes.iter().any(|s| s.as_const().is_some_and(|n| n % 8 != 0));
    (types && fits && chains && !odd).then(|| sizes.into_iter().filter(|s| s.coef % 8 != 0).cloned().collect())
}

/// Batch points, heads that share keys, rows of one head.
fn grid(kernel: &Kernel, sweep: &Sweep) -> [(Size, i64); 3] {
    let (batch, rows) = kernel.outer.split_at(sweep.batch);
    let batch = (Size::product(batch), 1);
    match rows.split_last() {
        Some((tokens, groups)) if sweep.tokens => [batch, (Size::product(groups), 1), (tokens.clone(), TILE)],
        _ => [batch, (Size::one(), 1), (Size::product(rows), TILE)],
    }
}

/// `even`: what `takes` gave.
pub fn variant(kernel: &Kernel, sweep: &Sweep, even: &[Size], name: &str, target: &Target) -> (Variant, String) {
    let signature = Signature {
        buffers: kernel.args.len(),
        threads: THREADS as u32,
        overlap: target.hopper,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| block(e, kernel, sweep, params));
    let cols = kernel.cols.as_const().unwrap_or(0);
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&grid(kernel, sweep)),
        threads: THREADS as u32,
        shared: (TILE * sweep.depth * 2 + 2 * TILE * (sweep.depth + cols) * 2) as u32,
        overlap: target.hopper,
        ..Step::default()
    };
    let variant = Variant {
        multiples: even.iter().map(|s| (pipeline::size(s), 8)).collect(),
        steps: vec![step],
        ..Variant::default()
    };
    (variant, text)
}

/// An accumulator: fragments of o, then for rows g and g + 8 maximum and the thread's part of the mass.
#[derive(Clone)]
struct State {
    o: Vec<Val>,
    max: [Val; 2],
    mass: [Val; 2],
}

/// What a segment came to, by half (rows g and g + 8).
struct Ended {
    /// Tile by tile of 8 columns: o / l as two f32, or, where another segment follows, as a pair of bf16.
    means: Vec<[Val; 2]>,
    lse: [Val; 2],
}

struct Block<'b, 'k> {
    body: &'b Body<'k>,
    sweep: &'k Sweep,
    thread: Val,
    lane: Val,
    /// The warp's first row in the tile.
    warp_row: Val,
    batch: Vec<Val>,
    /// Of the heads that share keys, i64.
    group: Val,
    /// First row, and how many there are.
    first: Val,
    rows: Val,
    /// Positions of the tile's first and last row, i64.
    from: Val,
    to: Val,
    shared: Val,
    depth: i64,
    cols: i64,
}

fn block(e: &mut Emit, kernel: &Kernel, sweep: &Sweep, params: Params) {
    let mut body = Body::over(kernel, 2, params.buffers, params.symbols, Math::Gpu);
    body.alignment = 8;
    let [(batch, _), (groups, _), (rows, _)] = grid(kernel, sweep);
    let (points, group_count, rows) = (body.size(e, &batch), body.size(e, &groups), body.size(e, &rows));
    let block = ptx::block(e);
    let block = e.extend_signed(block, Elem::I64);
    // Row blocks outermost, the last one first: blocks that begin together are equally long.
    let heads = e.mul(points, group_count);
    let (block, head) = div_rem(e, block, heads);
    let (point, group) = div_rem(e, head, group_count);
    let (less, tile) = (e.i64(TILE - 1), e.i64(TILE));
    let blocks = e.add(rows, less);
    let blocks = e.div(blocks, tile);
    let last = clamped(e, blocks, blocks);
    let block = e.sub(last, block);
    let first = e.mul(block, tile);
    let batch = body.unravel(e, point, &kernel.outer[..sweep.batch]);
    let start = start(e, &body, sweep, &batch);
    let (from, to) = if sweep.tokens {
        let behind = e.add(first, tile);
        let end = e.min(behind, rows);
        let last = clamped(e, end, end);
        (e.add(start, first), e.add(start, last))
    } else {
        (start, start)
    };
    let thread = ptx::thread(e);
    let lane = lane_bits(e, thread, 0, 5);
    let warp = e.shr(thread, 5);
    let b = Block {
        thread,
        lane,
        warp_row: e.shl(warp, 4),
        batch,
        group,
        first,
        rows,
        from,
        to,
        shared: ptx::shared_address(e),
        depth: sweep.depth,
        cols: kernel.cols.as_const().unwrap_or(0),
        sweep,
        body: &body,
    };
    b.queries(e);
    let (mut states, mut results): (Vec<State>, Vec<Ended>) = (vec![], vec![]);
    for (i, segment) in sweep.segments.iter().enumerate() {
        e.comment(&format!("segment {i}"));
        let before = segment.after.map(|a| states[a].clone());
        let state = b.segment(e, segment, before);
        results.push(b.ended(e, &state, i + 1 == sweep.segments.len()));
        states.push(state);
    }
    b.stages(e, &results);
}

/// Of numbers that 32 bits hold.
fn div_rem(e: &mut Emit, a: Val, b: Val) -> (Val, Val) {
    let [a, b] = [a, b].map(|x| e.truncate_int(x, Elem::I32));
    let (q, r) = (e.div(a, b), e.rem(a, b));
    (e.extend_signed(q, Elem::I64), e.extend_signed(r, Elem::I64))
}

/// The position of row 0, i64.
fn start(e: &mut Emit, body: &Body, sweep: &Sweep, batch: &[Val]) -> Val {
    let zero = e.i64(0);
    let Some(start) = sweep.start else { return zero };
    let mut index = batch.to_vec();
    index.resize(body.kernel.outer.len(), zero);
    let mut point = body.point(index);
    let start = body.scalar(e, &mut point, start);
    e.extend_signed(start, Elem::I64)
}

impl Block<'_, '_> {
    /// The kernel's indices of a row, clamped to the last one.
    fn index(&self, e: &mut Emit, row: Val) -> Vec<Val> {
        let row = clamped(e, row, self.rows);
        let dims = &self.body.kernel.outer[self.sweep.batch..];
        let mut index = self.batch.clone();
        if self.sweep.tokens {
            index.extend(self.body.unravel(e, self.group, &dims[..dims.len() - 1]));
            index.push(row);
        } else {
            index.extend(self.body.unravel(e, row, dims));
        }
        index
    }

    /// Chunk i of the thread in a tile of rows of `width` elements: row, first element, byte in shared memory.
    fn chunk(&self, e: &mut Emit, i: i64, width: i64) -> (Val, Val, Val) {
        let chunks = width / 8;
        let n = e.int(chunks, I32);
        let (row, chunk) = (e.div(self.thread, n), e.rem(self.thread, n));
        let more = e.int(i * (THREADS / chunks), I32);
        let row = e.add(row, more);
        let to = place(e, row, chunk, chunks);
        let element = e.shl(chunk, 3);
        let row = e.extend_signed(row, Elem::I64);
        (row, e.extend_signed(element, Elem::I64), to)
    }

    fn at(&self, e: &mut Emit, bytes: i64) -> Val {
        let bytes = e.int(bytes, I32);
        e.add(self.shared, bytes)
    }

    fn queries(&self, e: &mut Emit) {
        let q = &self.sweep.q;
        let sixteen = e.int(16, I32);
        for i in 0..TILE * self.depth / 8 / THREADS {
            let (row, element, to) = self.chunk(e, i, self.depth);
            let row = e.add(self.first, row);
            let index = self.index(e, row);
            let base = self.body.linear(e, &q.offset, &index, &q.strides[..index.len()]);
            let at = e.add(base, element);
            let from = e.at(self.body.args[q.arg], at, Elem::I16);
            let to = e.add(self.shared, to);
            ptx::copy_async(e, to, from, sixteen);
        }
        ptx::commit_copies(e);
    }

    /// Bytes of a stage: a block of keys, then one of values.
    fn stage(&self, e: &mut Emit, step: Val) -> Val {
        let one = e.i64(1);
        let at = e.and(step, one);
        let at = e.truncate_int(at, Elem::I32);
        let bytes = e.int(2 * TILE * (self.depth + self.cols), I32);
        let at = e.mul(at, bytes);
        let queries = self.at(e, TILE * self.depth * 2);
        e.add(queries, at)
    }

    /// A matrix' first element at the batch point, and the elements from row to row.
    fn matrix(&self, e: &mut Emit, m: &Rows) -> (Val, Val) {
        let (stride, batch) = m.strides.split_last().expect("a matrix has a stride for its rows");
        (
            self.body.linear(e, &m.offset, &self.batch, batch),
            self.body.size(e, stride),
        )
    }

    #[allow(clippy::too_many_arguments)]
    /// Brings a block of a matrix' rows; behind the last one it is the last one again.
    fn bring(&self, e: &mut Emit, arg: usize, (base, stride): (Val, Val), width: i64, first: Val, keys: Val, to: Val) {
        let sixteen = e.int(16, I32);
        for i in 0..TILE * width / 8 / THREADS {
            let (row, element, place) = self.chunk(e, i, width);
            let row = e.add(first, row);
            let row = clamped(e, row, keys);
            let at = e.mul(row, stride);
            let at = e.add(at, base);
            let at = e.add(at, element);
            let from = e.at(self.body.args[arg], at, Elem::I16);
            let to = e.add(to, place);
            ptx::copy_async(e, to, from, sixteen);
        }
    }

    fn segment(&self, e: &mut Emit, s: &Segment, before: Option<State>) -> State {
        let keys = self.body.size(e, &s.keys);
        let (k, v) = (self.matrix(e, &s.k), self.matrix(e, &s.v));
        // Keys that any row of the tile sees: from..to, in blocks from `first` on.
        let zero = e.i64(0);
        let from = match s.far {
            None => zero,
            Some(far) => {
                let reach = e.i64(far - 1);
                let from = e.sub(self.from, reach);
                e.max(from, zero)
            }
        };
        let past = e.i64(1 - s.near);
        let to = e.add(self.to, past);
        let to = e.min(to, keys);
        let mask = e.i64(-TILE);
        let first = e.and(from, mask);
        let (less, tile) = (e.i64(TILE - 1), e.i64(TILE));
        let n = e.sub(to, first);
        let n = e.max(n, zero);
        let n = e.add(n, less);
        let steps = e.div(n, tile);

        let fetch = |e: &mut Emit, step: Val| {
            let is_there = e.cmp(Cmp::Lt, step, steps);
            e.if_then(is_there, &[], |e| {
                let at = e.mul(step, tile);
                let block = e.add(first, at);
                let to = self.stage(e, step);
                self.bring(e, s.k.arg, k, self.depth, block, keys, to);
                let values = e.int(2 * TILE * self.depth, I32);
                let to = e.add(to, values);
                self.bring(e, s.v.arg, v, self.cols, block, keys, to);
                vec![]
            });
            ptx::commit_copies(e);
        };
        let state = before.unwrap_or_else(|| {
            let (nothing, lowest) = (e.f32(0.0, F32), e.f32(LOWEST, F32));
            State {
                o: vec![nothing; (self.cols / 2) as usize],
                max: [lowest; 2],
                mass: [nothing; 2],
            }
        });
        let mut init = state.o.clone();
        init.extend(state.max.iter().chain(&state.mass));
        fetch(e, zero);
        let out = e.for_loop(zero, steps, 1, &init, |e, step, carried| {
            ptx::wait_copies(e, 0);
            ptx::barrier(e);
            let one = e.i64(1);
            let next = e.add(step, one);
            fetch(e, next);
            let at = e.mul(step, tile);
            let block = e.add(first, at);
            let stage = self.stage(e, step);
            let (o, rest) = carried.split_at(state.o.len());
            let state = State {
                o: o.to_vec(),
                max: [rest[0], rest[1]],
                mass: [rest[2], rest[3]],
            };
            let scores = self.scores(e, s, stage, block, keys);
            let state = self.absorb(e, state, scores, stage);
            let mut out = state.o;
            out.extend(state.max.iter().chain(&state.mass));
            out
        });
        // Before the next segment's first block takes the stage.
        ptx::wait_copies(e, 0);
        ptx::barrier(e);
        let (o, rest) = out.split_at(state.o.len());
        State {
            o: o.to_vec(),
            max: [rest[0], rest[1]],
            mass: [rest[2], rest[3]],
        }
    }

    /// Scores in units of log2, [key tile of 8][4]; what a row does not see is minus infinity.
    fn scores(&self, e: &mut Emit, s: &Segment, stage: Val, block: Val, keys: Val) -> Vec<Val> {
        let nothing = e.f32(0.0, F32);
        let mut acc = vec![nothing; (TILE / 8 * 4) as usize];
        let chunks = self.depth / 8;
        let pitch = e.int(16 * chunks, I32);
        let queries = e.mul(self.warp_row, pitch);
        let queries = e.add(self.shared, queries);
        for k in 0..self.depth / 16 {
            let a = self.fragments(e, queries, 0, 2 * k, chunks, Order::Rows);
            for pair in 0..TILE / 16 {
                let b = self.fragments(e, stage, 16 * pair, 2 * k, chunks, Order::Columns);
                for half in 0..2 {
                    let at = (2 * pair + half) as usize * 4;
                    let pair = &b[2 * half as usize..2 * half as usize + 2];
                    let sums = ptx::mma_bf16(e, &a, pair, &acc[at..at + 4]);
                    acc.splice(at..at + 4, sums);
                }
            }
        }
        let scale = e.f32(f32::from_bits(s.scale) * LOG2E, F32);
        let scores: Vec<Val> = acc.iter().map(|x| e.mul(*x, scale)).collect();
        // Does any row of the tile not see all keys of the block?
        let last = e.i64(TILE - 1);
        let last = e.add(block, last);
        let near = e.i64(s.near);
        let nearest = e.sub(self.from, last);
        let mut edge = e.cmp(Cmp::Lt, nearest, near);
        let mut or = |e: &mut Emit, c: Val| edge = e.op(edge.ty, &format!("arith.ori {edge}, {c} : i1"));
        let behind = e.cmp(Cmp::Le, keys, last);
        or(e, behind);
        if let Some(far) = s.far {
            let far = e.i64(far);
            let farthest = e.sub(self.to, block);
            let too_far = e.cmp(Cmp::Le, far, farthest);
            or(e, too_far);
        }
        e.if_then(edge, &scores, |e| self.masked(e, s, block, keys, &scores))
    }

    fn masked(&self, e: &mut Emit, s: &Segment, block: Val, keys: Val, scores: &[Val]) -> Vec<Val> {
        let hidden = e.f32(f32::NEG_INFINITY, F32);
        let (g, c) = (lane_bits(e, self.lane, 2, 3), lane_bits(e, self.lane, 0, 2));
        let c = e.shl(c, 1);
        let [block, keys, from] = [block, keys, self.from].map(|x| e.truncate_int(x, Elem::I32));
        let row = e.add(self.warp_row, g);
        // The distance of row g from the block's key 2 c.
        let mut distance = e.sub(from, block);
        distance = e.sub(distance, c);
        if self.sweep.tokens {
            distance = e.add(distance, row);
        }
        let left = e.sub(keys, block);
        let left = e.sub(left, c);
        let mut out = vec![];
        for (i, x) in scores.iter().enumerate() {
            let (tile, part) = (i as i64 / 4, i as i64 % 4);
            let key = 8 * tile + part % 2;
            let down = if self.sweep.tokens { part / 2 * 8 } else { 0 };
            // near <= distance + down - key < far, key < left
            let near = e.int(s.near + key - down, I32);
            let mut seen = e.cmp(Cmp::Le, near, distance);
            if let Some(far) = s.far {
                let far = e.int(far + key - down, I32);
                let close = e.cmp(Cmp::Lt, distance, far);
                seen = e.and(seen, close);
            }
            let key = e.int(key, I32);
            let there = e.cmp(Cmp::Lt, key, left);
            seen = e.and(seen, there);
            out.push(e.select(seen, *x, hidden));
        }
        out
    }

    /// Takes a block's scores and values into the accumulator.
    fn absorb(&self, e: &mut Emit, state: State, scores: Vec<Val>, stage: Val) -> State {
        let (mut max, mut mass, mut factors) = (state.max, state.mass, vec![]);
        let mut p = scores.clone();
        for half in 0..2 {
            let mine: Vec<usize> = (0..scores.len()).filter(|i| i % 4 / 2 == half).collect();
            let mut largest = max[half];
            for i in &mine {
                largest = math::max(e, largest, scores[*i]);
            }
            for bits in [1, 2] {
                let other = ptx::shuffle_xor(e, largest, bits);
                largest = math::max(e, largest, other);
            }
            let change = e.sub(max[half], largest);
            let factor = math::exp2(e, change);
            let mut sum = e.mul(mass[half], factor);
            for i in mine {
                let x = e.sub(scores[i], largest);
                p[i] = math::exp2(e, x);
                sum = e.add(sum, p[i]);
            }
            (max[half], mass[half]) = (largest, sum);
            factors.push(factor);
        }
        let mut o: Vec<Val> = state
            .o
            .iter()
            .enumerate()
            .map(|(i, x)| e.mul(*x, factors[i % 4 / 2]))
            .collect();
        let values = e.int(2 * TILE * self.depth, I32);
        let values = e.add(stage, values);
        for step in 0..TILE / 16 {
            // Two tiles of scores are the probabilities' fragment of 16 keys.
            let at = (step * 8) as usize;
            let a: Vec<Val> = [0, 2, 4, 6].map(|i| pair(e, p[at + i], p[at + i + 1])).to_vec();
            for pair in 0..self.cols / 16 {
                let b = self.fragments(e, values, 16 * step, 2 * pair, self.cols / 8, Order::Turned);
                for half in 0..2 {
                    let at = (2 * pair + half) as usize * 4;
                    let sums = ptx::mma_bf16(e, &a, &b[2 * half as usize..2 * half as usize + 2], &o[at..at + 4]);
                    o.splice(at..at + 4, sums);
                }
            }
        }
        State { o, max, mass }
    }

    /// Four matrices from rows `row..row + 16` and chunks `chunk`, `chunk + 1` of a tile; `row` is a multiple of 16, `chunk` even. What the
    /// swizzle leaves alone is a constant behind one of four addresses: those of all steps would take the registers of a whole accumulator.
    fn fragments(&self, e: &mut Emit, tile: Val, row: i64, chunk: i64, chunks: i64, order: Order) -> Vec<Val> {
        let (row_bits, chunk_bits) = match order {
            // (low rows, first), (high, first), (low, second), (high, second)
            Order::Rows | Order::Turned => ((0, 4), (4, 1)),
            // (low, first), (low, second), (high, first), (high, second)
            Order::Columns => ((0, 3), (3, 1)),
        };
        let mut at = lane_bits(e, self.lane, row_bits.0, row_bits.1);
        if let Order::Columns = order {
            let high = lane_bits(e, self.lane, 4, 1);
            let high = e.shl(high, 3);
            at = e.or(at, high);
        }
        let (near, far) = (chunk % SWIZZLED, chunk / SWIZZLED * SWIZZLED);
        let near = e.int(near, I32);
        let chunk = lane_bits(e, self.lane, chunk_bits.0, chunk_bits.1);
        let chunk = e.add(chunk, near);
        let at = place(e, at, chunk, chunks);
        let at = e.add(tile, at);
        let constant = e.int(16 * (row * chunks + far), I32);
        let at = e.add(at, constant);
        ptx::load_matrices(e, at, matches!(order, Order::Turned))
    }

    /// Two accumulators in f32 leave no registers for a step: only the last segment's result stays one.
    fn ended(&self, e: &mut Emit, state: &State, is_last: bool) -> Ended {
        let nothing = e.f32(0.0, F32);
        let (mut shares, mut lse) = ([nothing; 2], [nothing; 2]);
        for half in 0..2 {
            let mut mass = state.mass[half];
            for bits in [1, 2] {
                let other = ptx::shuffle_xor(e, mass, bits);
                mass = e.add(mass, other);
            }
            let seen = e.cmp(Cmp::Lt, nothing, mass);
            let one_over = math::reciprocal(e, mass);
            shares[half] = e.select(seen, one_over, nothing);
            let log = math::log2(e, mass);
            let log = e.add(log, state.max[half]);
            let ln2 = e.f32(std::f32::consts::LN_2, F32);
            let log = e.mul(log, ln2);
            let lowest = e.f32(LOWEST, F32);
            lse[half] = e.select(seen, log, lowest);
        }
        let means = state.o.chunks(4).map(|tile| {
            [0, 1].map(|half| {
                let both = [0, 1].map(|i| e.mul(tile[2 * half + i], shares[half]));
                match is_last {
                    true => e.vector(&both),
                    false => pair(e, both[0], both[1]),
                }
            })
        });
        Ended {
            means: means.collect(),
            lse,
        }
    }

    /// The kernel's stages on each segment's o / l: rows g and g + 8 of the warp, columns 2 c and 2 c + 1 of each tile of 8.
    fn stages(&self, e: &mut Emit, results: &[Ended]) {
        let (g, c) = (lane_bits(e, self.lane, 2, 3), lane_bits(e, self.lane, 0, 2));
        let c = e.shl(c, 1);
        let c = e.extend_signed(c, Elem::I64);
        let row = e.add(self.warp_row, g);
        let row = e.extend_signed(row, Elem::I64);
        let row = e.add(self.first, row);
        for half in 0..2 {
            let down = e.i64(8 * half);
            let row = e.add(row, down);
            let is_there = e.cmp(Cmp::Lt, row, self.rows);
            let index = self.index(e, row);
            let mut point = self.body.point(index);
            let half = half as usize;
            point.lse.extend(results.iter().map(|r| r.lse[half]));
            let columns = |e: &mut Emit, tile: i64| {
                let first = e.i64(8 * tile);
                let first = e.add(first, c);
                let mut cols = Columns::new(first, None, None);
                for (i, result) in results.iter().enumerate() {
                    let mean = result.means[tile as usize][half];
                    cols.swept.push(match i + 1 == results.len() {
                        true => mean,
                        false => unpaired(e, mean),
                    });
                }
                cols
            };
            for (i, stage) in self.body.kernel.stages.iter().enumerate() {
                self.body.hoist(e, &mut point, stage);
                match stage {
                    Stage::Reduce { op, value } => {
                        let result = self.reduce(e, &mut point, *op, *value, &columns);
                        point.reduced.insert(i, result);
                    }
                    Stage::Store { .. } => {
                        e.if_then(is_there, &[], |e| {
                            self.store(e, &mut point, stage, &columns);
                            vec![]
                        });
                    }
                }
            }
        }
    }

    fn reduce(
        &self,
        e: &mut Emit,
        point: &mut Point,
        op: Reduction,
        value: usize,
        columns: &dyn Fn(&mut Emit, i64) -> Columns,
    ) -> Val {
        let combine: fn(&mut Emit, Val, Val) -> Val = match op {
            Reduction::Sum => Emit::add,
            Reduction::Max => Emit::max,
            Reduction::LogSumExp => panic!("kernel {}: a sweep's columns are not reduced so", self.body.kernel.name),
        };
        let mut all: Option<Val> = None;
        for tile in 0..self.cols / 8 {
            let mut cols = columns(e, tile);
            let v = self.body.vector(e, point, &mut cols, value);
            let (x, y) = (e.extract(v, 0), e.extract(v, 1));
            let v = combine(e, x, y);
            all = Some(all.map_or(v, |all| combine(e, all, v)));
        }
        let mut all = all.expect("there are columns");
        for bits in [1, 2] {
            let other = ptx::shuffle_xor(e, all, bits);
            all = combine(e, all, other);
        }
        all
    }

    fn store(&self, e: &mut Emit, point: &mut Point, stage: &Stage, columns: &dyn Fn(&mut Emit, i64) -> Columns) {
        let Stage::Store { to, value, when } = stage else {
            return;
        };
        if to.strides.last().is_none_or(|s| s.coef == 0) {
            // All four threads of a row store the same.
            let value = self.body.scalar(e, point, *value);
            self.body.store_scalar(e, point, to, value);
            return;
        }
        for tile in 0..self.cols / 8 {
            let mut cols = columns(e, tile);
            let when = when.map(|w| self.body.vector(e, point, &mut cols, w));
            let value = self.body.vector(e, point, &mut cols, *value);
            self.body.store_vector(e, point, &mut cols, to, value, when);
        }
    }
}

/// How the four matrices of a load lie in a tile.
#[derive(Clone, Copy)]
enum Order {
    /// A's fragment of 16 rows.
    Rows,
    /// B's fragments of 16 columns, which are rows of the tile.
    Columns,
    /// B's fragments of 16 columns from a tile whose rows are k.
    Turned,
}

/// Two bf16 in one register, the first one low.
fn pair(e: &mut Emit, low: Val, high: Val) -> Val {
    let both = e.vector(&[low, high]);
    let both = e.truncate_float(both, Elem::BF16);
    // A vector of one i32.
    let bits = e.bitcast(both, Ty::vector(Elem::I32, 1));
    e.extract(bits, 0)
}

/// The two as a vector of f32.
fn unpaired(e: &mut Emit, bits: Val) -> Val {
    let both = e.vector(&[bits]);
    let both = e.bitcast(both, Ty::vector(Elem::I16, 2));
    widen(e, both, DType::BF16)
}
