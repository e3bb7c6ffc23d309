//! Lanes of a warp that come to an instruction they execute together, wait for each other there, or end.

use super::step::Next;
use super::*;
use crate::op::{Address, Mbarrier, Op, Reg, Space, WarpOp};

impl Machinery<'_> {
    /// Lanes that all wait for one another at different instructions will do so for ever.
    pub fn stuck(&self, warp: &Warp) -> Result<(), (Box<crate::fault::Problem>, u32)> {
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

    /// Lanes arrive at an instruction of `wanted` lanes. Returns the lanes that are there when all are.
    pub fn gather(&self, warp: &mut Warp, pc: u32, arriving: u32, wanted: u32) -> Step<Option<u32>> {
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

    pub fn wait_mbarrier(&mut self, warp: &mut Warp, op: &Mbarrier, at: Address, space: Space, mask: u32) -> Step<()> {
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

    pub fn collective(&mut self, warp: &mut Warp, op: &WarpOp, mask: Option<Reg>, pc: u32, active: u32) -> Step<Next> {
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
                self.together(warp, op, all, pc)?;
                warp.set_pc(all, pc + 1);
                next = Next::Apart;
            }
        }
        Ok(next)
    }

    pub fn exit(&mut self, warp: &mut Warp, mask: u32) -> Step<()> {
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
