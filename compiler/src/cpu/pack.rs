//! Kernels that fill panels while they compute: what a matmul multiplies and no load has packed, such as activations and trained weights.
//!
//!     for tile in begin..end                  PANEL_ROWS points of `outer`
//!       k the rows:     for panel, pair of rows   a vector of columns of both, interleaved, is a vector of units
//!       k the columns:  for lanes of rows         a square of units, turned in registers
//!
//! Panels end in zeros where k is odd; a panel's columns behind the last n hold anything: nobody stores what they give.

use ir::plan::{Kernel, MATMUL_COLS, PANEL_ROWS, Stage};
use ir::{DType, Size};

use super::Target;
use super::keys::transpose;
use super::vmath;
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, Columns, Point};

struct Pack<'k> {
    body: Body<'k>,
    value: usize,
    /// The panels.
    to: Val,
    pair: i64,
    /// Points of `outer`, and columns.
    rows: i64,
    cols: i64,
}

pub fn emit(kernel: &Kernel, target: &Target) -> String {
    let mut e = Emit::default();
    let known = |s: &Size| {
        s.as_const()
            .unwrap_or_else(|| panic!("kernel {}: {s} is not known", kernel.name))
    };
    e.kernel(&kernel.name, |e, [buffers, symbols, begin, end, _scratch]| {
        let body = Body::new(e, kernel, target.lanes, buffers, symbols);
        let [Stage::Store { to, value, .. }] = &kernel.stages[..] else {
            panic!("kernel {}: panels are one store", kernel.name)
        };
        let turned = to.strides.last() == Some(&Size::one());
        let p = Pack {
            value: *value,
            to: body.args[to.arg],
            pair: if kernel.args[to.arg].dtype == DType::BF16 { 2 } else { 1 },
            rows: known(&Size::product(&kernel.outer)),
            cols: known(&kernel.cols),
            body,
        };
        let step = if turned { target.lanes as i64 } else { p.pair };
        let tile = e.i64(PANEL_ROWS);
        let first = e.mul(begin, tile);
        let last = e.mul(end, tile);
        let rows = e.i64(p.rows);
        let last = e.min(last, rows);
        if turned {
            e.for_loop(first, last, step, &[], |e, row, _| {
                p.square(e, row);
                vec![]
            });
            return;
        }
        // A panel's rows of units lie one behind the other: all of a tile before the next panel.
        e.for_loop(first, last, PANEL_ROWS, &[], |e, row, _| {
            let tile = e.i64(PANEL_ROWS);
            let end = e.add(row, tile);
            let end = e.min(end, last);
            let (zero, cols) = (e.i64(0), e.i64(p.cols));
            e.for_loop(zero, cols, MATMUL_COLS, &[], |e, panel, _| {
                let width = e.i64(MATMUL_COLS);
                let to = e.add(panel, width);
                let to = e.min(to, cols);
                e.for_loop(row, end, step, &[], |e, row, _| {
                    p.rows_together(e, row, [panel, to]);
                    vec![]
                });
                vec![]
            });
            vec![]
        });
    });
    e.finish()
}

impl Pack<'_> {
    /// A row's point, all that no column changes computed; past the last row it is the last one.
    fn point(&self, e: &mut Emit, row: Val) -> Point {
        let last = e.i64(self.rows - 1);
        let row = e.min(row, last);
        let index = self.body.unravel(e, row, &self.body.kernel.outer);
        let mut point = self.body.point(index);
        self.body.hoist(e, &mut point, &self.body.kernel.stages[0]);
        point
    }

    fn units(&self, k: i64) -> i64 {
        (k + self.pair - 1) / self.pair
    }

    /// Rows are k: one or two of them give a row of units, here of these columns.
    fn rows_together(&self, e: &mut Emit, row: Val, [from, to]: [Val; 2]) {
        let lanes = self.body.lanes;
        let one = e.i64(1);
        let next = e.add(row, one);
        let count = e.i64(self.rows);
        let there = e.cmp(Cmp::Lt, next, count);
        let mut points: Vec<Point> = (0..self.pair)
            .map(|i| {
                let i = e.i64(i);
                let row = e.add(row, i);
                self.point(e, row)
            })
            .collect();
        let pair = e.i64(self.pair);
        let unit = e.div(row, pair);
        let cols = e.i64(self.cols);
        e.for_loop(from, to, lanes as i64, &[], |e, column, _| {
            let mask = (self.cols % lanes as i64 != 0).then(|| {
                let left = e.sub(cols, column);
                e.first_lanes(left, lanes)
            });
            let mut values = vec![];
            for point in &mut points {
                let mut columns = Columns::new(column, mask, None);
                values.push(self.body.vector(e, point, &mut columns, self.value));
            }
            let unit_row = match values[..] {
                [x] => x,
                _ => {
                    let nothing = e.f32(0.0, values[1].ty);
                    let second = if self.rows % 2 == 0 {
                        values[1]
                    } else {
                        e.select(there, values[1], nothing)
                    };
                    let [low, high] = [values[0], second].map(|v| {
                        let bits = vmath::bf16_bits(e, v);
                        e.extend_unsigned(bits, Elem::I32)
                    });
                    let high = e.shl(high, 16);
                    e.or(low, high)
                }
            };
            let width = e.i64(MATMUL_COLS);
            let (panel, within) = (e.div(column, width), e.rem(column, width));
            let units = e.i64(self.units(self.rows));
            let at = e.mul(panel, units);
            let at = e.add(at, unit);
            let at = e.mul(at, width);
            let at = e.add(at, within);
            let to = e.at(self.to, at, Elem::I32);
            e.store(unit_row, to);
            vec![]
        });
    }

    /// Columns are k: as many rows as lanes, and as many units.
    fn square(&self, e: &mut Emit, row: Val) {
        let lanes = self.body.lanes;
        let mut points: Vec<Point> = (0..lanes)
            .map(|i| {
                let i = e.i64(i as i64);
                let row = e.add(row, i);
                self.point(e, row)
            })
            .collect();
        let step = lanes as i64 * self.pair;
        let whole = self.cols / step * step;
        let (zero, end) = (e.i64(0), e.i64(whole));
        if whole > 0 {
            e.for_loop(zero, end, step, &[], |e, column, _| {
                self.square_at(e, &mut points, row, column, lanes as i64, false);
                vec![]
            });
        }
        if whole < self.cols {
            self.square_at(e, &mut points, row, end, self.units(self.cols - whole), true);
        }
    }

    /// `count` units from `column`.
    fn square_at(&self, e: &mut Emit, points: &mut [Point], row: Val, column: Val, count: i64, masked: bool) {
        let lanes = self.body.lanes;
        let units = points.iter_mut().map(|point| {
            let parts: Vec<Val> = (0..self.pair)
                .map(|half| {
                    let by = e.i64(half * lanes as i64);
                    let first = e.add(column, by);
                    let mask = masked.then(|| {
                        let n = e.i64(self.cols);
                        let left = e.sub(n, first);
                        e.first_lanes(left, lanes)
                    });
                    let mut columns = Columns::new(first, mask, None);
                    let v = self.body.vector(e, point, &mut columns, self.value);
                    match mask {
                        None => v,
                        Some(mask) => {
                            let nothing = e.f32(0.0, v.ty);
                            e.select(mask, v, nothing)
                        }
                    }
                })
                .collect();
            match parts[..] {
                [x] => x,
                _ => {
                    let [low, high] = [parts[0], parts[1]].map(|v| vmath::bf16_bits(e, v));
                    let order: Vec<usize> = (0..2 * lanes).collect();
                    let both = e.shuffle(low, high, &order);
                    e.bitcast(both, Ty::vector(Elem::I32, lanes))
                }
            }
        });
        let units: Vec<Val> = units.collect();
        let width = e.i64(MATMUL_COLS);
        let (panel, within) = (e.div(row, width), e.rem(row, width));
        let pair = e.i64(self.pair);
        let first = e.div(column, pair);
        let all = e.i64(self.units(self.cols));
        let at = e.mul(panel, all);
        let at = e.add(at, first);
        for (i, v) in transpose(e, units).into_iter().enumerate().take(count as usize) {
            let i = e.i64(i as i64);
            let unit = e.add(at, i);
            let to = e.mul(unit, width);
            let to = e.add(to, within);
            let to = e.at(self.to, to, Elem::I32);
            e.store(v, to);
        }
    }
}
