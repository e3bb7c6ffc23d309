//! One turn of a warp: instructions until it waits, ends, asks (polls) or has had enough.

use super::*;
use crate::decode::Guard;
use crate::lane::convert::convert;
use crate::memory::SHARED_WINDOW;
use crate::op::{CarryOp, Mbarrier, Moving, Op, Reg, Space};

/// Instructions per turn.
const TURN: u32 = 512;

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Ran,
    Polled,
    Blocked,
    Ended,
}

/// What comes after an instruction.
enum Next {
    /// The following one, for the whole group.
    Following,
    /// Another one, for the whole group.
    Jump(u32),
    /// The following one, but others should have a turn.
    Poll,
    /// Positions of lanes were set one by one, or lanes wait.
    Apart,
    /// Lanes wait for others of their warp to come to this instruction: it is executed, and counted, with the last of them.
    Parked,
}

/// A value per lane of the mask; a whole warp without a test per lane.
#[inline(always)]
fn each(mask: u32, mut f: impl FnMut(usize)) {
    if mask == u32::MAX {
        (0..32).for_each(f);
    } else {
        lanes(mask).for_each(&mut f);
    }
}

impl Machinery<'_> {
    /// `tally` counts executions (of warps, of threads) per op.
    pub fn turn(
        &mut self,
        warp: &mut Warp,
        tally: &mut [(u64, u64)],
    ) -> Result<Turn, (Box<crate::fault::Problem>, u32)> {
        if !warp.waiting.is_empty() {
            self.wake(warp)
                .map_err(|p| (p, warp.pc[warp.alive.trailing_zeros() as usize & 31]))?;
        }
        let mut left = TURN;
        loop {
            if warp.alive == 0 {
                self.leave(warp);
                return Ok(Turn::Ended);
            }
            let Some((mask, mut pc)) = warp.choose() else {
                self.stuck(warp)?;
                return Ok(Turn::Blocked);
            };
            // Lanes elsewhere: the nearest ahead of this group is where it may meet them.
            let others = warp.ready() & !mask;
            let stop = lanes(others)
                .map(|l| warp.pc[l])
                .filter(|&p| p > pc)
                .min()
                .unwrap_or(u32::MAX);
            let divided = others != 0;
            loop {
                let at = pc as usize;
                let active = match self.code.guards[at] {
                    None => mask,
                    Some(g) => pass(warp, g, mask),
                };
                tally[at].0 += 1;
                tally[at].1 += active.count_ones() as u64;
                self.clock += 1;
                let next = if active == 0 {
                    Next::Following
                } else {
                    self.execute(warp, pc, active, mask).map_err(|p| (p, pc))?
                };
                left = left.saturating_sub(1);
                match next {
                    Next::Following => pc += 1,
                    Next::Jump(target) => {
                        pc = target;
                        // Others may be anywhere between: who is furthest behind is to be found again.
                        if divided {
                            warp.set_pc(mask, pc);
                            break;
                        }
                    }
                    Next::Poll => {
                        pc += 1;
                        warp.set_pc(mask, pc);
                        warp.last = mask;
                        warp.polls = if warp.polls.0 == pc {
                            (pc, warp.polls.1 + 1)
                        } else {
                            (pc, 0)
                        };
                        return Ok(Turn::Polled);
                    }
                    Next::Apart => break,
                    Next::Parked => {
                        tally[at].0 -= 1;
                        break;
                    }
                }
                if left == 0 {
                    warp.set_pc(mask, pc);
                    if divided {
                        warp.last = mask;
                    }
                    return Ok(Turn::Ran);
                }
                if pc >= stop {
                    warp.set_pc(mask, pc);
                    break;
                }
            }
            if left == 0 {
                if divided {
                    warp.last = mask;
                }
                return Ok(Turn::Ran);
            }
        }
    }

    /// Lanes that all wait for one another at different instructions will do so for ever.
    fn stuck(&self, warp: &Warp) -> Result<(), (Box<crate::fault::Problem>, u32)> {
        let mut together = warp.waiting.iter().map(|w| match w.why {
            Wait::Together { pc, wanted } => Some((w.mask, pc, wanted)),
            _ => None,
        });
        let Some(Some((arrived, pc, wanted))) = together.next() else {
            return Ok(());
        };
        if together.any(|w| w.is_none()) {
            return Ok(());
        }
        let others: Vec<String> = warp.waiting[1..]
            .iter()
            .map(|w| match w.why {
                Wait::Together { pc, .. } => format!("lanes {:#010x} are at `{}`", w.mask, self.text(pc)),
                _ => String::new(),
            })
            .collect();
        let why = if others.is_empty() {
            "the others have exited".to_owned()
        } else {
            others.join(", ")
        };
        Err((FaultKind::Partial { arrived, wanted, why }.into(), pc))
    }

    pub fn text(&self, pc: u32) -> String {
        let w = &self.code.written[self.code.origin[pc as usize] as usize];
        let short: String = w.text.chars().take(160).collect();
        format!("line {}: {short}", w.line)
    }

    /// Lanes arrive at an instruction of `wanted` lanes. Returns the lanes that are there when all are.
    fn gather(&self, warp: &mut Warp, pc: u32, arriving: u32, wanted: u32) -> Step<Option<u32>> {
        let here = |w: &Waiting| matches!(w.why, Wait::Together { pc: p, wanted: m } if p == pc && m == wanted);
        let before = warp.waiting.iter().filter(|w| here(w)).fold(0, |m, w| m | w.mask);
        let arrived = before | arriving;
        if wanted & !warp.alive != 0 {
            return Err(FaultKind::Partial {
                arrived,
                wanted,
                why: format!("lanes {:#010x} have exited", wanted & !warp.alive),
            }
            .into());
        }
        warp.waiting.retain(|w| !here(w));
        if arrived & wanted == wanted {
            return Ok(Some(arrived));
        }
        warp.set_pc(arrived, pc);
        warp.waiting.push(Waiting {
            mask: arrived,
            why: Wait::Together { pc, wanted },
        });
        Ok(None)
    }

    /// Sets the lanes that skipped a guarded instruction on their way, then says where the rest is.
    fn split(&self, warp: &mut Warp, pc: u32, active: u32, group: u32) {
        warp.set_pc(active, pc);
        warp.set_pc(group & !active, pc + 1);
    }

    fn execute(&mut self, warp: &mut Warp, pc: u32, active: u32, group: u32) -> Step<Next> {
        let code = self.code;
        let op = &code.ops[pc as usize];
        if !warp.wgmma.is_empty() {
            warp.wgmma.check(op)?;
        }
        match op {
            Op::Nop => {}
            Op::Lane1 { f, d, a } => {
                let a = warp.registers[*a as usize];
                let d = &mut warp.registers[*d as usize];
                each(active, |i| d[i] = f(a[i]));
            }
            Op::Lane2 { f, d, a, b } => {
                let (a, b) = (warp.registers[*a as usize], warp.registers[*b as usize]);
                let d = &mut warp.registers[*d as usize];
                each(active, |i| d[i] = f(a[i], b[i]));
            }
            Op::Lane3 { f, d, a, b, c } => {
                let [a, b, c] = [a, b, c].map(|r| warp.registers[*r as usize]);
                let d = &mut warp.registers[*d as usize];
                each(active, |i| d[i] = f(a[i], b[i], c[i]));
            }
            Op::Lane4 { f, d, s } => {
                let [a, b, c, e] = s.map(|r| warp.registers[r as usize]);
                let d = &mut warp.registers[*d as usize];
                each(active, |i| d[i] = f(a[i], b[i], c[i], e[i]));
            }
            Op::Mov { d, a } => {
                let a = warp.registers[*a as usize];
                let d = &mut warp.registers[*d as usize];
                each(active, |i| d[i] = a[i]);
            }
            Op::Packed1 { f, bits, d, a } => packed(warp, active, *d, [*a; 3], *bits, |a, _, _| f(a)),
            Op::Packed2 { f, bits, d, a, b } => packed(warp, active, *d, [*a, *b, *b], *bits, |a, b, _| f(a, b)),
            Op::Packed { f, bits, d, s } => packed(warp, active, *d, *s, *bits, f),
            Op::Convert { how, d, a, b } => {
                let (a, b) = (warp.registers[*a as usize], warp.registers[*b as usize]);
                let d = &mut warp.registers[*d as usize];
                each(active, |i| d[i] = convert(how, a[i], b[i]));
            }
            Op::Carry {
                op,
                bits,
                d,
                s,
                reads,
                writes,
                flag,
            } => lanes(active).for_each(|lane| {
                let [a, b, c] = s.map(|r| warp.get(r, lane));
                let before = if *reads { warp.get(*flag, lane) & 1 } else { 0 };
                let (value, after) = carry(*op, *bits, a, b, c, before);
                warp.set(*d, lane, value);
                if *writes {
                    warp.set(*flag, lane, after);
                }
            }),
            Op::Moving { d, what } => {
                let value = match what {
                    Moving::Clock => self.clock,
                    Moving::Activemask => active as u64,
                };
                each(active, |i| warp.registers[*d as usize][i] = value);
            }
            Op::Pack { d, parts, bits } => lanes(active).for_each(|lane| {
                let keep = (1u64 << bits) - 1;
                let value = parts.iter().rev().fold(0, |x, r| x << bits | warp.get(*r, lane) & keep);
                warp.set(*d, lane, value);
            }),
            Op::Unpack { parts, a, bits } => lanes(active).for_each(|lane| {
                let (keep, value) = ((1u64 << bits) - 1, warp.get(*a, lane));
                for (i, r) in parts.iter().enumerate() {
                    warp.set(*r, lane, value >> (i as u32 * bits) & keep);
                }
            }),
            Op::Load(access) => {
                self.load(warp, access, active)?;
                if access.polls {
                    return Ok(Next::Poll);
                }
            }
            Op::Store(access) => self.store(warp, access, active)?,
            Op::Atomic(a) => {
                self.atomic(warp, a, active)?;
                return Ok(Next::Poll);
            }
            Op::CopyLocal { from, to, bytes } => self.copy_local(warp, *from, *to, *bytes, active),
            Op::Sleep => return Ok(Next::Poll),
            Op::Trap => return at_lane(Err(FaultKind::Trap.into()), active.trailing_zeros() as usize),
            Op::Branch(target) if active == group => return Ok(Next::Jump(*target)),
            Op::Branch(target) => {
                warp.set_pc(group & !active, pc + 1);
                warp.set_pc(active, *target);
                return Ok(Next::Apart);
            }
            Op::Indexed { a, targets } => {
                self.split(warp, pc, active, group);
                for lane in lanes(active) {
                    let index = warp.get(*a, lane) as u32 as usize;
                    let out = || FaultKind::Launch(format!("index {index} of {} targets", targets.len())).into();
                    warp.pc[lane] = *at_lane(targets.get(index).ok_or_else(out), lane)?;
                }
                return Ok(Next::Apart);
            }
            Op::Call { target, link } => {
                self.split(warp, pc, active, group);
                each(active, |i| warp.registers[*link as usize][i] = pc as u64 + 1);
                warp.set_pc(active, *target);
                return Ok(Next::Apart);
            }
            Op::Return(Some(link)) => {
                self.split(warp, pc, active, group);
                lanes(active).for_each(|lane| warp.pc[lane] = warp.get(*link, lane) as u32);
                return Ok(Next::Apart);
            }
            Op::Return(None) | Op::Exit => {
                self.split(warp, pc, active, group);
                self.exit(warp, active)?;
                return Ok(Next::Apart);
            }
            Op::Warp { op, mask } => {
                self.split(warp, pc, active, group);
                return self.collective(warp, op, *mask, pc, active);
            }
            Op::WgmmaFence => warp.wgmma.fence(),
            Op::WgmmaCommit => warp.wgmma.commit(),
            Op::WgmmaWait(n) => warp.wgmma.wait(*n),
            Op::Barrier(b) => {
                self.split(warp, pc, active, group);
                let mut mask = active;
                if b.aligned {
                    let Some(all) = self.gather(warp, pc, active, warp.alive)? else {
                        return Ok(Next::Parked);
                    };
                    mask = all;
                }
                warp.set_pc(mask, pc + 1);
                if let Some(why) = self.barrier(warp, b, mask)? {
                    warp.waiting.push(Waiting { mask, why });
                    self.wake(warp)?;
                }
                return Ok(Next::Apart);
            }
            Op::ClusterArrive => {
                lanes(active).for_each(|lane| warp.cluster_turn[lane] = self.cluster.1);
                self.cluster_arrive(active);
            }
            Op::ClusterWait => {
                self.split(warp, pc, active, group);
                warp.set_pc(active, pc + 1);
                let turn = self.cluster.1;
                let mask = lanes(active)
                    .filter(|&l| warp.cluster_turn[l] == turn)
                    .fold(0, |m, l| m | 1 << l);
                if mask != 0 {
                    warp.waiting.push(Waiting {
                        mask,
                        why: Wait::Cluster { turn },
                    });
                }
                return Ok(Next::Apart);
            }
            Op::Mbarrier { op, at, space } => {
                let waiting = self.mbarrier(warp, op, *at, *space, active)?;
                if waiting != 0 {
                    self.split(warp, pc, waiting, group);
                    self.wait_mbarrier(warp, op, *at, *space, waiting)?;
                    return Ok(Next::Apart);
                }
                if matches!(**op, Mbarrier::Wait { blocks: false, .. }) {
                    return Ok(Next::Poll);
                }
            }
            Op::Bulk(op) => self.bulk(warp, op, active, pc)?,
            Op::CopyAsync(op) => self.copy_async(warp, op, active)?,
            Op::FenceProxy => {}
            Op::Mapa { d, a, rank, generic } => lanes(active).try_for_each(|lane| {
                let address = warp.get(*a, lane);
                let own = if *generic {
                    self.to_shared(address)?
                } else {
                    address as u32
                };
                let there = (own & 0xff_ffff) as u64 | (warp.get(*rank, lane) & 0xff) << 24;
                warp.set(*d, lane, if *generic { SHARED_WINDOW | there } else { there });
                Step::Ok(())
            })?,
        }
        Ok(Next::Following)
    }

    fn wait_mbarrier(
        &mut self,
        warp: &mut Warp,
        op: &Mbarrier,
        at: crate::op::Address,
        space: Space,
        mask: u32,
    ) -> Step<()> {
        let Mbarrier::Wait { phase, parity, .. } = *op else {
            return Ok(());
        };
        for lane in lanes(mask) {
            let address = warp.address(at, lane);
            let address = if space == Space::Shared {
                address as u32
            } else {
                self.to_shared(address)?
            };
            let phase = warp.get(phase, lane);
            let phase = if parity { phase } else { phase >> 20 };
            let why = Wait::Mbarrier { address, parity, phase };
            let same = |w: &&mut Waiting| matches!(w.why, Wait::Mbarrier { address: a, parity: q, phase: f } if (a, q, f) == (address, parity, phase));
            match warp.waiting.iter_mut().find(same) {
                Some(w) => w.mask |= 1 << lane,
                None => warp.waiting.push(Waiting { mask: 1 << lane, why }),
            }
        }
        Ok(())
    }

    fn collective(
        &mut self,
        warp: &mut Warp,
        op: &crate::op::WarpOp,
        mask: Option<Reg>,
        pc: u32,
        active: u32,
    ) -> Step<Next> {
        // Lanes may name different masks at one instruction: each mask is an execution of its own.
        let mut left = active;
        let mut next = Next::Parked;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let wanted = mask.map_or(u32::MAX, |r| warp.get(r, first) as u32);
            let same = match mask {
                None => left,
                Some(r) => lanes(left)
                    .filter(|&l| warp.get(r, l) as u32 == wanted)
                    .fold(0, |m, l| m | 1 << l),
            };
            left &= !same;
            if same & !wanted != 0 {
                return Err(FaultKind::Partial {
                    arrived: same,
                    wanted,
                    why: "a lane executes it that is not in its own mask".to_owned(),
                }
                .into());
            }
            if let Some(all) = self.gather(warp, pc, same, wanted)? {
                self.together(warp, op, all)?;
                warp.set_pc(all, pc + 1);
                next = Next::Apart;
            }
        }
        Ok(next)
    }

    fn exit(&mut self, warp: &mut Warp, mask: u32) -> Step<()> {
        self.finish_lanes(warp, mask)?;
        warp.alive &= !mask;
        self.cluster_alive -= mask.count_ones();
        self.cluster_turn();
        // Whoever waits for these lanes waits in vain; barriers of the warp need them no more.
        for i in 0..warp.waiting.len() {
            if let Wait::Together { pc, wanted } = warp.waiting[i].why
                && wanted & mask != 0
            {
                let barrier = matches!(self.code.ops[pc as usize], Op::Barrier(_));
                if !barrier {
                    return Err(FaultKind::Partial {
                        arrived: warp.waiting[i].mask,
                        wanted,
                        why: format!("at `{}`, while lanes {mask:#010x} exit", self.text(pc)),
                    }
                    .into());
                }
                // Ready again: they arrive anew, with what is left of the warp.
                warp.waiting[i].mask = 0;
            }
        }
        warp.waiting.retain(|w| w.mask != 0);
        if warp.alive == 0 {
            self.end_of_warp(warp)?;
        }
        Ok(())
    }
}

fn pass(warp: &Warp, guard: Guard, mask: u32) -> u32 {
    let values = &warp.registers[guard.reg as usize];
    lanes(mask)
        .filter(|&l| (values[l] & 1 != 0) != guard.negated)
        .fold(0, |m, l| m | 1 << l)
}

#[inline(always)]
fn packed(warp: &mut Warp, active: u32, d: Reg, s: [Reg; 3], bits: u32, f: impl Fn(u64, u64, u64) -> u64) {
    let keep = (1u64 << bits) - 1;
    let [a, b, c] = s.map(|r| warp.registers[r as usize]);
    let d = &mut warp.registers[d as usize];
    each(active, |i| {
        let low = f(a[i] & keep, b[i] & keep, c[i] & keep) & keep;
        let high = f(a[i] >> bits & keep, b[i] >> bits & keep, c[i] >> bits & keep) & keep;
        d[i] = low | high << bits;
    });
}

fn carry(op: CarryOp, bits: u32, a: u64, b: u64, c: u64, before: u64) -> (u64, u64) {
    let keep = if bits == 64 { u64::MAX } else { (1 << bits) - 1 } as u128;
    let [a, b, c] = [a, b, c].map(|x| x as u128 & keep);
    let before = before as u128;
    let full = match op {
        CarryOp::Add => a + b + before,
        CarryOp::Sub => a.wrapping_sub(b).wrapping_sub(before),
        CarryOp::MadLo => (a * b & keep) + c + before,
        CarryOp::MadHi => (a * b >> bits) + c + before,
    };
    ((full & keep) as u64, (full >> bits & 1) as u64)
}
