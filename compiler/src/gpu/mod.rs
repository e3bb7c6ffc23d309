//! Kernels for NVIDIA GPUs: PTX from the same plans as the CPU's, one or more functions a kernel.
//!
//! A kernel here is data (`runtime::artefact::GpuKernel`: variants, launch geometry, tensor maps) and the MLIR of its functions. Nothing of
//! CUDA's toolkit is needed to make them, and no GPU.

mod target;

pub use target::Target;

use ir::plan::Kernel;
use runtime::artefact::GpuKernel;

use crate::cpu::{CodeError, Compiled};

/// Compiles all kernels to one PTX module, and says how each is run.
pub fn compile_kernels(
    kernels: &[Kernel],
    target: &Target,
    texts: bool,
) -> Result<(Compiled, Vec<GpuKernel>), CodeError> {
    let _ = (kernels, texts);
    Err(CodeError(format!("{}: not yet", target.name)))
}
