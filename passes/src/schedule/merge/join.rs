//! Two launches that become one.

use std::collections::BTreeSet;
use std::rc::Rc;

use ir::plan::{Access, Kernel};

use super::body::{finish, loads, stores};
use super::pair::together;
use super::steps::{Step, Steps};
use super::{NEAR, halves, is_dead, is_good, space};

/// How far back a launch looks for another.
pub const WINDOW: usize = 64;
/// Bytes that two launches must share to be one where neither needs the other: less is read sooner by two side by side.
const SHARED: f64 = 256.0 * 1024.0;

pub fn join(steps: &mut Steps) {
    let mut at = 0;
    while at < steps.list.len() {
        let before = (at.saturating_sub(WINDOW)..at).rev();
        match before.into_iter().find_map(|i| pair(steps, i, at)) {
            Some(place) => at = place,
            None => at += 1,
        }
    }
}

/// Joins step `j` with the earlier `i`, if that can be and is better; where the new step stands.
fn pair(steps: &mut Steps, i: usize, j: usize) -> Option<usize> {
    let (first, second) = (&steps.list[i], &steps.list[j]);
    let (a, b) = (first.body.clone()?, second.body.clone()?);
    let links = links(steps, first, second, &a, &b);
    if links.is_empty() {
        return None;
    }
    let order = Order::around(&steps.list, i, j)?;
    let (new, dropped) = links
        .iter()
        .find_map(|link| joined(steps, first, second, (&a, &b), link))?;
    if !order.is_no_heavier(steps, i, j, dropped) {
        return None;
    }
    Some(put(steps, &order, i, j, new))
}

/// A step and a near one that reads what it stores become what `merged` makes of both, wherever that moves fewer bytes and takes no more
/// memory than before.
pub fn hand_on(steps: &mut Steps, merged: impl Fn(&Steps, &Step, &Step) -> Option<Step>) {
    let found = |steps: &Steps, i: usize, j: usize| -> Option<(Order, Step)> {
        let (first, second) = (&steps.list[i], &steps.list[j]);
        if first.writes.is_disjoint(&second.reads) {
            return None;
        }
        let order = Order::around(&steps.list, i, j)?;
        let new = merged(steps, first, second)?;
        let gone = first.writes.union(&second.writes).filter(|b| !new.writes.contains(b));
        let dropped = gone.map(|b| steps.bytes(*b)).sum();
        let pays = first.cost.bytes + second.cost.bytes > new.cost.bytes;
        (pays && order.is_no_heavier(steps, i, j, dropped)).then_some((order, new))
    };
    let mut at = 0;
    while at < steps.list.len() {
        // The last one first: what others make is there then.
        let before = (at.saturating_sub(WINDOW)..at).rev();
        let pair = before.into_iter().find_map(|i| Some((i, found(steps, i, at)?)));
        match pair {
            Some((i, (order, new))) => drop(put(steps, &order, i, at, new)),
            None => at += 1,
        }
    }
}

/// Steps `i` and `j` become the new one; where it stands.
pub fn put(steps: &mut Steps, order: &Order, i: usize, j: usize, new: Step) -> usize {
    let place = i + order.before.len();
    let moved = order.before.iter().chain([&i]).chain(&order.after);
    let moved: Vec<Step> = moved.map(|s| steps.list[*s].clone()).collect();
    steps.list.splice(i..j, moved);
    steps.remove(j);
    steps.replace(place, new);
    place
}

/// Accesses that could be one: what the second loads of what the first stores, then what both load of something large.
fn links(steps: &Steps, first: &Step, second: &Step, a: &Kernel, b: &Kernel) -> Vec<(Access, Access)> {
    let of = |from: Vec<&Access>, to: &Access| -> Vec<(Access, Access)> {
        let same = from.into_iter().filter(|x| x.arg == to.arg);
        same.map(|x| (x.clone(), to.clone())).collect()
    };
    let handed = || loads(b).filter(|y| first.writes.contains(&y.arg));
    let mut links: Vec<(Access, Access)> = handed()
        .flat_map(|y| of(stores(a).map(|(x, ..)| x).collect(), y))
        .collect();
    let large = |x: &&Access| first.reads.contains(&x.arg) && steps.bytes(x.arg) >= SHARED;
    if first.writes.is_disjoint(&second.reads) {
        links.extend(loads(b).filter(large).flat_map(|y| of(loads(a).collect(), y)));
    }
    links
}

/// Both as one step, and the bytes of values that are gone.
fn joined(
    steps: &Steps,
    first: &Step,
    second: &Step,
    (a, b): (&Rc<Kernel>, &Rc<Kernel>),
    (x, y): &(Access, Access),
) -> Option<(Step, f64)> {
    let (x, y) = ((&**a, x), (&**b, y));
    let (a_now, b_now) = space::joined(x, y).or_else(|| halves::met(x, y, space::joined))?;
    let dead = |buffer: usize| is_dead(steps, &[first, second], buffer);
    let body = finish(together(&a_now, &b_now, &steps.buffers)?, dead)?;
    if !is_good(steps, &[(a, &a_now), (b, &b_now)], &body) {
        return None;
    }
    let new = steps.step(body)?;
    // What others wait for is not put off for the sake of one reader.
    if is_one_point(a) && !is_one_point(b) && !first.writes.is_disjoint(&new.writes) {
        return None;
    }
    let saved = first.cost.bytes + second.cost.bytes - new.cost.bytes;
    let hands_on = !first.writes.is_disjoint(&second.reads);
    let least = first.cost.bytes.min(second.cost.bytes) / 8.0;
    let pays = if hands_on {
        saved > 0.0
    } else {
        saved >= SHARED.max(least)
    };
    let gone = first.writes.union(&second.writes).filter(|b| !new.writes.contains(b));
    let dropped = gone.map(|b| steps.bytes(*b)).sum();
    pays.then_some((new, dropped))
}

fn is_one_point(kernel: &Kernel) -> bool {
    kernel
        .outer
        .iter()
        .chain([&kernel.cols])
        .all(|n| n.as_const() == Some(1))
}

/// What stands between two steps: what goes before both, and what comes after.
pub struct Order {
    before: Vec<usize>,
    after: Vec<usize>,
}

impl Order {
    /// One of the steps moves to the other where it can; what is near may go round them on both sides. `None` where the second needs
    /// something that needs the first.
    pub fn around(list: &[Step], i: usize, j: usize) -> Option<Order> {
        let between = i + 1..j;
        let mut all = Touched::default();
        list[between.clone()].iter().for_each(|s| all.add(s));
        if !all.conflicts(&list[j]) {
            return Some(Order {
                before: vec![],
                after: between.collect(),
            });
        }
        let (mut before, mut after) = (vec![], vec![]);
        let (mut behind, mut later) = (Touched::default(), Touched::default());
        behind.add(&list[i]);
        for at in between {
            if behind.conflicts(&list[at]) {
                behind.add(&list[at]);
                later.add(&list[at]);
                after.push(at);
            } else {
                before.push(at);
            }
        }
        let near = after.is_empty() || j - i <= NEAR;
        (near && !later.conflicts(&list[j])).then_some(Order { before, after })
    }

    /// Do values that live longer, because one of the steps has moved, weigh no more than those that are gone? What is near does not count.
    pub fn is_no_heavier(&self, steps: &Steps, i: usize, j: usize, dropped: f64) -> bool {
        let (first, second) = (&steps.list[i], &steps.list[j]);
        let mut longer = 0.0;
        if self.before.len() > NEAR {
            let lives = |b: &usize| steps.list[j..].iter().any(|s| s.reads.contains(b));
            let inputs = first.reads.iter().filter(|b| steps.is_temporary(**b) && !lives(b));
            longer += inputs.map(|b| steps.bytes(*b)).sum::<f64>();
        }
        if self.after.len() > NEAR {
            let results = second.writes.iter().filter(|b| steps.is_temporary(**b));
            longer += results.map(|b| steps.bytes(*b)).sum::<f64>();
        }
        longer <= dropped
    }
}

/// What some steps read and write.
#[derive(Default)]
struct Touched {
    reads: BTreeSet<usize>,
    writes: BTreeSet<usize>,
}

impl Touched {
    fn add(&mut self, step: &Step) {
        self.reads.extend(&step.reads);
        self.writes.extend(&step.writes);
    }

    /// Must a later step stay behind these?
    fn conflicts(&self, later: &Step) -> bool {
        !self.writes.is_disjoint(&later.reads)
            || !self.writes.is_disjoint(&later.writes)
            || !self.reads.is_disjoint(&later.writes)
    }
}
