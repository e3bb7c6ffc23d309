//! Stages of shared memory between a producer and its consumers: the only file that knows mbarriers and their phases.
//!
//! A ring of stages, each with a barrier that says `full` (all bytes of the stage's copies are there) and one that says `empty` (all
//! consumers have read it). Step i uses stage i mod n; its parity is that of i / n, so that nobody keeps a state (PTX ISA, mbarrier).

use super::ptx::{self, I32};
use crate::mlir::emit::{Cmp, Emit, Val};

#[derive(Clone, Copy)]
pub struct Ring {
    /// Shared addresses, i32.
    barriers: Val,
    stages: Val,
    count: i64,
    /// Of a stage.
    bytes: i64,
}

/// One step's stage: where its bytes are and which barriers guard it.
pub struct Stage {
    pub at: Val,
    full: Val,
    empty: Val,
    parity: Val,
}

/// Bytes in front of the stages that a ring's barriers take.
pub const BARRIERS: i64 = 1024;

impl Ring {
    /// `shared`: the start of shared memory, where the barriers stand; stages follow after `BARRIERS` bytes.
    pub fn new(e: &mut Emit, shared: Val, count: i64, bytes: i64) -> Ring {
        let behind = e.int(BARRIERS, I32);
        Ring {
            barriers: shared,
            stages: e.add(shared, behind),
            count,
            bytes,
        }
    }

    /// By one thread, before any other uses the ring: `consumers` arrivals make a stage empty.
    pub fn start(&self, e: &mut Emit, consumers: i64) {
        for i in 0..self.count {
            for (half, arrivals) in [(0, 1), (8, consumers)] {
                let at = e.int(16 * i + half, I32);
                let at = e.add(self.barriers, at);
                ptx::barrier_init(e, at, arrivals);
            }
        }
        ptx::fence_barrier_init(e);
    }

    /// Of step i, i32.
    pub fn stage(&self, e: &mut Emit, step: Val) -> Stage {
        let n = e.int(self.count, I32);
        let (stage, round) = (e.rem(step, n), e.div(step, n));
        let one = e.int(1, I32);
        let parity = e.and(round, one);
        let (size, sixteen, eight) = (e.int(self.bytes, I32), e.int(16, I32), e.int(8, I32));
        let at = e.mul(stage, size);
        let barrier = e.mul(stage, sixteen);
        let full = e.add(self.barriers, barrier);
        Stage {
            at: e.add(self.stages, at),
            full,
            empty: e.add(full, eight),
            parity,
        }
    }
}

impl Stage {
    /// The producer waits until the stage may be filled again, and says how many bytes will come. `copy` gets the barrier they complete.
    pub fn fill(&self, e: &mut Emit, bytes: i64, copy: impl FnOnce(&mut Emit, Val)) {
        // The first round finds its stages empty: the phase before the first one counts as over.
        let one = e.int(1, I32);
        let before = e.op(I32, &format!("arith.xori {}, {one} : i32", self.parity));
        ptx::barrier_wait(e, self.empty, before);
        ptx::barrier_expect(e, self.full, bytes);
        copy(e, self.full);
    }

    /// A consumer waits for the bytes.
    pub fn wait(&self, e: &mut Emit) {
        ptx::barrier_wait(e, self.full, self.parity);
    }

    /// A consumer has read the stage: one arrival, by the thread for which `who` holds.
    pub fn release(&self, e: &mut Emit, who: Val) {
        e.if_then(who, &[], |e| {
            ptx::barrier_arrive(e, self.empty);
            vec![]
        });
    }
}

/// Is it the first thread of its warp? Each warp of a consumer tells by itself that it has read a stage: `wgmma` ends warp by warp.
pub fn leads(e: &mut Emit, thread: Val) -> Val {
    let mask = e.int(31, I32);
    let at = e.and(thread, mask);
    let zero = e.int(0, I32);
    e.cmp(Cmp::Eq, at, zero)
}
