//! What an instruction does to one thread's registers: plain functions of bits, chosen once when a kernel is decoded.
//!
//! A register is a u64. Only the bits of an instruction's type count; what is above them is left over and every reader masks it.

pub mod convert;
pub mod float;
pub mod int;

pub type F1 = fn(u64) -> u64;
pub type F2 = fn(u64, u64) -> u64;
pub type F3 = fn(u64, u64, u64) -> u64;

/// A function of one, two or three registers.
#[derive(Clone, Copy)]
pub enum Lane {
    One(F1),
    Two(F2),
    Three(F3),
}
