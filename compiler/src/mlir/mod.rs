//! MLIR: writing kernels (`emit`) and lowering them to LLVM IR (`lower`).

pub mod emit;
pub mod lower;
