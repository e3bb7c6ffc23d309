//! GPU kernels without a GPU: PTX and machine code looked at, and evaluated on the CPU against the plan's interpreter. One executable: each
//! links all of LLVM.

#[path = "gpu/assembly.rs"]
mod assembly;
#[path = "gpu/coverage.rs"]
mod coverage;
#[path = "gpu/describe.rs"]
mod describe;
#[path = "gpu/harness.rs"]
mod harness;
#[path = "gpu/kernels.rs"]
mod kernels;
#[path = "gpu/matmul.rs"]
mod matmul;
#[path = "gpu/subjects.rs"]
mod subjects;
#[path = "gpu/sweep_gradient.rs"]
mod sweep_gradient;
#[path = "gpu/sweeps.rs"]
mod sweeps;
#[path = "gpu/turned.rs"]
mod turned;
