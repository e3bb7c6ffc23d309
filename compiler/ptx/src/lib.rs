//! Reads PTX as LLVM prints it and evaluates its kernels on the CPU.
//!
//! This is the oracle for kernels where there is no GPU: it checks every access, every rendezvous of a warp, barriers, mbarriers and tensor
//! copies, and names the instruction and the thread of what is wrong. Hardware's layouts of fragments, descriptors and swizzles are followed
//! to the bit; its timing, its caches and the last digits of approximate functions are not modelled.
//!
//! The road: `text` (tokens, tree) -> `decode` (compact code) -> `exec` (warps, blocks, clusters).

mod decode;
mod exec;
mod fault;
mod lane;
mod machine;
mod memory;
mod op;
mod reads;
mod tensor;
pub mod text;
mod types;

pub use exec::{LIMIT as SHARED_LIMIT, Launch, Param, RESERVED as SHARED_START, Stats, Tally, Timing};
pub use fault::{Fault, FaultKind, Place};
pub use machine::{Machine, Module};
pub use tensor::{Element, Swizzle, TensorMap};
pub use text::ParseError;
