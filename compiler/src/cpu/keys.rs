//! Keys and values of one block, packed for the register tile: keys turned, values in pairs.
//!
//! Both go to scratch in units of four bytes, an f32 or two bf16. A row past the last one is the last one again: nothing is read
//! behind the keys, and a probability of 0 meets a number that is there.

use ir::DType;
use ir::plan::{Kernel, Rows};

use super::Target;
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::scalar::{Body, memory};

/// Keys of a block.
pub const BLOCK: i64 = 64;

/// A matrix of keys or values at one batch point.
pub struct Matrix {
    pub base: Val,
    /// Elements from row to row.
    pub stride: Val,
    pub dtype: DType,
    /// How many rows there are, at least 1.
    pub rows: Val,
}

impl Matrix {
    pub fn new(e: &mut Emit, body: &Body, kernel: &Kernel, m: &Rows, batch: &[Val], rows: Val) -> Matrix {
        let dtype = kernel.args[m.arg].dtype;
        let (stride, of_batch) = m.strides.split_last().expect("a matrix has a stride for its rows");
        let offset = body.linear(e, &m.offset, batch, of_batch);
        let base = e.at(body.args[m.arg], offset, memory(dtype));
        let stride = body.size(e, stride);
        Matrix {
            base,
            stride,
            dtype,
            rows,
        }
    }

    /// Pointer to a row.
    pub fn row(&self, e: &mut Emit, row: Val) -> Val {
        let offset = e.mul(row, self.stride);
        e.at(self.base, offset, memory(self.dtype))
    }

    /// Pointer to a row, or to the last one.
    fn row_or_last(&self, e: &mut Emit, row: Val) -> Val {
        let one = e.i64(1);
        let last = e.sub(self.rows, one);
        let row = e.min(row, last);
        self.row(e, row)
    }
}

/// `BLOCK` keys from `first` as a panel: unit u of key n at `u * BLOCK + n`.
pub fn pack_keys(e: &mut Emit, target: &Target, k: &Matrix, depth: i64, first: Val, panel: Val) {
    let lanes = target.lanes;
    let (pair, elem) = if k.dtype == DType::BF16 {
        (2, Elem::I32)
    } else {
        (1, Elem::F32)
    };
    let whole = depth / pair;
    let square = whole - whole % lanes as i64;
    let (zero, block) = (e.i64(0), e.i64(BLOCK));
    e.for_loop(zero, block, lanes as i64, &[], |e, group, _| {
        let at = e.add(first, group);
        let rows: Vec<Val> = (0..lanes)
            .map(|i| {
                let i = e.i64(i as i64);
                let row = e.add(at, i);
                k.row_or_last(e, row)
            })
            .collect();
        let store = |e: &mut Emit, v: Val, unit: Val| {
            let width = e.i64(BLOCK);
            let to = e.mul(unit, width);
            let to = e.add(to, group);
            let to = e.at(panel, to, Elem::I32);
            e.store(v, to);
        };
        if square > 0 {
            let end = e.i64(square);
            e.for_loop(zero, end, lanes as i64, &[], |e, unit, _| {
                let read = |e: &mut Emit, row: &Val| {
                    let p = e.at(*row, unit, elem);
                    e.load(p, Ty::vector(elem, lanes))
                };
                let loaded: Vec<Val> = rows.iter().map(|row| read(e, row)).collect();
                for (i, v) in transpose(e, loaded).into_iter().enumerate() {
                    let i = e.i64(i as i64);
                    let unit = e.add(unit, i);
                    store(e, v, unit);
                }
                vec![]
            });
        }
        // What is left of a key goes lane by lane.
        let lone = |e: &mut Emit, unit: Val, from: Elem| {
            for (i, row) in rows.iter().enumerate() {
                let p = e.at(*row, unit, elem);
                let mut v = e.load(p, Ty::scalar(from));
                if from == Elem::I16 {
                    v = e.extend_unsigned(v, Elem::I32);
                }
                let width = e.i64(BLOCK);
                let to = e.mul(unit, width);
                let lane = e.i64(i as i64);
                let lane = e.add(group, lane);
                let to = e.add(to, lane);
                let to = e.at(panel, to, Elem::I32);
                e.store(v, to);
            }
        };
        if square < whole {
            let (from, to) = (e.i64(square), e.i64(whole));
            e.for_loop(from, to, 1, &[], |e, unit, _| {
                lone(e, unit, elem);
                vec![]
            });
        }
        if depth % pair != 0 {
            let unit = e.i64(whole);
            lone(e, unit, Elem::I16);
        }
        vec![]
    });
}

/// Rows to columns: as many vectors as lanes. In each step blocks of half the size change places.
pub fn transpose(e: &mut Emit, mut rows: Vec<Val>) -> Vec<Val> {
    let n = rows.len();
    let mut d = n / 2;
    while d > 0 {
        for i in (0..n).filter(|i| i & d == 0) {
            let low: Vec<usize> = (0..n).map(|l| if l & d == 0 { l } else { n + l - d }).collect();
            let high: Vec<usize> = (0..n).map(|l| if l & d == 0 { l + d } else { n + l }).collect();
            let (a, b) = (rows[i], rows[i + d]);
            rows[i] = e.shuffle(a, b, &low);
            rows[i + d] = e.shuffle(a, b, &high);
        }
        d /= 2;
    }
    rows
}

/// `BLOCK` rows from `first` as units of four bytes: unit (row / pair, column) at `row / pair * width + column`.
pub fn pack_rows(e: &mut Emit, target: &Target, m: &Matrix, cols: i64, width: i64, first: Val, panel: Val) {
    if m.dtype == DType::BF16 {
        return pack_values(e, target, m, cols, width, first, panel);
    }
    let lanes = target.lanes;
    let (zero, rows) = (e.i64(0), e.i64(BLOCK));
    e.for_loop(zero, rows, 1, &[], |e, row, _| {
        let at = e.add(first, row);
        let from = m.row_or_last(e, at);
        let to = e.i64(width);
        let to = e.mul(row, to);
        for column in (0..cols).step_by(lanes) {
            let at = e.i64(column);
            let p = e.at(from, at, Elem::F32);
            let ty = Ty::vector(Elem::F32, lanes);
            let v = if cols - column >= lanes as i64 {
                e.load(p, ty)
            } else {
                let n = e.i64(cols - column);
                let mask = e.first_lanes(n, lanes);
                e.masked_load(p, mask, ty)
            };
            let to = e.add(to, at);
            let to = e.at(panel, to, Elem::F32);
            e.store(v, to);
        }
        vec![]
    });
}

/// `BLOCK` rows of bf16 values from `first` in pairs: unit (row / 2, column) at `row / 2 * width + column`.
pub fn pack_values(e: &mut Emit, target: &Target, v: &Matrix, cols: i64, width: i64, first: Val, panel: Val) {
    let lanes = target.lanes;
    let (zero, pairs) = (e.i64(0), e.i64(BLOCK / 2));
    e.for_loop(zero, pairs, 1, &[], |e, pair, _| {
        let two = e.i64(2);
        let row = e.mul(pair, two);
        let row = e.add(first, row);
        let one = e.i64(1);
        let next = e.add(row, one);
        let rows = [row, next].map(|r| v.row_or_last(e, r));
        let to = e.i64(width);
        let to = e.mul(pair, to);
        let mut column = 0;
        while column < cols {
            let at = e.i64(column);
            let left = (cols - column) as usize;
            let halves = rows.map(|row| {
                let p = e.at(row, at, Elem::I16);
                let ty = Ty::vector(Elem::I16, lanes);
                let raw = if left >= lanes {
                    e.load(p, ty)
                } else {
                    let n = e.i64(left as i64);
                    let mask = e.first_lanes(n, lanes);
                    e.masked_load(p, mask, ty)
                };
                e.extend_unsigned(raw, Elem::I32)
            });
            let high = e.shl(halves[1], 16);
            let both = e.or(halves[0], high);
            let to = e.add(to, at);
            let to = e.at(panel, to, Elem::I32);
            e.store(both, to);
            column += lanes as i64;
        }
        vec![]
    });
}
