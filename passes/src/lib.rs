//! Graph to graph (`PASSES`), and graph to plan (`schedule`). Sees only `ir`.

mod attrs;
mod cse;
mod dce;
mod disagree;
pub mod egraph;
mod fold_norms;
mod join_projections;
mod join_rows;
mod join_sums;
mod order;
mod program;
mod reduce;
pub mod schedule;
mod stack;
mod views_first;

use ir::Module;

pub use disagree::{Data, compare, differ, disagree, sizes, tolerance};
pub use program::{Program, SWITCHES};
pub use reduce::reduce;
pub use schedule::{Scheduling, schedule};

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

/// All there are; a `Program` runs some of them in its own order.
pub static PASSES: &[Pass] = &[
    cse::CSE,
    egraph::FUSE,
    egraph::FUSE_APART,
    join_rows::JOIN_ROWS,
    join_projections::JOIN_PROJECTIONS,
    join_sums::JOIN_SUMS,
    fold_norms::FOLD_NORMS,
    views_first::VIEWS_FIRST,
    dce::DCE,
];
