//! The driver's functions that are used, each checked: here devices, contexts and memory; `module` has code and launches. Decides nothing.
//!
//! Everything goes through one stream of ours. Functions that are missing from a driver would end the process in `cudarc`, so `library`
//! asks first whether there is a driver, and one that is new enough.

use std::ffi::{CStr, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use crate::engine::device::Gpu;
use crate::error::RuntimeError;

/// CUDA 12.0: tensor maps and launches with attributes.
const OLDEST: i32 = 12000;

/// A call of the driver that failed.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    pub call: &'static str,
    pub code: CUresult,
}

impl Failure {
    /// `place`: what was being done, such as "kernel `x`".
    pub fn at(self, place: &str) -> RuntimeError {
        RuntimeError::Cuda(format!("{place}: {self}"))
    }

    pub fn is_out_of_memory(self) -> bool {
        self.code == CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |ask: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
            let mut text = std::ptr::null();
            let known = unsafe { ask(self.code, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
            match known {
                true => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
                false => format!("{:?}", self.code),
            }
        };
        let (name, meaning) = (text(sys::cuGetErrorName), text(sys::cuGetErrorString));
        write!(f, "{} failed with {name} ({meaning})", self.call)
    }
}

impl From<Failure> for RuntimeError {
    fn from(failure: Failure) -> RuntimeError {
        RuntimeError::Cuda(failure.to_string())
    }
}

/// `driver!(cuInit(0))`
macro_rules! driver {
    ($name:ident($($arg:expr),* $(,)?)) => {
        match unsafe { cudarc::driver::sys::$name($($arg),*) } {
            cudarc::driver::sys::CUresult::CUDA_SUCCESS => Ok(()),
            code => Err($crate::cuda::driver::Failure { call: stringify!($name), code }),
        }
    };
}
pub(super) use driver;

/// Opens the driver; its CUDA version.
fn library() -> Result<(u32, u32), RuntimeError> {
    if !unsafe { sys::is_culib_present() } {
        return Err(RuntimeError::Cuda(
            "this machine has no NVIDIA driver (libcuda.so.1 is not found)".to_string(),
        ));
    }
    let mut version = 0;
    driver!(cuDriverGetVersion(&mut version))?;
    let pair = (version as u32 / 1000, version as u32 % 1000 / 10);
    if version < OLDEST {
        return Err(RuntimeError::Cuda(format!(
            "the driver goes up to CUDA {}.{}, and 12.0 is needed; install driver 525 or a newer one",
            pair.0, pair.1
        )));
    }
    match driver!(cuInit(0)) {
        Err(f) if f.code == CUresult::CUDA_ERROR_NO_DEVICE => Err(RuntimeError::Cuda(
            "the driver sees no GPU (CUDA_ERROR_NO_DEVICE); is one hidden by CUDA_VISIBLE_DEVICES?".to_string(),
        )),
        other => other.map(|()| pair).map_err(RuntimeError::from),
    }
}

/// See `engine::device::gpus`.
pub fn gpus() -> Result<Vec<Gpu>, RuntimeError> {
    let driver = library()?;
    let mut count = 0;
    driver!(cuDeviceGetCount(&mut count))?;
    let mut all = vec![];
    for number in 0..count {
        let mut device = 0;
        driver!(cuDeviceGet(&mut device, number))?;
        let mut name = [0 as std::ffi::c_char; 256];
        driver!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device))?;
        let mut memory = 0;
        driver!(cuDeviceTotalMem_v2(&mut memory, device))?;
        all.push(Gpu {
            name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
            memory,
            capability: (
                attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            driver,
        });
    }
    Ok(all)
}

fn attribute(device: sys::CUdevice, which: Attribute) -> Result<u32, Failure> {
    let mut value = 0;
    driver!(cuDeviceGetAttribute(&mut value, which, device))?;
    Ok(value as u32)
}

/// What memory is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Weights,
    States,
    /// Arena, workspaces, inputs and outputs.
    Work,
}

impl Held {
    pub const ALL: [Held; 3] = [Held::Weights, Held::States, Held::Work];

    pub fn name(self) -> &'static str {
        match self {
            Held::Weights => "weights",
            Held::States => "states",
            Held::Work => "working memory",
        }
    }
}

/// The device's primary context, and our stream in it.
pub struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    pub stream: sys::CUstream,
    pub multiprocessors: u32,
    pub name: String,
    /// Bytes, by `Held`.
    pub held: [AtomicUsize; 3],
}

// Handles of the driver, which any thread may use once it has made the context its own (`enter`).
unsafe impl Send for Context {}
unsafe impl Sync for Context {}

impl Context {
    pub fn open(number: u32) -> Result<Arc<Context>, RuntimeError> {
        let gpu = crate::engine::device::gpu(number)?;
        let mut device = 0;
        driver!(cuDeviceGet(&mut device, number as i32))?;
        let mut raw = std::ptr::null_mut();
        driver!(cuDevicePrimaryCtxRetain(&mut raw, device)).map_err(|e| e.at(&gpu.name))?;
        let mut context = Context {
            device,
            raw,
            stream: std::ptr::null_mut(),
            multiprocessors: gpu.multiprocessors,
            name: gpu.name,
            held: Default::default(),
        };
        context.enter()?;
        let apart = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        driver!(cuStreamCreate(&mut context.stream, apart))?;
        Ok(Arc::new(context))
    }

    /// Makes it the calling thread's: needed before anything else of the driver.
    pub fn enter(&self) -> Result<(), Failure> {
        driver!(cuCtxSetCurrent(self.raw))
    }

    /// Until all that was asked of the stream is done.
    pub fn wait(&self) -> Result<(), Failure> {
        driver!(cuStreamSynchronize(self.stream))
    }

    /// Bytes of the device that are free, and all of them.
    pub fn memory(&self) -> Result<(usize, usize), Failure> {
        let (mut free, mut total) = (0, 0);
        driver!(cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free, total))
    }

    pub fn held(&self, what: Held) -> usize {
        self.held[what as usize].load(Ordering::Relaxed)
    }

    // Memory: the owners are in `memory`.

    pub fn allocate(&self, len: usize) -> Result<u64, Failure> {
        let mut address = 0;
        driver!(cuMemAlloc_v2(&mut address, len))?;
        Ok(address)
    }

    pub fn free(&self, address: u64) -> Result<(), Failure> {
        driver!(cuMemFree_v2(address))
    }

    pub fn pin(&self, len: usize) -> Result<*mut u8, Failure> {
        let mut ptr = std::ptr::null_mut();
        driver!(cuMemHostAlloc(&mut ptr, len, 0))?;
        Ok(ptr as *mut u8)
    }

    pub fn unpin(&self, ptr: *mut u8) -> Result<(), Failure> {
        driver!(cuMemFreeHost(ptr as *mut c_void))
    }

    pub fn zero(&self, to: u64, len: usize) -> Result<(), Failure> {
        driver!(cuMemsetD8Async(to, 0, len, self.stream))
    }

    /// The source must stay as it is until the stream has come there; so for `copy_back`'s target.
    pub unsafe fn copy_in(&self, to: u64, from: *const u8, len: usize) -> Result<(), Failure> {
        driver!(cuMemcpyHtoDAsync_v2(to, from as *const c_void, len, self.stream))
    }

    pub unsafe fn copy_back(&self, to: *mut u8, from: u64, len: usize) -> Result<(), Failure> {
        driver!(cuMemcpyDtoHAsync_v2(to as *mut c_void, from, len, self.stream))
    }

    pub fn copy(&self, to: u64, from: u64, len: usize) -> Result<(), Failure> {
        driver!(cuMemcpyDtoDAsync_v2(to, from, len, self.stream))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // What fails here has failed before, and was told then.
        let _ = self.enter();
        if !self.stream.is_null() {
            let _ = driver!(cuStreamDestroy_v2(self.stream));
        }
        let _ = driver!(cuDevicePrimaryCtxRelease_v2(self.device));
    }
}
