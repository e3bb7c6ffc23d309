//! A barrier of all blocks: a counter of ended tasks in global memory, by which each block's first thread waits for the others.
//!
//! All blocks must be resident at one time: the launch is a cooperative one, with a block for each multiprocessor.

use crate::gpu::hopper;
use crate::gpu::ptx::{self, I32};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};

/// Counters of 4 bytes: those of a token's attention (`sweep::few`), then the two of this file, each in a line of its own.
pub const COUNTERS: i64 = LEFT + 32;
const ENDED: i64 = 512;
const LEFT: i64 = ENDED + 32;

pub struct Grid {
    ended: Val,
    left: Val,
    blocks: Val,
    /// Is it the block's first thread?
    first: Val,
}

impl Grid {
    pub fn new(e: &mut Emit, counters: Val, thread: Val) -> Grid {
        let (ended, left, zero) = (e.int(ENDED, I32), e.int(LEFT, I32), e.int(0, I32));
        Grid {
            ended: e.at(counters, ended, Elem::I32),
            left: e.at(counters, left, Elem::I32),
            blocks: ptx::blocks(e),
            first: e.cmp(Cmp::Eq, thread, zero),
        }
    }

    /// Until all blocks have ended all tasks in front of this one, unless it is `beside` (not 0) the last of them. A barrier of the block must
    /// follow: by it all of its threads see what other blocks wrote (PTX ISA, "Causality order").
    pub fn wait(&self, e: &mut Emit, task: Val, beside: Val) {
        let zero = e.int(0, I32);
        let waits = e.cmp(Cmp::Eq, beside, zero);
        let waits = e.and(waits, self.first);
        e.if_then(waits, &[], |e| {
            let all = e.mul(task, self.blocks);
            hopper::wait_for_at_least(e, self.ended, all);
            vec![]
        });
    }

    /// The block has ended a task. In front of it stands a barrier of the block.
    pub fn arrive(&self, e: &mut Emit) {
        e.if_then(self.first, &[], |e| {
            hopper::count_ended(e, self.ended);
            vec![]
        });
    }

    /// No task is left: the last block to say so leaves the counters as they were. All have waited for the last time then.
    pub fn leave(&self, e: &mut Emit) {
        e.if_then(self.first, &[], |e| {
            let (one, zero) = (e.int(1, I32), e.int(0, I32));
            let before = hopper::count(e, self.left);
            let others = e.sub(self.blocks, one);
            let last = e.cmp(Cmp::Eq, before, others);
            e.if_then(last, &[], |e| {
                e.store(zero, self.ended);
                e.store(zero, self.left);
                vec![]
            });
            vec![]
        });
    }
}
