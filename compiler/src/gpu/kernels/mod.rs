//! Kernels that have more than one way to be run; each module lists its ways and their conditions.

pub mod sweep;
pub mod sweep_gradient;
