//! Kernels for NVIDIA GPUs: PTX from the same plans as the CPU's, one or more functions a kernel.
//!
//! A kernel here is data (`runtime::artefact::GpuKernel`: variants, launch geometry, tensor maps) and the MLIR of its functions. Nothing of
//! CUDA's toolkit is needed to make them, and no GPU.

mod assemble;
mod contraction;
mod map;
pub(crate) mod math;
mod ptx;
mod target;

pub use target::Target;

use ir::Size;
use ir::plan::Kernel;
use runtime::artefact::{self, GpuKernel};

use crate::cpu::{CodeError, Compiled};
use crate::pipeline;

/// A kernel's functions, and how they are run.
pub struct Emitted {
    pub kernel: GpuKernel,
    /// (name, MLIR)
    pub functions: Vec<(String, String)>,
}

/// Compiles all kernels to one PTX module, and says how each is run.
pub fn compile_kernels(
    kernels: &[Kernel],
    target: &Target,
    texts: bool,
) -> Result<(Compiled, Vec<GpuKernel>), CodeError> {
    let mut how = vec![];
    let mut functions = vec![];
    for kernel in kernels {
        let emitted = emit(kernel, target)?;
        how.push(GpuKernel {
            name: kernel.name.clone(),
            ..emitted.kernel
        });
        functions.extend(emitted.functions);
    }
    Ok((assemble::compile(functions, target, texts)?, how))
}

/// One kernel.
pub fn emit(kernel: &Kernel, target: &Target) -> Result<Emitted, CodeError> {
    let kernel = &with_ptx_name(kernel);
    if let Some(c) = &kernel.contraction {
        return Ok(contraction::emit(kernel, c, target));
    }
    if kernel.sweep_gradient.is_some() || kernel.sweep.is_some() {
        return Err(CodeError(format!(
            "kernel {}: not for {} yet",
            kernel.name, target.name
        )));
    }
    Ok(map::emit(kernel, target))
}

/// PTX names have no dots.
fn with_ptx_name(kernel: &Kernel) -> Kernel {
    Kernel {
        name: kernel.name.replace('.', "_"),
        ..kernel.clone()
    }
}

fn tiles(grid: &[(Size, i64)]) -> Vec<(artefact::Size, i64)> {
    grid.iter().map(|(s, block)| (pipeline::size(s), *block)).collect()
}
