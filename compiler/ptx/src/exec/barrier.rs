//! Barriers of a block (`bar`, `barrier.cta`) and of a cluster.
//!
//! A warp whose lanes have all arrived counts as 32 threads, whatever its number of lanes: barriers count whole warps (PTX ISA 9.7.13.1).

use super::*;
use crate::op::{Barrier, Reduce};

/// One of a block's sixteen named barriers.
#[derive(Clone, Debug, Default)]
pub struct Named {
    pub turn: u64,
    pub arrived: u32,
    /// The count of the turn's first arrival; the inner `None` means the whole block.
    pub expected: Option<Option<u32>>,
    /// Lanes per warp that arrived one by one (`barrier` without `.aligned`).
    partial: Vec<(u32, u32)>,
    /// Predicates so far: number of true ones, and whether all are.
    votes: (u32, bool),
    pub result: (u32, bool),
}

impl Named {
    pub fn describe(&self, live: u32) -> String {
        let expected = self.expected.flatten().unwrap_or(32 * live);
        format!("{} of {expected} threads have arrived", self.arrived)
    }

    fn turn_if_full(&mut self, live: u32) -> bool {
        let Some(expected) = self.expected else {
            return false;
        };
        if self.arrived < expected.unwrap_or(32 * live) {
            return false;
        }
        self.turn += 1;
        self.result = self.votes;
        self.arrived = 0;
        self.expected = None;
        self.partial.clear();
        self.votes = (0, true);
        true
    }
}

impl Machinery<'_> {
    /// Lanes of `mask` arrive. Returns what they wait for, if they do.
    pub fn barrier(&mut self, warp: &mut Warp, op: &Barrier, mask: u32) -> Step<Option<Wait>> {
        let first = mask.trailing_zeros() as usize;
        let id = warp.get(op.id, first) & 0xffff_ffff;
        let fail = |what: String| FaultKind::Barrier { id, what }.into();
        if lanes(mask).any(|l| warp.get(op.id, l) as u32 as u64 != id) {
            return Err(fail("lanes of a warp name different barriers".to_owned()));
        }
        if id >= 16 {
            return Err(fail("there are barriers 0 to 15".to_owned()));
        }
        let count = op.count.map(|r| warp.get(r, first) as u32);
        if let Some(n) = count
            && (n == 0 || n % 32 != 0 || n > 1024)
        {
            return Err(fail(format!("a count of {n}, which is no multiple of 32")));
        }
        let block = &mut self.blocks[warp.rank];
        let live = block.live;
        let b = &mut block.barriers[id as usize];
        if b.arrived == 0 {
            b.votes = (0, true);
        }
        if *b.expected.get_or_insert(count) != count {
            let one = |c: Option<u32>| c.map_or("the whole block".to_owned(), |n| format!("{n} threads"));
            let before = b.expected.flatten();
            return Err(fail(format!(
                "{} expected here, {} by who came before",
                one(count),
                one(before)
            )));
        }
        let weight = if mask == warp.alive {
            32
        } else {
            let at = match b.partial.iter().position(|p| p.0 == warp.index) {
                Some(at) => at,
                None => {
                    b.partial.push((warp.index, 0));
                    b.partial.len() - 1
                }
            };
            let before = b.partial[at].1.count_ones();
            b.partial[at].1 |= mask;
            if b.partial[at].1 == warp.alive {
                32 - before
            } else {
                mask.count_ones()
            }
        };
        b.arrived += weight;
        let limit = count.unwrap_or(32 * live);
        if b.arrived > limit {
            return Err(fail(format!("{} threads arrived where {limit} belong", b.arrived)));
        }
        if let Some((_, _, p, negated)) = op.reduce {
            for lane in lanes(mask) {
                let vote = (warp.get(p, lane) != 0) != negated;
                b.votes.0 += vote as u32;
                b.votes.1 &= vote;
            }
        }
        let wait = Wait::Barrier {
            id: id as usize,
            turn: b.turn,
            result: op.reduce.map(|(op, d, ..)| (op, d)),
        };
        if b.turn_if_full(live) {
            self.changes += 1;
        }
        Ok(if op.arrive { None } else { Some(wait) })
    }

    /// A warp has ended: barriers of the whole block wait for one less.
    pub fn leave(&mut self, warp: &Warp) {
        let block = &mut self.blocks[warp.rank];
        block.live -= 1;
        let live = block.live;
        for b in &mut block.barriers {
            if b.expected == Some(None) && b.turn_if_full(live) {
                self.changes += 1;
            }
        }
    }

    pub fn cluster_arrive(&mut self, mask: u32) {
        self.cluster.0 += mask.count_ones();
        self.cluster_turn();
    }

    pub fn cluster_turn(&mut self) {
        if self.cluster.0 > 0 && self.cluster.0 >= self.cluster_alive {
            self.cluster = (0, self.cluster.1 + 1);
            self.changes += 1;
        }
    }

    /// Makes lanes ready whose wait is over.
    pub fn wake(&mut self, warp: &mut Warp) -> Step<()> {
        let mut i = 0;
        while i < warp.waiting.len() {
            let mask = warp.waiting[i].mask;
            let over = match warp.waiting[i].why {
                Wait::Together { .. } => false,
                Wait::Barrier { id, turn, result } => {
                    let b = &self.blocks[warp.rank].barriers[id];
                    if b.turn != turn
                        && let Some((op, d)) = result
                    {
                        let value = match op {
                            Reduce::Popc => b.result.0 as u64,
                            Reduce::And => b.result.1 as u64,
                            Reduce::Or => (b.result.0 > 0) as u64,
                        };
                        lanes(mask).for_each(|l| warp.set(d, l, value));
                    }
                    b.turn != turn
                }
                // An mbarrier that is gone is a fault of the try_wait, which is executed again.
                Wait::Mbarrier { address, parity, phase } => {
                    match self.shared(address)?.mbarrier(address & 0xff_ffff) {
                        Ok(state) if parity => state.passed(phase),
                        Ok(state) => state.phase != phase,
                        Err(_) => true,
                    }
                }
                Wait::Cluster { turn } => self.cluster.1 != turn,
            };
            if over {
                warp.waiting.swap_remove(i);
            } else {
                i += 1;
            }
        }
        Ok(())
    }
}
