//! The tensor graph of `loopc`: types, ops, text, verifier, reference evaluator, and the kernels' level (`plan`).
//!
//! This crate knows no LLVM, no files of weights and no machine: it says what a program *means*. Passes rewrite it,
//! the compiler lowers it, and its evaluator is the oracle both are checked against.

pub mod bind;
pub mod draw;
pub mod eval;
pub mod gradient;
pub mod graph;
pub mod ops;
pub mod plan;
pub mod tensor;
pub mod testing;
pub mod text;
pub mod types;
pub mod verify;

pub use graph::{Attr, Attrs, Function, Module, Op, Param, ValueId};
pub use types::{DType, Dim, Size, Sizes, TensorType};
