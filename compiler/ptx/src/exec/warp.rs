//! A warp: registers of its 32 lanes side by side, where each lane is, and what it waits for.

use std::collections::VecDeque;

use super::bulk::{Copy, Transfer};
use crate::op::{Address, Reduce, Reg};

/// Why lanes do not go on. Their position is that of the instruction to execute next.
#[derive(Clone, Debug)]
pub enum Wait {
    /// For other lanes of the warp, at this instruction.
    Together {
        pc: u32,
        wanted: u32,
    },
    /// Past the barrier, until it turns.
    Barrier {
        id: usize,
        turn: u64,
        result: Option<(Reduce, Reg)>,
    },
    /// At a try_wait on this mbarrier; executed again when it may succeed.
    Mbarrier {
        address: u32,
        parity: bool,
        phase: u64,
    },
    Cluster {
        turn: u64,
    },
}

#[derive(Clone, Debug)]
pub struct Waiting {
    pub mask: u32,
    pub why: Wait,
}

#[derive(Default)]
pub struct Warp {
    /// Of its block in the cluster.
    pub rank: usize,
    /// In its block.
    pub index: u32,
    pub registers: Vec<[u64; 32]>,
    pub pc: [u32; 32],
    /// Lanes that have not exited.
    pub alive: u32,
    pub waiting: Vec<Waiting>,
    /// Each lane's own memory, one after the other.
    pub local: Vec<u8>,
    /// The lanes that ran last, when they were stopped rather than blocked.
    pub last: u32,
    /// Consecutive polls at one instruction.
    pub polls: (u32, u32),
    /// Bulk stores: lane, group (counted from 0; the newest is not committed), transfer.
    pub stores: VecDeque<(u8, u64, Transfer)>,
    /// Committed groups of bulk stores per lane.
    pub store_groups: Vec<u64>,
    /// The turn of the cluster's barrier that each lane arrived in.
    pub cluster_turn: [u64; 32],
    pub copies: VecDeque<(u8, u64, Copy)>,
    pub copy_groups: Vec<u64>,
    pub wgmma: super::wgmma::Flight,
}

/// The lanes of a mask.
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        (rest != 0).then(|| {
            let lane = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            lane
        })
    })
}

impl Warp {
    pub fn get(&self, r: Reg, lane: usize) -> u64 {
        self.registers[r as usize][lane]
    }

    pub fn set(&mut self, r: Reg, lane: usize, value: u64) {
        self.registers[r as usize][lane] = value;
    }

    pub fn address(&self, at: Address, lane: usize) -> u64 {
        self.get(at.base, lane).wrapping_add(at.offset as u64)
    }

    pub fn blocked(&self) -> u32 {
        self.waiting.iter().fold(0, |m, w| m | w.mask)
    }

    pub fn ready(&self) -> u32 {
        self.alive & !self.blocked()
    }

    pub fn set_pc(&mut self, mask: u32, pc: u32) {
        lanes(mask).for_each(|lane| self.pc[lane] = pc);
    }

    pub fn at_pc(&self, mask: u32, pc: u32) -> u32 {
        lanes(mask).filter(|&l| self.pc[l] == pc).fold(0, |m, l| m | 1 << l)
    }

    /// Lanes to run next: those furthest behind, so that paths meet again; after a stop others first, so that all get on.
    pub fn choose(&mut self) -> Option<(u32, u32)> {
        let ready = self.ready();
        let others = ready & !self.last;
        let from = if self.last != 0 && others != 0 { others } else { ready };
        self.last = 0;
        let pc = lanes(from).map(|l| self.pc[l]).min()?;
        Some((self.at_pc(ready, pc), pc))
    }
}
