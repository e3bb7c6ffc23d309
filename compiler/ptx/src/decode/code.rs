//! A kernel in the form the evaluator runs.

use crate::op::{Constant, Op, Reg};

/// A predicate that must hold (or not) for a thread to execute an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    pub reg: Reg,
    pub negated: bool,
}

/// An instruction as it was written, for faults and statistics.
#[derive(Clone, Debug)]
pub struct Written {
    pub line: u32,
    pub text: String,
    pub name: String,
}

#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub offset: u32,
    pub bytes: u32,
}

pub struct Code {
    pub name: String,
    pub ops: Vec<Op>,
    pub guards: Vec<Option<Guard>>,
    /// Which of `written` an op came from.
    pub origin: Vec<u32>,
    pub written: Vec<Written>,
    pub registers: u32,
    pub constants: Vec<(Reg, Constant)>,
    pub parameters: Vec<Parameter>,
    pub parameter_bytes: u32,
    /// Shared memory of named variables; dynamic memory follows at `dynamic_shared`.
    pub static_shared: u32,
    pub dynamic_shared: u32,
    pub local_bytes: u32,
    /// `.reqntid`, if given.
    pub required_block: Option<[u32; 3]>,
    pub max_block: Option<u32>,
    /// `.reqnctapercluster`, if given.
    pub required_cluster: Option<u32>,
}
