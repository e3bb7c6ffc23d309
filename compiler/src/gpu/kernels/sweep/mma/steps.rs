//! A segment's steps: keys and values by `cp.async`, scores, weights, sums, on `mma.sync`.

use ir::plan::{Rows, Segment};

use super::{Block, LOG2E, LOWEST, State, THREADS, TILE, pair};
use crate::gpu::epilogue::clamped;
use crate::gpu::math;
use crate::gpu::mma::warp::{SWIZZLED, place};
use crate::gpu::ptx::{self, F32, I32, lane_bits};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};

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

impl Block<'_, '_> {
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

    pub(super) fn queries(&self, e: &mut Emit) {
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

    pub(super) fn segment(&self, e: &mut Emit, s: &Segment, before: Option<State>) -> State {
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
}
