//! Loads a compiled artefact and runs it: no LLVM, no graph, no compiler.

pub mod artefact;
pub mod container;
#[cfg(feature = "cuda")]
mod cuda;
pub mod elf;
pub mod engine;
pub mod error;
pub mod memory;
pub mod pack;
pub mod threads;
pub mod trial;
mod validate;
pub mod weights;

pub use engine::{Device, Engine, Input, Options, Output, State};
pub use error::RuntimeError;
