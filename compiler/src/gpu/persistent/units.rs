//! Weights on their way, for all tasks to come: a ring of units in shared memory, which a warp of its own fills in the order in which they are
//! used, whatever the tasks wait for.
//!
//!     for unit of the block's list
//!       its slot has been read; an earlier unit has landed           no more than a few are under way
//!       8 lanes: a row each, by the copy engine
//!
//! A unit is 8 rows of a matrix by up to 1,024 of its columns. The list is the host's (`runtime::cuda::persistent`).
//! More bytes under way than the memory answers in a microsecond do not come earlier, and all else waits behind them: results of tasks, and
//! the counter at which blocks meet.

use crate::gpu::few_rows_mma::WARPS;
use crate::gpu::hopper;
use crate::gpu::pipeline::{self, Place, Ring};
use crate::gpu::ptx::{self, I32};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};

/// Of a unit: rows of a matrix, and columns at most.
pub const ROWS: i64 = 8;
pub const DEPTH: i64 = 1024;
/// From row to row, in bytes: two rows' first 64 bytes lie in different banks, so that eight lanes' loads meet none twice.
pub const PITCH: i64 = 2 * DEPTH + 64;
pub const BYTES: i64 = ROWS * PITCH;
/// Units under way at one time.
const UNDER_WAY: i64 = 2;
/// u64 of an entry of the list: an address; bytes of a row, and from row to row of the matrix (i32 each).
const WORDS: i64 = 2;

pub struct Units {
    ring: Ring,
    /// Its stages, as a pointer to elements.
    memory: Val,
    start: Val,
    list: Val,
}

impl Units {
    /// `at`: bytes of shared memory in front of the ring.
    pub fn new(e: &mut Emit, at: i64, count: i64, list: Val) -> Units {
        let (start, shared, bytes) = (ptx::shared_address(e), ptx::shared(e), e.int(at, I32));
        let behind = e.int((at + pipeline::BARRIERS) / 2, I32);
        let start = e.add(start, bytes);
        let ring = Ring::new(e, start, count, BYTES, 1);
        let first = e.int(pipeline::BARRIERS, I32);
        Units {
            ring,
            memory: e.at(shared, behind, Elem::I16),
            start: e.add(start, first),
            list,
        }
    }

    /// By all threads of the block.
    pub fn start(&self, e: &mut Emit, thread: Val) {
        let zero = e.int(0, I32);
        let first = e.cmp(Cmp::Eq, thread, zero);
        e.if_then(first, &[], |e| {
            self.ring.start(e, WARPS);
            vec![]
        });
        pipeline::publish(e, first, 1);
    }

    /// Entry `number` of the block: address, and how its rows lie.
    fn entry(&self, e: &mut Emit, number: Val) -> [Val; 2] {
        let (block, blocks, words) = (ptx::block(e), ptx::blocks(e), e.int(WORDS, I32));
        let at = e.mul(number, blocks);
        let at = e.add(at, block);
        let at = e.mul(at, words);
        let from = e.at(self.list, at, Elem::I64);
        let entry = e.load_aligned(from, Ty::vector(Elem::I64, 2), 16);
        [e.extract(entry, 0), e.extract(entry, 1)]
    }

    /// All that the producer's warp does.
    pub fn produce(&self, e: &mut Emit, lane: Val) {
        let (zero, one, eight) = (e.int(0, I32), e.int(1, I32), e.int(ROWS, I32));
        let count = self.entry(e, zero)[0];
        let count = e.truncate_int(count, Elem::I32);
        let (copies, first) = (e.cmp(Cmp::Lt, lane, eight), e.cmp(Cmp::Eq, lane, zero));
        let wide = e.extend_signed(lane, Elem::I64);
        let pitch = e.int(PITCH, I32);
        let down = e.mul(lane, pitch);
        // An entry is looked up while the one before it is copied.
        let (place, entry) = (Place::first(e).values(), self.entry(e, one));
        let init = [&place[..], &place[..], &entry[..]].concat();
        e.for_loop(zero, count, 1, &init, |e, unit, carried| {
            let (place, landed) = (Place::of(&carried[..2]), Place::of(&carried[2..4]));
            let (address, how) = (carried[4], carried[5]);
            // Behind the last entry stands one more.
            let two = e.int(2, I32);
            let next = e.add(unit, two);
            let next = self.entry(e, next);
            let most = e.int(UNDER_WAY, I32);
            let many = e.cmp(Cmp::Le, most, unit);
            let landed = e.if_then(many, &landed.values(), |e| {
                self.ring.stage(e, landed).wait(e);
                self.ring.advance(e, landed, 1).values().to_vec()
            });
            let stage = self.ring.stage(e, place);
            let full = stage.wait_empty(e);
            let bytes = e.truncate_int(how, Elem::I32);
            let all = e.mul(bytes, eight);
            e.if_then(first, &[], |e| {
                hopper::expect(e, full, all);
                vec![]
            });
            hopper::warp_barrier(e);
            e.if_then(copies, &[], |e| {
                let pitch = e.shr(how, 32);
                let right = e.mul(pitch, wide);
                let from = e.add(address, right);
                let from = ptx::global(e, from);
                let to = e.add(stage.at, down);
                hopper::copy_bytes(e, to, from, bytes, full);
                vec![]
            });
            let place = self.ring.advance(e, place, 1).values();
            [&place[..], &landed, &next].concat()
        });
    }

    /// Waits for the unit `after` places (i32) behind `place`; where it lies, a pointer to elements.
    pub fn wait(&self, e: &mut Emit, place: Place, after: Val) -> Val {
        let place = self.ring.ahead(e, place, after);
        let stage = self.ring.stage(e, place);
        stage.wait(e);
        let at = e.sub(stage.at, self.start);
        let at = e.shr(at, 1);
        e.at(self.memory, at, Elem::I16)
    }

    /// A warp has read the unit.
    pub fn release(&self, e: &mut Emit, lane: Val, place: Place, after: Val) {
        let place = self.ring.ahead(e, place, after);
        let empty = self.ring.stage(e, place).empty;
        self.ring.release(e, lane, empty);
    }

    /// The place `n` units (i32) further on.
    pub fn behind(&self, e: &mut Emit, place: Place, n: Val) -> Place {
        self.ring.ahead(e, place, n)
    }
}
