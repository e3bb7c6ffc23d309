//! Memory of the device and of the host, and copies between them.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};

use ptx::Machine;

use crate::{Code, INVALID_VALUE, OUT_OF_MEMORY, SUCCESS, state};

/// Of the device.
pub const SIZE: usize = 8 << 30;

#[derive(Default)]
pub struct Memory {
    pub machine: Machine,
    /// Bytes at each address that is in use.
    used: HashMap<u64, usize>,
    /// Addresses by their bytes: the evaluator takes none back.
    free: HashMap<usize, Vec<u64>>,
}

impl Memory {
    fn allocate(&mut self, bytes: usize) -> Option<u64> {
        if self.used.values().sum::<usize>() + bytes > SIZE {
            return None;
        }
        let again = self.free.get_mut(&bytes).and_then(Vec::pop);
        let at = again.unwrap_or_else(|| self.machine.alloc(bytes as u64));
        // Not initialised: a NaN to whoever believes otherwise.
        self.machine.write(at, &vec![0xff; bytes]).ok()?;
        self.used.insert(at, bytes);
        Some(at)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    let used: usize = state().memory.used.values().sum();
    unsafe { (*free, *total) = (SIZE - used, SIZE) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    match state().memory.allocate(bytes) {
        Some(at) => {
            unsafe { *address = at };
            SUCCESS
        }
        None => OUT_OF_MEMORY,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Code {
    let memory = &mut state().memory;
    match memory.used.remove(&address) {
        Some(bytes) => {
            memory.free.entry(bytes).or_default().push(address);
            SUCCESS
        }
        None => INVALID_VALUE,
    }
}

/// In front of pinned memory lies its length.
const HEAD: usize = 256;

fn layout(bytes: usize) -> Option<std::alloc::Layout> {
    std::alloc::Layout::from_size_align(bytes + HEAD, HEAD).ok()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, _: c_uint) -> Code {
    let Some(layout) = layout(bytes) else {
        return OUT_OF_MEMORY;
    };
    unsafe {
        let base = std::alloc::alloc(layout);
        if base.is_null() {
            return OUT_OF_MEMORY;
        }
        base.cast::<usize>().write(bytes);
        *out = base.add(HEAD).cast();
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(at: *mut c_void) -> Code {
    unsafe {
        let base = at.cast::<u8>().sub(HEAD);
        if let Some(layout) = layout(base.cast::<usize>().read()) {
            std::alloc::dealloc(base, layout);
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, _: usize) -> Code {
    let mut state = state();
    let done = state.memory.machine.write(to, &vec![value; bytes]);
    state.moved(done)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _: usize) -> Code {
    let mut state = state();
    let from = unsafe { std::slice::from_raw_parts(from.cast(), bytes) };
    let done = state.memory.machine.write(to, from);
    state.moved(done)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, _: usize) -> Code {
    let mut state = state();
    let done = state.memory.machine.read(from, bytes as u64);
    let done = done.map(|data| unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.cast(), bytes) });
    state.moved(done)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _: usize) -> Code {
    let mut state = state();
    let data = state.memory.machine.read(from, bytes as u64);
    let done = data.and_then(|data| state.memory.machine.write(to, &data));
    state.moved(done)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    out: *mut [u8; 128],
    dtype: c_uint,
    rank: c_uint,
    address: u64,
    dims: *const u64,
    strides: *const u64,
    sides: *const c_uint,
    _steps: *const c_uint,
    interleave: c_int,
    swizzle: c_uint,
    _promotion: c_uint,
    fill: c_int,
) -> Code {
    use ptx::{Element, Swizzle};
    let rank = rank as usize;
    let elements = [
        Element::U8,
        Element::U16,
        Element::U32,
        Element::S32,
        Element::U64,
        Element::S64,
        Element::F16,
        Element::F32,
        Element::F64,
        Element::BF16,
    ];
    let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
    let (Some(element), Some(swizzle)) = (elements.get(dtype as usize), swizzles.get(swizzle as usize)) else {
        return INVALID_VALUE;
    };
    if rank == 0 || interleave != 0 || fill != 0 {
        return INVALID_VALUE;
    }
    let map = unsafe {
        ptx::TensorMap {
            address,
            element: *element,
            dims: std::slice::from_raw_parts(dims, rank).to_vec(),
            strides: std::slice::from_raw_parts(strides, rank - 1).to_vec(),
            box_dims: std::slice::from_raw_parts(sides, rank).to_vec(),
            swizzle: *swizzle,
        }
    };
    match map.check() {
        Ok(()) => {
            unsafe { out.write(map.encode()) };
            SUCCESS
        }
        Err(why) => {
            eprintln!("cuTensorMapEncodeTiled: {why}");
            INVALID_VALUE
        }
    }
}
