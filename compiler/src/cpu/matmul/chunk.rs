//! A chunk of a matmul's rows: its register tile, and the kernel's expressions on the accumulators.

use ir::plan::{MATMUL_COLS, Stage};

use super::super::product::{self, Panel};
use super::{Columns64, Matmul, ceil_div};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Columns, memory};

impl Matmul<'_> {
    /// The indices of `chunk` rows, and where A's rows lie.
    pub(super) fn a_rows(&self, e: &mut Emit, row: Val, chunk: i64) -> (Vec<Vec<Val>>, Vec<Val>) {
        let rows = (0..chunk).map(|i| {
            let i = e.i64(i);
            let r = e.add(row, i);
            let index = self.index(e, r);
            let a = self.multiplied_row(e, r, &index);
            (index, a)
        });
        rows.unzip()
    }

    /// The panel's columns at which the vectors of a register tile begin.
    pub(super) fn firsts(&self, e: &mut Emit, sub: Val) -> Vec<Val> {
        let lanes = self.target.lanes as i64;
        (0..self.vectors())
            .map(|v| {
                let at = e.i64(v * lanes);
                e.add(sub, at)
            })
            .collect()
    }

    /// `chunk` rows of A by `vectors` vectors of B.
    pub(super) fn chunk(&self, e: &mut Emit, b: &Columns64, sub: Val, row: Val, chunk: i64) {
        let lanes = self.target.lanes;
        let (indices, a) = self.a_rows(e, row, chunk);
        let firsts = self.firsts(e, sub);
        let columns: Vec<Val> = firsts.iter().map(|f| e.add(self.column, *f)).collect();
        let masks: Vec<Option<Val>> = columns.iter().map(|c| self.mask(e, *c)).collect();
        let zero = e.f32(0.0, Ty::vector(Elem::F32, lanes));
        // The vectors of the second weight stand behind those of the first.
        let mut all = firsts.clone();
        if let Columns64::Panel { also: Some(also), .. } = b {
            all.extend(firsts.iter().map(|f| e.add(*f, *also)));
        }
        let init = vec![zero; a.len() * all.len()];
        let acc = match b {
            Columns64::Panel { base, pair, .. } => self.panel_product(e, *base, *pair, &a, &all, &init),
            Columns64::Rows { base, stride, dtype } => {
                let starts = columns.iter().map(|c| e.at(*base, *c, memory(*dtype))).collect();
                let zero = e.i64(0);
                let k = self.body.size(e, &self.c.k);
                let right = product::Rows {
                    lanes,
                    starts,
                    masks: masks.clone(),
                    stride: *stride,
                    dtype: *dtype,
                };
                right.product(e, &a, self.dtype(self.c.a.arg), &init, [zero, k])
            }
        };
        for (i, index) in indices.into_iter().enumerate() {
            let acc: Vec<Val> = acc[i * all.len()..][..all.len()].to_vec();
            let i = e.i64(i as i64);
            let row = e.add(row, i);
            self.epilogue(e, row, index, &columns, &masks, &acc);
        }
    }

    /// The kernel's stores for one row.
    pub(super) fn epilogue(
        &self,
        e: &mut Emit,
        row: Val,
        index: Vec<Val>,
        columns: &[Val],
        masks: &[Option<Val>],
        acc: &[Val],
    ) {
        let mut point = self.point(e, row, index);
        if let Some((states, place)) = &self.states {
            let early = |s: &&Stage| matches!(s, Stage::Reduce { .. }) || self.is_per_column(s);
            for stage in self.body.kernel.stages.iter().filter(early) {
                self.body.hoist(e, &mut point, stage);
            }
            let columns = columns.iter().zip(masks).zip(acc);
            let mut columns: Vec<Columns> = columns.map(|((c, m), a)| Columns::new(*c, *m, Some(*a))).collect();
            let row = e.sub(row, self.first);
            states.take(e, &self.body, &mut point, *place, row, &mut columns);
            for stage in self.body.kernel.stages.iter().filter(|s| self.is_per_column(s)) {
                let Stage::Store { to, value, .. } = stage else {
                    continue;
                };
                for columns in &mut columns {
                    let value = self.body.vector(e, &mut point, columns, *value);
                    self.body.store_vector(e, &mut point, columns, to, value, None);
                }
            }
            return;
        }
        for stage in &self.body.kernel.stages {
            self.body.hoist(e, &mut point, stage);
        }
        let (acc, also) = acc.split_at(columns.len());
        for (i, ((first, mask), acc)) in columns.iter().zip(masks).zip(acc).enumerate() {
            let mut cols = Columns::new(*first, *mask, Some(*acc));
            cols.also = also.get(i).copied();
            for stage in &self.body.kernel.stages {
                let Stage::Store { to, value, when } = stage else {
                    panic!("kernel {}: a matmul's epilogue does not reduce", self.body.kernel.name)
                };
                let value = self.body.vector(e, &mut point, &mut cols, *value);
                let when = when.map(|w| self.body.vector(e, &mut point, &mut cols, w));
                self.body.store_vector(e, &mut point, &mut cols, to, value, when);
            }
        }
    }

    /// Over a panel: units of four bytes, an f32 or a pair of bf16.
    pub(super) fn panel_product(
        &self,
        e: &mut Emit,
        base: Val,
        pair: i64,
        a: &[Val],
        firsts: &[Val],
        init: &[Val],
    ) -> Vec<Val> {
        let panel = Panel {
            target: self.target,
            base,
            stride: MATMUL_COLS,
            pair,
            a_stride: if self.c.packed_a { MATMUL_COLS } else { 1 },
        };
        let k = self.body.size(e, &self.c.k);
        if self.c.packed_a {
            // Both sides end with zeros where k is odd.
            let units = ceil_div(e, &self.body, &self.c.k, pair);
            let zero = e.i64(0);
            return panel.product(e, a, firsts, init, [zero, units]);
        }
        let whole = if pair == 2 { e.shr(k, 1) } else { k };
        let zero = e.i64(0);
        let acc = panel.product(e, a, firsts, init, [zero, whole]);
        if pair == 1 || self.c.k.as_const().is_some_and(|k| k % 2 == 0) {
            return acc;
        }
        let one = e.i64(1);
        let rest = e.and(k, one);
        let odd = e.cmp(Cmp::Eq, rest, one);
        e.if_then(odd, &acc, |e| panel.step(e, a, firsts, &acc, whole, true))
    }
}
