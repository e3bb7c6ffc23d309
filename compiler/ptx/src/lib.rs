//! Reads PTX as LLVM prints it and evaluates its kernels on the CPU.
//!
//! This is the oracle for kernels where there is no GPU: it checks every access, every rendezvous of a warp, barriers, mbarriers and tensor
//! copies, and names the instruction and the thread of what is wrong. Hardware's layouts of fragments, descriptors and swizzles are followed
//! to the bit; its timing, its caches and the last digits of approximate functions are not modelled.
//!
//! ```
//! use ptx::{Launch, Machine, Module, Param};
//!
//! let module = Module::parse(
//!     ".visible .entry k(.param .u64 out)
//!      {
//!          .reg .b32 %r<2>;
//!          .reg .b64 %rd<3>;
//!          ld.param.b64 %rd0, [out];
//!          mov.u32 %r0, %tid.x;
//!          mul.wide.u32 %rd1, %r0, 4;
//!          add.s64 %rd2, %rd0, %rd1;
//!          st.global.b32 [%rd2], %r0;
//!          ret;
//!      }",
//! )?;
//! let mut machine = Machine::new();
//! let out = machine.alloc(4 * 64);
//! let stats = machine.launch(&module, "k", Launch::new([1, 1, 1], 64), &[Param::Pointer(out)])?;
//! assert_eq!(stats.warps("st.global"), 2);
//! assert_eq!(machine.read(out + 4 * 63, 4)?, [63, 0, 0, 0]);
//! // One thread more, and it writes outside.
//! let fault = machine.launch(&module, "k", Launch::new([1, 1, 1], 65), &[Param::Pointer(out)]).unwrap_err();
//! assert!(fault.to_string().contains("thread 64"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
