//! A right side whose k is contiguous, as keys are: packed into scratch for many rows, scored where it lies for few.

use ir::DType;
use ir::plan::MATMUL_COLS;

use super::Matmul;
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{memory, widen};

impl Matmul<'_> {
    /// Keys `[n, k]` into panel layout in scratch, 64 of them; past the last key the last one again (its column is masked).
    pub(super) fn pack(&self, e: &mut Emit, base: Val, stride: Val, dtype: DType, scratch: Val) -> i64 {
        let (pair, elem) = if dtype == DType::BF16 {
            (2, Elem::I32)
        } else {
            (1, Elem::F32)
        };
        let lanes = self.target.lanes;
        let k = self.body.size(e, &self.c.k);
        let whole = if pair == 2 { e.shr(k, 1) } else { k };
        let n = self.body.size(e, &self.body.kernel.cols);
        let one = e.i64(1);
        let last = e.sub(n, one);
        let (zero, all) = (e.i64(0), e.i64(MATMUL_COLS));
        e.for_loop(zero, all, lanes as i64, &[], |e, group, _| {
            let lane = e.iota(Elem::I64, lanes);
            let first = e.add(self.column, group);
            let first = e.broadcast(first, lanes);
            let key = e.add(first, lane);
            let last = e.broadcast(last, lanes);
            let key = e.min(key, last);
            let stride = e.broadcast(stride, lanes);
            let offsets = e.mul(key, stride);
            let rows = e.at(base, offsets, memory(dtype));
            let mask = e.all_lanes(lanes);
            let copy = |e: &mut Emit, unit: Val, odd: bool| {
                let from = if odd { Elem::I16 } else { elem };
                // Lane pointers move by whole units of four bytes.
                let unit_lanes = e.broadcast(unit, lanes);
                let ptrs = e.at(rows, unit_lanes, elem);
                let mut v = e.gather(ptrs, mask, Ty::vector(from, lanes));
                if odd {
                    v = e.extend_unsigned(v, Elem::I32);
                }
                let width = e.i64(MATMUL_COLS);
                let to = e.mul(unit, width);
                let to = e.add(to, group);
                let to = e.at(scratch, to, elem);
                e.store(v, to);
            };
            e.for_loop(zero, whole, 1, &[], |e, unit, _| {
                copy(e, unit, false);
                vec![]
            });
            if pair == 2 && self.c.k.as_const().is_none_or(|k| k % 2 == 1) {
                let rest = e.and(k, one);
                let odd = e.cmp(Cmp::Eq, rest, one);
                e.if_then(odd, &[], |e| {
                    copy(e, whole, true);
                    vec![]
                });
            }
            vec![]
        });
        pair
    }

    /// Few rows: dot products along k, one key after the other; the row's scores go through scratch to the epilogue.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn dots(&self, e: &mut Emit, base: Val, stride: Val, dtype: DType, first: Val, last: Val, scratch: Val) {
        let lanes = self.target.lanes;
        let a_type = self.dtype(self.c.a.arg);
        let n = self.body.size(e, &self.body.kernel.cols);
        let left = e.sub(n, self.column);
        let width = e.i64(MATMUL_COLS);
        let keys = e.min(left, width);
        let k = self.body.size(e, &self.c.k);
        let (zero, mask) = (e.i64(0), e.i64(-(lanes as i64)));
        let whole = e.and(k, mask);
        let rest = e.sub(k, whole);
        let tail = self.c.k.as_const().is_none_or(|k| k % lanes as i64 != 0);
        let tail_mask = tail.then(|| e.first_lanes(rest, lanes));
        e.for_loop(first, last, 1, &[], |e, row, _| {
            let index = self.index(e, row);
            let a = self.a_row(e, &index);
            e.for_loop(zero, keys, 1, &[], |e, j, _| {
                let key = e.add(self.column, j);
                let offset = e.mul(key, stride);
                let b = e.at(base, offset, memory(dtype));
                let step = |e: &mut Emit, at: Val, acc: Val, mask: Option<Val>| {
                    let mut read = |p: Val, dtype: DType| {
                        let p = e.at(p, at, memory(dtype));
                        let ty = Ty::vector(memory(dtype), lanes);
                        let raw = match mask {
                            None => e.load(p, ty),
                            Some(mask) => e.masked_load(p, mask, ty),
                        };
                        widen(e, raw, dtype)
                    };
                    let (x, y) = (read(a, a_type), read(b, dtype));
                    e.fma(x, y, acc)
                };
                let init = e.f32(0.0, Ty::vector(Elem::F32, lanes));
                let acc = e.for_loop(zero, whole, lanes as i64, &[init], |e, at, acc| {
                    vec![step(e, at, acc[0], None)]
                });
                let acc = match tail_mask {
                    None => acc[0],
                    Some(mask) => step(e, whole, acc[0], Some(mask)),
                };
                let score = e.reduce_add(acc);
                let to = e.at(scratch, j, Elem::F32);
                e.store(score, to);
                vec![]
            });
            let mut columns = vec![];
            let mut acc = vec![];
            for v in 0..MATMUL_COLS / lanes as i64 {
                let at = e.i64(v * lanes as i64);
                let p = e.at(scratch, at, Elem::F32);
                acc.push(e.load(p, Ty::vector(Elem::F32, lanes)));
                columns.push(e.add(self.column, at));
            }
            let masks: Vec<Option<Val>> = columns.iter().map(|c| self.mask(e, *c)).collect();
            self.epilogue(e, row, index, &columns, &masks, &acc);
            vec![]
        });
    }
}
