//! Reductions over a contraction's columns, kept per row of the tile while the columns go by: sum, maximum, log of a sum of e^x.
//!
//! A row's state is one or two vectors, lane by lane: lanes meet only when the last column has passed. Scores are in units of
//! log2, so that an exponential is a power of two.

use ir::plan::{Kernel, MATMUL_ROWS, Reduction, Stage};

use super::vmath;
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::scalar::{Body, Columns, F32, Point};

/// Below every score.
const LOWEST: f32 = -1e30;

/// The kernel's reductions, and where a worker keeps their states.
pub struct RowStates {
    /// Stage, reduction, value, place of its first vector.
    list: Vec<(usize, Reduction, usize, i64)>,
    /// Vectors of a row.
    vectors: i64,
    lanes: usize,
}

fn vectors(op: Reduction) -> i64 {
    if op == Reduction::LogSumExp { 2 } else { 1 }
}

impl RowStates {
    pub fn new(kernel: &Kernel, lanes: usize) -> RowStates {
        let mut at = 0;
        let mut list = vec![];
        for (i, stage) in kernel.stages.iter().enumerate() {
            if let Stage::Reduce { op, value } = stage {
                list.push((i, *op, *value, at));
                at += vectors(*op);
            }
        }
        RowStates {
            list,
            vectors: at,
            lanes,
        }
    }

    /// Scratch for all rows of a tile (whose height is rounded up to whole register tiles).
    pub fn bytes(&self) -> i64 {
        self.vectors * 64 * (MATMUL_ROWS + 8)
    }

    fn ty(&self) -> Ty {
        Ty::vector(Elem::F32, self.lanes)
    }

    fn place(&self, e: &mut Emit, scratch: Val, row: Val, vector: i64) -> Val {
        let lanes = self.lanes as i64;
        let pitch = e.i64(self.vectors * lanes);
        let at = e.mul(row, pitch);
        let vector = e.i64(vector * lanes);
        let at = e.add(at, vector);
        e.at(scratch, at, Elem::F32)
    }

    /// Every row's state before the first column.
    pub fn begin(&self, e: &mut Emit, scratch: Val, rows: Val) {
        let zero = e.i64(0);
        e.for_loop(zero, rows, 1, &[], |e, row, _| {
            for (_, op, _, at) in &self.list {
                let start = match op {
                    Reduction::Sum => 0.0,
                    Reduction::Max => f32::NEG_INFINITY,
                    Reduction::LogSumExp => LOWEST,
                };
                let start = e.f32(start, self.ty());
                let p = self.place(e, scratch, row, *at);
                e.store(start, p);
                if *op == Reduction::LogSumExp {
                    let zero = e.f32(0.0, self.ty());
                    let p = self.place(e, scratch, row, *at + 1);
                    e.store(zero, p);
                }
            }
            vec![]
        });
    }

    /// Takes in some vectors of columns of one row.
    pub fn take(&self, e: &mut Emit, body: &Body, point: &mut Point, scratch: Val, row: Val, columns: &mut [Columns]) {
        for (_, op, value, at) in &self.list {
            let fill = match op {
                Reduction::Sum => 0.0,
                Reduction::Max => f32::NEG_INFINITY,
                Reduction::LogSumExp => LOWEST,
            };
            let mut values = vec![];
            for cols in columns.iter_mut() {
                let mut v = body.vector(e, point, cols, *value);
                if *op == Reduction::LogSumExp {
                    let log2e = e.f32(std::f32::consts::LOG2_E, self.ty());
                    v = e.mul(v, log2e);
                }
                if let Some(mask) = cols.mask {
                    let fill = e.f32(fill, self.ty());
                    v = e.select(mask, v, fill);
                }
                values.push(v);
            }
            let p = self.place(e, scratch, row, *at);
            let old = e.load(p, self.ty());
            match op {
                Reduction::Sum => {
                    let new = values.into_iter().fold(old, |acc, v| e.add(acc, v));
                    e.store(new, p);
                }
                Reduction::Max => {
                    let new = values.into_iter().fold(old, |acc, v| e.max(v, acc));
                    e.store(new, p);
                }
                Reduction::LogSumExp => {
                    let new = values.iter().fold(old, |acc, v| e.max(*v, acc));
                    e.store(new, p);
                    let p = self.place(e, scratch, row, *at + 1);
                    let sum = e.load(p, self.ty());
                    let shift = e.sub(old, new);
                    let factor = vmath::exp2_negative(e, shift);
                    let mut sum = e.mul(sum, factor);
                    for v in values {
                        let x = e.sub(v, new);
                        let x = vmath::exp2_negative(e, x);
                        sum = e.add(sum, x);
                    }
                    e.store(sum, p);
                }
            }
        }
    }

    /// The results of one row, for its stores.
    pub fn finish(&self, e: &mut Emit, point: &mut Point, scratch: Val, row: Val) {
        for (stage, op, _, at) in &self.list {
            let p = self.place(e, scratch, row, *at);
            let v = e.load(p, self.ty());
            let result = match op {
                Reduction::Sum => e.reduce_add(v),
                Reduction::Max => e.reduce_max(v),
                Reduction::LogSumExp => {
                    let max = e.largest(v);
                    let all = e.broadcast(max, self.lanes);
                    let shift = e.sub(v, all);
                    let factor = vmath::exp2_negative(e, shift);
                    let p = self.place(e, scratch, row, *at + 1);
                    let sum = e.load(p, self.ty());
                    let sum = e.mul(sum, factor);
                    let sum = e.reduce_add(sum);
                    let log = vmath::log(e, sum);
                    let ln2 = e.f32(std::f32::consts::LN_2, F32);
                    e.fma(max, ln2, log)
                }
            };
            point.reduced.insert(*stage, result);
        }
    }
}
