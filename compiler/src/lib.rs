//! From a graph to an artefact: passes, plan, MLIR, LLVM, object code. Knows no model and runs nothing.

pub mod cpu;
pub mod mlir;
pub mod pipeline;
