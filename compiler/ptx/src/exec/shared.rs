//! A block's shared memory, with what is known of each byte, and the mbarriers in it.

use std::collections::BTreeMap;

use super::mbarrier::State;
use crate::fault::{FaultKind, Place, Step};

/// Shared memory that the system keeps, at the front: address 0 is never valid.
pub const RESERVED: u32 = 1024;
/// Most that one block may have.
pub const LIMIT: u32 = 227 * 1024;

const WRITTEN: u8 = 1;
const MBARRIER: u8 = 2;

pub struct Shared {
    rank: u32,
    bytes: Vec<u8>,
    /// Flags per byte.
    known: Vec<u8>,
    /// By address.
    pub mbarriers: BTreeMap<u32, State>,
    checks_reads: bool,
}

impl Shared {
    pub fn new(rank: u32, bytes: u32, checks_reads: bool) -> Shared {
        Shared {
            rank,
            bytes: vec![0; bytes as usize],
            known: vec![0; bytes as usize],
            mbarriers: BTreeMap::new(),
            checks_reads,
        }
    }

    pub fn place(&self, address: u32) -> Place {
        Place::Shared(self.rank, address)
    }

    fn range(&self, address: u32, bytes: u32) -> Step<std::ops::Range<usize>> {
        let start = address.wrapping_sub(RESERVED) as usize;
        if address < RESERVED || start + bytes as usize > self.bytes.len() {
            return Err(FaultKind::OutOfBounds {
                address: self.place(address),
                bytes: bytes as u64,
                what: format!("the block's {} bytes at {RESERVED:#x}", self.bytes.len()),
            }
            .into());
        }
        Ok(start..start + bytes as usize)
    }

    fn ordinary(&self, address: u32, flags: &[u8]) -> Step<()> {
        if flags.iter().any(|f| f & MBARRIER != 0) {
            return Err(FaultKind::Mbarrier {
                address: self.place(address),
                what: "an ordinary access to an mbarrier".to_owned(),
            }
            .into());
        }
        Ok(())
    }

    pub fn read(&self, address: u32, bytes: u32) -> Step<&[u8]> {
        let range = self.range(address, bytes)?;
        let flags = &self.known[range.clone()];
        if flags.iter().any(|f| *f != WRITTEN) {
            self.ordinary(address, flags)?;
            if let Some(first) = flags.iter().position(|f| f & WRITTEN == 0)
                && self.checks_reads
            {
                return Err(FaultKind::Unwritten {
                    address: self.place(address),
                    bytes: bytes as u64,
                    first: first as u64,
                }
                .into());
            }
        }
        Ok(&self.bytes[range])
    }

    /// The bytes to be overwritten.
    pub fn write(&mut self, address: u32, bytes: u32) -> Step<&mut [u8]> {
        let range = self.range(address, bytes)?;
        self.ordinary(address, &self.known[range.clone()])?;
        self.known[range.clone()].fill(WRITTEN);
        Ok(&mut self.bytes[range])
    }

    pub fn init_mbarrier(&mut self, address: u32, count: u32) -> Step<()> {
        let range = self.range(address, 8)?;
        self.known[range].fill(MBARRIER);
        self.mbarriers.insert(address, State::new(count));
        Ok(())
    }

    /// After this the bytes hold nothing.
    pub fn forget_mbarrier(&mut self, address: u32) -> Step<()> {
        self.mbarrier(address)?;
        let range = self.range(address, 8)?;
        self.known[range].fill(0);
        self.mbarriers.remove(&address);
        Ok(())
    }

    pub fn mbarrier(&mut self, address: u32) -> Step<&mut State> {
        let place = self.place(address);
        self.mbarriers.get_mut(&address).ok_or_else(|| {
            FaultKind::Mbarrier {
                address: place,
                what: "there is none (no init, or after inval)".to_owned(),
            }
            .into()
        })
    }
}
