//! Runs decoded kernels.
//!
//! A warp's lanes run together while they are at one instruction. Warps of a block, blocks of a cluster and the clusters that have begun take
//! turns; a further cluster begins when all that have begun wait or only ask (polls of memory). So every block of a grid barrier is in
//! flight at last, and blocks that need no company run one after another. Nothing runs in parallel, and nothing is random: a launch gives the
//! same result every time.
//!
//! Asynchronous copies are as late as they may be by default (`Timing::Late`): bulk loads when every warp of the cluster waits, stores and
//! `cp.async` at their wait. A kernel that does not wait for its data finds old data. wgmma is executed at once.

mod access;
mod barrier;
mod bulk;
mod collective;
mod grid;
mod matrix;
mod mbarrier;
mod shared;
mod step;
mod warp;
mod wgmma;

use std::collections::VecDeque;

pub use grid::{Launch, Param, Stats, Tally, Timing, run};
pub use shared::{LIMIT, RESERVED};

use crate::decode::Code;
use crate::fault::{FaultKind, Place, Step, at_lane};
use crate::memory::{Memory, SHARED_WINDOW};
use barrier::Named;
use bulk::Transfer;
use shared::Shared;
use warp::{Wait, Waiting, Warp, lanes};

/// A block that has begun.
struct Block {
    id: [u32; 3],
    shared: Shared,
    barriers: Vec<Named>,
    /// Warps that have not ended.
    live: u32,
    /// Per warpgroup: which wgmma were executed by its first, second, ... warp (see `wgmma`).
    groups: Vec<wgmma::Group>,
}

/// What instructions act on beside their warp: memory, blocks of the warp's cluster, counters.
struct Machinery<'a> {
    code: &'a Code,
    memory: &'a mut Memory,
    parameters: &'a [u8],
    timing: Timing,
    blocks: Vec<Block>,
    /// Loads of the bulk engine that are not done.
    loads: VecDeque<Transfer>,
    /// Threads that arrived at the cluster's barrier, and its turns.
    cluster: (u32, u64),
    cluster_alive: u32,
    /// Grows with whatever another thread may wait for.
    changes: u64,
    clock: u64,
}

impl Machinery<'_> {
    /// The shared memory that a 32-bit shared address lies in.
    fn shared(&mut self, address: u32) -> Step<&mut Shared> {
        let rank = (address >> 24) as usize;
        let blocks = self.blocks.len();
        match self.blocks.get_mut(rank) {
            Some(b) => Ok(&mut b.shared),
            None => Err(FaultKind::OutOfBounds {
                address: Place::Shared(rank as u32, address & 0xff_ffff),
                bytes: 1,
                what: format!("the cluster of {blocks} blocks"),
            }
            .into()),
        }
    }

    /// A generic address that must be of shared memory.
    fn to_shared(&self, address: u64) -> Step<u32> {
        if address >> 32 == SHARED_WINDOW >> 32 {
            return Ok(address as u32);
        }
        Err(FaultKind::OutOfBounds {
            address: Place::Unmapped(address),
            bytes: 1,
            what: "shared memory".to_owned(),
        }
        .into())
    }
}
