//! placeholder
pub fn mlir_version() { let _ = melior::Context::new(); }
