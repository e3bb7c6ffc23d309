//! Kernels with known results, one module per group of instructions, and every fault provoked once.

#[path = "evaluator/copies.rs"]
mod copies;
#[path = "evaluator/faults.rs"]
mod faults;
#[path = "evaluator/matrices.rs"]
mod matrices;
#[path = "evaluator/scalar.rs"]
mod scalar;
#[path = "evaluator/support.rs"]
mod support;
#[path = "evaluator/text.rs"]
mod text;
#[path = "evaluator/warps.rs"]
mod warps;
