//! mbarrier objects (PTX ISA 9.7.13.15): phases that end when all arrivals have come and all announced bytes too.

use super::*;
use crate::fault::{FaultKind, Step};
use crate::op::{Address, Mbarrier, Space};

/// Both counts have 20 bits.
const MOST: i64 = (1 << 20) - 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Arrivals of a whole phase.
    pub expected: u32,
    pub pending: u32,
    /// Bytes announced and not yet come. Negative when they come first.
    pub bytes: i64,
    /// Phases that are over.
    pub phase: u64,
}

impl State {
    pub fn new(count: u32) -> State {
        State {
            expected: count,
            pending: count,
            bytes: 0,
            phase: 0,
        }
    }

    /// Whether the phase with this parity is over: it is the one before the current.
    pub fn passed(&self, parity: u64) -> bool {
        self.phase & 1 != parity & 1
    }

    pub fn expect(&mut self, bytes: i64) -> Result<(), String> {
        self.bytes += bytes;
        if self.bytes.abs() > MOST {
            return Err(format!("{} pending bytes, more than 2^20 - 1", self.bytes));
        }
        Ok(())
    }

    pub fn arrive(&mut self, count: u32, drop: bool) -> Result<(), String> {
        if count > self.pending {
            return Err(format!(
                "{count} arrivals in a phase that waits for {} more of {}",
                self.pending, self.expected
            ));
        }
        self.pending -= count;
        if drop {
            self.expected -= count;
        }
        self.turn();
        Ok(())
    }

    pub fn complete(&mut self, bytes: i64) -> Result<(), String> {
        self.expect(-bytes)?;
        self.turn();
        Ok(())
    }

    fn turn(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
        }
    }
}

impl Machinery<'_> {
    /// The shared address of an mbarrier, from a register of the given space.
    fn mbarrier_address(&self, warp: &Warp, at: Address, space: Space, lane: usize) -> Step<u32> {
        let address = warp.address(at, lane);
        let address = if space == Space::Shared {
            address as u32
        } else {
            self.to_shared(address)?
        };
        if !address.is_multiple_of(8) {
            let place = crate::fault::Place::Shared(address >> 24, address & 0xff_ffff);
            return Err(FaultKind::Misaligned {
                address: place,
                bytes: 8,
                align: 8,
            }
            .into());
        }
        Ok(address)
    }

    fn mbarrier_fault<T>(&self, address: u32, result: Result<T, String>) -> Step<T> {
        result.map_err(|what| {
            FaultKind::Mbarrier {
                address: crate::fault::Place::Shared(address >> 24, address & 0xff_ffff),
                what,
            }
            .into()
        })
    }

    pub fn complete_bytes(&mut self, mbarrier: u32, bytes: u32) -> Step<()> {
        let result = self
            .shared(mbarrier)?
            .mbarrier(mbarrier & 0xff_ffff)?
            .complete(bytes as i64);
        self.changes += 1;
        self.mbarrier_fault(mbarrier, result)
    }

    /// Lane by lane. Lanes that must wait are returned.
    pub fn mbarrier(&mut self, warp: &mut Warp, op: &Mbarrier, at: Address, space: Space, mask: u32) -> Step<u32> {
        let mut waiting = 0;
        for lane in lanes(mask) {
            let result = self.mbarrier_lane(warp, op, at, space, lane);
            if at_lane(result, lane)? {
                waiting |= 1 << lane;
            }
        }
        Ok(waiting)
    }

    fn mbarrier_lane(&mut self, warp: &mut Warp, op: &Mbarrier, at: Address, space: Space, lane: usize) -> Step<bool> {
        if let Mbarrier::PendingCount { d, state } = *op {
            let value = warp.get(state, lane) & 0xf_ffff;
            warp.set(d, lane, value);
            return Ok(false);
        }
        let address = self.mbarrier_address(warp, at, space, lane)?;
        let offset = address & 0xff_ffff;
        match *op {
            Mbarrier::Init { count } => {
                let count = warp.get(count, lane) as u32;
                if count == 0 || count as i64 > MOST {
                    return self.mbarrier_fault(address, Err(format!("a count of {count}")));
                }
                self.shared(address)?.init_mbarrier(offset, count)?;
            }
            Mbarrier::Inval => self.shared(address)?.forget_mbarrier(offset)?,
            Mbarrier::Arrive { d, count, expect, drop } => {
                let count = count.map_or(1, |r| warp.get(r, lane) as u32);
                let bytes = expect.map_or(0, |r| warp.get(r, lane) as u32);
                let state = self.shared(address)?.mbarrier(offset)?;
                let token = state.phase << 20 | state.pending as u64;
                let result = state.expect(bytes as i64).and_then(|()| state.arrive(count, drop));
                self.mbarrier_fault(address, result)?;
                if let Some(d) = d {
                    warp.set(d, lane, token);
                }
                self.changes += 1;
            }
            Mbarrier::ExpectTx { bytes } => {
                let bytes = warp.get(bytes, lane) as u32;
                let result = self.shared(address)?.mbarrier(offset)?.expect(bytes as i64);
                self.mbarrier_fault(address, result)?;
            }
            Mbarrier::CompleteTx { bytes } => {
                let bytes = warp.get(bytes, lane) as u32;
                self.complete_bytes(address, bytes)?;
            }
            Mbarrier::Wait {
                p,
                phase,
                parity,
                blocks,
            } => {
                let phase = warp.get(phase, lane);
                let state = self.shared(address)?.mbarrier(offset)?;
                let over = if parity {
                    state.passed(phase)
                } else {
                    state.phase != phase >> 20
                };
                if !over && blocks {
                    return Ok(true);
                }
                warp.set(p, lane, over as u64);
            }
            Mbarrier::CopyArrive { noinc } => {
                // Copies of this thread are done at the latest now: a legal and the simplest moment.
                self.finish_copies(warp, lane, None)?;
                let state = self.shared(address)?.mbarrier(offset)?;
                if !noinc {
                    state.pending += 1;
                }
                let result = state.arrive(1, false);
                self.mbarrier_fault(address, result)?;
                self.changes += 1;
            }
            Mbarrier::PendingCount { .. } => {}
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::State;

    #[test]
    fn a_phase_needs_arrivals_and_bytes_in_any_order() {
        let mut s = State::new(2);
        assert!(s.passed(1), "the phase before the first counts as over");
        s.complete(64).unwrap();
        s.arrive(1, false).unwrap();
        assert!(!s.passed(0));
        s.expect(64).unwrap();
        assert!(!s.passed(0));
        s.arrive(1, false).unwrap();
        assert!(s.passed(0) && !s.passed(1));
        assert_eq!(s.pending, 2);
    }

    #[test]
    fn too_many_arrivals_and_bytes_are_refused() {
        let mut s = State::new(1);
        assert!(s.clone().arrive(2, false).is_err());
        assert!(s.expect((1 << 20) - 1).is_ok());
        assert!(s.expect(1).is_err());
    }
}
