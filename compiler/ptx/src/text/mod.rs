//! PTX as text: tokens, the tree they form, and that tree as text again. Knows no instruction's meaning.

mod ast;
mod lex;
mod parse;

pub use ast::{Function, Guard, Instruction, Item, Operand, Parameter, Tree, Variable};
pub use parse::parse;

/// Why a text is not PTX as this crate reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {what}")]
pub struct ParseError {
    pub line: u32,
    pub what: String,
}
