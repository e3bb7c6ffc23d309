//! Launches that hand a large value to each other, or read the same one, become one: a pass over plans.
//!
//!     t = a * b              r = sum over j of a * b
//!     r = sum over j of t    u = a * c
//!     u = a * c
//!
//! A kernel of the scheduler has one root, so a value with several readers, and what a reduction of its own reads, lies in memory. Here
//! such values go away again. Kernels without a product first; what says whether two may be one is what they touch, where, and when:
//!
//! 1. `inline`: what an element-wise kernel stores is computed by all its readers instead, over their own dimensions: a reduction
//!    over another axis, a copy that turns it, a few readers with little to read for it.
//! 2. `join`: two launches over one space become one launch; what the first stored, the second has at hand.
//! 3. `epilogue`: an element-wise launch becomes the end of a product of many rows whose result it reads.
//! 4. `sweeps`: what blends the means of a sweep becomes its end.
//! 5. `twins`: a product whose result the end of another one of the same rows reads becomes a part of that.
//! 6. `rounded`: what products round as they read it is stored rounded.
//!
//! Where one of two walks whole rows and the other halves of them, as a rotation by positions does, both walk halves then (`halves`).
//!
//! All only where bytes are saved, and where neither kernel loses how it lies on a GPU: its vectors, and neighbours that are neighbours
//! in memory. What is done depends on what stands near, so that equal layers stay equal.

mod body;
mod epilogue;
mod halves;
mod inline;
mod join;
mod pair;
mod rounded;
mod space;
mod steps;
mod sweeps;
#[cfg(test)]
mod tests;
mod twins;

use ir::Size;
use ir::plan::{Access, Kernel, Plan};

use steps::{Step, Steps};

/// Arguments of a merged kernel, at most.
const ARGS: usize = 24;
/// Expressions of a merged kernel, at most.
const EXPRS: usize = 160;
/// One tile walks all columns of what reduces; more columns than these share a row.
const COLUMNS: i64 = 16384;
/// So many launches are near: what lives longer by these costs no memory to speak of.
const NEAR: usize = 12;

pub fn merge(plan: &mut Plan) {
    let mut steps = Steps::of(plan);
    let count = steps.list.len();
    inline::inline(&mut steps);
    join::join(&mut steps);
    epilogue::append(&mut steps);
    sweeps::append(&mut steps);
    twins::twin(&mut steps);
    let stored = rounded::store(&mut steps);
    if stored || steps.list.len() < count {
        steps.into_plan(plan);
    }
}

/// Is a merged body still a good kernel? `parts`: what went into it, as it was and in the new space.
fn is_good(steps: &Steps, parts: &[(&Kernel, &Kernel)], merged: &Kernel) -> bool {
    let touched: std::collections::BTreeSet<usize> = merged.accesses().map(|a| a.arg).collect();
    let reduces_all = parts.iter().all(|(was, _)| was.reduces());
    let walkable = reduces_all || !merged.reduces() || steps.extent(&merged.cols) <= COLUMNS;
    // What is the same for all columns has no layout to lose.
    let has_columns = |k: &Kernel| k.reduces() || k.accesses().any(|a| a.strides[k.outer.len()].coef != 0);
    let layout = |(was, now): &(&Kernel, &Kernel)| {
        let (along, wide) = (was.lies_along_points(), was.lanes().min(4));
        !has_columns(now) || (merged.lies_along_points() == along && (along || merged.lanes() >= wide))
    };
    let scattered_before: usize = parts.iter().map(|(was, _)| scattered(was)).sum();
    touched.len() <= ARGS
        && merged.exprs.len() <= EXPRS
        && walkable
        && parts.iter().all(layout)
        && scattered(merged) <= scattered_before
}

/// Accesses whose neighbouring threads are no neighbours in memory.
fn scattered(kernel: &Kernel) -> usize {
    let columns = kernel.outer.len();
    let along = if kernel.lies_along_points() {
        columns - 1
    } else {
        columns
    };
    let apart =
        |a: &&Access| a.strides[columns].coef != 0 && a.strides[along].coef != 0 && a.strides[along] != Size::one();
    kernel.accesses().filter(apart).count()
}

/// May a buffer's stores be left out once these steps are one? Nobody else reads it.
fn is_dead(steps: &Steps, among: &[&Step], buffer: usize) -> bool {
    let inside = among.iter().filter(|s| s.reads.contains(&buffer)).count();
    steps.is_temporary(buffer) && steps.readers(buffer) == inside
}
