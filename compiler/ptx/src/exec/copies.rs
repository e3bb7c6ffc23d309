//! `cp.async`: copies of threads into shared memory, waited for by groups or through mbarriers.

use super::bulk::wrong;
use super::*;
use crate::op::CopyAsync;

/// One `cp.async`.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    to: u32,
    from: u64,
    bytes: u32,
    source: u32,
    warp: usize,
    pc: u32,
}

impl Machinery<'_> {
    pub fn copy_async(&mut self, warp: &mut Warp, op: &CopyAsync, mask: u32, pc: u32) -> Step<()> {
        for lane in lanes(mask) {
            let result = match op {
                CopyAsync::Copy {
                    to,
                    from,
                    bytes,
                    source,
                    ignore,
                } => {
                    let bytes = *bytes as u32;
                    let mut taken = source.map_or(bytes, |r| warp.get(r, lane) as u32);
                    if ignore.is_some_and(|r| warp.get(r, lane) != 0) {
                        taken = 0;
                    }
                    let copy = Copy {
                        to: warp.address(*to, lane) as u32,
                        from: warp.address(*from, lane),
                        bytes,
                        source: taken,
                        warp: self.number(warp),
                        pc,
                    };
                    if taken > bytes {
                        wrong(format!("{taken} bytes to read for a copy of {bytes}"))
                    } else if !copy.to.is_multiple_of(bytes) || !copy.from.is_multiple_of(bytes as u64) {
                        wrong(format!(
                            "{bytes} bytes from {:#x} to {:#x}: not aligned",
                            copy.from, copy.to
                        ))
                    } else if self.timing == Timing::Eager {
                        self.copy_now(copy)
                    } else {
                        warp.copies.push_back((lane as u8, warp.copy_groups[lane], copy));
                        Ok(())
                    }
                }
                CopyAsync::Commit => {
                    warp.copy_groups[lane] += 1;
                    Ok(())
                }
                CopyAsync::Wait { pending } => {
                    let done = pending.map(|n| warp.copy_groups[lane].saturating_sub(n as u64));
                    self.finish_copies(warp, lane, done)
                }
            };
            at_lane(result, lane)?;
        }
        Ok(())
    }

    /// Copies of the lane's groups before `done`; all of them without it.
    pub fn finish_copies(&mut self, warp: &mut Warp, lane: usize, done: Option<u64>) -> Step<()> {
        let mut i = 0;
        while i < warp.copies.len() {
            let (owner, group, copy) = warp.copies[i];
            if owner as usize != lane || done.is_some_and(|d| group >= d) {
                i += 1;
            } else {
                warp.copies.remove(i);
                self.copy_now(copy)?;
            }
        }
        Ok(())
    }

    fn copy_now(&mut self, copy: Copy) -> Step<()> {
        let mut data = [0; 16];
        // Nothing is read of a copy that is all zeros: its source may be anywhere.
        if copy.source > 0 {
            let from = self.memory.read(copy.from, copy.source as u64)?;
            data[..copy.source as usize].copy_from_slice(from);
        }
        self.touch(Agent::Warp(copy.warp), copy.to, copy.bytes, true, copy.pc)?;
        let to = self.shared(copy.to)?.write(copy.to & 0xff_ffff, copy.bytes)?;
        to.copy_from_slice(&data[..copy.bytes as usize]);
        Ok(())
    }
}
