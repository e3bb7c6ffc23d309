//! A consumer of attention's backward: a warp group with 64 keys of the tile's 128.
//!
//!     for tile
//!       for step: range, block of rows, group       order.rs
//!         s = k q^T, dp = v d^T                     keys by rows; `wgmma` from shared memory
//!         p = 2^(s - lse)                           while dp runs
//!         dv += p d                                 p in registers
//!         dx = scale p (dp + z)                     while dv runs; to shared memory, where both consumers' parts meet
//!         dq = dx^T k                               half of its columns (or rows) each
//!         dk += dx q                                dx in registers
//!         dq to shared memory                       while dk runs; a producer adds it to memory
//!       dk and dv to memory
//!
//! A thread holds two keys, 8 apart, and of each 8 rows two. Exponents are in units of log2.

use super::flash::{Block, Guard, HALF, KEYS};
use super::order::{self, Tile};
use crate::gpu::hopper::{self, Left, Matrix, Step};
use crate::gpu::math;
use crate::gpu::ptx::{self, F32, I32};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};

/// Number of the barrier at which consumers have written their dx.
const BOTH: i64 = 1;

/// Rows of 128 bytes: k contiguous, or k down the rows.
const ALONG: Matrix = Matrix {
    swizzle: 128,
    stride: 1024,
    leading: 16,
    turned: false,
};

fn across(rows: i64) -> Matrix {
    Matrix {
        leading: rows * 128,
        turned: true,
        ..ALONG
    }
}

struct Consumer<'b, 'k> {
    b: &'b Block<'b, 'k>,
    /// The consumer's number, i32.
    number: Val,
    lane: Val,
    /// First thread of its warp.
    leads: Val,
    /// Of the thread: its first key in the tile, its quarter of the columns, and its row in a group of 8.
    key: Val,
    quarter: Val,
    eighth: Val,
    /// First of the warp's 16 rows of 64.
    warp_row: Val,
    /// The consumer's keys and values, along, and all keys across.
    keys: Val,
    values: Val,
    keys_across: Val,
}

/// The walk over the block's tiles.
pub fn run(e: &mut Emit, b: &Block, number: Val) {
    let (thread, group, warp) = (ptx::thread(e), e.int(127, I32), e.int(31, I32));
    let thread = e.and(thread, group);
    let lane = e.and(thread, warp);
    let zero = e.int(0, I32);
    let (eighth, three) = (e.shr(lane, 2), e.int(3, I32));
    let warp_row = e.shr(thread, 5);
    let warp_row = e.shl(warp_row, 4);
    let half = e.int(HALF, I32);
    let first = e.mul(number, half);
    let key = e.add(first, warp_row);
    let rows = e.shl(first, 7);
    let keys = e.add(b.shared, rows);
    let values = b.address(e, b.plan.at_values());
    let values = e.add(values, rows);
    // Of dq, each consumer has half of the columns, or the rows.
    let mut columns = b.shared;
    if b.plan.rows == HALF {
        let bytes = e.int(KEYS * 128, I32);
        let more = e.mul(number, bytes);
        columns = e.add(columns, more);
    }
    let c = Consumer {
        b,
        number,
        leads: e.cmp(Cmp::Eq, lane, zero),
        key: e.add(key, eighth),
        quarter: e.and(lane, three),
        eighth,
        warp_row,
        keys: ALONG.at(e, keys),
        values: ALONG.at(e, values),
        keys_across: across(KEYS).at(e, columns),
        lane,
    };
    b.tiles(e, &[zero], |e, number, round, carried| {
        let tile = b.plan.tile(e, number);
        let steps = b.plan.steps(e, tile);
        let guard = b.turn(e, Guard::Keys, round);
        guard.wait_full(e);
        let nothing = e.f32(0.0, F32);
        let sums = b.plan.depth as usize / 2;
        let last = e.for_loop(zero, steps.count, 1, &vec![nothing; 2 * sums], |e, s, acc| {
            let step = b.plan.step(e, &steps, s);
            let n = e.add(carried[0], s);
            let (dk, dv) = acc.split_at(sums);
            c.step(e, tile, &step, n, dk, dv)
        });
        guard.release(e, c.leads);
        let (dk, dv) = last.split_at(sums);
        c.store(e, tile, dk, dv);
        vec![e.add(carried[0], steps.count)]
    });
}

impl Consumer<'_, '_> {
    /// What is computed with one block of rows; gives dk, then dv.
    fn step(&self, e: &mut Emit, tile: Tile, step: &order::Step, n: Val, dk: &[Val], dv: &[Val]) -> Vec<Val> {
        let plan = self.b.plan;
        let (queries, d) = (self.b.turn(e, Guard::Queries, n), self.b.turn(e, Guard::D, n));
        let in_stage = |e: &mut Emit, first: i64, stage: Val, bytes: i64| {
            let first = self.b.address(e, first);
            let size = e.int(bytes, I32);
            let more = e.mul(stage, size);
            e.add(first, more)
        };
        let q_at = in_stage(e, plan.at_queries(), queries.stage, plan.row_bytes());
        let d_at = in_stage(e, plan.at_d(), d.stage, plan.row_bytes());
        let steps: Vec<Step> = (0..plan.depth / 16)
            .map(|i| Step {
                a: i / 4 * KEYS * 128 + i % 4 * 32,
                b: i / 4 * plan.rows * 128 + i % 4 * 32,
            })
            .collect();
        queries.wait_full(e);
        let q = (ALONG, ALONG.at(e, q_at));
        let s = hopper::multiply(e, plan.rows, Left::Shared(ALONG, self.keys), q, &steps, None);
        d.wait_full(e);
        let right = (ALONG, ALONG.at(e, d_at));
        let dp = hopper::multiply(e, plan.rows, Left::Shared(ALONG, self.values), right, &steps, None);

        let s = hopper::finish(e, 1, &s);
        let lse = self.numbers(e, plan.at_lse(), queries.stage);
        let p = self.weights(e, tile, step, &s, &lse);
        let p_packed = pack(e, &p);
        let by_rows: Vec<Step> = (0..plan.rows / 16).map(|i| Step { a: 0, b: i * 16 * 128 }).collect();
        let down = across(plan.rows);
        let right = (down, down.at(e, d_at));
        let dv = hopper::multiply(e, plan.depth, Left::Registers(&p_packed), right, &by_rows, Some(dv));

        let dp = hopper::finish(e, 1, &dp);
        let z = self.numbers(e, plan.at_z(), d.stage);
        let scale = e.f32(f32::from_bits(plan.g.scale), F32);
        let z: Vec<Val> = z.iter().map(|z| e.mul(*z, scale)).collect();
        let dx: Vec<Val> = (p.iter().zip(&dp).enumerate())
            .map(|(i, (p, dp))| {
                let sum = e.fma(*dp, scale, z[i / 4 * 2 + i % 2]);
                e.mul(*p, sum)
            })
            .collect();
        let dx = pack(e, &dx);
        let dx_at = self.meet(e, n, &dx);

        let all_keys: Vec<Step> = (0..KEYS / 16)
            .map(|i| Step {
                a: i * 16 * 128,
                b: i * 16 * 128,
            })
            .collect();
        let keys = across(KEYS);
        let left = Left::Shared(keys, keys.at(e, dx_at));
        let dq = hopper::multiply(e, 64, left, (keys, self.keys_across), &all_keys, None);
        let right = (down, down.at(e, q_at));
        let dk = hopper::multiply(e, plan.depth, Left::Registers(&dx), right, &by_rows, Some(dk));
        let mut both = dv;
        both.extend(dq);
        let both = hopper::finish(e, 1, &both);
        let (dv, dq) = both.split_at(plan.depth as usize / 2);
        d.release(e, self.leads);
        self.leave(e, n, dq);
        let mut sums = hopper::finish(e, 0, &dk);
        queries.release(e, self.leads);
        sums.extend(dv);
        sums
    }

    /// The thread's numbers of a block of rows: two of each 8.
    fn numbers(&self, e: &mut Emit, first: i64, stage: Val) -> Vec<Val> {
        let plan = self.b.plan;
        let size = e.int(plan.number_bytes(), I32);
        let at = e.mul(stage, size);
        let mine = e.shl(self.quarter, 3);
        let at = e.add(at, mine);
        (0..plan.rows / 8)
            .flat_map(|i| {
                let more = e.int(first + 32 * i, I32);
                let at = e.add(at, more);
                let place = e.at(self.b.memory, at, Elem::I8);
                let both = e.load_aligned(place, Ty::vector(Elem::F32, 2), 8);
                [e.extract(both, 0), e.extract(both, 1)]
            })
            .collect()
    }

    /// p: 0 where a row does not see a key.
    fn weights(&self, e: &mut Emit, tile: Tile, step: &order::Step, s: &[Val], lse: &[Val]) -> Vec<Val> {
        let plan = self.b.plan;
        let scale = f32::from_bits(plan.g.scale) * std::f32::consts::LOG2_E;
        let (scale, unit) = (e.f32(scale, F32), e.f32(-std::f32::consts::LOG2_E, F32));
        let lse: Vec<Val> = lse.iter().map(|x| e.mul(*x, unit)).collect();
        let x: Vec<Val> = (s.iter().enumerate())
            .map(|(i, s)| e.fma(*s, scale, lse[i / 4 * 2 + i % 2]))
            .collect();
        // Row - key of the consumer's first row and key.
        let (height, width) = (e.int(plan.rows, I32), e.int(KEYS, I32));
        let row = e.mul(step.rows, height);
        let key = e.mul(tile.keys, width);
        let distance = e.sub(row, key);
        let bound = |e: &mut Emit, of: &dyn Fn(usize) -> i64| {
            let mut bound = e.int(of(0), I32);
            for i in 1..plan.ranges.len() {
                let this = e.int(i as i64, I32);
                let here = e.cmp(Cmp::Eq, step.range, this);
                let other = e.int(of(i), I32);
                bound = e.select(here, other, bound);
            }
            bound
        };
        let near = bound(e, &|i| plan.ranges[i].near);
        let far = bound(e, &|i| plan.ranges[i].far.unwrap_or(1 << 30));
        let half = e.int(HALF, I32);
        let mine = e.mul(self.number, half);
        let start = e.sub(distance, mine);
        let (back, ahead) = (e.int(HALF - 1, I32), e.int(plan.rows - 1, I32));
        let least = e.sub(start, back);
        let most = e.add(start, ahead);
        let before = e.cmp(Cmp::Lt, least, near);
        let behind = e.cmp(Cmp::Le, far, most);
        let edge = e.or(before, behind);
        let x = e.if_then(edge, &x, |e| {
            let column = e.shl(self.quarter, 1);
            let lead = e.sub(distance, self.key);
            let lead = e.add(lead, column);
            // near <= lead + i < far, as one comparison of unsigned numbers.
            let lead = e.sub(lead, near);
            let span = e.sub(far, near);
            let nothing = e.f32(f32::NEG_INFINITY, F32);
            (x.iter().enumerate())
                .map(|(i, x)| {
                    let i = i as i64;
                    let more = e.int(i / 4 * 8 + i % 2 - i / 2 % 2 * 8, I32);
                    let at = e.add(lead, more);
                    let seen = e.op(Ty::scalar(Elem::I1), &format!("arith.cmpi ult, {at}, {span} : i32"));
                    e.select(seen, *x, nothing)
                })
                .collect()
        });
        x.iter().map(|x| math::exp2(e, *x)).collect()
    }

    /// Both consumers' dx to shared memory; gives the address of what the consumer's part of dq is made of.
    fn meet(&self, e: &mut Emit, n: Val, dx: &[Val]) -> Val {
        let plan = self.b.plan;
        let one = e.int(1, I32);
        let buffer = e.and(n, one);
        let size = e.int(plan.dx_bytes(), I32);
        let at = e.mul(buffer, size);
        let base = self.b.address(e, plan.at_dx());
        let base = e.add(base, at);
        // Lanes 8 i.. give rows of matrix i: keys 0.. and 8.. of the warp, with 8 rows, then with the next 8.
        let (eight, seven) = (e.int(8, I32), e.int(7, I32));
        let low = e.and(self.lane, seven);
        let second = e.and(self.lane, eight);
        let half = e.int(HALF, I32);
        let key = e.mul(self.number, half);
        let key = e.add(key, self.warp_row);
        let key = e.add(key, second);
        let key = e.add(key, low);
        let line = e.shl(key, 7);
        let line = e.add(base, line);
        let high = e.shr(self.lane, 4);
        for (i, values) in dx.chunks(4).enumerate() {
            let panel = i as i64 / 4 * KEYS * 128;
            let chunk = e.int(2 * (i as i64 % 4), I32);
            let chunk = e.or(chunk, high);
            let chunk = e.xor(chunk, low);
            let chunk = e.shl(chunk, 4);
            let at = e.add(line, chunk);
            let panel = e.int(panel, I32);
            let at = e.add(at, panel);
            hopper::store_matrices(e, at, values);
        }
        hopper::fence_shared(e);
        let both = e.int(BOTH, I32);
        hopper::meet(e, both, 256);
        if plan.rows == HALF {
            return base;
        }
        let bytes = e.int(KEYS * 128, I32);
        let mine = e.mul(self.number, bytes);
        e.add(base, mine)
    }

    /// A block's dq to shared memory, for the producer that adds it.
    fn leave(&self, e: &mut Emit, n: Val, dq: &[Val]) {
        let plan = self.b.plan;
        let turn = self.b.turn(e, Guard::Dq, n);
        turn.wait_empty(e);
        // Panels of 32 columns.
        let panel = e.int(plan.rows * 128, I32);
        let row = e.add(self.warp_row, self.eighth);
        let line = e.shl(row, 7);
        let mine = if plan.rows == HALF {
            let both = e.shl(self.number, 1);
            e.mul(both, panel)
        } else {
            let bytes = e.int(HALF * 128, I32);
            e.mul(self.number, bytes)
        };
        let base = e.add(line, mine);
        let one = e.int(1, I32);
        let (right, inside) = (e.shr(self.quarter, 1), e.and(self.quarter, one));
        let inside = e.shl(inside, 3);
        let base = e.add(base, inside);
        for (i, values) in dq.chunks(4).enumerate() {
            let i = i as i64;
            let chunk = e.int(2 * (i % 4), I32);
            let chunk = e.or(chunk, right);
            let chunk = e.xor(chunk, self.eighth);
            let chunk = e.shl(chunk, 4);
            let at = e.add(base, chunk);
            for (half, pair) in values.chunks(2).enumerate() {
                let more = e.int(plan.at_dq() + i / 4 * plan.rows * 128 + half as i64 * 8 * 128, I32);
                let at = e.add(at, more);
                let place = e.at(self.b.memory, at, Elem::I8);
                let v = e.vector(pair);
                e.store_aligned(v, place, 8);
            }
        }
        hopper::fence_shared(e);
        hopper::warp_barrier(e);
        turn.filled(e, self.leads);
    }

    /// The tile's dk and dv, where there are keys.
    fn store(&self, e: &mut Emit, tile: Tile, dk: &[Val], dv: &[Val]) {
        let plan = self.b.plan;
        let batch = self.b.batch(e, tile.point);
        let width = e.int(KEYS, I32);
        let key = e.mul(tile.keys, width);
        let key = e.add(key, self.key);
        let column = e.shl(self.quarter, 1);
        let column = e.extend_signed(column, Elem::I64);
        let end = e.int(plan.tokens, I32);
        for half in 0..2 {
            let more = e.int(8 * half as i64, I32);
            let key = e.add(key, more);
            let is_there = e.cmp(Cmp::Lt, key, end);
            let key = e.extend_signed(key, Elem::I64);
            let mut index = batch.clone();
            index.push(key);
            e.if_then(is_there, &[], |e| {
                for (to, sums) in [(plan.dk, dk), (plan.dv, dv)] {
                    let base = self.b.body.linear(e, &to.offset, &index, &to.strides);
                    let base = e.add(base, column);
                    let place = e.at(self.b.body.args[to.arg], base, Elem::F32);
                    for (i, values) in sums.chunks(4).enumerate() {
                        let v = e.vector(&values[2 * half..2 * half + 2]);
                        let more = e.i64(8 * i as i64);
                        let place = e.at(place, more, Elem::F32);
                        e.store_aligned(v, place, 8);
                    }
                }
                vec![]
            });
        }
    }
}

/// Sums of 64 rows as the left side of a product over their columns: four bf16 pairs for each 16 of them.
fn pack(e: &mut Emit, x: &[Val]) -> Vec<Val> {
    x.chunks(2).map(|pair| hopper::pack_bf16(e, pair[0], pair[1])).collect()
}
