//! A kernel's contraction: how its sides lie, what may reduce and store beside it, and the kernels that fill panels for another's.

use super::super::{Contraction, Expr, Rhs, Stage};
use super::Check;
use crate::types::Size;

impl Check<'_> {
    pub(super) fn contraction(&mut self, c: &Contraction) {
        let kernel = self.kernel;
        let rank = kernel.outer.len();
        if c.batch > rank {
            self.fail(format!("{} batch dimensions of {rank}", c.batch));
        }
        self.access(&c.a, None, "the contraction's left side");
        if kernel.is_turned() {
            let one_row = c.batch == 0 && rank == 1 && c.a.strides[0] == Size::one();
            let alone = c.also.is_none() && !c.packed_a && !matches!(c.b, Rhs::Packed { .. });
            if !one_row || !alone || kernel.exprs.contains(&Expr::RowSquares) {
                self.fail(
                    "the contraction's left side is contiguous neither in k nor in the rows of a matrix".to_string(),
                );
            }
        }
        if c.packed_a && (c.batch > 0 || !matches!(c.b, Rhs::Packed { .. })) {
            self.fail("a packed left side beside what is not packed".to_string());
        }
        let alike = |also: &Rhs| match &c.b {
            Rhs::Packed { .. } => matches!(also, Rhs::Packed { .. }),
            Rhs::KContiguous { .. } => matches!(also, Rhs::KContiguous { .. }),
            Rhs::NContiguous { .. } => false,
        };
        if c.also.as_ref().is_some_and(|also| !alike(also)) {
            self.fail("a second right side that does not lie as the first".to_string());
        }
        for b in c.rights() {
            match b {
                Rhs::Packed { arg } => self.arg(*arg, Some(false), "the packed weight"),
                Rhs::KContiguous { arg, strides, .. } | Rhs::NContiguous { arg, strides, .. } => {
                    self.arg(*arg, Some(false), "the contraction's right side");
                    if strides.len() != c.batch + 1 {
                        let message = format!(
                            "the right side has {} strides for {} batch dimensions",
                            strides.len(),
                            c.batch
                        );
                        self.fail(message);
                    }
                }
            }
        }
    }

    /// The columns of a contraction are walked once.
    pub(super) fn reduced_contraction(&mut self) {
        let mut stored = false;
        for (s, stage) in self.kernel.stages.iter().enumerate() {
            match stage {
                Stage::Reduce { value, .. } => {
                    if stored || (*value < self.kernel.exprs.len() && self.latest_stage(*value).is_some()) {
                        self.fail(format!("stage {s} reduces a contraction a second time"));
                    }
                }
                Stage::Store { to, value, .. } => {
                    stored = true;
                    // The columns go by once: what is stored of each knows no row's result yet.
                    let per_column = to.strides.last().is_some_and(|s| s.coef != 0);
                    if per_column && *value < self.kernel.exprs.len() && self.latest_stage(*value).is_some() {
                        self.fail(format!("stage {s} stores columns that want a reduction of them"));
                    }
                }
            }
        }
    }

    pub(super) fn panels(&mut self) {
        let kernel = self.kernel;
        let (k, n) = (Size::product(&kernel.outer), &kernel.cols);
        if k.as_const().is_none() || n.as_const().is_none() {
            self.fail(format!("fills panels of {k} by {n}, which are not known"));
        }
        let plain = kernel.contraction.is_none() && kernel.sweep.is_none() && kernel.ordered == 0;
        match &kernel.stages[..] {
            [Stage::Store { to, when: None, .. }] if plain && to.indirect.is_none() && to.offset.coef == 0 => {
                let column = to.strides.last();
                if column != Some(&Size::one()) && column != Some(&k) {
                    self.fail("its columns are neither k nor n of the panels".to_string());
                }
            }
            _ => self.fail("fills panels by something else than one store".to_string()),
        }
    }
}
