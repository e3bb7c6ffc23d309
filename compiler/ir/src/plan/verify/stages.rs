//! A kernel's stages: what they reduce and store, and that a reduction has run where its result is wanted.

use super::super::{Expr, ExprId, Stage};
use super::Check;
use super::expressions::Kind;

impl Check<'_> {
    pub(super) fn stage(&mut self, s: usize, stage: &Stage) {
        let what = format!("stage {s}");
        if let Some(&e) = stage.operands().iter().find(|&&e| e >= self.kernel.exprs.len()) {
            return self.fail(format!(
                "{what} refers to expression {e}, there are {}",
                self.kernel.exprs.len()
            ));
        }
        if let Some(late) = stage
            .operands()
            .iter()
            .find_map(|&e| self.latest_stage(e))
            .filter(|&late| late >= s)
        {
            self.fail(format!("{what} needs the result of stage {late}, which has not run"));
        }
        match stage {
            Stage::Reduce { value, .. } => {
                if self.kinds[*value].is_some_and(|k| k != Kind::Float) {
                    self.fail(format!("{what} reduces expression {value}, which is no float"));
                }
            }
            Stage::Store { to, value, when } => {
                self.arg(to.arg, Some(true), &what);
                self.access(to, None, &what);
                let stored = self.kernel.args.get(to.arg).map(|a| Kind::of(a.dtype));
                if let (Some(stored), Some(kind)) = (stored, self.kinds[*value])
                    && stored != kind
                {
                    self.fail(format!("{what} stores {kind:?} in an argument of {stored:?}"));
                }
                if let Some(c) = when
                    && self.kinds[*c].is_some_and(|k| k != Kind::Truth)
                {
                    self.fail(format!("{what} has a condition that is no truth value"));
                }
                let per_column = to.strides.last().is_some_and(|s| s.coef != 0);
                if !per_column && stage.operands().iter().any(|&e| self.depends[e]) {
                    self.fail(format!(
                        "{what} stores a value per column where all columns share one place"
                    ));
                }
            }
        }
    }

    /// The latest reduction that an expression needs.
    pub(super) fn latest_stage(&self, id: ExprId) -> Option<usize> {
        match &self.kernel.exprs[id] {
            Expr::Reduced(s) => Some(*s),
            e => e
                .operands()
                .iter()
                .filter(|&&o| o < id)
                .filter_map(|&o| self.latest_stage(o))
                .max(),
        }
    }
}
