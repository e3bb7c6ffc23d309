//! Kernels with known results, one module per group of instructions, and every fault provoked once.

#[path = "evaluator/boxes.rs"]
mod boxes;
#[path = "evaluator/copies.rs"]
mod copies;
#[path = "evaluator/faults.rs"]
mod faults;
#[path = "evaluator/matrices.rs"]
mod matrices;
#[path = "evaluator/races.rs"]
mod races;
#[path = "evaluator/scalar.rs"]
mod scalar;
#[path = "evaluator/support.rs"]
mod support;
#[path = "evaluator/text.rs"]
mod text;
#[path = "evaluator/warps.rs"]
mod warps;
