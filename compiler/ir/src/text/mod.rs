//! The graph as text: MLIR's generic syntax, dialect `loop`. Our parser and MLIR's (unregistered dialects allowed) both accept
//! what we print.

mod lexer;
mod parse;
mod print;

pub use parse::{ParseError, parse, parse_with_lines};
