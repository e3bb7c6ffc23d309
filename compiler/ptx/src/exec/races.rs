//! Finds accesses to shared memory that nothing orders, and data that goes to the asynchronous proxy without a proxy fence.
//!
//! Every warp has a vector clock, and so has every agent that works on its behalf: its wgmma in flight, its bulk stores, and the block's bulk
//! loads. Barriers, mbarriers, atomics and fences carry clocks from who arrives to who waits. An access must know of every earlier write of
//! its bytes, a write also of every read. Where order is hard to follow it is assumed: all atomics, fences, and strong loads and stores act
//! as one place; lanes of a warp are one agent; other blocks of the cluster are not followed. So what is reported is wrong, and not
//! everything that is wrong is reported.

use std::collections::HashMap;

use super::*;

/// Bytes that share a clock.
const GRAIN: u32 = 2;
/// Agents of bulk loads, by mbarrier.
const LOADERS: usize = 8;

/// What order is carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// Block's rank and barrier's number.
    Barrier(usize, usize),
    /// By shared address.
    Mbarrier(u32),
    Cluster,
    /// Atomics, fences, and strong accesses, all of them.
    Strong,
}

/// Who accesses shared memory. Warps are numbered through the cluster.
#[derive(Clone, Copy, Debug)]
pub enum Agent<'a> {
    Warp(usize),
    Wgmma(usize),
    Store(usize),
    /// A bulk load: what its issuer knew, the issuer's block, and the mbarrier it completes on.
    Load(&'a Clock, usize, u32),
}

/// What is known of every agent: the latest of its epochs that lies behind; and of those the ones that a proxy fence covers.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    known: Vec<u32>,
    fenced: Vec<u32>,
}

impl Clock {
    fn new(agents: usize) -> Clock {
        Clock {
            known: vec![0; agents],
            fenced: vec![0; agents],
        }
    }

    fn join(&mut self, other: &Clock) {
        let join = |a: &mut [u32], b: &[u32]| a.iter_mut().zip(b).for_each(|(a, b)| *a = (*a).max(*b));
        join(&mut self.known, &other.known);
        join(&mut self.fenced, &other.fenced);
    }
}

/// The last write of some bytes: epoch, agent, instruction. No agent: never written.
#[derive(Clone, Copy, Default)]
struct Write {
    epoch: u32,
    agent: u16,
    generic: bool,
    pc: u32,
}

/// Of one block's shared memory, per grain.
struct Shadow {
    writes: Vec<Write>,
    /// Agents that have read since the last write.
    readers: Vec<u128>,
    /// Their epochs.
    reads: Vec<u32>,
}

pub struct Races {
    /// Per block and in all.
    agents: usize,
    warps: usize,
    shadows: Vec<Shadow>,
    clocks: Vec<Clock>,
    /// The current epoch of each agent, from 1.
    epochs: Vec<u32>,
    /// Gathered by who arrives; released to who waits.
    links: HashMap<Link, (Clock, Clock)>,
    /// Epochs of each warp's committed wgmma groups.
    groups: Vec<Vec<u32>>,
}

impl Races {
    pub fn new(blocks: usize, warps: usize, bytes: u32) -> Races {
        let agents = 3 * warps + LOADERS;
        let grains = bytes.div_ceil(GRAIN) as usize;
        let all = blocks * agents;
        let shadow = |_| Shadow {
            writes: vec![Write::default(); grains],
            readers: vec![0; grains],
            reads: vec![0; grains * agents],
        };
        Races {
            agents,
            warps,
            shadows: (0..blocks).map(shadow).collect(),
            clocks: vec![Clock::new(all); all],
            epochs: vec![1; all],
            links: HashMap::new(),
            groups: vec![vec![]; all],
        }
    }

    /// A warp's number among all agents.
    fn warp(&self, warp: usize) -> usize {
        warp / self.warps * self.agents + warp % self.warps
    }

    fn now(&self, agent: usize) -> Clock {
        let mut clock = self.clocks[agent].clone();
        clock.known[agent] = self.epochs[agent];
        clock
    }

    /// Who waits for `link` from its next turn on knows what this warp knows.
    pub fn arrive(&mut self, warp: usize, link: Link) {
        let agent = self.warp(warp);
        let clock = self.now(agent);
        let all = self.epochs.len();
        let entry = self
            .links
            .entry(link)
            .or_insert_with(|| (Clock::new(all), Clock::new(all)));
        entry.0.join(&clock);
        self.epochs[agent] += 1;
    }

    /// The barrier turns.
    pub fn turn(&mut self, link: Link) {
        if let Some((gathered, released)) = self.links.get_mut(&link) {
            released.join(gathered);
        }
    }

    pub fn wait(&mut self, warp: usize, link: Link) {
        let agent = self.warp(warp);
        if let Some((_, released)) = self.links.get(&link) {
            self.clocks[agent].join(released);
        }
    }

    /// Atomics, fences and the like: in order with one another.
    pub fn strong(&mut self, warp: usize) {
        self.arrive(warp, Link::Strong);
        self.turn(Link::Strong);
        self.wait(warp, Link::Strong);
    }

    /// `fence.proxy.async`: all generic writes that are known may be read by the asynchronous proxy.
    pub fn fence_proxy(&mut self, warp: usize) {
        let agent = self.warp(warp);
        let now = self.now(agent);
        let clock = &mut self.clocks[agent];
        clock
            .fenced
            .iter_mut()
            .zip(&now.known)
            .for_each(|(f, k)| *f = (*f).max(*k));
        self.epochs[agent] += 1;
    }

    pub fn snapshot(&mut self, warp: usize) -> Clock {
        let agent = self.warp(warp);
        let clock = self.now(agent);
        self.epochs[agent] += 1;
        clock
    }

    pub fn commit_wgmma(&mut self, warp: usize) {
        let agent = self.warp(warp) + self.warps;
        let epoch = self.epochs[agent];
        self.groups[agent].push(epoch);
        self.epochs[agent] += 1;
    }

    /// All groups but the newest `pending` have been waited for.
    pub fn wait_wgmma(&mut self, warp: usize, pending: usize) {
        let agent = self.warp(warp) + self.warps;
        let done = self.groups[agent].len().saturating_sub(pending);
        if let Some(epoch) = self.groups[agent][..done].last().copied() {
            let own = self.warp(warp);
            self.clocks[own].known[agent] = epoch;
        }
    }

    /// The warp has waited for bulk stores. Those of other lanes count as well.
    pub fn wait_stores(&mut self, warp: usize) {
        let agent = self.warp(warp) + 2 * self.warps;
        let epoch = self.epochs[agent];
        let own = self.warp(warp);
        self.clocks[own].known[agent] = epoch;
        self.epochs[agent] += 1;
    }

    fn loader(&self, rank: usize, mbarrier: u32) -> usize {
        rank * self.agents + 3 * self.warps + (mbarrier & 0xff_ffff) as usize / 8 % LOADERS
    }

    /// A bulk load completes on its mbarrier, which may turn: who waits knows of the load.
    pub fn complete(&mut self, clock: &Clock, mbarrier: u32) {
        let agent = self.loader((mbarrier >> 24) as usize, mbarrier);
        let all = self.epochs.len();
        let entry = self
            .links
            .entry(Link::Mbarrier(mbarrier))
            .or_insert_with(|| (Clock::new(all), Clock::new(all)));
        entry.0.join(clock);
        entry.0.known[agent] = entry.0.known[agent].max(self.epochs[agent]);
        self.epochs[agent] += 1;
    }

    fn name(&self, agent: usize) -> String {
        let within = agent % self.agents;
        let who = within % self.warps.max(1);
        match within / self.warps {
            0 => format!("warp {who}"),
            1 if within < 3 * self.warps => format!("wgmma of warp {who}"),
            2 if within < 3 * self.warps => format!("a bulk store of warp {who}"),
            _ => "a bulk load".to_owned(),
        }
    }

    /// An access of `bytes` at `address` by the instruction `pc`.
    pub fn access(&mut self, agent: Agent, address: u32, bytes: u32, writes: bool, pc: u32) -> Result<(), Conflict> {
        let rank = (address >> 24) as usize;
        // Each agent acts with what its warp knows, after all that its warp did.
        let (id, warp, generic) = match agent {
            Agent::Warp(w) => (self.warp(w), self.warp(w), true),
            Agent::Wgmma(w) => (self.warp(w) + self.warps, self.warp(w), false),
            Agent::Store(w) => (self.warp(w) + 2 * self.warps, self.warp(w), false),
            Agent::Load(_, rank, mbarrier) => (self.loader(rank, mbarrier), usize::MAX, false),
        };
        let clock = match agent {
            Agent::Load(clock, ..) => clock,
            _ => &self.clocks[warp],
        };
        let own = |other: usize| other == id || other == warp;
        let first = (address & 0xff_ffff).wrapping_sub(RESERVED) / GRAIN;
        let last = ((address & 0xff_ffff).wrapping_sub(RESERVED) + bytes).div_ceil(GRAIN);
        let base = rank * self.agents;
        let epoch = self.epochs[id];
        let Some(shadow) = self.shadows.get_mut(rank) else {
            return Ok(());
        };
        if id / self.agents != rank {
            // What other blocks do here is not followed: it is only no longer known who wrote.
            if writes {
                let end = (last as usize).min(shadow.writes.len());
                shadow.writes[(first as usize).min(end)..end].fill(Write::default());
                shadow.readers[(first as usize).min(end)..end].fill(0);
            }
            return Ok(());
        }
        for grain in first as usize..(last as usize).min(shadow.writes.len()) {
            let w = shadow.writes[grain];
            let writer = w.agent as usize;
            if w.epoch != 0 && !own(base + writer) && clock.known[base + writer] < w.epoch {
                return Err(Conflict::race(writes, "written", base + writer, Some(w.pc), grain));
            }
            // A generic write that the asynchronous proxy reads.
            if !generic && !writes && w.epoch != 0 && w.generic && clock.fenced[base + writer] < w.epoch {
                return Err(Conflict::proxy(base + writer, w.pc, grain));
            }
            let reads = &mut shadow.reads[grain * self.agents..][..self.agents];
            if writes {
                let mut rest = shadow.readers[grain];
                while rest != 0 {
                    let r = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    if !own(base + r) && clock.known[base + r] < reads[r] {
                        return Err(Conflict::race(true, "read", base + r, None, grain));
                    }
                }
                shadow.readers[grain] = 0;
                shadow.writes[grain] = Write {
                    epoch,
                    agent: (id - base) as u16,
                    generic,
                    pc,
                };
            } else {
                shadow.readers[grain] |= 1 << (id - base);
                reads[id - base] = epoch;
            }
        }
        Ok(())
    }
}

/// Two accesses that nothing orders, or a missing proxy fence.
pub struct Conflict {
    proxy: bool,
    now: &'static str,
    before: &'static str,
    other: usize,
    pc: Option<u32>,
    grain: usize,
}

impl Conflict {
    fn race(writes: bool, before: &'static str, other: usize, pc: Option<u32>, grain: usize) -> Conflict {
        Conflict {
            proxy: false,
            now: if writes { "written" } else { "read" },
            before,
            other,
            pc,
            grain,
        }
    }

    fn proxy(other: usize, pc: u32, grain: usize) -> Conflict {
        Conflict {
            proxy: true,
            now: "read",
            before: "written",
            other,
            pc: Some(pc),
            grain,
        }
    }
}

impl Machinery<'_> {
    /// The number of a warp in its cluster.
    pub fn number(&self, warp: &Warp) -> usize {
        warp.rank * self.warps_per_block + warp.index as usize
    }

    /// An access to shared memory, for the search for races.
    pub fn touch(&mut self, agent: Agent, address: u32, bytes: u32, writes: bool, pc: u32) -> Step<()> {
        let Some(races) = &mut self.races else {
            return Ok(());
        };
        let Err(c) = races.access(agent, address, bytes, writes, pc) else {
            return Ok(());
        };
        let other = races.name(c.other);
        let address = Place::Shared(address >> 24, RESERVED + c.grain as u32 * GRAIN);
        let by = match c.pc {
            Some(pc) => format!("{other} at `{}`", self.text(pc)),
            None => other,
        };
        Err(if c.proxy {
            FaultKind::Proxy { address, by }
        } else {
            FaultKind::Race {
                address,
                now: c.now,
                before: c.before,
                by,
            }
        }
        .into())
    }

    /// Does something to the clocks, if they are kept.
    pub fn order(&mut self, f: impl FnOnce(&mut Races)) {
        if let Some(races) = &mut self.races {
            f(races);
        }
    }
}
