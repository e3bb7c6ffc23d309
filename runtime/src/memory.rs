//! Large zeroed memory straight from the system: huge pages where they help, aligned for vectors.

use crate::error::RuntimeError;

const HUGE: usize = 2 << 20;

/// Anonymous pages, zero at first; given back when dropped.
pub struct Memory {
    ptr: *mut u8,
    len: usize,
    mapped: usize,
    base: *mut u8,
}

// Plain bytes: who writes where is decided by the owner.
unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Memory {
    /// At least `len` bytes, aligned to 2 MiB if they are as many, else to a page.
    pub fn zeroed(len: usize) -> Result<Memory, RuntimeError> {
        let huge = len >= HUGE;
        let too_large = || RuntimeError::OutOfMemory { bytes: len };
        let mapped = len
            .max(1)
            .checked_add(if huge { 2 * HUGE } else { 4096 })
            .ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(too_large());
        }
        let base = base as *mut u8;
        let ptr = if huge {
            unsafe { base.add(base.align_offset(HUGE)) }
        } else {
            base
        };
        if huge {
            // Advice: without huge pages it is only slower.
            unsafe {
                libc::madvise(
                    ptr as *mut libc::c_void,
                    len.next_multiple_of(HUGE).min(mapped - (ptr as usize - base as usize)),
                    libc::MADV_HUGEPAGE,
                )
            };
        }
        Ok(Memory { ptr, len, mapped, base })
    }

    pub fn ptr(&self) -> *const u8 {
        self.ptr
    }

    pub fn mut_ptr(&self) -> *mut u8 {
        self.ptr
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.mapped) };
    }
}
