//! Small kernels in front of a sweep that each of its batch points may do for itself: norms and rotations of a token's queries and keys, its
//! rows of the caches. A target whose launches cost more than such rows runs them as the sweep's beginning, and so their memory must stay
//! what it is until the sweep has ended (`passes`, slots).
//!
//! Knows what a plan's kernels touch, not which slots they have: those are given by it.

use super::{Access, Expr, Kernel, Plan, Rows, Stage, Sweep};
use crate::types::Size;

/// Elements that a batch point may have to write, at most: blocks that share a point all do that.
const ELEMENTS: i64 = 4096;

impl Kernel {
    /// Element-wise or rows, without an order: nothing that a tile does depends on another tile.
    pub fn is_small(&self) -> bool {
        self.contraction.is_none() && self.sweep.is_none() && self.sweep_gradient.is_none() && self.ordered == 0
    }
}

impl Plan {
    /// Launches right in front of launch `at` that its batch points may do for themselves: how many points of theirs each of them does, by
    /// launch, `at - len..at`. Empty where launch `at` is no sweep of one token a sequence.
    ///
    /// Batch point b does points `n b..n (b + 1)`; what it reads of their results it has written itself. A row that is looked up (a
    /// position in a cache) lies in its own point's part.
    pub fn prologue(&self, at: usize) -> Vec<i64> {
        let Some(kernel) = self.kernels.get(self.launches[at].kernel) else {
            return vec![];
        };
        let Some(sweep) = kernel.sweep.as_ref().filter(|s| !s.tokens) else {
            return vec![];
        };
        let mut points = vec![];
        for front in (0..at).rev() {
            let n = self.points(front, at, kernel, sweep);
            let Some(n) = n.filter(|_| (front + 1..at).all(|other| self.independent(front, other))) else {
                break;
            };
            points.push(n);
        }
        points.reverse();
        points
    }

    /// Does neither launch write a buffer that the other one has?
    fn independent(&self, a: usize, b: usize) -> bool {
        let none_of = |a: usize, b: usize| {
            self.uses(a)
                .all(|(x, written)| !written || !self.launches[b].args.contains(&x))
        };
        none_of(a, b) && none_of(b, a)
    }

    /// A launch's buffers, and whether it writes them.
    fn uses(&self, launch: usize) -> impl Iterator<Item = (usize, bool)> + '_ {
        let launch = &self.launches[launch];
        let written = self.kernels[launch.kernel].args.iter().map(|a| a.written);
        launch.args.iter().copied().zip(written)
    }

    /// Points of launch `front` for a batch point of the sweep, if the point needs no other's.
    fn points(&self, front: usize, at: usize, sweeps: &Kernel, sweep: &Sweep) -> Option<i64> {
        let kernel = &self.kernels[self.launches[front].kernel];
        let batch = &sweeps.outer[..sweep.batch];
        let n = quotient(&Size::product(&kernel.outer), &Size::product(batch))?;
        let elements = kernel.cols.as_const().filter(|_| kernel.is_small() && !kernel.panels)? * n;
        if elements > ELEMENTS {
            return None;
        }
        let (launch, reader) = (&self.launches[front], &self.launches[at]);
        // What it writes is written once, for the sweep; what it reads, nobody writes meanwhile.
        let mut is_read = false;
        for (buffer, written) in self.uses(front) {
            let other = |(x, writes): (usize, bool)| x == buffer && writes;
            let twice = launch.args.iter().filter(|b| **b == buffer).count() > 1;
            if self.uses(at).any(other) || (written && twice) {
                return None;
            }
            is_read |= written && reader.args.contains(&buffer);
        }
        let fits = |(arg, buffer): (usize, &usize)| {
            let parts: Option<Vec<Size>> = stores(kernel, arg).map(|to| part(kernel, to)).collect();
            let Some(parts) = parts else { return false };
            let reads = reader.args.iter().enumerate().filter(|(_, b)| *b == buffer);
            let mut of = reads.flat_map(|(arg, _)| regions(sweeps, sweep, arg));
            of.all(|region| region.is_some_and(|r| parts.iter().all(|p| &Size::from(n) * p == r)))
        };
        let all = kernel.args.iter().zip(&launch.args).enumerate();
        let all = all.filter(|(_, (a, _))| a.written).map(|(i, (_, b))| (i, b)).all(fits);
        (is_read && all).then_some(n)
    }
}

fn stores(kernel: &Kernel, arg: usize) -> impl Iterator<Item = &Access> {
    kernel.stages.iter().filter_map(move |s| match s {
        Stage::Store { to, .. } if to.arg == arg => Some(to),
        _ => None,
    })
}

/// From one point to the next, in elements, if each has a part for itself.
fn part(kernel: &Kernel, to: &Access) -> Option<Size> {
    let (column, strides) = to.strides.split_last()?;
    let step = linear(&kernel.outer, strides)?;
    ends_within(&to.offset, [(&kernel.cols, column)].into_iter(), &step).then_some(step)
}

/// By access of the argument: from one batch point to the next, if a point's region ends before the next one's begins; `None` otherwise.
fn regions(kernel: &Kernel, sweep: &Sweep, arg: usize) -> Vec<Option<Size>> {
    let rows = &kernel.outer[sweep.batch..];
    let batch = &kernel.outer[..sweep.batch];
    let mut all = vec![];
    let access = |a: &Access, columns: &Size| {
        let (last, strides) = a.strides.split_last()?;
        let (batch_strides, row_strides) = strides.split_at(sweep.batch);
        let step = linear(batch, batch_strides)?;
        let terms = std::iter::once((columns, last)).chain(rows.iter().zip(row_strides).rev());
        (a.indirect.is_none() && ends_within(&a.offset, terms, &step)).then_some(step)
    };
    if sweep.q.arg == arg {
        all.push(access(&sweep.q, &Size::from(sweep.depth)));
    }
    for e in &kernel.exprs {
        if let Expr::Load(a) = e
            && a.arg == arg
        {
            all.push(access(a, &kernel.cols));
        }
    }
    for s in &sweep.segments {
        let of = |r: &Rows, width: i64| {
            let (stride, strides) = r.strides.split_last()?;
            let step = linear(batch, strides)?;
            let (width, one) = (Size::from(width), Size::one());
            // A cache has room for all keys that are there.
            let keys = Size {
                coef: s.keys.coef,
                syms: s
                    .keys
                    .syms
                    .iter()
                    .map(|s| if s == "S" { "C" } else { s }.to_string())
                    .collect(),
            };
            let terms = [(&width, &one), (&keys, stride)];
            ends_within(&r.offset, terms.into_iter(), &step).then_some(step)
        };
        if s.k.arg == arg {
            all.push(of(&s.k, sweep.depth));
        }
        if s.v.arg == arg {
            all.push(kernel.cols.as_const().and_then(|cols| of(&s.v, cols)));
        }
    }
    all
}

/// The stride that the flattened dimensions have, from one point to the next; `None` if there is no such one, or points share a place.
fn linear(outer: &[Size], strides: &[Size]) -> Option<Size> {
    let mut found: Option<Size> = None;
    let mut points = Size::one();
    for (n, stride) in outer.iter().zip(strides).rev() {
        if n.as_const() == Some(1) {
            continue;
        }
        match &found {
            None => found = Some(stride.clone()),
            Some(step) if &points * step == *stride => {}
            Some(_) => return None,
        }
        points = &points * n;
    }
    found.filter(|step| step.coef > 0)
}

/// Do positions `offset + sum(i * stride)`, each i below its count, innermost first, stay below `limit`?
fn ends_within<'a>(offset: &Size, terms: impl Iterator<Item = (&'a Size, &'a Size)>, limit: &Size) -> bool {
    let Some(mut end) = offset.as_const().map(|o| Size::from(o + 1)) else {
        return false;
    };
    for (count, stride) in terms.filter(|(count, stride)| count.as_const() != Some(1) && stride.coef != 0) {
        // Either a digit of its own, or one of two small numbers.
        end = match (end.as_const(), count.as_const(), stride.as_const()) {
            (Some(end), Some(count), Some(stride)) => Size::from(end + (count - 1) * stride),
            _ if at_most(&end, stride) => count * stride,
            _ => return false,
        };
    }
    at_most(&end, limit)
}

/// a <= b for any symbols, which are 1 at least.
fn at_most(a: &Size, b: &Size) -> bool {
    a.coef <= b.coef && (a.syms.is_empty() || a.syms == b.syms)
}

/// a / b, where that is a number.
fn quotient(a: &Size, b: &Size) -> Option<i64> {
    (a.syms == b.syms && b.coef > 0 && a.coef % b.coef == 0 && a.coef > 0).then(|| a.coef / b.coef)
}
