//! Kernels with a contraction: every matmul, from prefill's large ones to attention's batches and decoding's single rows.
//!
//!     for tile in begin..end                  (batch point, block of MATMUL_ROWS rows, panel of 64 columns)
//!       A's rows, if they must be           rounded or measured: once for all panels of a block of rows, see `measured`
//!       right-hand side                       a packed panel in place, keys packed into scratch, or values as they lie
//!       for chunk of 6, 4, 2, then 1 rows     the panel stays in the cache, the chunk's accumulators in registers
//!         for k                               load a vector row of B, broadcast A, fma (or vdpbf16ps on pairs)
//!         epilogue                            the kernel's expressions on the accumulators
//!
//! Where k is deep, it is walked in pieces, see `deep`. Else A is read where it lies: k is contiguous, so a broadcast load (of a pair, for bf16) is all it takes.

use ir::plan::{Contraction, Kernel, MATMUL_COLS, MATMUL_ROWS, Rhs, Stage};
use ir::{DType, Size};

use super::Target;
use super::measured::Measured;
use super::product::{self, CHUNKS};
use super::rows::RowStates;
use crate::mlir::emit::{Cmp, Elem, Emit, Val};
use crate::scalar::{Body, Point, memory};

mod chunk;
mod deep;
mod keys;

/// Below this many rows in a tile, packing keys costs more than it saves.
const FEW_ROWS: i64 = 8;

/// Scratch of a worker: a panel of keys, or their scores where they are few.
pub fn scratch_bytes(kernel: &Kernel, c: &Contraction) -> i64 {
    let states = if kernel.reduces() {
        RowStates::new(kernel, 16).bytes()
    } else {
        0
    };
    states_begin(kernel, c) + states + if kernel.is_deep() { deep::bytes(kernel) } else { 0 }
}

/// Where the rows' states stand: behind the panel of keys and A's rows.
fn states_begin(kernel: &Kernel, c: &Contraction) -> i64 {
    panel_bytes(c) + Measured::new(kernel, c, 16).map_or(0, |m| m.bytes())
}

/// Of a panel of keys, which stands first.
fn panel_bytes(c: &Contraction) -> i64 {
    match c {
        Contraction {
            b: Rhs::KContiguous { .. },
            k,
            ..
        } => {
            let units = k.as_const().unwrap_or(0) + 1;
            (units * MATMUL_COLS * 4).max(MATMUL_COLS * 4)
        }
        _ => 0,
    }
}

/// Where a tile's right-hand side lies.
enum Columns64 {
    /// Panel layout: unit (k / pair, n) at `k / pair * 64 + n`, four bytes each: an f32, or a pair of bf16.
    /// `also`: how many units behind a panel the second weight's panel stands.
    Panel { base: Val, pair: i64, also: Option<Val> },
    /// Row k at `base + k * stride` elements, columns contiguous.
    Rows { base: Val, stride: Val, dtype: DType },
}

struct Matmul<'k> {
    body: Body<'k>,
    c: &'k Contraction,
    target: &'k Target,
    /// Dimensions of rows.
    rows: &'k [Size],
    batch: Vec<Val>,
    /// First column of the tile.
    column: Val,
    /// What A's rows are rounded or measured to, and where a worker keeps it.
    measured: Option<(Measured, Val)>,
    /// First row of the tile, and the rows' states if the kernel reduces.
    first: Val,
    last: Val,
    states: Option<(RowStates, Val)>,
}

pub fn emit(kernel: &Kernel, c: &Contraction, target: &Target) -> String {
    let mut e = Emit::default();
    e.kernel(&kernel.name, |e, [buffers, symbols, begin, end, scratch]| {
        let body = Body::new(e, kernel, target.lanes, buffers, symbols);
        let (batch, rows) = kernel.outer.split_at(c.batch);
        let panels = ceil_div(e, &body, &kernel.cols, MATMUL_COLS);
        let row_count = body.size(e, &Size::product(rows));
        let blocks = ceil_div(e, &body, &Size::product(rows), MATMUL_ROWS);
        // Blocks of equal height, so that a split of the tiles in equal ranges is one of the work.
        let chunk = CHUNKS[0];
        let height = e.add(row_count, blocks);
        let less = e.i64(1);
        let height = e.sub(height, less);
        let height = e.div(height, blocks);
        let up = e.i64(chunk - 1);
        let height = e.add(height, up);
        let chunk = e.i64(chunk);
        let height = e.div(height, chunk);
        let height = e.mul(height, chunk);
        let zero = e.i64(0);
        let mut m = Matmul {
            body,
            c,
            target,
            rows,
            batch: vec![],
            column: zero,
            measured: None,
            first: zero,
            last: zero,
            states: None,
        };
        if let Some(measured) = Measured::new(kernel, c, target.lanes) {
            let at = e.i64(panel_bytes(c));
            m.measured = Some((measured, e.at(scratch, at, Elem::I8)));
        }
        let (reduces, deep) = (kernel.reduces(), kernel.is_deep());
        if reduces {
            let at = e.i64(states_begin(kernel, c));
            let place = e.at(scratch, at, Elem::I8);
            m.states = Some((RowStates::new(kernel, target.lanes), place));
        }
        let none = e.i64(-1);
        e.for_loop(begin, end, 1, &[none], |e, tile, before| {
            let (panel, rest) = if reduces || deep {
                (zero, tile)
            } else {
                (e.rem(tile, panels), e.div(tile, panels))
            };
            let block = e.rem(rest, blocks);
            let point = e.div(rest, blocks);
            m.batch = m.body.unravel(e, point, batch);
            let width = e.i64(MATMUL_COLS);
            m.column = e.mul(panel, width);
            let first = e.mul(block, height);
            let first = e.min(first, row_count);
            let last = e.add(first, height);
            let last = e.min(last, row_count);
            (m.first, m.last) = (first, last);
            let other = e.cmp(Cmp::Ne, rest, before[0]);
            m.measure(e, other, last);
            if reduces {
                m.reduced_tile(e, panels, first, last, scratch);
            } else if deep {
                m.deep_tile(e, panels, scratch);
            } else {
                m.tile(e, panel, first, last, scratch);
            }
            vec![rest]
        });
    });
    e.finish()
}

fn ceil_div(e: &mut Emit, body: &Body, size: &Size, block: i64) -> Val {
    let n = body.size(e, size);
    let more = e.i64(block - 1);
    let n = e.add(n, more);
    let block = e.i64(block);
    e.div(n, block)
}

impl Matmul<'_> {
    /// Takes in the rows of a block that is another than the tile's before.
    fn measure(&self, e: &mut Emit, other: Val, last: Val) {
        let Some((measured, place)) = self.measured else { return };
        e.if_then(other, &[], |e| {
            e.for_loop(self.first, last, 1, &[], |e, row, _| {
                let index = self.index(e, row);
                let from = self.a_row(e, &index);
                let row = e.sub(row, self.first);
                measured.take(e, place, row, from, self.dtype(self.c.a.arg));
                vec![]
            });
            vec![]
        });
    }

    /// A row's point, with what was measured of it.
    fn point(&self, e: &mut Emit, row: Val, index: Vec<Val>) -> Point {
        let mut point = self.body.point(index);
        if let Some((measured, place)) = self.measured {
            let row = e.sub(row, self.first);
            point.squares = measured.row_squares(e, place, row);
        }
        point
    }

    /// Where a row is multiplied from.
    fn multiplied_row(&self, e: &mut Emit, row: Val, index: &[Val]) -> Val {
        if self.c.packed_a {
            let dtype = self.dtype(self.c.a.arg);
            let units = ceil_div(e, &self.body, &self.c.k, if dtype == DType::BF16 { 2 } else { 1 });
            let width = e.i64(MATMUL_COLS);
            let (panel, column) = (e.div(row, width), e.rem(row, width));
            let at = e.mul(panel, units);
            let at = e.mul(at, width);
            let at = e.add(at, column);
            return e.at(self.body.args[self.c.a.arg], at, Elem::I32);
        }
        let rounded = self.measured.and_then(|(measured, place)| {
            let row = e.sub(row, self.first);
            measured.row(e, place, row)
        });
        rounded.unwrap_or_else(|| self.a_row(e, index))
    }

    /// Is it a store of columns as they go by?
    fn is_per_column(&self, stage: &Stage) -> bool {
        matches!(stage, Stage::Store { to, .. } if to.strides.last().is_some_and(|s| s.coef != 0))
    }

    /// All columns of some rows; stores of rows' results wait for the last one.
    fn reduced_tile(&mut self, e: &mut Emit, panels: Val, first: Val, last: Val, scratch: Val) {
        let (states, place) = self.states.take().expect("the kernel reduces");
        let (zero, count) = (e.i64(0), e.sub(last, first));
        states.begin(e, place, count);
        self.states = Some((states, place));
        e.for_loop(zero, panels, 1, &[], |e, panel, _| {
            let width = e.i64(MATMUL_COLS);
            self.column = e.mul(panel, width);
            self.tile(e, panel, first, last, scratch);
            vec![]
        });
        e.for_loop(zero, count, 1, &[], |e, row, _| {
            let at = e.add(first, row);
            let index = self.index(e, at);
            let mut point = self.point(e, at, index);
            let (states, place) = self.states.as_ref().expect("the kernel reduces");
            states.finish(e, &mut point, *place, row);
            for stage in self.body.kernel.stages.iter().filter(|s| !self.is_per_column(s)) {
                if let Stage::Store { to, value, .. } = stage {
                    let value = self.body.scalar(e, &mut point, *value);
                    self.body.store_scalar(e, &mut point, to, value);
                }
            }
            vec![]
        });
    }

    fn tile(&self, e: &mut Emit, panel: Val, first: Val, last: Val, scratch: Val) {
        match &self.c.b {
            Rhs::Packed { arg } => {
                let pair = if self.dtype(*arg) == DType::BF16 { 2 } else { 1 };
                let units = ceil_div(e, &self.body, &self.c.k, pair);
                let width = e.i64(MATMUL_COLS);
                let size = e.mul(units, width);
                let offset = e.mul(panel, size);
                let base = e.at(self.body.args[*arg], offset, Elem::I32);
                let also = match &self.c.also {
                    Some(Rhs::Packed { arg }) => {
                        let second = e.at(self.body.args[*arg], offset, Elem::I32);
                        Some(e.units_between(base, second))
                    }
                    _ => None,
                };
                self.rows(e, &Columns64::Panel { base, pair, also }, first, last);
            }
            Rhs::NContiguous { arg, offset, strides } => {
                let (k_stride, batch) = strides.split_last().expect("a right-hand side has a stride for k");
                let base = self.body.linear(e, offset, &self.batch, batch);
                let base = e.at(self.body.args[*arg], base, memory(self.dtype(*arg)));
                let stride = self.body.size(e, k_stride);
                self.rows(
                    e,
                    &Columns64::Rows {
                        base,
                        stride,
                        dtype: self.dtype(*arg),
                    },
                    first,
                    last,
                );
            }
            Rhs::KContiguous { arg, offset, strides } => {
                let (n_stride, batch) = strides.split_last().expect("a right-hand side has a stride for n");
                let base = self.body.linear(e, offset, &self.batch, batch);
                let base = e.at(self.body.args[*arg], base, memory(self.dtype(*arg)));
                let stride = self.body.size(e, n_stride);
                if self.c.k.as_const().is_none() {
                    // Scratch is sized when compiling: a panel of unknown depth has no place there.
                    return self.dots(e, base, stride, self.dtype(*arg), first, last, scratch);
                }
                let count = e.sub(last, first);
                let few = e.i64(FEW_ROWS);
                let is_few = e.cmp(Cmp::Lt, count, few);
                e.if_then(is_few, &[], |e| {
                    self.dots(e, base, stride, self.dtype(*arg), first, last, scratch);
                    vec![]
                });
                let is_many = e.cmp(Cmp::Le, few, count);
                e.if_then(is_many, &[], |e| {
                    let pair = self.pack(e, base, stride, self.dtype(*arg), scratch);
                    let panel = Columns64::Panel {
                        base: scratch,
                        pair,
                        also: None,
                    };
                    self.rows(e, &panel, first, last);
                    vec![]
                });
            }
        }
    }

    /// Columns of a register tile, as vectors; two weights share its registers.
    fn vectors(&self) -> i64 {
        let all = product::vectors(self.target);
        if self.c.also.is_some() { all / 2 } else { all }
    }

    fn dtype(&self, arg: usize) -> DType {
        self.body.kernel.args[arg].dtype
    }

    /// All rows of the tile, chunk by chunk.
    fn rows(&self, e: &mut Emit, b: &Columns64, first: Val, last: Val) {
        let width = self.vectors() * self.target.lanes as i64;
        let (zero, all) = (e.i64(0), e.i64(MATMUL_COLS));
        e.for_loop(zero, all, width, &[], |e, sub, _| {
            product::chunks(e, first, last, &mut |e, row, chunk| self.chunk(e, b, sub, row, chunk));
            vec![]
        });
    }

    /// The indices of a row of the flattened row dimensions, behind those of the batch.
    fn index(&self, e: &mut Emit, row: Val) -> Vec<Val> {
        let rows = self.body.unravel(e, row, self.rows);
        self.batch.iter().copied().chain(rows).collect()
    }

    /// Pointer to A's row.
    fn a_row(&self, e: &mut Emit, index: &[Val]) -> Val {
        let a = &self.c.a;
        let base = self.body.linear(e, &a.offset, index, &a.strides[..index.len()]);
        e.at(self.body.args[a.arg], base, memory(self.dtype(a.arg)))
    }

    /// Masks of the tile's vectors, `None` where the column count is a multiple of the panel.
    fn mask(&self, e: &mut Emit, first: Val) -> Option<Val> {
        let cols = &self.body.kernel.cols;
        if cols.as_const().is_some_and(|n| n % MATMUL_COLS == 0) {
            return None;
        }
        let n = self.body.size(e, cols);
        let left = e.sub(n, first);
        Some(e.first_lanes(left, self.target.lanes))
    }
}
