//! Loads a compiled artefact and runs it: no LLVM, no graph, no compiler.

pub mod artefact;
