//! placeholder
fn main() { compiler::mlir_version(); }
