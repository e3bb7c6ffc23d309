//! Kernels by themselves, on made-up data: what `loopc tune` measures with. A device's part is `cuda::trial`.

use crate::artefact::DType;
#[cfg(feature = "cuda")]
pub use crate::cuda::trial::{Subject, Trials};

/// A buffer that a kernel is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    pub dtype: DType,
    pub elements: usize,
    pub written: bool,
    /// Every launch has another copy of it, so many that it comes from memory and not from a cache.
    pub cold: bool,
}
