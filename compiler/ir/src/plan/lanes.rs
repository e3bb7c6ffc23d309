//! How what a kernel touches lies in memory: whether its neighbours are neighbouring columns or neighbouring points, and how many
//! columns stand side by side in all of it.

use super::{Access, Expr, Kernel, Stage};
use crate::types::Size;

impl Kernel {
    /// What its expressions load and its stages store.
    pub fn accesses(&self) -> impl Iterator<Item = &Access> {
        let loads = self.exprs.iter().filter_map(|e| match e {
            Expr::Load(a) => Some(a),
            _ => None,
        });
        loads.chain(self.stages.iter().filter_map(|s| match s {
            Stage::Store { to, .. } => Some(to),
            Stage::Reduce { .. } => None,
        }))
    }

    /// Does memory lie along the last parallel dimension rather than along the columns?
    pub fn lies_along_points(&self) -> bool {
        let parallel = self.outer.len() - self.ordered;
        if parallel == 0 {
            return false;
        }
        let one = Size::one();
        let by_column = |a: &&Access| a.strides[self.outer.len()].coef != 0;
        // What a row has once weighs nothing beside what it has of each column.
        let mut all: Vec<&Access> = self.accesses().filter(by_column).collect();
        if all.is_empty() {
            all = self.accesses().filter(|a| a.strides[parallel - 1].coef != 0).collect();
        }
        let columns = all.iter().filter(|a| a.strides[self.outer.len()] == one).count();
        let points = all.iter().filter(|a| a.strides[parallel - 1] == one).count();
        points > columns
    }

    /// The widest vector of columns that every access allows.
    pub fn lanes(&self) -> i64 {
        [8, 4, 2].into_iter().find(|n| self.allows_lanes(*n)).unwrap_or(1)
    }

    /// Do vectors of so many columns lie side by side, at multiples of their size, in all that is loaded and stored?
    pub fn allows_lanes(&self, lanes: i64) -> bool {
        let column = self.outer.len();
        let depends = self.column_dependent();
        let fits = |a: &Access| {
            let stride = &a.strides[column];
            let steady = a.indirect.as_ref().is_none_or(|(id, _)| !depends[*id]);
            let rest = a.strides[..column]
                .iter()
                .chain([&a.offset])
                .chain(a.indirect.iter().map(|(_, s)| s));
            let even = rest.into_iter().all(|s| s.coef % lanes == 0);
            steady && (stride.coef == 0 || (*stride == Size::one() && even))
        };
        self.cols.as_const().is_some_and(|cols| cols % lanes == 0) && self.accesses().all(fits)
    }
}
