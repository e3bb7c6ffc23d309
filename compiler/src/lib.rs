//! From a graph to an artefact: passes, plan, MLIR, LLVM, object code or PTX. Knows no model and runs nothing.

pub mod cpu;
pub mod gpu;
pub mod mlir;
pub mod pipeline;
mod scalar;
pub mod spaces;
mod target;

pub use target::Target;
