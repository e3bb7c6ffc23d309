//! A sweep's stages on rows: reductions over their columns and stores, by threads that share a row.

use ir::plan::{Reduction, Stage};

use crate::gpu::ptx;
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, Columns, Point};

/// Neighbouring threads of a warp that share a row; each takes vectors of `Body::lanes` columns, `threads` vectors apart.
pub struct Team {
    /// A power of two, at most a warp.
    pub threads: i64,
    /// The thread's number, i64.
    pub member: Val,
}

/// A row of a team.
pub struct Row {
    pub point: Point,
    /// Is there such a row? All threads of the warp come here all the same.
    pub is_there: Val,
    /// Each segment's result for each of the thread's vectors.
    pub swept: Vec<Vec<Val>>,
}

/// Columns, and are they inside the row?
type Vectors = Vec<(Columns, Val)>;

impl Team {
    pub fn vectors(&self, body: &Body) -> i64 {
        let cols = body.kernel.cols.as_const().expect("a sweep's columns are known");
        let chunk = self.threads * body.lanes as i64;
        (cols + chunk - 1) / chunk
    }

    /// The first column of the thread's vector i, i64, and is it inside the row? If not, it is the last one again.
    pub fn column(&self, e: &mut Emit, body: &Body, i: i64) -> (Val, Val) {
        let lanes = body.lanes as i64;
        let cols = body.kernel.cols.as_const().expect("a sweep's columns are known");
        let (number, width) = (e.i64(i * self.threads), e.i64(lanes));
        let at = e.add(self.member, number);
        let at = e.mul(at, width);
        let (end, last) = (e.i64(cols), e.i64(cols - lanes));
        let inside = e.cmp(Cmp::Lt, at, end);
        (e.min(at, last), inside)
    }

    /// Stage by stage over all rows, so that what a stage reads of many rows is on its way together.
    pub fn run(&self, e: &mut Emit, body: &Body, rows: Vec<Row>) {
        let mut rows: Vec<(Row, Vectors)> = rows
            .into_iter()
            .map(|row| {
                let vectors = (0..self.vectors(body))
                    .map(|i| {
                        let (at, inside) = self.column(e, body, i);
                        let mut columns = Columns::new(at, None, None);
                        columns.swept = row.swept.iter().map(|s| s[i as usize]).collect();
                        (columns, inside)
                    })
                    .collect();
                (row, vectors)
            })
            .collect();
        for (number, stage) in body.kernel.stages.iter().enumerate() {
            match stage {
                Stage::Reduce { op, value } => {
                    for (row, vectors) in &mut rows {
                        body.hoist(e, &mut row.point, stage);
                        let result = self.reduce(e, body, &mut row.point, vectors, *op, *value);
                        row.point.reduced.insert(number, result);
                    }
                }
                Stage::Store { .. } => {
                    for (row, vectors) in &mut rows {
                        body.hoist(e, &mut row.point, stage);
                        self.store(e, body, row, vectors, stage);
                    }
                }
            }
        }
    }

    fn store(&self, e: &mut Emit, body: &Body, row: &mut Row, vectors: &mut Vectors, stage: &Stage) {
        let Stage::Store { to, value, when } = stage else {
            return;
        };
        let point = &mut row.point;
        let per_column = to.strides[body.kernel.outer.len()].coef != 0
            || to.indirect.as_ref().is_some_and(|(id, _)| body.varies(*id));
        if per_column {
            for (cols, inside) in vectors {
                let value = body.vector(e, point, cols, *value);
                let when = when.map(|w| body.vector(e, point, cols, w));
                if let Some((id, _)) = to.indirect.as_ref().filter(|(id, _)| body.varies(*id)) {
                    body.vector(e, point, cols, *id);
                }
                let here = e.and(*inside, row.is_there);
                e.if_then(here, &[], |e| {
                    body.store_vector(e, point, cols, to, value, when);
                    vec![]
                });
            }
            return;
        }
        let value = body.scalar(e, point, *value);
        let zero = e.i64(0);
        let first = e.cmp(Cmp::Eq, self.member, zero);
        let mut here = e.and(first, row.is_there);
        if let Some(when) = when {
            let when = body.scalar(e, point, *when);
            here = e.and(here, when);
        }
        e.if_then(here, &[], |e| {
            body.store_scalar(e, point, to, value);
            vec![]
        });
    }

    fn reduce(
        &self,
        e: &mut Emit,
        body: &Body,
        point: &mut Point,
        vectors: &mut Vectors,
        op: Reduction,
        value: usize,
    ) -> Val {
        type Combine = fn(&mut Emit, Val, Val) -> Val;
        let (identity, combine): (f32, Combine) = match op {
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
        all
    }
}
