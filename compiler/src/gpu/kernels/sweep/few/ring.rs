//! Keys and values on their way to shared memory by the copy engine, some chunks of each warp ahead of what it multiplies: they cost no
//! registers, and those of earlier tokens can be there before the query is. Hopper's.
//!
//! A warp has its stages to itself: one lane asks for a chunk's keys and values, all lanes wait for them, and nobody else does. What the
//! block's prologue has made, the newest token's row, it puts over what was brought.

use super::{Block, LOAD, Plan, WARPS};
use crate::gpu::hopper;
use crate::gpu::ptx::{self, I32};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};

/// Chunks of a warp that are on their way, or being multiplied: two blocks of four warps have 64 KiB of the memory under way, which is what
/// a multiprocessor's share of its rate and latency are.
const STAGES: i64 = 2;
/// Swizzle-free copies want 16 bytes; lines are 128.
const ALIGN: i64 = 128;

/// Where a warp's keys are: by segment from..to, and the chunks before each; chunks of all.
pub struct Shares {
    pub ranges: Vec<[Val; 2]>,
    before: Vec<Val>,
    pub total: Val,
    /// Of the batch point's newest token, i32.
    pub position: Val,
}

#[derive(Clone, Copy)]
pub struct Ring {
    /// The warp's stages, and their barriers, i32.
    first: Val,
    barriers: Val,
    /// Chunks of earlier tasks.
    pub used: Val,
}

impl Ring {
    /// The same ring behind so many chunks.
    pub fn behind(self, used: Val) -> Ring {
        Ring { used, ..self }
    }
}

/// A chunk in shared memory: its keys, and its values.
pub struct Chunk {
    pub keys: Val,
    pub values: Val,
}

impl Plan<'_> {
    /// Do rows lie behind each other, so that a chunk is one copy?
    pub fn is_dense(&self) -> bool {
        let dense = |r: &ir::plan::Rows, width: i64| r.strides.last().and_then(|s| s.as_const()) == Some(width);
        let mut segments = self.sweep.segments.iter();
        segments.all(|s| dense(&s.k, self.sweep.depth) && dense(&s.v, self.cols))
    }

    fn stage(&self) -> i64 {
        let bytes = 2 * self.chunk * (self.sweep.depth + self.cols);
        (bytes + ALIGN - 1) / ALIGN * ALIGN
    }

    /// Bytes of shared memory, where it begins at any multiple of four.
    pub fn ring_bytes(&self) -> i64 {
        ALIGN + WARPS * STAGES * (self.stage() + 8)
    }
}

impl Block<'_, '_> {
    /// By segment, the warp's keys, and how many chunks they are.
    pub fn chunks(&self, e: &mut Emit, ranges: Vec<[Val; 2]>, position: Val) -> Shares {
        let (mut before, mut total) = (vec![], e.int(0, I32));
        for [from, to] in &ranges {
            before.push(total);
            let (less, chunk) = (e.int(self.plan.chunk - 1, I32), e.int(self.plan.chunk, I32));
            let n = e.sub(*to, *from);
            let n = e.add(n, less);
            let n = e.div(n, chunk);
            total = e.add(total, n);
        }
        Shares {
            ranges,
            before,
            total,
            position,
        }
    }

    /// Nothing under way. `behind`: bytes of shared memory in front of it.
    pub fn new_ring(&self, e: &mut Emit, behind: i64) -> Ring {
        let place = |e: &mut Emit, bytes: i64| {
            let (start, bytes) = (ptx::shared_address(e), e.int(bytes, I32));
            e.add(start, bytes)
        };
        let begin = (behind + ALIGN - 1) / ALIGN * ALIGN;
        let (stages, barriers) = (place(e, begin), place(e, begin + WARPS * STAGES * self.plan.stage()));
        let (own, each) = (e.int(STAGES * self.plan.stage(), I32), e.int(STAGES * 8, I32));
        let own = e.mul(self.warp, own);
        let each = e.mul(self.warp, each);
        let zero = e.int(0, I32);
        let leads = e.cmp(Cmp::Eq, self.thread, zero);
        e.if_then(leads, &[], |e| {
            for i in 0..WARPS * STAGES {
                let more = e.int(8 * i, I32);
                let at = e.add(barriers, more);
                hopper::init_barrier(e, at, 1);
            }
            hopper::publish_barriers(e);
            vec![]
        });
        ptx::barrier(e);
        Ring {
            first: e.add(stages, own),
            barriers: e.add(barriers, each),
            used: zero,
        }
    }

    /// As many chunks as there are stages.
    pub fn fill(&self, e: &mut Emit, ring: &Ring, batch: &[Val], shares: &Shares) {
        for m in 0..STAGES {
            let m = e.int(m, I32);
            self.bring(e, ring, batch, shares, m);
        }
    }

    /// The stage of the warp's chunk m, its barrier, and the barrier's parity.
    fn place(&self, e: &mut Emit, ring: &Ring, m: Val) -> (Val, Val, Val) {
        let n = e.add(ring.used, m);
        let (own, rounds) = (
            ptx::lane_bits(e, n, 0, STAGES.trailing_zeros().into()),
            e.shr(n, STAGES.trailing_zeros().into()),
        );
        let (bytes, parity) = (e.int(self.plan.stage(), I32), ptx::lane_bits(e, rounds, 0, 1));
        let (at, barrier) = (e.mul(own, bytes), e.shl(own, 3));
        (e.add(ring.first, at), e.add(ring.barriers, barrier), parity)
    }

    /// Chunk m to its stage, which no lane reads any more, if there is one.
    fn bring(&self, e: &mut Emit, ring: &Ring, batch: &[Val], shares: &Shares, m: Val) {
        let plan = self.plan;
        let zero = e.int(0, I32);
        let (leads, is_there) = (e.cmp(Cmp::Eq, self.lane, zero), e.cmp(Cmp::Lt, m, shares.total));
        let brings = e.and(leads, is_there);
        e.if_then(brings, &[], |e| {
            let (to, barrier, _) = self.place(e, ring, m);
            let mut chosen: Option<[Val; 5]> = None;
            for (i, s) in plan.sweep.segments.iter().enumerate() {
                let [low, high] = shares.ranges[i];
                let rows = |e: &mut Emit, r: &ir::plan::Rows| {
                    let batch_strides = &r.strides[..r.strides.len() - 1];
                    let base = self.body.linear(e, &r.offset, batch, batch_strides);
                    e.at(self.body.args[r.arg], base, Elem::I16)
                };
                let own = [rows(e, &s.k), rows(e, &s.v), low, high, shares.before[i]];
                chosen = Some(match chosen {
                    None => own,
                    Some(other) => {
                        let is_its = e.cmp(Cmp::Le, shares.before[i], m);
                        std::array::from_fn(|j| e.select(is_its, own[j], other[j]))
                    }
                });
            }
            let [keys, values, low, high, before] = chosen.expect("a sweep has segments");
            let chunk = e.int(plan.chunk, I32);
            let at = e.sub(m, before);
            let at = e.mul(at, chunk);
            let first = e.add(low, at);
            let n = e.sub(high, first);
            let n = e.min(n, chunk);
            let row = e.int(2 * (plan.sweep.depth + plan.cols), I32);
            let bytes = e.mul(n, row);
            hopper::expect(e, barrier, bytes);
            let wide = e.extend_signed(first, Elem::I64);
            let mut to = to;
            for (from, width) in [(keys, plan.sweep.depth), (values, plan.cols)] {
                let (stride, bytes) = (e.i64(width), e.int(2 * width, I32));
                let at = e.mul(wide, stride);
                let from = e.at(from, at, Elem::I16);
                let bytes = e.mul(n, bytes);
                hopper::copy_line(e, to, from, bytes, barrier);
                let whole = e.int(2 * width * plan.chunk, I32);
                to = e.add(to, whole);
            }
            vec![]
        });
    }

    /// The chunk of a segment's keys from `first` on, once it is there.
    pub fn chunk(
        &self,
        e: &mut Emit,
        ring: &Ring,
        batch: &[Val],
        shares: &Shares,
        segment: usize,
        first: Val,
    ) -> Chunk {
        let m = self.number(e, shares, segment, first);
        let (stage, barrier, parity) = self.place(e, ring, m);
        hopper::wait(e, barrier, parity);
        let values = e.int(2 * self.plan.sweep.depth * self.plan.chunk, I32);
        let values = e.add(stage, values);
        if !self.prologue.is_empty() {
            self.newest(e, batch, shares, segment, first, [stage, values]);
        }
        Chunk {
            keys: ptx::shared_at(e, stage),
            values: ptx::shared_at(e, values),
        }
    }

    fn number(&self, e: &mut Emit, shares: &Shares, segment: usize, first: Val) -> Val {
        let chunk = e.int(self.plan.chunk, I32);
        let at = e.sub(first, shares.ranges[segment][0]);
        let at = e.div(at, chunk);
        e.add(shares.before[segment], at)
    }

    /// What `chunk` gave is read: its stage is for a chunk further on.
    pub fn release(&self, e: &mut Emit, ring: &Ring, batch: &[Val], shares: &Shares, segment: usize, first: Val) {
        hopper::warp_barrier(e);
        let (m, more) = (self.number(e, shares, segment, first), e.int(STAGES, I32));
        let m = e.add(m, more);
        self.bring(e, ring, batch, shares, m);
    }

    /// The newest token's key and value, if the chunk has them: the prologue made them after the chunk was asked for.
    fn newest(&self, e: &mut Emit, batch: &[Val], shares: &Shares, segment: usize, first: Val, to: [Val; 2]) {
        let plan = self.plan;
        let s = &plan.sweep.segments[segment];
        let (chunk, position) = (e.int(plan.chunk, I32), shares.position);
        let end = e.add(first, chunk);
        let end = e.min(end, shares.ranges[segment][1]);
        let (from, until) = (e.cmp(Cmp::Le, first, position), e.cmp(Cmp::Lt, position, end));
        let has_it = e.and(from, until);
        e.if_then(has_it, &[], |e| {
            for ((r, width), to) in [(&s.k, plan.sweep.depth), (&s.v, plan.cols)].into_iter().zip(to) {
                let batch_strides = &r.strides[..r.strides.len() - 1];
                let base = self.body.linear(e, &r.offset, batch, batch_strides);
                let (wide, stride) = (e.extend_signed(position, Elem::I64), e.i64(width));
                let row = e.mul(wide, stride);
                let at = e.add(base, row);
                let from = e.at(self.body.args[r.arg], at, Elem::I16);
                let (lanes, bytes) = (e.int(width / LOAD, I32), e.int(2 * width, I32));
                let row = e.sub(position, first);
                let row = e.mul(row, bytes);
                let to = e.add(to, row);
                let to = ptx::shared_at(e, to);
                let has_some = e.cmp(Cmp::Lt, self.lane, lanes);
                e.if_then(has_some, &[], |e| {
                    let column = e.shl(self.lane, LOAD.trailing_zeros().into());
                    let (from, to) = (e.at(from, column, Elem::I16), e.at(to, column, Elem::I16));
                    let x = e.load_aligned(from, Ty::vector(Elem::I32, 4), 16);
                    e.store_aligned(x, to, 16);
                    vec![]
                });
            }
            hopper::warp_barrier(e);
            vec![]
        });
    }
}
