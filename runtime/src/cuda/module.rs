//! Code on the device: modules from PTX, launches, graphs of launches, events, tensor maps. As `driver`, it decides nothing.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Context, Failure, driver};
use super::geometry::MapValue;
use crate::artefact::DType;
use crate::error::RuntimeError;

/// A function of a module.
#[derive(Clone, Copy)]
pub struct Function(sys::CUfunction);

unsafe impl Send for Function {}
unsafe impl Sync for Function {}

/// Machine code that the driver made from PTX.
pub struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
}

unsafe impl Send for Module {}
unsafe impl Sync for Module {}

impl Module {
    /// The driver keeps what it assembled in a cache of its own. Its complaints are in the error.
    pub fn load(context: &Arc<Context>, ptx: &[u8]) -> Result<Module, RuntimeError> {
        context.enter()?;
        let text = CString::new(ptx).map_err(|_| RuntimeError::Code("its PTX holds a zero byte".to_string()))?;
        let mut log = vec![0u8; 1 << 14];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values = [log.as_mut_ptr() as *mut c_void, log.len() as *mut c_void];
        let mut raw = std::ptr::null_mut();
        driver!(cuModuleLoadDataEx(
            &mut raw,
            text.as_ptr() as *const c_void,
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr()
        ))
        .map_err(|e| {
            let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]);
            RuntimeError::Code(format!("the driver does not take its PTX: {e}: {}", log.trim()))
        })?;
        Ok(Module {
            context: context.clone(),
            raw,
        })
    }

    /// `shared`: the dynamic shared memory that it is launched with; more than 48 KB must be asked for.
    pub fn function(&self, name: &str, shared: u32, cluster: u32) -> Result<Function, RuntimeError> {
        let absent = |_| RuntimeError::Code(format!("it has no function `{name}`"));
        let symbol =
            CString::new(name).map_err(|_| RuntimeError::Code("a function's name holds a zero byte".into()))?;
        let mut raw = std::ptr::null_mut();
        driver!(cuModuleGetFunction(&mut raw, self.raw, symbol.as_ptr())).map_err(absent)?;
        let set = |which, value: u32| {
            driver!(cuFuncSetAttribute(raw, which, value as i32))
                .map_err(|e| e.at(&format!("function `{name}` with {shared} bytes of shared memory")))
        };
        if shared > 48 << 10 {
            set(
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared,
            )?;
        }
        if cluster > 8 {
            set(
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED,
                1,
            )?;
        }
        Ok(Function(raw))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.enter();
        let _ = driver!(cuModuleUnload(self.raw));
    }
}

/// How many blocks of how many threads, and how they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub blocks: u32,
    pub threads: u32,
    pub shared: u32,
    pub cluster: u32,
    pub overlap: bool,
}

impl Context {
    /// `parameters`: a pointer to the value of each.
    pub unsafe fn launch(&self, f: Function, grid: &Grid, parameters: &mut [*mut c_void]) -> Result<(), Failure> {
        use sys::CUlaunchAttributeID as Id;
        let attribute = |id| sys::CUlaunchAttribute {
            id,
            pad: Default::default(),
            value: sys::CUlaunchAttributeValue { pad: [0; 64] },
        };
        let mut attributes = vec![];
        if grid.cluster > 1 {
            let mut cluster = attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
            let size = unsafe { &mut cluster.value.clusterDim };
            (size.x, size.y, size.z) = (grid.cluster, 1, 1);
            attributes.push(cluster);
        }
        if grid.overlap {
            let mut overlap = attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
            overlap.value.programmaticStreamSerializationAllowed = 1;
            attributes.push(overlap);
        }
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        driver!(cuLaunchKernelEx(
            &config,
            f.0,
            parameters.as_mut_ptr(),
            std::ptr::null_mut()
        ))
    }

    /// What `work` asks of the stream, as a graph; it is not run.
    pub fn capture(
        self: &Arc<Context>,
        work: impl FnOnce() -> Result<(), RuntimeError>,
    ) -> Result<Graph, RuntimeError> {
        // Other threads' calls are their own business.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        driver!(cuStreamBeginCapture_v2(self.stream, mode))?;
        let done = work();
        let mut graph = std::ptr::null_mut();
        // The capture ends and the graph goes, whatever came of it.
        let ended = driver!(cuStreamEndCapture(self.stream, &mut graph));
        let mut raw = std::ptr::null_mut();
        let made = done.and_then(|()| {
            ended?;
            driver!(cuGraphInstantiateWithFlags(&mut raw, graph, 0)).map_err(RuntimeError::from)
        });
        if !graph.is_null() {
            let _ = driver!(cuGraphDestroy(graph));
        }
        made?;
        Ok(Graph {
            context: self.clone(),
            raw,
        })
    }
}

/// Launches that are replayed as one.
pub struct Graph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

unsafe impl Send for Graph {}

impl Graph {
    pub fn launch(&self) -> Result<(), Failure> {
        driver!(cuGraphLaunch(self.raw, self.context.stream))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.enter();
        let _ = driver!(cuGraphExecDestroy(self.raw));
    }
}

/// A moment of the stream.
pub struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

unsafe impl Send for Event {}

impl Event {
    pub fn new(context: &Arc<Context>) -> Result<Event, Failure> {
        let mut raw = std::ptr::null_mut();
        driver!(cuEventCreate(&mut raw, 0))?;
        Ok(Event {
            context: context.clone(),
            raw,
        })
    }

    pub fn record(&self) -> Result<(), Failure> {
        driver!(cuEventRecord(self.raw, self.context.stream))
    }

    /// While launches are captured: each replay records it anew.
    pub fn record_in_graph(&self) -> Result<(), Failure> {
        let external = sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as u32;
        driver!(cuEventRecordWithFlags(self.raw, self.context.stream, external))
    }

    pub fn wait(&self) -> Result<(), Failure> {
        driver!(cuEventSynchronize(self.raw))
    }

    /// Seconds from `earlier` on; both have passed.
    pub fn since(&self, earlier: &Event) -> Result<f64, Failure> {
        let mut milliseconds = 0.0;
        driver!(cuEventElapsedTime(&mut milliseconds, earlier.raw, self.raw))?;
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.enter();
        let _ = driver!(cuEventDestroy_v2(self.raw));
    }
}

/// A tensor map as kernels take it, 128 bytes at a multiple of 64.
pub type Map = sys::CUtensorMap;

/// Every element of the box is taken, and what lies outside the matrix is zero.
pub fn encode(map: &MapValue) -> Result<Map, Failure> {
    use sys::{CUtensorMapDataType as Type, CUtensorMapSwizzle as Swizzle};
    let dtype = match map.dtype {
        DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::BF16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
        DType::I1 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
    };
    let swizzle = match map.swizzle {
        32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let mut out = Map { opaque: [0; 16] };
    let steps = vec![1u32; map.dims.len()];
    driver!(cuTensorMapEncodeTiled(
        &mut out,
        dtype,
        map.dims.len() as u32,
        map.address as *mut c_void,
        map.dims.as_ptr(),
        map.strides.as_ptr(),
        map.r#box.as_ptr(),
        steps.as_ptr(),
        sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzle,
        sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    ))?;
    Ok(out)
}
