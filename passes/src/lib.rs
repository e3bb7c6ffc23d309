//! Graph to graph (`PASSES`), and graph to plan (`schedule`). Sees only `ir`.

mod cse;
mod dce;
mod disagree;
mod reduce;
pub mod schedule;

use ir::Module;

pub use disagree::{compare, disagree};
pub use reduce::reduce;
pub use schedule::schedule;

/// Why a pass or the scheduler gave up: a bug of ours, or a graph from a user that has no lowering.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PassError(pub String);

/// A graph pass: a value, not a type.
pub struct Pass {
    pub name: &'static str,
    pub about: &'static str,
    pub run: fn(&mut Module) -> Result<(), PassError>,
}

/// In the order the pipeline runs them.
pub static PASSES: &[Pass] = &[cse::CSE, dce::DCE];
