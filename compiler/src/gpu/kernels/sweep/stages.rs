//! A sweep's stages on a row: reductions over its columns and stores, by threads that share the row.

use ir::plan::{Reduction, Stage};

use super::super::super::ptx::{self, F32};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, Columns, Point};

/// Neighbouring threads of a warp that share a row; each takes vectors of `Body::lanes` columns, `threads` vectors apart.
pub struct Team {
    /// A power of two, at most a warp.
    pub threads: i64,
    /// The thread's number, i64.
    pub member: Val,
    /// Is there such a row? All threads of the warp come here all the same.
    pub is_there: Val,
}

impl Team {
    pub fn vectors(&self, body: &Body) -> i64 {
        let cols = body.kernel.cols.as_const().expect("a sweep's columns are known");
        let chunk = self.threads * body.lanes as i64;
        (cols + chunk - 1) / chunk
    }

    /// `swept` holds each segment's result for each of the thread's vectors.
    pub fn run(&self, e: &mut Emit, body: &Body, point: &mut Point, swept: &[Vec<Val>]) {
        let mut vectors: Vec<(Columns, Val)> = (0..self.vectors(body))
            .map(|i| self.columns(e, body, i, swept))
            .collect();
        for (number, stage) in body.kernel.stages.iter().enumerate() {
            body.hoist(e, point, stage);
            match stage {
                Stage::Reduce { op, value } => {
                    let result = self.reduce(e, body, point, &mut vectors, *op, *value);
                    point.reduced.insert(number, result);
                }
                Stage::Store { to, value, when } => {
                    let per_column = to.strides[body.kernel.outer.len()].coef != 0
                        || to.indirect.as_ref().is_some_and(|(id, _)| body.varies(*id));
                    if per_column {
                        for (cols, inside) in &mut vectors {
                            let value = body.vector(e, point, cols, *value);
                            let when = when.map(|w| body.vector(e, point, cols, w));
                            if let Some((id, _)) = to.indirect.as_ref().filter(|(id, _)| body.varies(*id)) {
                                body.vector(e, point, cols, *id);
                            }
                            let here = e.and(*inside, self.is_there);
                            e.if_then(here, &[], |e| {
                                body.store_vector(e, point, cols, to, value, when);
                                vec![]
                            });
                        }
                    } else {
                        let value = body.scalar(e, point, *value);
                        let zero = e.i64(0);
                        let first = e.cmp(Cmp::Eq, self.member, zero);
                        let mut here = e.and(first, self.is_there);
                        if let Some(when) = when {
                            let when = body.scalar(e, point, *when);
                            here = e.and(here, when);
                        }
                        e.if_then(here, &[], |e| {
                            body.store_scalar(e, point, to, value);
                            vec![]
                        });
                    }
                }
            }
        }
    }

    /// The thread's vector i, and is it inside the row? If not, it is the last one again.
    fn columns(&self, e: &mut Emit, body: &Body, i: i64, swept: &[Vec<Val>]) -> (Columns, Val) {
        let lanes = body.lanes as i64;
        let cols = body.kernel.cols.as_const().expect("a sweep's columns are known");
        let (number, width) = (e.i64(i * self.threads), e.i64(lanes));
        let at = e.add(self.member, number);
        let at = e.mul(at, width);
        let (end, last) = (e.i64(cols), e.i64(cols - lanes));
        let inside = e.cmp(Cmp::Lt, at, end);
        let at = e.min(at, last);
        let mut columns = Columns::new(at, None, None);
        columns.swept = swept.iter().map(|s| s[i as usize]).collect();
        (columns, inside)
    }

    fn reduce(
        &self,
        e: &mut Emit,
        body: &Body,
        point: &mut Point,
        vectors: &mut [(Columns, Val)],
        op: Reduction,
        value: usize,
    ) -> Val {
        let (identity, combine): (f32, fn(&mut Emit, Val, Val) -> Val) = match op {
            Reduction::Sum => (0.0, Emit::add),
            Reduction::Max => (f32::NEG_INFINITY, Emit::max),
            Reduction::LogSumExp => panic!(
                "kernel {}: only a contraction's columns are reduced so",
                body.kernel.name
            ),
        };
        let ty = Ty::vector(Elem::F32, body.lanes);
        let mut acc = e.f32(identity, ty);
        for (cols, inside) in vectors {
            let x = body.vector(e, point, cols, value);
            let nothing = e.f32(identity, ty);
            let x = e.select(*inside, x, nothing);
            acc = combine(e, acc, x);
        }
        let mut all = e.extract(acc, 0);
        for i in 1..body.lanes {
            let x = e.extract(acc, i);
            all = combine(e, all, x);
        }
        let mut bits = self.threads / 2;
        while bits > 0 {
            let other = ptx::shuffle_xor(e, all, bits);
            all = combine(e, all, other);
            bits /= 2;
        }
        debug_assert_eq!(all.ty, F32);
        all
    }
}
