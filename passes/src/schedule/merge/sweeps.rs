//! A sweep's end: a launch that reads a sweep's means row by row becomes more of the sweep's stages.
//!
//!     s0, s1, masses = sweep             s0, s1, masses = sweep
//!     r = sum over j of q * w            r = sum over j of q * w
//!     o = g * s1 + (1 - g) * s0          o = g * s1 + (1 - g) * s0
//!     kept = bf16(s0), bf16(s1)          kept = bf16(s0), bf16(s1)
//!
//! Where a backward wants masses, one sweep stores all that is wanted of it (`groups`), and the blend of the passes reads means of f32 that
//! nothing else does. A sweep has its rows whole, so that the end may reduce over them too.

use ir::plan::{Access, Kernel};

use super::body::{finish, loads, stores, writes};
use super::epilogue::is_steady;
use super::join::hand_on;
use super::pair::together;
use super::steps::{Step, Steps};
use super::{is_dead, space};

pub fn append(steps: &mut Steps) {
    hand_on(steps, |steps, first, second| {
        let (sweep, end) = (first.sweep.as_ref()?, second.body.as_ref()?);
        let fits = is_steady(end) && first.reads.is_disjoint(&second.writes);
        if fits {
            joined(steps, first, second, sweep, end)
        } else {
            None
        }
    });
}

/// Both as one step, whose stages walk columns in vectors as wide as before.
fn joined(steps: &Steps, first: &Step, second: &Step, sweep: &Kernel, end: &Kernel) -> Option<Step> {
    let dead = |buffer: usize| is_dead(steps, &[first, second], buffer);
    let one = |x: &Access, y: &Access| -> Option<Kernel> {
        let end = space::onto((sweep, x), (end, y))?;
        let body = finish(together(sweep, &end, &steps.buffers)?, dead)?;
        body.allows_lanes(sweep.lanes()).then_some(body)
    };
    let links = loads(end).filter(|y| writes(sweep).contains(&y.arg));
    let body = links
        .flat_map(|y| stores(sweep).map(move |(x, ..)| (x, y)))
        .filter(|(x, y)| x.arg == y.arg && whole_rows(sweep, x))
        .find_map(|(x, y)| one(x, y))?;
    steps.step(body)
}

/// Is it a store of means, not of a mass?
fn whole_rows(sweep: &Kernel, to: &Access) -> bool {
    to.strides[sweep.outer.len()].coef != 0
}
