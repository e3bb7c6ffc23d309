//! Values that their readers compute: cheaper than to store and load them.

use ir::plan::{Expr, Kernel, Stage};

use super::body::{finish, stores};
use super::pair::inlined;
use super::steps::{Step, Steps};
use super::{NEAR, is_good};

/// Scalar operations that a byte less is worth.
const WORTH: f64 = 2.0;
/// Memory that may live longer for each byte that no longer does: a row's numbers beside the rows do not count.
const LONGER: f64 = 1.0 + 1.0 / 16.0;

pub fn inline(steps: &mut Steps) {
    let mut at = 0;
    while at < steps.list.len() {
        match readers_with(steps, at) {
            Some(new) => {
                new.into_iter().for_each(|(r, step)| steps.replace(r, step));
                steps.remove(at);
            }
            None => at += 1,
        }
    }
}

/// All readers of what step `at` stores, computing it themselves; `None` where that cannot be or is no better.
fn readers_with(steps: &Steps, at: usize) -> Option<Vec<(usize, Step)>> {
    let step = &steps.list[at];
    let producer = step.body.as_ref()?;
    let value = only_value(producer).filter(|b| steps.is_temporary(*b) && steps.writers(*b) == 1)?;
    let mut new = vec![];
    let (mut bytes, mut scalars) = (step.cost.bytes, step.cost.scalars);
    for (r, reader) in steps.list.iter().enumerate().skip(at + 1) {
        if !reader.reads.contains(&value) {
            continue;
        }
        let was = reader.body.as_ref()?;
        let body = finish(inlined(producer, Kernel::clone(was), &steps.buffers)?, |_| false)?;
        if !is_good(steps, &[(was, was)], &body) {
            return None;
        }
        let step = steps.step(body)?;
        bytes += reader.cost.bytes - step.cost.bytes;
        scalars += reader.cost.scalars - step.cost.scalars;
        new.push((r, step));
        if new.len() == steps.readers(value) {
            break;
        }
    }
    let last = new.last()?.0;
    let all = new.len() == steps.readers(value);
    let pays = bytes > 0.0 && -scalars <= WORTH * bytes;
    (all && pays && keeps_inputs(steps, at, last) && is_no_heavier(steps, at, last, value)).then_some(new)
}

/// The buffer of an element-wise kernel's one value, which it may store in halves. Look-ups stay where they are.
fn only_value(kernel: &Kernel) -> Option<usize> {
    let (first, ..) = stores(kernel).next()?;
    let stored =
        |s: &Stage| matches!(s, Stage::Store { to, when: None, .. } if to.arg == first.arg && to.indirect.is_none());
    let plain = |e: &Expr| !matches!(e, Expr::Load(a) if a.indirect.is_some() || a.arg == first.arg);
    (kernel.stages.iter().all(stored) && kernel.exprs.iter().all(plain)).then_some(first.arg)
}

/// Is what step `at` reads still there for the last reader?
fn keeps_inputs(steps: &Steps, at: usize, last: usize) -> bool {
    let inputs = &steps.list[at].reads;
    steps.list[at + 1..last].iter().all(|s| s.writes.is_disjoint(inputs))
}

/// Do the inputs that live longer weigh no more than the value that lives no longer?
fn is_no_heavier(steps: &Steps, at: usize, last: usize, value: usize) -> bool {
    let lives = |b: &usize| steps.list[last..].iter().any(|s| s.reads.contains(b));
    let longer = steps.list[at]
        .reads
        .iter()
        .filter(|b| steps.is_temporary(**b) && !lives(b));
    last - at <= NEAR || longer.map(|b| steps.bytes(*b)).sum::<f64>() <= LONGER * steps.bytes(value)
}
