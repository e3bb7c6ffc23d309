//! A whole launch: parameters, blocks, turns, and what is reported at the end.

use std::collections::BTreeMap;

use super::bulk::Origin;
use super::step::Turn;
use super::*;
use crate::fault::{Fault, Problem};
use crate::op::{Constant, Special};
use crate::tensor::TensorMap;

/// When asynchronous copies are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// As late as they may be: what does not wait for them sees old data.
    #[default]
    Late,
    /// When they are issued.
    Eager,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Blocks per cluster, along x.
    pub cluster: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    pub timing: Timing,
    /// Reads of shared memory that nobody wrote are faults.
    pub checks_reads: bool,
    /// Instructions of warps after which a launch is given up.
    pub limit: u64,
}

impl Launch {
    pub fn new(grid: [u32; 3], block: u32) -> Launch {
        Launch {
            grid,
            block: [block, 1, 1],
            cluster: 1,
            shared: 0,
            timing: Timing::Late,
            checks_reads: true,
            limit: 20_000_000_000,
        }
    }

    pub fn shared(self, bytes: u32) -> Launch {
        Launch { shared: bytes, ..self }
    }

    pub fn cluster(self, blocks: u32) -> Launch {
        Launch {
            cluster: blocks,
            ..self
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    Pointer(u64),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    TensorMap(TensorMap),
    Bytes(Vec<u8>),
}

/// Executions of one instruction or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub warps: u64,
    pub threads: u64,
}

/// What a launch executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// By the instruction's name as written, with all its dots.
    pub by_name: BTreeMap<String, Tally>,
    /// By line of the PTX text.
    pub by_line: BTreeMap<u32, Tally>,
}

impl Stats {
    /// Executions by warps of instructions whose name begins so. A warpgroup's instruction counts for each of its four warps.
    pub fn warps(&self, prefix: &str) -> u64 {
        self.by_name
            .iter()
            .filter(|(n, _)| n.starts_with(prefix))
            .map(|(_, t)| t.warps)
            .sum()
    }

    pub fn threads(&self, prefix: &str) -> u64 {
        self.by_name
            .iter()
            .filter(|(n, _)| n.starts_with(prefix))
            .map(|(_, t)| t.threads)
            .sum()
    }
}

/// A cluster that has begun: its machinery without what the launch shares, and its warps.
struct Cluster {
    blocks: Vec<Block>,
    loads: VecDeque<Transfer>,
    barrier: (u32, u64),
    alive: u32,
    warps: Vec<Option<Box<Warp>>>,
}

#[derive(PartialEq, Eq)]
enum Round {
    Done,
    /// It did something and could go on.
    Busy,
    /// Every warp waits or asks.
    Idle,
}

struct Grid<'a> {
    code: &'a Code,
    launch: &'a Launch,
    parameters: Vec<u8>,
    globals: &'a [u64],
    tally: Vec<(u64, u64)>,
    changes: u64,
    clock: u64,
}

/// Runs a launch to its end.
pub fn run(
    code: &Code,
    memory: &mut Memory,
    globals: &[u64],
    launch: &Launch,
    params: &[Param],
) -> Result<Stats, Box<Fault>> {
    let refuse = |what: String| Fault::launch(&code.name, FaultKind::Launch(what));
    let parameters = check(code, launch, params).map_err(refuse)?;
    let mut grid = Grid {
        code,
        launch,
        parameters,
        globals,
        tally: vec![(0, 0); code.ops.len()],
        changes: 0,
        clock: 0,
    };
    let clusters = launch.grid.iter().map(|n| *n as u64).product::<u64>() / launch.cluster as u64;
    let mut begun: VecDeque<Cluster> = VecDeque::new();
    let mut next = 0;
    let mut idle = 0;
    let (mut quiet, mut before) = (0, 0);
    loop {
        // Another cluster begins when all that have begun are idle.
        if idle >= begun.len() && next < clusters {
            begun.push_back(grid.begin(next));
            next += 1;
            idle = 0;
        }
        let Some(mut cluster) = begun.pop_front() else {
            return Ok(grid.stats());
        };
        match grid.round(memory, &mut cluster)? {
            Round::Done => {}
            Round::Busy => {
                idle = 0;
                begun.push_back(cluster);
            }
            Round::Idle => {
                idle += 1;
                begun.push_back(cluster);
                if next == clusters && idle >= begun.len() {
                    idle = 0;
                    quiet = if grid.changes == before { quiet + 1 } else { 0 };
                    before = grid.changes;
                    grid.give_up(&begun, quiet)?;
                }
            }
        }
        if grid.clock > launch.limit {
            return Err(Fault::launch(&code.name, FaultKind::Limit(launch.limit)));
        }
    }
}

fn check(code: &Code, launch: &Launch, params: &[Param]) -> Result<Vec<u8>, String> {
    let threads: u32 = launch.block.iter().product();
    let need = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
    need((1..=1024).contains(&threads), format!("{threads} threads in a block"))?;
    need(
        launch.grid.iter().all(|n| *n > 0),
        format!("a grid of {:?}", launch.grid),
    )?;
    need(
        launch.grid[1] < 65536 && launch.grid[2] < 65536,
        format!("a grid of {:?}", launch.grid),
    )?;
    need(
        (1..=16).contains(&launch.cluster),
        format!("clusters of {} blocks", launch.cluster),
    )?;
    need(
        launch.grid[0].is_multiple_of(launch.cluster),
        format!("a grid of {:?} in clusters of {}", launch.grid, launch.cluster),
    )?;
    if let Some(wanted) = code.required_block {
        need(
            wanted == launch.block,
            format!("blocks of {:?}, the kernel wants {wanted:?}", launch.block),
        )?;
    }
    if let Some(most) = code.max_block {
        need(
            threads <= most,
            format!("{threads} threads in a block, the kernel allows {most}"),
        )?;
    }
    if let Some(wanted) = code.required_cluster {
        need(
            wanted == launch.cluster,
            format!("clusters of {}, the kernel wants {wanted}", launch.cluster),
        )?;
    }
    let shared = code.dynamic_shared + launch.shared;
    need(
        shared <= LIMIT,
        format!("{shared} bytes of shared memory, {LIMIT} are there"),
    )?;
    need(
        params.len() == code.parameters.len(),
        format!("{} arguments for {} parameters", params.len(), code.parameters.len()),
    )?;
    let mut bytes = vec![0; code.parameter_bytes as usize];
    for (i, (param, place)) in params.iter().zip(&code.parameters).enumerate() {
        let value = match param {
            Param::Pointer(x) | Param::U64(x) => x.to_le_bytes().to_vec(),
            Param::U32(x) => x.to_le_bytes().to_vec(),
            Param::I32(x) => x.to_le_bytes().to_vec(),
            Param::F32(x) => x.to_le_bytes().to_vec(),
            Param::TensorMap(map) => {
                map.check().map_err(|e| format!("tensor map of argument {i}: {e}"))?;
                need(
                    place.offset.is_multiple_of(64),
                    format!("parameter {i} is a tensor map and not aligned to 64 bytes"),
                )?;
                map.encode().to_vec()
            }
            Param::Bytes(b) => b.clone(),
        };
        need(
            value.len() as u32 == place.bytes,
            format!("argument {i} has {} bytes, the parameter {}", value.len(), place.bytes),
        )?;
        bytes[place.offset as usize..][..value.len()].copy_from_slice(&value);
    }
    Ok(bytes)
}

impl Grid<'_> {
    fn block_id(&self, n: u64) -> [u32; 3] {
        let [x, y, _] = self.launch.grid.map(|n| n as u64);
        [(n % x) as u32, (n / x % y) as u32, (n / x / y) as u32]
    }

    fn begin(&self, n: u64) -> Cluster {
        let size = self.launch.cluster;
        let threads: u32 = self.launch.block.iter().product();
        let warps = threads.div_ceil(32);
        let mut cluster = Cluster {
            blocks: vec![],
            loads: VecDeque::new(),
            barrier: (0, 0),
            alive: threads * size,
            warps: vec![],
        };
        for rank in 0..size {
            let id = self.block_id(n * size as u64 + rank as u64);
            let bytes = self.code.dynamic_shared + self.launch.shared;
            cluster.blocks.push(Block {
                id,
                shared: Shared::new(rank, bytes, self.launch.checks_reads),
                barriers: vec![Named::default(); 16],
                live: warps,
                groups: vec![wgmma::Group::default(); warps.div_ceil(4) as usize],
            });
            for index in 0..warps {
                let warp = self.warp(rank, index, id, threads);
                cluster.warps.push(Some(Box::new(warp)));
            }
        }
        cluster
    }

    fn warp(&self, rank: u32, index: u32, id: [u32; 3], threads: u32) -> Warp {
        let count = (threads - index * 32).min(32);
        let mut warp = Warp {
            rank: rank as usize,
            index,
            registers: vec![[0; 32]; self.code.registers as usize],
            alive: if count == 32 { u32::MAX } else { (1 << count) - 1 },
            local: vec![0; self.code.local_bytes as usize * 32],
            store_groups: vec![0; 32],
            copy_groups: vec![0; 32],
            ..Warp::default()
        };
        for &(r, constant) in &self.code.constants {
            for lane in 0..32 {
                let value = match constant {
                    Constant::Bits(bits) => bits,
                    Constant::Shared(offset) => (rank << 24 | (RESERVED + offset)) as u64,
                    Constant::Global(n, offset) => self.globals[n].wrapping_add(offset as u64),
                    Constant::Special(s) => self.special(s, rank, index * 32 + lane, id) as u64,
                };
                warp.set(r, lane as usize, value);
            }
        }
        warp
    }

    fn special(&self, which: Special, rank: u32, thread: u32, id: [u32; 3]) -> u32 {
        let Launch {
            grid, block, cluster, ..
        } = *self.launch;
        let lane = thread % 32;
        let linear = id[0] + grid[0] * (id[1] + grid[1] * id[2]);
        match which {
            Special::Tid(0) => thread % block[0],
            Special::Tid(1) => thread / block[0] % block[1],
            Special::Tid(_) => thread / block[0] / block[1],
            Special::Ntid(i) => block[i as usize],
            Special::Ctaid(i) => id[i as usize],
            Special::Nctaid(i) => grid[i as usize],
            Special::Laneid => lane,
            Special::Warpid => thread / 32,
            Special::Nwarpid => block.iter().product::<u32>().div_ceil(32),
            Special::Clusterid(0) => id[0] / cluster,
            Special::Clusterid(i) => id[i as usize],
            Special::Nclusterid(0) => grid[0] / cluster,
            Special::Nclusterid(i) => grid[i as usize],
            Special::ClusterCtaid(0) | Special::ClusterCtarank => rank,
            Special::ClusterCtaid(_) => 0,
            Special::ClusterNctaid(0) | Special::ClusterNctarank => cluster,
            Special::ClusterNctaid(_) => 1,
            Special::Smid => linear % 132,
            Special::Nsmid => 132,
            Special::LanemaskEq => 1 << lane,
            Special::LanemaskLt => (1 << lane) - 1,
            Special::LanemaskLe => u32::MAX >> (31 - lane),
            Special::LanemaskGt => !(u32::MAX >> (31 - lane)),
            Special::LanemaskGe => !((1 << lane) - 1),
            Special::DynamicShared => self.launch.shared,
            Special::TotalShared => self.code.dynamic_shared + self.launch.shared,
        }
    }

    /// Turns for every warp of a cluster, for a while.
    fn round(&mut self, memory: &mut Memory, cluster: &mut Cluster) -> Result<Round, Box<Fault>> {
        let parameters = std::mem::take(&mut self.parameters);
        let mut m = Machinery {
            code: self.code,
            memory,
            parameters: &parameters,
            timing: self.launch.timing,
            blocks: std::mem::take(&mut cluster.blocks),
            loads: std::mem::take(&mut cluster.loads),
            cluster: cluster.barrier,
            cluster_alive: cluster.alive,
            changes: self.changes,
            clock: self.clock,
        };
        let result = rounds(&mut m, &mut cluster.warps, &mut self.tally);
        let ids: Vec<[u32; 3]> = m.blocks.iter().map(|b| b.id).collect();
        cluster.barrier = m.cluster;
        cluster.alive = m.cluster_alive;
        cluster.loads = m.loads;
        cluster.blocks = m.blocks;
        self.changes = m.changes;
        self.clock = m.clock;
        self.parameters = parameters;
        result.map_err(|(problem, origin)| self.fault(&ids, *problem, origin))
    }

    fn fault(&self, ids: &[[u32; 3]], problem: Problem, origin: Origin) -> Box<Fault> {
        let w = &self.code.written[self.code.origin[origin.pc as usize] as usize];
        Box::new(Fault {
            kernel: self.code.name.clone(),
            block: ids.get(origin.rank).copied(),
            thread: Some(origin.thread),
            line: w.line,
            text: w.text.chars().take(240).collect(),
            kind: problem.kind,
        })
    }

    /// Nothing runs any more: a fault if nothing ever will.
    fn give_up(&self, begun: &VecDeque<Cluster>, quiet: u32) -> Result<(), Box<Fault>> {
        let warps = || begun.iter().flat_map(|c| c.warps.iter().flatten().map(move |w| (c, w)));
        let asks = warps().any(|(_, w)| w.ready() != 0);
        if asks && quiet < 1000 {
            return Ok(());
        }
        // The thread that is named is the first that waits; all kinds of waiting are listed.
        let Some((c, w)) = warps().next() else {
            return Ok(());
        };
        let mut seen: Vec<(String, u32)> = vec![];
        for (c, w) in warps() {
            for what in self.waits(c, w) {
                match seen.iter_mut().find(|s| s.0 == what) {
                    Some(s) => s.1 += 1,
                    None => seen.push((what, 1)),
                }
            }
        }
        let more = seen.len().saturating_sub(8);
        let mut text: Vec<String> = seen.iter().take(8).map(|(what, n)| format!("{n} x {what}")).collect();
        if more > 0 {
            text.push(format!("and {more} more kinds"));
        }
        let kind = if asks {
            FaultKind::Livelock(text.join("; "))
        } else {
            FaultKind::Deadlock(text.join("; "))
        };
        let lane = w.alive.trailing_zeros().min(31);
        let origin = Origin {
            pc: self.waits_at(w, lane),
            rank: w.rank,
            thread: w.index * 32 + lane,
        };
        let ids: Vec<[u32; 3]> = c.blocks.iter().map(|b| b.id).collect();
        Err(self.fault(&ids, Problem { kind, lane: None }, origin))
    }

    /// The instruction a lane waits at: barriers have moved it on already.
    fn waits_at(&self, w: &Warp, lane: u32) -> u32 {
        let past =
            |x: &&Waiting| x.mask >> lane & 1 == 1 && matches!(x.why, Wait::Barrier { .. } | Wait::Cluster { .. });
        w.pc[lane as usize] - w.waiting.iter().any(|x| past(&x)) as u32
    }

    fn waits(&self, c: &Cluster, w: &Warp) -> Vec<String> {
        let line = |pc: u32| self.code.written[self.code.origin[pc as usize] as usize].line;
        let block = &c.blocks[w.rank];
        let mut all: Vec<String> = w
            .waiting
            .iter()
            .map(|x| {
                let at = line(self.waits_at(w, x.mask.trailing_zeros()));
                match x.why {
                    Wait::Together { wanted, .. } => {
                        format!("line {at}: lanes {:#010x} of {wanted:#010x} are together", x.mask)
                    }
                    Wait::Barrier { id, .. } => {
                        format!("line {at}: barrier {id}, {}", block.barriers[id].describe(block.live))
                    }
                    Wait::Mbarrier { address, phase, .. } => {
                        let shared = c.blocks.get((address >> 24) as usize).map(|b| &b.shared);
                        let state = shared.and_then(|s| s.mbarriers.get(&(address & 0xff_ffff)));
                        let state = state.map_or("gone".to_owned(), |s| {
                            format!(
                                "in phase {}, waits for {} of {} arrivals and {} bytes",
                                s.phase, s.pending, s.expected, s.bytes
                            )
                        });
                        format!("line {at}: mbarrier {address:#x}, phase {phase}, is {state}")
                    }
                    Wait::Cluster { .. } => format!("line {at}: the cluster's barrier, {} of {}", c.barrier.0, c.alive),
                }
            })
            .collect();
        if w.ready() != 0 {
            let lane = w.ready().trailing_zeros() as usize;
            all.push(format!("line {}: asks", line(w.pc[lane])));
        }
        all
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        let mut last = u32::MAX;
        for (n, &(warps, threads)) in self.tally.iter().enumerate() {
            let origin = self.code.origin[n];
            // Of an instruction that became several, the first counts.
            if origin == last || warps == 0 {
                continue;
            }
            last = origin;
            let w = &self.code.written[origin as usize];
            for tally in [
                stats.by_name.entry(w.name.clone()).or_default(),
                stats.by_line.entry(w.line).or_default(),
            ] {
                tally.warps += warps;
                tally.threads += threads;
            }
        }
        stats
    }
}

type Failure = (Box<Problem>, Origin);

/// Rounds of turns until nothing moves, all have ended, or others of the launch should have a turn.
fn rounds(m: &mut Machinery, warps: &mut [Option<Box<Warp>>], tally: &mut [(u64, u64)]) -> Result<Round, Failure> {
    for _ in 0..64 {
        let mut moved = false;
        for place in warps.iter_mut() {
            let Some(warp) = place else { continue };
            let before = m.clock;
            let turn = m.turn(warp, tally).map_err(|(problem, pc)| {
                let lane = problem.lane.unwrap_or_else(|| warp.alive.trailing_zeros().min(31));
                let origin = Origin {
                    pc,
                    rank: warp.rank,
                    thread: warp.index * 32 + lane,
                };
                (problem, origin)
            })?;
            match turn {
                Turn::Ended => {
                    *place = None;
                    moved = true;
                }
                Turn::Ran => moved = true,
                // An instruction is asked again and again: this warp is idle.
                Turn::Polled => moved |= warp.polls.1 < 8,
                Turn::Blocked => moved |= m.clock > before,
            }
        }
        if warps.iter().all(|w| w.is_none()) {
            if let Some(load) = m.loads.pop_front() {
                let what = "the cluster has ended before this load was done".to_owned();
                return Err((FaultKind::Copy(what).into(), load.origin));
            }
            return Ok(Round::Done);
        }
        if !moved && !m.next_load()? {
            return Ok(Round::Idle);
        }
    }
    Ok(Round::Busy)
}
