//! A sweep's end: a launch that reads a sweep's means row by row becomes more of the sweep's stages.
//!
//!     s0, s1, masses = sweep             s0, s1, masses = sweep
//!     r = sum over j of q * w            r = sum over j of q * w
//!     o = g * s1 + (1 - g) * s0          o = g * s1 + (1 - g) * s0
//!     kept = bf16(s0), bf16(s1)          kept = bf16(s0), bf16(s1)
//!
//! Where a backward wants masses, one sweep stores all that is wanted of it (`groups`), and the blend of the passes reads means of f32 that
//! nothing else does. A sweep has its rows whole, so that the end may reduce over them too.

use ir::plan::{Access, Expr, Kernel};

use super::body::{finish, loads, stores, writes};
use super::join::{Order, WINDOW, put};
use super::pair::together;
use super::steps::{Step, Steps};
use super::{is_dead, space};

pub fn append(steps: &mut Steps) {
    let mut at = 0;
    while at < steps.list.len() {
        let before = (at.saturating_sub(WINDOW)..at).rev();
        if before.into_iter().find_map(|i| pair(steps, i, at)).is_none() {
            at += 1;
        }
    }
}

/// Makes step `j` the end of the sweep `i`, if that can be and is better.
fn pair(steps: &mut Steps, i: usize, j: usize) -> Option<()> {
    let (first, second) = (&steps.list[i], &steps.list[j]);
    let sweep = first.sweep.as_ref()?;
    let end = (second.body.as_ref()).filter(|_| !first.writes.is_disjoint(&second.reads))?;
    let direct = end.accesses().all(|a| a.indirect.is_none());
    let always = stores(end).all(|(.., always)| always);
    let positions = |e: &Expr| matches!(e, Expr::Index(_));
    if !direct || !always || end.exprs.iter().any(positions) || !first.reads.is_disjoint(&second.writes) {
        return None;
    }
    let order = Order::around(&steps.list, i, j)?;
    let new = joined(steps, first, second, sweep, end)?;
    let gone = first.writes.union(&second.writes).filter(|b| !new.writes.contains(b));
    let dropped = gone.map(|b| steps.bytes(*b)).sum();
    if !order.is_no_heavier(steps, i, j, dropped) {
        return None;
    }
    put(steps, &order, i, j, new);
    Some(())
}

/// Both as one step that moves fewer bytes. Its stages walk columns in vectors as wide as before.
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
    let new = steps.step(body)?;
    (first.cost.bytes + second.cost.bytes > new.cost.bytes).then_some(new)
}

/// Is it a store of means, not of a mass?
fn whole_rows(sweep: &Kernel, to: &Access) -> bool {
    to.strides[sweep.outer.len()].coef != 0
}
