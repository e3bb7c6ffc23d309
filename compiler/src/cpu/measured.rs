//! A tile's rows of A before its columns go by: f32 rounded to bf16 in scratch, and the sum of each row's squares.
//!
//! This is what is left of a norm whose weight is folded and whose scale moved past the product. Tiles of one block of rows follow
//! each other, so a worker does it once per block and not once per panel.

use ir::DType;
use ir::plan::{Contraction, Expr, Kernel, MATMUL_ROWS, Rhs};

use super::vmath;
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::scalar::{F32, memory};

/// Rows of a block at most: its height is rounded up to whole register tiles.
const ROWS: i64 = MATMUL_ROWS + 8;

/// Which of the two a kernel needs.
#[derive(Clone, Copy)]
pub struct Measured {
    rounds: bool,
    squares: bool,
    k: i64,
    lanes: usize,
}

impl Measured {
    /// `None` if A is multiplied as it lies.
    pub fn new(kernel: &Kernel, c: &Contraction, lanes: usize) -> Option<Measured> {
        let Rhs::Packed { arg } = c.b else { return None };
        let types = (kernel.args[c.a.arg].dtype, kernel.args[arg].dtype);
        let rounds = types == (DType::F32, DType::BF16);
        let squares = kernel.exprs.contains(&Expr::RowSquares);
        let k = c.k.as_const()?;
        (rounds || squares).then_some(Measured {
            rounds,
            squares,
            k,
            lanes,
        })
    }

    /// Scratch of a worker, in bytes: a multiple of 64.
    pub fn bytes(&self) -> i64 {
        let rows = if self.rounds { ROWS * self.pitch() * 2 } else { 0 };
        rows + if self.squares { (ROWS * 4 + 63) / 64 * 64 } else { 0 }
    }

    /// Elements from row to row in scratch: whole cache lines.
    fn pitch(&self) -> i64 {
        (self.k + 31) / 32 * 32
    }

    fn row_at(&self, e: &mut Emit, scratch: Val, row: Val) -> Val {
        let pitch = e.i64(self.pitch());
        let at = e.mul(row, pitch);
        e.at(scratch, at, Elem::I16)
    }

    fn squares_at(&self, e: &mut Emit, scratch: Val, row: Val) -> Val {
        let begin = e.i64(if self.rounds { ROWS * self.pitch() * 2 } else { 0 });
        let base = e.at(scratch, begin, Elem::I8);
        e.at(base, row, Elem::F32)
    }

    /// Where A's row, the `row`-th of the block, is multiplied from; `None`: from where it lies.
    pub fn row(&self, e: &mut Emit, scratch: Val, row: Val) -> Option<Val> {
        self.rounds.then(|| self.row_at(e, scratch, row))
    }

    /// The sum of the squares of the block's `row`-th row.
    pub fn row_squares(&self, e: &mut Emit, scratch: Val, row: Val) -> Option<Val> {
        self.squares.then(|| {
            let at = self.squares_at(e, scratch, row);
            e.load(at, F32)
        })
    }

    /// Takes in the block's `row`-th row, which lies at `from` in `dtype`.
    pub fn take(&self, e: &mut Emit, scratch: Val, row: Val, from: Val, dtype: DType) {
        let lanes = self.lanes as i64;
        let ty = Ty::vector(Elem::F32, self.lanes);
        let to = self.row_at(e, scratch, row);
        let step = |e: &mut Emit, at: Val, mask: Option<Val>, acc: &[Val]| {
            let p = e.at(from, at, memory(dtype));
            let raw = Ty::vector(memory(dtype), self.lanes);
            let x = match mask {
                None => e.load(p, raw),
                Some(mask) => e.masked_load(p, mask, raw),
            };
            let x = crate::scalar::widen(e, x, dtype);
            if self.rounds {
                let bits = vmath::bf16_bits(e, x);
                let to = e.at(to, at, Elem::I16);
                match mask {
                    None => e.store(bits, to),
                    Some(mask) => e.masked_store(bits, to, mask),
                }
            }
            // Four sums side by side would hide the latency; a row is read once for a whole block of products.
            vec![e.fma(x, x, acc[0])]
        };
        let init = e.f32(0.0, ty);
        let (zero, whole) = (e.i64(0), e.i64(self.k / lanes * lanes));
        let mut acc = e.for_loop(zero, whole, lanes, &[init], |e, at, acc| step(e, at, None, acc));
        if self.k % lanes != 0 {
            let left = e.i64(self.k % lanes);
            let mask = e.first_lanes(left, self.lanes);
            acc = step(e, whole, Some(mask), &acc);
        }
        if self.squares {
            let sum = e.reduce_add(acc[0]);
            let at = self.squares_at(e, scratch, row);
            e.store(sum, at);
        }
    }
}
