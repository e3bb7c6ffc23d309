//! GPU kernels against the plan's interpreter, evaluated on the CPU. One executable: each links all of LLVM.

#[path = "gpu/harness.rs"]
mod harness;
#[path = "gpu/matmul.rs"]
mod matmul;
#[path = "gpu/sweep_gradient.rs"]
mod sweep_gradient;
