//! Global memory: allocations far apart, so that an access outside one is a fault, and windows that tell generic addresses apart.

use crate::fault::{FaultKind, Place, Step};

/// Generic addresses of shared memory: the window and a 32-bit shared address.
pub const SHARED_WINDOW: u64 = 1 << 40;
pub const LOCAL_WINDOW: u64 = 2 << 40;
pub const PARAM_WINDOW: u64 = 3 << 40;
pub const GLOBAL_WINDOW: u64 = 1 << 44;
/// Addresses per allocation.
const SPAN: u32 = 34;

struct Allocation {
    /// 256 bytes times an odd number: aligned like what a driver gives, and not better by accident.
    base: u64,
    bytes: Vec<u8>,
    /// One flag per byte, if reads of what was never written are to be found.
    written: Vec<bool>,
}

#[derive(Default)]
pub struct Memory {
    allocations: Vec<Allocation>,
    pub tracks_writes: bool,
}

impl Memory {
    pub fn alloc(&mut self, bytes: u64) -> u64 {
        let n = self.allocations.len() as u64;
        let base = GLOBAL_WINDOW + (n << SPAN) + 256 * (2 * (n % 64) + 17);
        let flags = if self.tracks_writes { bytes as usize } else { 0 };
        self.allocations.push(Allocation {
            base,
            bytes: vec![0; bytes as usize],
            written: vec![false; flags],
        });
        base
    }

    fn find(&self, address: u64, bytes: u64) -> Step<(usize, usize)> {
        let n = (address.wrapping_sub(GLOBAL_WINDOW) >> SPAN) as usize;
        let Some(a) = self.allocations.get(n).filter(|_| address >= GLOBAL_WINDOW) else {
            return Err(FaultKind::OutOfBounds {
                address: Place::Unmapped(address),
                bytes,
                what: "every allocation".to_owned(),
            }
            .into());
        };
        let offset = address.wrapping_sub(a.base);
        if address < a.base || offset + bytes > a.bytes.len() as u64 {
            return Err(FaultKind::OutOfBounds {
                address: Place::Global(address),
                bytes,
                what: format!(
                    "allocation {n} of {} bytes at {:#x} (offset {})",
                    a.bytes.len(),
                    a.base,
                    offset as i64
                ),
            }
            .into());
        }
        Ok((n, offset as usize))
    }

    pub fn read(&self, address: u64, bytes: u64) -> Step<&[u8]> {
        let (n, at) = self.find(address, bytes)?;
        let a = &self.allocations[n];
        let range = at..at + bytes as usize;
        if let Some(flags) = a.written.get(range.clone())
            && let Some(first) = flags.iter().position(|w| !w)
        {
            return Err(FaultKind::Unwritten {
                address: Place::Global(address),
                bytes,
                first: first as u64,
            }
            .into());
        }
        Ok(&a.bytes[range])
    }

    /// The bytes to be overwritten.
    pub fn write(&mut self, address: u64, bytes: u64) -> Step<&mut [u8]> {
        let (n, at) = self.find(address, bytes)?;
        let a = &mut self.allocations[n];
        let range = at..at + bytes as usize;
        if let Some(flags) = a.written.get_mut(range.clone()) {
            flags.fill(true);
        }
        Ok(&mut a.bytes[range])
    }
}
