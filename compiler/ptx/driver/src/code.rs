//! Modules, functions and launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use ptx::{Launch, Machine, Module, Param};

use crate::{Code, INVALID_PTX, INVALID_VALUE, NOT_FOUND, SUCCESS, state};

/// What a stream is asked for.
#[derive(Clone)]
pub enum Work {
    Launch(Arc<OneLaunch>),
    /// To be recorded.
    Event(usize),
}

pub struct OneLaunch {
    module: Arc<Module>,
    kernel: String,
    launch: Launch,
    parameters: Vec<Param>,
}

impl OneLaunch {
    pub fn run(&self, machine: &mut Machine) -> Result<(), Box<ptx::Fault>> {
        let done = machine.launch(&self.module, &self.kernel, self.launch, &self.parameters);
        done.map(drop)
    }
}

/// A loaded module, and the functions that were asked for: they live as long as it does.
pub struct Loaded {
    module: Arc<Module>,
    tree: ptx::text::Tree,
    functions: Vec<*mut Function>,
}

pub struct Function {
    module: Arc<Module>,
    name: String,
    /// Bytes of each parameter.
    widths: Vec<usize>,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    out: *mut *mut Loaded,
    image: *const c_char,
    count: c_uint,
    options: *const c_int,
    values: *const *mut c_void,
) -> Code {
    const ERROR_LOG: c_int = 5;
    const ERROR_LOG_BYTES: c_int = 6;
    let text = unsafe { CStr::from_ptr(image) }.to_string_lossy();
    match (Module::parse(&text), ptx::text::parse(&text)) {
        (Ok(module), Ok(tree)) => {
            let loaded = Loaded {
                module: Arc::new(module),
                tree,
                functions: vec![],
            };
            unsafe { *out = Box::into_raw(Box::new(loaded)) };
            SUCCESS
        }
        (Err(e), _) | (_, Err(e)) => {
            let value = |wanted| unsafe {
                let at = (0..count as usize).find(|i| *options.add(*i) == wanted);
                at.map(|i| *values.add(i))
            };
            if let (Some(log), Some(bytes)) = (value(ERROR_LOG), value(ERROR_LOG_BYTES)) {
                let told = e.to_string();
                let n = told.len().min((bytes as usize).saturating_sub(1));
                unsafe {
                    std::ptr::copy_nonoverlapping(told.as_ptr(), log.cast(), n);
                    log.cast::<u8>().add(n).write(0);
                }
            }
            INVALID_PTX
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: *mut Loaded) -> Code {
    let loaded = unsafe { Box::from_raw(module) };
    for f in &loaded.functions {
        drop(unsafe { Box::from_raw(*f) });
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    out: *mut *mut Function,
    module: *mut Loaded,
    name: *const c_char,
) -> Code {
    let (loaded, name) = unsafe { (&mut *module, CStr::from_ptr(name).to_string_lossy()) };
    let Some(f) = loaded.tree.functions.iter().find(|f| f.entry && f.name == name) else {
        return NOT_FOUND;
    };
    // `u64`, `b32`, or `b8 name[128]`.
    let width = |p: &ptx::text::Parameter| -> Option<usize> {
        let bits: usize = p.ty.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
        Some(bits / 8 * p.count.unwrap_or(1) as usize)
    };
    let Some(widths) = f.parameters.iter().map(width).collect() else {
        return INVALID_VALUE;
    };
    let function = Box::into_raw(Box::new(Function {
        module: loaded.module.clone(),
        name: name.into_owned(),
        widths,
    }));
    loaded.functions.push(function);
    unsafe { *out = function };
    SUCCESS
}

#[repr(C)]
pub struct Attribute {
    id: c_uint,
    pad: [u8; 4],
    value: [c_uint; 16],
}

#[repr(C)]
pub struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: *mut c_void,
    attributes: *const Attribute,
    count: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    function: *const Function,
    parameters: *const *const u8,
    _: *const c_void,
) -> Code {
    const CLUSTER: c_uint = 4;
    let (config, f) = unsafe { (&*config, &*function) };
    let mut launch = Launch::new(config.grid, config.block[0]).shared(config.shared);
    for i in 0..config.count as usize {
        let attribute = unsafe { &*config.attributes.add(i) };
        if attribute.id == CLUSTER {
            launch.cluster = attribute.value[0];
        }
    }
    let values = f.widths.iter().enumerate().map(|(i, n)| unsafe {
        let from = std::slice::from_raw_parts(*parameters.add(i), *n);
        match *n {
            8 => Param::Pointer(from.as_ptr().cast::<u64>().read_unaligned()),
            4 => Param::U32(from.as_ptr().cast::<u32>().read_unaligned()),
            _ => Param::Bytes(from.to_vec()),
        }
    });
    let one = OneLaunch {
        module: f.module.clone(),
        kernel: f.name.clone(),
        launch,
        parameters: values.collect(),
    };
    state().ask(Work::Launch(Arc::new(one)))
}
