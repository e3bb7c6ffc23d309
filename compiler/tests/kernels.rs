//! Compiled kernels against the plan's interpreter. One executable: each links all of LLVM.

#[path = "kernels/matmul.rs"]
mod matmul;
#[path = "kernels/sweep.rs"]
mod sweep;
