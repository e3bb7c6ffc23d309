//! A sweep's two products with a block of keys: scores of all rows, and weights by values. Many rows by the matmuls' register tile from
//! packed keys; few rows where keys and values lie.

use ir::DType;
use ir::plan::Segment;

use super::super::keys::{BLOCK, Matrix};
use super::super::product::{self, Panel, Rows};
use super::Tile;
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::scalar::{F32, memory, widen};

/// Gets rows of scratch, first columns and what is there; gives the sum.
type Accumulate<'a> = &'a mut dyn FnMut(&mut Emit, &[Val], &[Val], &[Val]) -> Vec<Val>;

impl Tile<'_> {
    /// Scores of all rows against the packed block.
    pub(super) fn scores(&self, e: &mut Emit, s: &Segment) {
        let pair = if self.kernel.args[s.k.arg].dtype == DType::BF16 {
            2
        } else {
            1
        };
        let lanes = self.target.lanes as i64;
        let base = self.place(e, self.lay.keys);
        let panel = Panel {
            target: self.target,
            base,
            stride: BLOCK,
            pair,
            a_stride: 1,
        };
        let vectors = product::vectors(self.target);
        let zero = e.i64(0);
        let whole = e.i64(self.sweep.depth / pair);
        self.chunks(e, &mut |e, g, at, chunk| {
            let a: Vec<Val> = (0..chunk).map(|i| self.query(e, g, at, i)).collect();
            let rows: Vec<Val> = (0..chunk).map(|i| self.row(e, g, at, i)).collect();
            let all = e.i64(BLOCK);
            e.for_loop(zero, all, vectors * lanes, &[], |e, sub, _| {
                let firsts = firsts(e, sub, vectors, lanes);
                let nothing = e.f32(0.0, Ty::vector(Elem::F32, lanes as usize));
                let init = vec![nothing; a.len() * firsts.len()];
                let mut acc = panel.product(e, &a, &firsts, &init, [zero, whole]);
                if self.sweep.depth % pair != 0 {
                    acc = panel.step(e, &a, &firsts, &acc, whole, true);
                }
                for (row, acc) in rows.iter().zip(acc.chunks(firsts.len())) {
                    let to = self.element(e, self.lay.scores, *row, BLOCK, Elem::F32);
                    for (first, v) in firsts.iter().zip(acc) {
                        let p = e.at(to, *first, Elem::F32);
                        e.store(*v, p);
                    }
                }
                vec![]
            });
        });
    }

    /// O = O * factor + weights * values, over the block.
    pub(super) fn values(&self, e: &mut Emit, number: usize, s: &Segment, v: &Matrix, block: Val) {
        let (zero, all) = (e.i64(0), e.i64(BLOCK));
        let n = e.sub(v.rows, block);
        let n = e.min(n, all);
        self.accumulate(e, number, &mut |e, a, firsts, init| {
            if self.in_pairs(s) {
                let base = self.place(e, self.lay.values);
                let panel = Panel {
                    target: self.target,
                    base,
                    stride: self.lay.width,
                    pair: 2,
                    a_stride: 1,
                };
                let pairs = e.i64(BLOCK / 2);
                let a: Vec<Val> = a
                    .iter()
                    .map(|row| self.element(e, self.lay.weights, *row, BLOCK, Elem::I16))
                    .collect();
                return panel.product(e, &a, firsts, init, [zero, pairs]);
            }
            self.in_place(e, v, block, n, a, firsts, init)
        });
    }

    /// Weights in f32 by values where they lie.
    #[allow(clippy::too_many_arguments)]
    fn in_place(
        &self,
        e: &mut Emit,
        v: &Matrix,
        block: Val,
        n: Val,
        a: &[Val],
        firsts: &[Val],
        init: &[Val],
    ) -> Vec<Val> {
        let lanes = self.target.lanes;
        let first = v.row(e, block);
        let starts = firsts.iter().map(|f| e.at(first, *f, memory(v.dtype))).collect();
        let whole = self.cols() == self.lay.width;
        let cols = e.i64(self.cols());
        let masks = firsts
            .iter()
            .map(|f| {
                (!whole).then(|| {
                    let left = e.sub(cols, *f);
                    e.first_lanes(left, lanes)
                })
            })
            .collect();
        let right = Rows {
            lanes,
            starts,
            masks,
            stride: v.stride,
            dtype: v.dtype,
        };
        let a: Vec<Val> = a
            .iter()
            .map(|row| self.element(e, self.lay.scores, *row, BLOCK, Elem::F32))
            .collect();
        let zero = e.i64(0);
        right.product(e, &a, DType::F32, init, [zero, n])
    }

    /// For each chunk of rows and register tile of columns: O, scaled, through `f`, which gets rows of scratch, columns, and O.
    fn accumulate(&self, e: &mut Emit, number: usize, f: Accumulate) {
        let lanes = self.target.lanes as i64;
        let vectors = product::vectors(self.target);
        let zero = e.i64(0);
        self.chunks(e, &mut |e, g, at, chunk| {
            let rows: Vec<Val> = (0..chunk).map(|i| self.row(e, g, at, i)).collect();
            let all = e.i64(
                self.lay
                    .width
                    .min((self.cols() + lanes * vectors - 1) / (lanes * vectors) * lanes * vectors),
            );
            e.for_loop(zero, all, vectors * lanes, &[], |e, sub, _| {
                let firsts = firsts(e, sub, vectors, lanes);
                let mut places = vec![];
                let mut init = vec![];
                for row in &rows {
                    let factor = self.element(e, self.lay.factors, *row, 1, Elem::F32);
                    let factor = e.load(factor, F32);
                    let factor = e.broadcast(factor, lanes as usize);
                    let o = self.element(e, self.state(number), *row, self.lay.width, Elem::F32);
                    for first in &firsts {
                        let p = e.at(o, *first, Elem::F32);
                        let x = e.load(p, Ty::vector(Elem::F32, lanes as usize));
                        let x = e.mul(x, factor);
                        init.push(x);
                        places.push(p);
                    }
                }
                let acc = f(e, &rows, &firsts, &init);
                for (p, v) in places.into_iter().zip(acc) {
                    e.store(v, p);
                }
                vec![]
            });
        });
    }

    /// Scores of few rows, one key after the other: a key's vectors are read once for all rows.
    pub(super) fn few_scores(&self, e: &mut Emit, k: &Matrix, block: Val, n: Val) {
        let lanes = self.target.lanes;
        let (depth, rows) = (self.sweep.depth, self.lay.rows);
        let q_type = self.kernel.args[self.sweep.q.arg].dtype;
        let zero = e.i64(0);
        let queries: Vec<Val> = (0..rows).map(|i| self.query(e, None, zero, i)).collect();
        e.for_loop(zero, n, 1, &[], |e, j, _| {
            let key = e.add(block, j);
            let key = k.row(e, key);
            let nothing = e.f32(0.0, Ty::vector(Elem::F32, lanes));
            let mut acc = vec![nothing; queries.len()];
            for at in (0..depth).step_by(lanes) {
                let left = depth - at;
                let at = e.i64(at);
                let read = |e: &mut Emit, p: Val, dtype: DType| {
                    let p = e.at(p, at, memory(dtype));
                    let ty = Ty::vector(memory(dtype), lanes);
                    let raw = if left >= lanes as i64 {
                        e.load(p, ty)
                    } else {
                        let left = e.i64(left);
                        let mask = e.first_lanes(left, lanes);
                        e.masked_load(p, mask, ty)
                    };
                    widen(e, raw, dtype)
                };
                let y = read(e, key, k.dtype);
                for (q, acc) in queries.iter().zip(&mut acc) {
                    let x = read(e, *q, q_type);
                    *acc = e.fma(x, y, *acc);
                }
            }
            for (row, acc) in acc.into_iter().enumerate() {
                let score = e.reduce_add(acc);
                let row = e.i64(row as i64);
                let to = self.element(e, self.lay.scores, row, BLOCK, Elem::F32);
                let to = e.at(to, j, Elem::F32);
                e.store(score, to);
            }
            vec![]
        });
    }

    pub(super) fn few_values(&self, e: &mut Emit, number: usize, v: &Matrix, block: Val, n: Val) {
        self.accumulate(e, number, &mut |e, a, firsts, init| {
            self.in_place(e, v, block, n, a, firsts, init)
        });
    }
}

/// First columns of a register tile's vectors.
fn firsts(e: &mut Emit, sub: Val, vectors: i64, lanes: i64) -> Vec<Val> {
    (0..vectors)
        .map(|v| {
            let at = e.i64(v * lanes);
            e.add(sub, at)
        })
        .collect()
}
