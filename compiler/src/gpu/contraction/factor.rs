//! A thread's part of each side of a product, from memory, whatever its types and strides.

use ir::plan::Rhs;

use super::{Block, TILE};
use crate::gpu::epilogue::clamped;
use crate::gpu::ptx::{F32, I32};
use crate::mlir::emit::{Cmp, Emit, Ty, Val};
use crate::scalar::{memory, widen};

/// Where a thread's part of a side comes from, and its place in the tile.
pub struct Factor {
    arg: usize,
    base: Val,
    /// Elements from k to k; none: one.
    stride: Option<Val>,
    pub line: Val,
    pub depth: Val,
}

impl Block<'_, '_> {
    fn load(&self, e: &mut Emit, arg: usize, at: Val) -> Val {
        let dtype = self.dtype(arg);
        let ptr = e.at(self.tile.body.args[arg], at, memory(dtype));
        let raw = e.load(ptr, Ty::scalar(memory(dtype)));
        widen(e, raw, dtype)
    }

    /// Neighbouring threads take what neighbours in memory: k of a row, or rows of a turned matrix.
    pub fn left(&self, e: &mut Emit, line: Val, quarter: Val) -> Factor {
        let a = &self.c.a;
        let turned = self.kernel().is_turned();
        let (line, depth) = if turned { self.across(e) } else { (line, quarter) };
        let row = self.tile.offset(e, self.tile.first, line);
        let row = clamped(e, row, self.tile.rows);
        let mut point = self.tile.point(e, row);
        let base = self.tile.body.base(e, &mut point, a);
        let stride = turned.then(|| self.tile.body.size(e, a.strides.last().expect("k has a stride")));
        Factor {
            arg: a.arg,
            base,
            stride,
            line,
            depth,
        }
    }

    /// A line of the tile and four k, where lines are neighbours in memory.
    fn across(&self, e: &mut Emit) -> (Val, Val) {
        let (tile, four) = (e.int(TILE, I32), e.int(4, I32));
        let (line, part) = (e.rem(self.tile.thread, tile), e.div(self.tile.thread, tile));
        (line, e.mul(part, four))
    }

    pub fn factor(&self, e: &mut Emit, b: &Rhs, column: Val, line: Val, quarter: Val) -> Factor {
        let turned = matches!(b, Rhs::NContiguous { .. });
        let (line, depth) = if turned { self.across(e) } else { (line, quarter) };
        let n = self.tile.offset(e, column, line);
        let n = clamped(e, n, self.tile.cols);
        let (arg, base, stride) = match b {
            Rhs::Packed { arg } => {
                let k = self.tile.body.size(e, &self.c.k);
                (*arg, e.mul(n, k), None)
            }
            Rhs::KContiguous { arg, offset, strides } | Rhs::NContiguous { arg, offset, strides } => {
                let (last, batch) = strides.split_last().expect("a matrix has a stride");
                let base = self.tile.body.linear(e, offset, &self.tile.batch, batch);
                let stride = self.tile.body.size(e, last);
                let n = if turned { n } else { e.mul(n, stride) };
                (*arg, e.add(base, n), turned.then_some(stride))
            }
        };
        Factor {
            arg,
            base,
            stride,
            line,
            depth,
        }
    }

    /// Element k of a factor, in f32; 0 behind the last k.
    pub fn factor_element(&self, e: &mut Emit, f: &Factor, k: Val, end: Val) -> Val {
        let inside = e.cmp(Cmp::Lt, k, end);
        let k = clamped(e, k, end);
        let k = f.stride.map_or(k, |stride| e.mul(k, stride));
        let at = e.add(f.base, k);
        let x = self.load(e, f.arg, at);
        let nothing = e.f32(0.0, F32);
        e.select(inside, x, nothing)
    }
}
