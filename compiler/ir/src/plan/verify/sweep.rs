//! A kernel's sweep and a sweep's backward: sizes that are constants, matrices with their strides, segments that stand in order.

use super::super::{Sweep, SweepGradient};
use super::Check;
use super::expressions::Kind;

impl Check<'_> {
    pub(super) fn sweep(&mut self, sweep: &Sweep) {
        let rank = self.kernel.outer.len();
        if self.kernel.contraction.is_some() {
            self.fail("a sweep beside a contraction".to_string());
        }
        if sweep.batch + usize::from(sweep.tokens) > rank {
            return self.fail(format!("the sweep has {} batch dimensions of {rank}", sweep.batch));
        }
        self.access(&sweep.q, None, "the queries");
        self.arg(sweep.q.arg, Some(false), "the queries");
        if sweep.q.strides.last().is_some_and(|s| s.as_const() != Some(1)) {
            self.fail("the queries are not contiguous".to_string());
        }
        if self.kernel.cols.as_const().is_none() || sweep.depth < 1 {
            self.fail("a sweep's head sizes are constants".to_string());
        }
        let rows = &self.kernel.outer[sweep.batch..];
        let groups = &rows[..rows.len() - usize::from(sweep.tokens)];
        if groups.iter().any(|n| n.as_const().is_none()) {
            self.fail("how many rows share keys is a constant".to_string());
        }
        if let Some(start) = sweep.start
            && self.kinds.get(start).copied().flatten() != Some(Kind::Int)
        {
            self.fail(format!("the sweep starts at expression {start}, which is no integer"));
        }
        for (i, s) in sweep.segments.iter().enumerate() {
            for (rows, what) in [(&s.k, "keys"), (&s.v, "values")] {
                self.arg(rows.arg, Some(false), what);
                if rows.strides.len() != sweep.batch + 1 {
                    self.fail(format!("segment {i}'s {what} have {} strides", rows.strides.len()));
                }
            }
            if s.near < 0 || s.far.is_some_and(|far| far <= s.near) {
                self.fail(format!("segment {i} sees distances {} to {:?}", s.near, s.far));
            }
            if s.after.is_some_and(|a| a >= i) {
                self.fail(format!(
                    "segment {i} goes on from {:?}, which does not stand before it",
                    s.after
                ));
            }
        }
    }

    pub(super) fn sweep_gradient(&mut self, g: &SweepGradient) {
        let kernel = self.kernel;
        if kernel.contraction.is_some() || kernel.sweep.is_some() || !kernel.stages.is_empty() {
            self.fail("does more than a sweep's backward".to_string());
        }
        if kernel.cols.as_const().is_none() || g.depth < 1 || g.groups < 1 {
            self.fail("head sizes and groups of a sweep's backward are constants".to_string());
        }
        for (what, rows, written) in g.matrices() {
            self.arg(rows.arg, Some(written), what);
            let wanted = kernel.outer.len()
                + if what.ends_with('k') || what.ends_with('v') {
                    1
                } else {
                    2
                };
            if rows.strides.len() != wanted {
                self.fail(format!("{what} has {} strides, wants {wanted}", rows.strides.len()));
            }
        }
        if g.ranges.is_empty() {
            self.fail("a sweep's backward without ranges".to_string());
        }
    }
}
