//! NVIDIA's driver as far as `runtime` uses it, with the PTX evaluator as its GPU: a Hopper with 132 multiprocessors, slow and strict.
//!
//! Built as a shared library and found as `libcuda.so.1` (tests/gpu/emulate.sh), it runs whole models without a GPU. What the evaluator
//! finds wrong in a kernel is the text of the error that follows. Everything happens when it is asked for; what is recorded happens when
//! its graph is launched. It does not judge how the driver is used: runtime/tests/cuda/driver.c does.

#![allow(non_snake_case, clippy::missing_safety_doc)]

mod code;
mod memory;

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use self::code::Work;
use self::memory::Memory;

/// A `CUresult`.
type Code = u32;

const SUCCESS: Code = 0;
const INVALID_VALUE: Code = 1;
const OUT_OF_MEMORY: Code = 2;
const INVALID_PTX: Code = 218;
const NOT_FOUND: Code = 500;
const ILLEGAL_ADDRESS: Code = 700;

#[derive(Default)]
struct State {
    memory: Memory,
    /// What is being recorded, if something is.
    recorded: Option<Vec<Work>>,
    /// The first fault: every call that runs something fails with it from then on, as on a GPU.
    fault: Option<CString>,
    events: HashMap<usize, Instant>,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(|p| p.into_inner())
}

impl State {
    fn result(&self) -> Code {
        if self.fault.is_some() { ILLEGAL_ADDRESS } else { SUCCESS }
    }

    /// Now, or when the graph is launched that it is recorded for.
    fn ask(&mut self, work: Work) -> Code {
        match &mut self.recorded {
            Some(all) => all.push(work),
            None => self.run(&work),
        }
        self.result()
    }

    fn run(&mut self, work: &Work) {
        if self.fault.is_some() {
            return;
        }
        match work {
            Work::Event(event) => drop(self.events.insert(*event, Instant::now())),
            Work::Launch(launch) => {
                if let Err(fault) = launch.run(&mut self.memory.machine) {
                    self.fault = CString::new(fault.to_string().replace('\0', " ")).ok();
                }
            }
        }
    }

    /// Of copies, which are never recorded here.
    fn moved(&mut self, done: Result<(), Box<ptx::Fault>>) -> Code {
        if let Err(fault) = done {
            self.fault = CString::new(format!("a copy: {fault}")).ok();
        }
        self.result()
    }
}

// Devices and contexts: one, and it is always there.

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: c_uint) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    unsafe { *version = 12040 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    unsafe { *count = 1 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, number: c_int) -> Code {
    unsafe { *device = number };
    if number == 0 { SUCCESS } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, _: c_int) -> Code {
    let text = c"evaluated PTX".to_bytes_with_nul();
    let n = text.len().min(len as usize);
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, n) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _: c_int) -> Code {
    unsafe { *bytes = memory::SIZE };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _: c_int) -> Code {
    // Multiprocessors, and the compute capability's two numbers.
    let known = match attribute {
        16 => 132,
        75 => 9,
        76 => 0,
        _ => return INVALID_VALUE,
    };
    unsafe { *value = known };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: Code, name: *mut *const c_char) -> Code {
    let text = match code {
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        _ => c"CUDA_ERROR_INVALID_VALUE",
    };
    unsafe { *name = text.as_ptr() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: Code, text: *mut *const c_char) -> Code {
    let state = state();
    // The fault stays as it is for the process's life.
    let known = state.fault.as_ref().filter(|_| code == ILLEGAL_ADDRESS);
    unsafe { *text = known.map_or(c"see the evaluator".as_ptr(), |f| f.as_ptr()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, _: c_int) -> Code {
    unsafe { *context = 1 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_: c_int) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(_: usize) -> Code {
    SUCCESS
}

// Streams and events: what is asked for has happened.

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut usize, _: c_uint) -> Code {
    unsafe { *stream = 1 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(_: usize) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(_: usize) -> Code {
    state().result()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut usize, _: c_uint) -> Code {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
    unsafe { *event = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> Code {
    state().events.remove(&event);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: usize, _: usize) -> Code {
    state().ask(Work::Event(event))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecordWithFlags(event: usize, _: usize, _: c_uint) -> Code {
    state().ask(Work::Event(event))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(_: usize) -> Code {
    state().result()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, from: usize, to: usize) -> Code {
    let state = state();
    let (Some(from), Some(to)) = (state.events.get(&from), state.events.get(&to)) else {
        return INVALID_VALUE;
    };
    unsafe { *milliseconds = 1e3 * to.saturating_duration_since(*from).as_secs_f32() };
    SUCCESS
}

// Graphs.

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(_: usize, _: c_uint) -> Code {
    state().recorded = Some(vec![]);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(_: usize, graph: *mut *mut Vec<Work>) -> Code {
    let recorded = state().recorded.take().unwrap_or_default();
    unsafe { *graph = Box::into_raw(Box::new(recorded)) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(exec: *mut *mut Vec<Work>, graph: *mut Vec<Work>, _: u64) -> Code {
    unsafe { *exec = Box::into_raw(Box::new((*graph).clone())) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: *mut Vec<Work>) -> Code {
    drop(unsafe { Box::from_raw(graph) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(exec: *mut Vec<Work>) -> Code {
    drop(unsafe { Box::from_raw(exec) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(exec: *mut Vec<Work>, _: usize) -> Code {
    let mut state = state();
    for work in unsafe { &*exec } {
        state.run(work);
    }
    state.result()
}

/// A function's attributes are not looked at: the evaluator has its own limits.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(_: *mut c_void, _: c_int, _: c_int) -> Code {
    SUCCESS
}
