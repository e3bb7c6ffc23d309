//! Loads, stores and atomics of lanes.

use super::*;
use crate::lane::Lane;
use crate::lane::float::{self, Flags};
use crate::lane::int;
use crate::memory::{GLOBAL_WINDOW, LOCAL_WINDOW, PARAM_WINDOW};
use crate::op::{Access, Atomic, AtomicOp, Space};
use crate::types::Type;

/// An address whose space is known.
#[derive(Clone, Copy, Debug)]
pub enum At {
    Global(u64),
    Shared(u32),
    Local(usize),
    Param(usize),
}

/// Finds the space of an address; vectors and elements must be aligned to their whole size.
fn locate(space: Space, address: u64, bytes: u64) -> Step<At> {
    let window = |w: u64| address >> 32 == w >> 32;
    let at = match space {
        Space::Global => At::Global(address),
        Space::Shared => At::Shared(address as u32),
        Space::Local => At::Local(address as usize),
        Space::Param => At::Param(address as usize),
        Space::Generic if window(SHARED_WINDOW) => At::Shared(address as u32),
        Space::Generic if window(LOCAL_WINDOW) => At::Local(address as u32 as usize),
        Space::Generic if window(PARAM_WINDOW) => At::Param(address as u32 as usize),
        Space::Generic => At::Global(address),
    };
    if !address.is_multiple_of(bytes) {
        return Err(FaultKind::Misaligned {
            address: at.place(),
            bytes,
            align: bytes,
        }
        .into());
    }
    Ok(at)
}

impl At {
    pub fn place(self) -> Place {
        match self {
            At::Global(a) if a >= GLOBAL_WINDOW => Place::Global(a),
            At::Global(a) => Place::Unmapped(a),
            At::Shared(a) => Place::Shared(a >> 24, a & 0xff_ffff),
            At::Local(a) => Place::Local(a as u64),
            At::Param(a) => Place::Param(a as u64),
        }
    }
}

fn outside(at: At, bytes: u64, what: &str) -> Box<crate::fault::Problem> {
    FaultKind::OutOfBounds {
        address: at.place(),
        bytes,
        what: what.to_owned(),
    }
    .into()
}

fn little(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

impl Machinery<'_> {
    /// The bytes at an address, to read. `own` is the lane's memory.
    pub fn bytes<'s>(&'s self, warp: &'s Warp, lane: usize, at: At, bytes: u64) -> Step<&'s [u8]> {
        match at {
            At::Global(a) => self.memory.read(a, bytes),
            At::Shared(a) => match self.blocks.get((a >> 24) as usize) {
                Some(b) => b.shared.read(a & 0xff_ffff, bytes as u32),
                None => Err(outside(at, bytes, "the cluster's blocks")),
            },
            At::Local(a) => {
                let size = self.code.local_bytes as usize;
                if a < 16 || a + bytes as usize > size {
                    return Err(outside(at, bytes, "the thread's own memory"));
                }
                Ok(&warp.local[lane * size + a..][..bytes as usize])
            }
            At::Param(a) => match self.parameters.get(a..a + bytes as usize) {
                Some(found) => Ok(found),
                None => Err(outside(at, bytes, "the kernel's parameters")),
            },
        }
    }

    fn bytes_mut<'s>(&'s mut self, warp: &'s mut Warp, lane: usize, at: At, bytes: u64) -> Step<&'s mut [u8]> {
        match at {
            At::Global(a) => self.memory.write(a, bytes),
            At::Shared(a) => self.shared(a)?.write(a & 0xff_ffff, bytes as u32),
            At::Local(a) => {
                let size = self.code.local_bytes as usize;
                if a < 16 || a + bytes as usize > size {
                    return Err(outside(at, bytes, "the thread's own memory"));
                }
                Ok(&mut warp.local[lane * size + a..][..bytes as usize])
            }
            At::Param(_) => Err(outside(at, bytes, "what may be written")),
        }
    }

    pub fn load(&self, warp: &mut Warp, access: &Access, mask: u32) -> Step<()> {
        lanes(mask).try_for_each(|lane| at_lane(self.load_lane(warp, access, lane), lane))
    }

    fn load_lane(&self, warp: &mut Warp, access: &Access, lane: usize) -> Step<()> {
        let each = access.bytes as usize;
        let total = (each * access.regs.len()) as u64;
        let at = locate(access.space, warp.address(access.at, lane), total)?;
        let mut buffer = [0; 64];
        buffer[..total as usize].copy_from_slice(self.bytes(warp, lane, at, total)?);
        for (chunk, &r) in buffer[..total as usize].chunks_exact(each).zip(&access.regs) {
            let bits = little(chunk);
            let unused = 64 - 8 * each as u32;
            let value = if access.signed {
                ((bits << unused) as i64 >> unused) as u64
            } else {
                bits
            };
            warp.set(r, lane, value);
        }
        Ok(())
    }

    pub fn store(&mut self, warp: &mut Warp, access: &Access, mask: u32) -> Step<()> {
        self.changes += (access.space != Space::Local) as u64;
        lanes(mask).try_for_each(|lane| at_lane(self.store_lane(warp, access, lane), lane))
    }

    fn store_lane(&mut self, warp: &mut Warp, access: &Access, lane: usize) -> Step<()> {
        let each = access.bytes as usize;
        let total = each * access.regs.len();
        let at = locate(access.space, warp.address(access.at, lane), total as u64)?;
        let mut buffer = [0; 64];
        for (chunk, &r) in buffer.chunks_exact_mut(each).zip(&access.regs) {
            chunk.copy_from_slice(&warp.get(r, lane).to_le_bytes()[..each]);
        }
        self.bytes_mut(warp, lane, at, total as u64)?
            .copy_from_slice(&buffer[..total]);
        Ok(())
    }

    pub fn atomic(&mut self, warp: &mut Warp, op: &Atomic, mask: u32) -> Step<()> {
        lanes(mask).try_for_each(|lane| at_lane(self.atomic_lane(warp, op, lane), lane))
    }

    fn atomic_lane(&mut self, warp: &mut Warp, op: &Atomic, lane: usize) -> Step<()> {
        let each = (op.ty.bits() / 8) as usize;
        let total = (each * op.a.len()) as u64;
        let at = locate(op.space, warp.address(op.at, lane), total)?;
        for (i, &a) in op.a.iter().enumerate() {
            let at = match at {
                At::Global(g) => At::Global(g + (i * each) as u64),
                At::Shared(s) => At::Shared(s + (i * each) as u32),
                At::Local(_) | At::Param(_) => return Err(outside(at, total, "what atomics may change")),
            };
            let old = little(self.bytes(warp, lane, at, each as u64)?);
            let new = combine(op.op, op.ty, old, warp.get(a, lane), warp.get(op.b, lane))?;
            let mask = if each == 8 { u64::MAX } else { (1 << (8 * each)) - 1 };
            self.changes += (old != new & mask) as u64;
            self.bytes_mut(warp, lane, at, each as u64)?
                .copy_from_slice(&new.to_le_bytes()[..each]);
            if let Some(d) = &op.d {
                warp.set(d[i], lane, old);
            }
        }
        Ok(())
    }

    pub fn copy_local(&mut self, warp: &mut Warp, from: u32, to: u32, bytes: u32, mask: u32) {
        let size = self.code.local_bytes as usize;
        for lane in lanes(mask) {
            let start = lane * size + from as usize;
            warp.local
                .copy_within(start..start + bytes as usize, lane * size + to as usize);
        }
    }
}

/// The new value of memory that holds `old`.
pub fn combine(op: AtomicOp, ty: Type, old: u64, a: u64, b: u64) -> Step<u64> {
    let unsupported = || FaultKind::Unsupported(format!("atomic {op:?} of {ty:?}")).into();
    let lane = match op {
        AtomicOp::Exch => return Ok(a),
        AtomicOp::Cas => {
            let read = int::widen(ty).ok_or_else(unsupported)?;
            return Ok(if read(old) == read(a) { b } else { old });
        }
        AtomicOp::And => return Ok(old & a),
        AtomicOp::Or => return Ok(old | a),
        AtomicOp::Xor => return Ok(old ^ a),
        AtomicOp::Inc => return Ok(if old as u32 >= a as u32 { 0 } else { old + 1 }),
        AtomicOp::Dec => {
            let stays = old as u32 == 0 || old as u32 > a as u32;
            return Ok(if stays { a as u32 as u64 } else { old - 1 });
        }
        AtomicOp::Add => ("add", ty),
        AtomicOp::Min => ("min", ty),
        AtomicOp::Max => ("max", ty),
    };
    let f = if ty.float() {
        float::arithmetic(lane.0, ty, Flags::default())
    } else {
        int::arithmetic(lane.0, "", ty)
    };
    let Some(Lane::Two(f)) = f else {
        return Err(unsupported());
    };
    Ok(match ty.half() {
        Some(half) => {
            let bits = half.bits();
            let mask = (1 << bits) - 1;
            f(old & mask, a & mask) & mask | f(old >> bits, a >> bits) << bits
        }
        None => f(old, a),
    })
}
