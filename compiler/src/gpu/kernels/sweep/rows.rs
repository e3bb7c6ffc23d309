//! What a consumer of flash attention ends with: results kept for later, and the kernel's stages on whole rows.
//!
//! A thread of `wgmma` holds pairs of columns of two rows. Stages want neighbouring threads to hold neighbouring columns, so results turn
//! through shared memory, eight rows of a warp at a time; what waits there (parked) is bf16, rows as they are. Chunks of eight columns are
//! mixed by their row, or a warp's eight rows would meet in the same banks. No other warp reads what a warp writes.

use ir::DType;
use ir::plan::Expr;

use super::consumer::{Acc, Consumer};
use super::flash::{CONSUMERS, Tile};
use super::stages::{Row, Team};
use super::walk::HALF;
use crate::gpu::ptx::{self, F32, I32};
use crate::gpu::{hopper, math};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::widen;

/// Columns of a chunk.
const CHUNK: i64 = 8;
/// Bits of its row that mix a chunk of bf16, and of f32: eight chunks, and four, are all banks.
const PARKED: u32 = 3;
const TURNED: u32 = 2;

impl Consumer<'_, '_> {
    fn is_read(&self, segment: usize) -> bool {
        self.b.plan.kernel.exprs.contains(&Expr::Swept(segment))
    }

    /// Keeps a segment's result: O / l in bf16, and the logarithm of its mass.
    pub fn park(&self, e: &mut Emit, segment: usize, acc: &Acc) {
        let shares = self.shares(e, segment, acc);
        if !self.is_read(segment) {
            return;
        }
        let (row, quad) = self.place(e, 0);
        let chunks = self.chunks(e, PARKED, 16, |e, chunk| {
            let at = self.parked(e, segment, row, chunk);
            e.at(at, quad, Elem::I32)
        });
        // Eight rows further on mixing is the same.
        let below = e.int(8 * self.b.plan.cols() * 2, I32);
        for (second, share) in shares.into_iter().enumerate() {
            for (chunk, at) in chunks.iter().enumerate() {
                let pair = [0, 1].map(|i| e.mul(acc.o[4 * chunk + 2 * second + i], share));
                let pair = hopper::pack_bf16(e, pair[0], pair[1]);
                let at = if second == 1 { e.at(*at, below, Elem::I8) } else { *at };
                e.store(pair, at);
            }
        }
    }

    /// Pointers to all chunks of a row, so many bytes each, that are mixed by up to `most` bits. What mixing leaves alone is a constant behind
    /// a few addresses: those of all chunks would stay in registers for a whole walk, which has none to spare.
    fn chunks(&self, e: &mut Emit, most: u32, bytes: i64, pointer: impl Fn(&mut Emit, Val) -> Val) -> Vec<Val> {
        let count = self.b.plan.cols() / CHUNK;
        let mixed = 1 << count.trailing_zeros().min(most);
        let near: Vec<Val> = (0..mixed)
            .map(|chunk| {
                let chunk = e.int(chunk, I32);
                pointer(e, chunk)
            })
            .collect();
        (0..count)
            .map(|chunk| {
                let more = e.int(chunk / mixed * mixed * bytes, I32);
                e.at(near[(chunk % mixed) as usize], more, Elem::I8)
            })
            .collect()
    }

    /// A thread's first or second row in the warp group, and its number among those that share it, i32.
    fn place(&self, e: &mut Emit, second: i64) -> (Val, Val) {
        let warp = e.shr(self.thread, 5);
        let first = e.shl(warp, 4);
        let row = e.shr(self.lane, 2);
        let row = e.add(first, row);
        let more = e.int(8 * second, I32);
        let quad = e.int(3, I32);
        (e.add(row, more), e.and(self.lane, quad))
    }

    /// What makes a mean of a row's sum; its mass is logged where that is asked for.
    fn shares(&self, e: &mut Emit, segment: usize, acc: &Acc) -> [Val; 2] {
        let plan = self.b.plan;
        let scale = plan.sweep.segments[segment].scale;
        [0, 1].map(|second| {
            let mut mass = acc.mass[second];
            for bits in [1, 2] {
                let other = ptx::shuffle_xor(e, mass, bits);
                mass = e.add(mass, other);
            }
            let (nothing, one) = (e.f32(0.0, F32), e.f32(1.0, F32));
            let some = e.cmp(Cmp::Gt, mass, nothing);
            if plan.kernel.exprs.contains(&Expr::Lse(segment)) {
                let scale = e.f32(f32::from_bits(scale), F32);
                let log = math::log(e, mass);
                let log = e.fma(acc.max[second], scale, log);
                let lowest = e.f32(-1e30, F32);
                let log = e.select(some, log, lowest);
                let (row, quad) = self.place(e, second as i64);
                let to = self.log(e, segment, row);
                let zero = e.int(0, I32);
                let first = e.cmp(Cmp::Eq, quad, zero);
                e.if_then(first, &[], |e| {
                    e.store(log, to);
                    vec![]
                });
            }
            let share = e.div(one, mass);
            e.select(some, share, nothing)
        })
    }

    /// Row of the block for a row of the warp group, i32.
    fn of_block(&self, e: &mut Emit, row: Val) -> Val {
        let half = e.int(HALF, I32);
        let first = e.mul(self.number, half);
        e.add(first, row)
    }

    fn pointer(&self, e: &mut Emit, bytes: i64) -> Val {
        let bytes = e.int(bytes, I32);
        e.at(self.b.memory, bytes, Elem::I8)
    }

    fn log(&self, e: &mut Emit, segment: usize, row: Val) -> Val {
        let base = self.pointer(e, self.b.plan.at_logs() + segment as i64 * CONSUMERS * HALF * 4);
        let row = self.of_block(e, row);
        e.at(base, row, Elem::F32)
    }

    /// Where a row's chunk lies among so many, mixed by up to `most` of the row's bits, i32.
    fn mixed(&self, e: &mut Emit, row: Val, chunk: Val, most: u32) -> Val {
        let chunks = self.b.plan.cols() / CHUNK;
        let mask = (1 << chunks.trailing_zeros().min(most)) - 1;
        let mask = e.int(mask, I32);
        let bits = e.and(row, mask);
        e.xor(chunk, bits)
    }

    /// Pointer to a chunk of a parked row.
    fn parked(&self, e: &mut Emit, segment: usize, row: Val, chunk: Val) -> Val {
        let plan = self.b.plan;
        let number = plan.parked().iter().position(|s| *s == segment).expect("it is parked");
        let base = self.pointer(e, plan.at_parked(number));
        let pitch = e.int(plan.cols() / CHUNK, I32);
        let at = self.of_block(e, row);
        let at = e.mul(at, pitch);
        let chunk = self.mixed(e, row, chunk, PARKED);
        let at = e.add(at, chunk);
        let bytes = e.shl(at, 4);
        e.at(base, bytes, Elem::I8)
    }

    /// Pointer to a chunk of one of the warp's eight rows that are turned.
    fn turned(&self, e: &mut Emit, row: Val, chunk: Val) -> Val {
        let plan = self.b.plan;
        let base = self.pointer(e, plan.at_turned());
        let warp = e.shr(self.thread, 5);
        let (four, eight) = (e.int(4, I32), e.int(8, I32));
        let first = e.mul(self.number, four);
        let warp = e.add(first, warp);
        let at = e.mul(warp, eight);
        let at = e.add(at, row);
        let pitch = e.int(plan.cols() / CHUNK, I32);
        let at = e.mul(at, pitch);
        let chunk = self.mixed(e, row, chunk, TURNED);
        let at = e.add(at, chunk);
        let bytes = e.shl(at, 5);
        e.at(base, bytes, Elem::I8)
    }

    /// The kernel's stages; `acc` is this segment's, the others' are parked.
    pub fn stages(&self, e: &mut Emit, tile: &Tile, segment: usize, acc: &Acc) {
        let plan = self.b.plan;
        let body = &self.b.body;
        let shares = self.shares(e, segment, acc);
        let threads = (plan.cols() as u64 / 8).next_power_of_two() as i64;
        let (lane, width) = (self.lane, e.int(threads, I32));
        let member = e.rem(lane, width);
        let team = Team {
            threads,
            member: e.extend_signed(member, Elem::I64),
        };
        let at_once = 32 / threads;
        let own = e.div(lane, width);
        let columns: Vec<Val> = (0..team.vectors(body))
            .map(|i| {
                let at = team.column(e, body, i).0;
                e.truncate_int(at, Elem::I32)
            })
            .collect();
        // (row of eight, is it the second eight, results by vector)
        let mut rows: Vec<(Val, i64, Vec<Val>)> = vec![];
        for (second, share) in shares.into_iter().enumerate() {
            if self.is_read(segment) {
                let quad = e.int(3, I32);
                let quad = e.and(lane, quad);
                let (row, column) = (e.shr(lane, 2), e.shl(quad, 1));
                let chunks = self.chunks(e, TURNED, 32, |e, chunk| {
                    let at = self.turned(e, row, chunk);
                    e.at(at, column, Elem::F32)
                });
                for (chunk, at) in chunks.into_iter().enumerate() {
                    let pair = [0, 1].map(|i| e.mul(acc.o[4 * chunk + 2 * second + i], share));
                    let pair = e.vector(&pair);
                    e.store_aligned(pair, at, 8);
                }
            }
            hopper::warp_barrier(e);
            for i in 0..(8 + at_once - 1) / at_once {
                let first = e.int(i * at_once, I32);
                let row = e.add(first, own);
                // More threads than eight rows need.
                let last = e.int(7, I32);
                let row = if at_once > 8 { e.min(row, last) } else { row };
                let values = (columns.iter())
                    .filter(|_| self.is_read(segment))
                    .map(|column| {
                        let (at, inside) = split(e, *column);
                        let at = self.turned(e, row, at);
                        let at = e.at(at, inside, Elem::F32);
                        e.load_aligned(at, Ty::vector(Elem::F32, body.lanes), 4 * body.lanes.min(4))
                    })
                    .collect();
                rows.push((row, second as i64, values));
            }
            hopper::warp_barrier(e);
        }
        let rows = rows
            .into_iter()
            .map(|(row, second, values)| self.row(e, tile, segment, &columns, row, second, values))
            .collect();
        team.run(e, body, rows);
        // What is parked next must not overtake what is read here.
        hopper::warp_barrier(e);
    }

    #[allow(clippy::too_many_arguments)]
    fn row(
        &self,
        e: &mut Emit,
        tile: &Tile,
        segment: usize,
        columns: &[Val],
        row: Val,
        second: i64,
        values: Vec<Val>,
    ) -> Row {
        let plan = self.b.plan;
        let body = &self.b.body;
        let warp = e.shr(self.thread, 5);
        let first = e.shl(warp, 4);
        let more = e.int(8 * second, I32);
        let first = e.add(first, more);
        let row = e.add(first, row);
        let (group, token) = if plan.paired {
            (e.add(tile.group, self.number), e.add(tile.token, row))
        } else {
            let row = self.of_block(e, row);
            (tile.group, e.add(tile.token, row))
        };
        let is_there = e.cmp(Cmp::Lt, token, self.b.tokens);
        let one = e.int(1, I32);
        let last = e.sub(self.b.tokens, one);
        let token = e.min(token, last);
        let outer = &plan.kernel.outer;
        let mut index = tile.batch.clone();
        let group = e.extend_signed(group, Elem::I64);
        index.extend(body.unravel(e, group, &outer[plan.sweep.batch..outer.len() - 1]));
        index.push(e.extend_signed(token, Elem::I64));
        let mut point = body.point(index);
        let (mut swept, nothing) = (vec![], e.f32(0.0, F32));
        for s in 0..plan.sweep.segments.len() {
            swept.push(match () {
                _ if !self.is_read(s) => {
                    let nothing = e.f32(0.0, Ty::vector(Elem::F32, body.lanes));
                    vec![nothing; columns.len()]
                }
                _ if s == segment => values.clone(),
                _ => (columns.iter())
                    .map(|column| {
                        let (at, inside) = split(e, *column);
                        let at = self.parked(e, s, row, at);
                        let at = e.at(at, inside, Elem::I16);
                        let raw = e.load_aligned(at, Ty::vector(Elem::I16, body.lanes), 2 * body.lanes);
                        widen(e, raw, DType::BF16)
                    })
                    .collect(),
            });
            point.lse.push(if plan.kernel.exprs.contains(&Expr::Lse(s)) {
                let from = self.log(e, s, row);
                e.load(from, F32)
            } else {
                nothing
            });
        }
        Row { point, is_there, swept }
    }
}

/// A column's chunk, and its place there.
fn split(e: &mut Emit, column: Val) -> (Val, Val) {
    let mask = e.int(CHUNK - 1, I32);
    (e.shr(column, 3), e.and(column, mask))
}
