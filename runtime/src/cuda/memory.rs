//! Memory on the device, pinned memory beside it, and the states that live there. An allocation that fails tells what is held.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::driver::{Context, Held};
use crate::engine::sizes;
use crate::error::RuntimeError;
use crate::memory::Memory;

/// Slots, weights and states begin at multiples of this: tensor maps want 128 at most, and lines of the cache are 128.
pub const ALIGN: usize = 256;

/// Bytes on the device, at a multiple of `ALIGN`.
pub struct DeviceMemory {
    context: Arc<Context>,
    address: u64,
    len: usize,
    what: Held,
}

impl DeviceMemory {
    /// Not initialised.
    pub fn new(context: &Arc<Context>, len: usize, what: Held) -> Result<DeviceMemory, RuntimeError> {
        context.enter()?;
        // The driver refuses nothing at all.
        let len = len.max(ALIGN);
        let address = context.allocate(len).map_err(|failure| {
            if failure.is_out_of_memory() {
                out_of_memory(context, len, what)
            } else {
                failure.at(what.name())
            }
        })?;
        context.held[what as usize].fetch_add(len, Ordering::Relaxed);
        Ok(DeviceMemory {
            context: context.clone(),
            address,
            len,
            what,
        })
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.context.enter();
        let _ = self.context.free(self.address);
        self.context.held[self.what as usize].fetch_sub(self.len, Ordering::Relaxed);
    }
}

fn out_of_memory(context: &Context, len: usize, what: Held) -> RuntimeError {
    let shown = |n: usize| format!("{} MiB", n.div_ceil(1 << 20));
    let (free, total) = context.memory().unwrap_or((0, 0));
    let held = Held::ALL.map(|w| format!("{} {}", shown(context.held(w)), w.name()));
    RuntimeError::DeviceMemory {
        what: what.name(),
        wanted: shown(len),
        free: shown(free),
        total: shown(total),
        held: held.join(", "),
    }
}

/// Memory of the host that the device's copy engine reads and writes by itself.
pub struct Pinned {
    context: Arc<Context>,
    ptr: *mut u8,
    len: usize,
}

// Plain bytes: who writes where is decided by the owner.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(context: &Arc<Context>, len: usize) -> Result<Pinned, RuntimeError> {
        context.enter()?;
        let len = len.max(ALIGN);
        let ptr = context
            .pin(len)
            .map_err(|e| e.at(&format!("{len} bytes of pinned memory")))?;
        Ok(Pinned {
            context: context.clone(),
            ptr,
            len,
        })
    }

    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.enter();
        let _ = self.context.unpin(self.ptr);
    }
}

/// The buffers of an `engine::State`.
pub struct States {
    context: Arc<Context>,
    memory: DeviceMemory,
    offsets: Vec<usize>,
    lengths: Vec<usize>,
    /// No other states have this number: what graphs are found by.
    pub id: u64,
}

impl States {
    /// Zeros.
    pub fn new(context: &Arc<Context>, lengths: &[usize], id: u64) -> Result<States, RuntimeError> {
        let (offsets, len) =
            sizes::places(lengths.iter().copied(), ALIGN).ok_or(RuntimeError::OutOfMemory { bytes: usize::MAX })?;
        let memory = DeviceMemory::new(context, len, Held::States)?;
        context.zero(memory.address(), memory.len())?;
        context.wait()?;
        Ok(States {
            context: context.clone(),
            memory,
            offsets,
            lengths: lengths.to_vec(),
            id,
        })
    }

    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    pub fn address(&self, state: usize) -> u64 {
        self.memory.address() + self.offsets[state] as u64
    }

    /// Fills `to` from the state's byte `begin` on.
    pub fn read(&self, state: usize, begin: usize, to: &Memory) -> Result<(), RuntimeError> {
        let len = to.len().min(self.lengths[state].saturating_sub(begin));
        self.context.enter()?;
        unsafe {
            self.context
                .copy_back(to.mut_ptr(), self.address(state) + begin as u64, len)
        }?;
        Ok(self.context.wait()?)
    }

    /// From the state's byte `begin` on.
    pub fn write(&mut self, state: usize, begin: usize, bytes: &[u8]) -> Result<(), RuntimeError> {
        let len = bytes.len().min(self.lengths[state].saturating_sub(begin));
        self.context.enter()?;
        unsafe {
            self.context
                .copy_in(self.address(state) + begin as u64, bytes.as_ptr(), len)
        }?;
        Ok(self.context.wait()?)
    }
}
