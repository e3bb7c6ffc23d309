//! Matmuls whose k is so long that a panel would leave the cache between two chunks of rows: k in pieces, the sums parked in scratch.
//!
//!     for piece of DEPTH units of k           A's piece of the block of rows stays in the L2 cache
//!       for panel                             so does the panel's piece
//!         for chunk of rows                   parked sums + A * B
//!     for panel, for chunk                    the epilogue

use ir::plan::{Kernel, MATMUL_COLS, MATMUL_ROWS, Rhs};
use ir::{DType, Size};

use super::super::product::{self, Panel};
use super::{Matmul, ceil_div};
use crate::mlir::emit::{Elem, Emit, Ty, Val};

/// Units of k in a piece: 128 KiB of a panel.
const DEPTH: i64 = 512;

/// Columns of the parked sums: whole panels.
fn width(kernel: &Kernel) -> i64 {
    let columns = kernel.cols.as_const().unwrap_or(0);
    (columns + MATMUL_COLS - 1) / MATMUL_COLS * MATMUL_COLS
}

/// Of the parked sums.
pub(super) fn bytes(kernel: &Kernel) -> i64 {
    MATMUL_ROWS * width(kernel) * 4
}

/// Gets a panel's columns `firsts` (within the panel), a chunk's first row and its height.
type OnTile<'a> = &'a mut dyn FnMut(&mut Matmul, &mut Emit, Val, Val, i64);

impl Matmul<'_> {
    /// All columns of the block's rows. Only reached where nothing else has a place in scratch.
    pub(super) fn deep_tile(&mut self, e: &mut Emit, panels: Val, scratch: Val) {
        let Rhs::Packed { arg } = self.c.b else {
            panic!("kernel {}: a deep sum wants panels", self.body.kernel.name)
        };
        let pair = if self.dtype(arg) == DType::BF16 { 2 } else { 1 };
        let zero = e.i64(0);
        self.clear(e, scratch);
        let units = ceil_div(e, &self.body, &self.c.k, pair);
        e.for_loop(zero, units, DEPTH, &[], |e, from, _| {
            let depth = e.i64(DEPTH);
            let to = e.add(from, depth);
            let to = e.min(to, units);
            self.tiles(e, panels, &mut |m, e, sub, row, chunk| {
                let at = e.mul(m.column, units);
                let panel = Panel {
                    target: m.target,
                    base: e.at(m.body.args[arg], at, Elem::I32),
                    stride: MATMUL_COLS,
                    pair,
                    a_stride: 1,
                };
                let (_, a) = m.a_rows(e, row, chunk);
                let firsts = m.firsts(e, sub);
                let parked = m.parked(e, scratch, row, chunk, &firsts);
                let ty = Ty::vector(Elem::F32, m.target.lanes);
                let init: Vec<Val> = parked.iter().map(|p| e.load(*p, ty)).collect();
                let sums = panel.product(e, &a, &firsts, &init, [from, to]);
                for (sum, to) in sums.iter().zip(&parked) {
                    e.store(*sum, *to);
                }
            });
            vec![]
        });
        self.tiles(e, panels, &mut |m, e, sub, row, chunk| {
            let firsts = m.firsts(e, sub);
            let columns: Vec<Val> = firsts.iter().map(|f| e.add(m.column, *f)).collect();
            let masks: Vec<Option<Val>> = columns.iter().map(|c| m.mask(e, *c)).collect();
            let ty = Ty::vector(Elem::F32, m.target.lanes);
            let parked = m.parked(e, scratch, row, chunk, &firsts);
            for (i, parked) in parked.chunks(firsts.len()).enumerate() {
                let sums: Vec<Val> = parked.iter().map(|p| e.load(*p, ty)).collect();
                let i = e.i64(i as i64);
                let row = e.add(row, i);
                let index = m.index(e, row);
                m.epilogue(e, row, index, &columns, &masks, &sums);
            }
        });
    }

    /// Every register tile of the block, panel by panel.
    fn tiles(&mut self, e: &mut Emit, panels: Val, f: OnTile) {
        let (zero, all) = (e.i64(0), e.i64(MATMUL_COLS));
        let step = self.vectors() * self.target.lanes as i64;
        let (first, last) = (self.first, self.last);
        e.for_loop(zero, panels, 1, &[], |e, panel, _| {
            let width = e.i64(MATMUL_COLS);
            self.column = e.mul(panel, width);
            e.for_loop(zero, all, step, &[], |e, sub, _| {
                product::chunks(e, first, last, &mut |e, row, chunk| f(self, e, sub, row, chunk));
                vec![]
            });
            vec![]
        });
    }

    /// Where the chunk's sums are parked, row by row.
    fn parked(&self, e: &mut Emit, scratch: Val, row: Val, chunk: i64, firsts: &[Val]) -> Vec<Val> {
        let mut places = vec![];
        for i in 0..chunk {
            let i = e.i64(i);
            let row = e.add(row, i);
            let row = e.sub(row, self.first);
            let width = e.i64(width(self.body.kernel));
            let begin = e.mul(row, width);
            for first in firsts {
                let column = e.add(self.column, *first);
                let at = e.add(begin, column);
                places.push(e.at(scratch, at, Elem::F32));
            }
        }
        places
    }

    fn clear(&self, e: &mut Emit, scratch: Val) {
        let lanes = self.target.lanes;
        let count = e.sub(self.last, self.first);
        let width = self.body.size(e, &Size::from(width(self.body.kernel)));
        let count = e.mul(count, width);
        let (zero, nothing) = (e.i64(0), e.f32(0.0, Ty::vector(Elem::F32, lanes)));
        e.for_loop(zero, count, lanes as i64, &[], |e, at, _| {
            let to = e.at(scratch, at, Elem::F32);
            e.store(nothing, to);
            vec![]
        });
    }
}
