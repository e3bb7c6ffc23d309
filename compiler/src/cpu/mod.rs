//! Kernels for x86-64: emission per kind (`map`, `pack`, `matmul`, `sweep`, `sweep_gradient`), targets, object code.

mod keys;
mod map;
mod matmul;
mod measured;
mod object;
mod pack;
mod product;
mod rows;
mod sweep;
mod sweep_gradient;
mod target;
pub(crate) mod vmath;

pub use target::Target;

use ir::plan::Kernel;

/// Machine code of kernels, and the texts it came from (by kernel) if they were asked for.
pub struct Compiled {
    /// An ELF object, or PTX.
    pub code: Vec<u8>,
    pub mlir: Vec<(String, String)>,
    pub llvm: Vec<(String, String)>,
}

/// Why kernels could not be compiled: always a bug, told with the kernel's name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CodeError(pub String);

/// Compiles all kernels to one relocatable object; each is a symbol of its name.
pub fn compile_kernels(kernels: &[Kernel], target: &Target, texts: bool) -> Result<Compiled, CodeError> {
    if let Some(kernel) = kernels.iter().find(|k| k.is_turned()) {
        let name = &kernel.name;
        return Err(CodeError(format!(
            "kernel {name} multiplies a matrix turned, which a CPU does from panels: schedule it with them"
        )));
    }
    let functions: Vec<(String, String)> = kernels.iter().map(|k| (k.name.clone(), emit(k, target))).collect();
    object::compile(functions, target, texts)
}

/// Scratch that a worker of this kernel needs, 64-byte aligned.
pub fn scratch_bytes(kernel: &Kernel) -> i64 {
    if let Some(gradient) = &kernel.sweep_gradient {
        return sweep_gradient::scratch_bytes(kernel, gradient);
    }
    match (&kernel.contraction, &kernel.sweep) {
        (_, Some(sweep)) => sweep::scratch_bytes(kernel, sweep),
        (Some(contraction), None) => matmul::scratch_bytes(kernel, contraction),
        (None, None) => 0,
    }
}

/// The MLIR function of one kernel.
pub fn emit(kernel: &Kernel, target: &Target) -> String {
    if let Some(gradient) = &kernel.sweep_gradient {
        return sweep_gradient::emit(kernel, gradient, target);
    }
    match (&kernel.contraction, &kernel.sweep) {
        (_, Some(sweep)) => sweep::emit(kernel, sweep, target),
        (Some(contraction), None) => matmul::emit(kernel, contraction, target),
        (None, None) if kernel.panels => pack::emit(kernel, target),
        (None, None) => map::emit(kernel, target),
    }
}
