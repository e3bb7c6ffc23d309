//! f32 weights by few rows, as in decoding: bound by reading each weight once (bf16: `few_rows_mma`).
//!
//!     warp = some columns                              lanes along k, 16 bytes a lane and step
//!       all of the columns' weights to registers       before the wait for earlier kernels: weights depend on none
//!       for step of k: the rows' elements, products    sums of all lanes by shuffles
//!       lane = (row, column): the kernel's stages
//!
//! One function for up to 1, 2, 4 and 8 rows each. Sums have one order. No tensor cores: they round to tf32.

use ir::plan::{Contraction, Expr, Kernel, Rhs, Stage};
use ir::{DType, Size};
use runtime::artefact::{Step, Variant};

use super::epilogue::clamped;
use super::ptx::{self, F32, I32, Params, Signature};
use super::{Target, tiles, weights};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::pipeline;
use crate::scalar::{Body, Columns, Math, memory, widen};

const THREADS: i64 = 256;
const WARPS: i64 = THREADS / 32;
/// Rows of the left side that a function is made for.
pub const ROWS: [i64; 4] = [1, 2, 4, 8];
/// Elements of a lane's 16 bytes of a weight.
const CHUNK: i64 = 4;
/// Loads of 16 bytes that a lane has under way.
const IN_FLIGHT: i64 = 16;

pub fn takes(kernel: &Kernel, c: &Contraction) -> bool {
    weights_of(kernel, c) == Some(DType::F32)
}

/// The weights' type, if a kernel is for few rows: one whose rows are known is no decoding, and its weights may have been made a moment ago.
pub fn weights_of(kernel: &Kernel, c: &Contraction) -> Option<DType> {
    let Rhs::Packed { arg } = c.b else { return None };
    let rows = Size::product(&kernel.outer[c.batch..]);
    let strides = &c.a.strides[..c.a.strides.len() - 1];
    let even = strides.iter().chain([&c.a.offset]).all(|s| s.coef % 8 == 0);
    let left = matches!(kernel.args[c.a.arg].dtype, DType::BF16 | DType::F32);
    let plain = c.batch == 0 && c.a.indirect.is_none() && !c.packed_a && !kernel.reduces();
    let takes = rows.as_const().is_none() && left && even && plain && c.k.as_const()? % 8 == 0;
    takes.then(|| kernel.args[arg].dtype)
}

/// Columns of a warp: with many columns more, so that the rows' elements are read less often.
fn columns_of_warp(kernel: &Kernel, c: &Contraction, rows: i64) -> i64 {
    let n = kernel.cols.as_const().unwrap_or(1);
    let products = 1 + i64::from(c.also.is_some());
    match n * products {
        n if n > 1 << 15 => (4 / products).min(32 / rows).max(1),
        n if n > 1 << 11 => (2 / products).max(1),
        _ => 1,
    }
}

/// The way for at most `rows` rows.
pub fn variant(kernel: &Kernel, c: &Contraction, rows: i64, name: &str, target: &Target) -> (Variant, String) {
    let columns = columns_of_warp(kernel, c, rows);
    let signature = Signature {
        buffers: kernel.args.len(),
        threads: THREADS as u32,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| {
        block(e, kernel, c, rows, columns, target, params)
    });
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&[(kernel.cols.clone(), WARPS * columns)]),
        threads: THREADS as u32,
        overlap: target.hopper,
        ..Step::default()
    };
    let all = Size::product(&kernel.outer[c.batch..]);
    let variant = Variant {
        at_most: Some((pipeline::size(&all), rows)),
        steps: vec![step],
        ..Variant::default()
    };
    (variant, text)
}

fn block(e: &mut Emit, kernel: &Kernel, c: &Contraction, rows: i64, columns: i64, target: &Target, params: Params) {
    let body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
    let (block, thread) = (ptx::block(e), ptx::thread(e));
    let (warp, lane) = (e.shr(thread, 5), lane(e, thread));
    let warps = e.int(WARPS, I32);
    let at = e.mul(block, warps);
    let at = e.add(at, warp);
    let per_warp = e.int(columns, I32);
    let first = e.mul(at, per_warp);
    let first = e.extend_signed(first, Elem::I64);
    let cols = body.size(e, &kernel.cols);
    let f = Few {
        body: &body,
        c,
        lane,
        first,
        cols,
        rows,
        columns,
        k: c.k.as_const().unwrap_or(0),
        waits: target.hopper,
    };
    let (sums, squares) = f.sums(e);
    f.stages(e, &sums, &squares);
}

fn lane(e: &mut Emit, thread: Val) -> Val {
    let mask = e.int(31, I32);
    e.and(thread, mask)
}

struct Few<'b, 'k> {
    body: &'b Body<'k>,
    c: &'k Contraction,
    lane: Val,
    /// The warp's first column, i64.
    first: Val,
    cols: Val,
    rows: i64,
    columns: i64,
    k: i64,
    waits: bool,
}

impl Few<'_, '_> {
    fn kernel(&self) -> &Kernel {
        self.body.kernel
    }

    fn dtype(&self, arg: usize) -> DType {
        self.kernel().args[arg].dtype
    }

    /// First k of the lane's part of a step, and whether it is there.
    fn place(&self, e: &mut Emit, step: i64) -> (Val, Option<Val>) {
        let first = e.int(step * 32 * CHUNK, I32);
        let width = e.int(CHUNK, I32);
        let at = e.mul(self.lane, width);
        let at = e.add(at, first);
        if (step + 1) * 32 * CHUNK <= self.k {
            return (e.extend_signed(at, Elem::I64), None);
        }
        let (end, last) = (e.int(self.k, I32), e.int(self.k - CHUNK, I32));
        let is_there = e.cmp(Cmp::Lt, at, end);
        let at = e.min(at, last);
        (e.extend_signed(at, Elem::I64), Some(is_there))
    }

    /// [product][column][row], equal in all lanes; and the rows' squares.
    fn sums(&self, e: &mut Emit) -> (Vec<Val>, Vec<Val>) {
        let steps = (self.k + 32 * CHUNK - 1) / (32 * CHUNK);
        let weights = weights(self.c);
        let lines = weights.len() as i64 * self.columns;
        // As many steps together as there is room for their weights.
        let group = (IN_FLIGHT / lines).max(1).min(steps);
        let nothing = e.f32(0.0, F32);
        let mut sums = vec![nothing; (lines * self.rows) as usize];
        let mut squares = vec![nothing; self.rows as usize];
        let measures = self.kernel().exprs.contains(&Expr::RowSquares);
        let mut at = vec![];
        for &arg in &weights {
            for column in 0..self.columns {
                at.push((arg, self.weight_row(e, column)));
            }
        }
        let mut row_bases: Vec<Val> = vec![];
        for begin in (0..steps).step_by(group as usize) {
            let now = begin..(begin + group).min(steps);
            let loaded: Vec<(Vec<Vec<Val>>, Val, Option<Val>)> = now
                .map(|step| {
                    let (k, is_there) = self.place(e, step);
                    let lines = at.iter().map(|(arg, row)| self.weight(e, *arg, *row, k)).collect();
                    (lines, k, is_there)
                })
                .collect();
            if begin == 0 {
                if self.waits {
                    ptx::wait_for_earlier(e);
                    ptx::let_next_begin(e);
                }
                row_bases = (0..self.rows).map(|row| self.row_base(e, row)).collect();
            }
            for (lines, k, is_there) in loaded {
                for (r, base) in row_bases.iter().enumerate() {
                    let x = self.left(e, *base, k, is_there, measures.then_some(&mut squares[r]));
                    for (l, line) in lines.iter().enumerate() {
                        let sum = &mut sums[l * self.rows as usize + r];
                        for (w, x) in line.iter().zip(&x) {
                            *sum = e.fma(*w, *x, *sum);
                        }
                    }
                }
            }
        }
        let all = |e: &mut Emit, list: Vec<Val>| -> Vec<Val> {
            let mut list = list;
            for bits in [16, 8, 4, 2, 1] {
                let others: Vec<Val> = list.iter().map(|x| ptx::shuffle_xor(e, *x, bits)).collect();
                list = list.iter().zip(others).map(|(x, y)| e.add(*x, y)).collect();
            }
            list
        };
        let sums = all(e, sums);
        let squares = if measures { all(e, squares) } else { vec![] };
        (sums, squares)
    }

    /// First element of a column's weights; behind the last column it is the last one again.
    fn weight_row(&self, e: &mut Emit, column: i64) -> Val {
        let column = e.i64(column);
        let n = e.add(self.first, column);
        let n = clamped(e, n, self.cols);
        let k = e.i64(self.k);
        e.mul(n, k)
    }

    /// A lane's 16 bytes of a weight, in f32.
    fn weight(&self, e: &mut Emit, arg: usize, row: Val, k: Val) -> Vec<Val> {
        let dtype = self.dtype(arg);
        let at = e.add(row, k);
        let ptr = e.at(self.body.args[arg], at, memory(dtype));
        let words = ptx::load_once(e, ptr);
        words.into_iter().map(|w| e.bitcast(w, F32)).collect()
    }

    fn row_base(&self, e: &mut Emit, row: i64) -> Val {
        let dims = &self.kernel().outer[self.c.batch..];
        let n = self.body.size(e, &Size::product(dims));
        let row = e.i64(row);
        let row = clamped(e, row, n);
        let index = self.body.unravel(e, row, dims);
        let mut point = self.body.point(index);
        self.body.base(e, &mut point, &self.c.a)
    }

    /// The row's elements that meet a lane's weights: in f32; nothing behind the last k.
    fn left(&self, e: &mut Emit, base: Val, k: Val, is_there: Option<Val>, squares: Option<&mut Val>) -> Vec<Val> {
        let dtype = self.dtype(self.c.a.arg);
        let n = CHUNK as usize;
        let at = e.add(base, k);
        let ptr = e.at(self.body.args[self.c.a.arg], at, memory(dtype));
        let bytes = (n * dtype.bytes() as usize).min(16);
        let raw = e.load_aligned(ptr, Ty::vector(memory(dtype), n), bytes);
        let x = widen(e, raw, dtype);
        let nothing = e.f32(0.0, F32);
        let each = |e: &mut Emit, x: Val| -> Vec<Val> {
            (0..n)
                .map(|i| {
                    let x = e.extract(x, i);
                    is_there.map_or(x, |there| e.select(there, x, nothing))
                })
                .collect()
        };
        if let Some(squares) = squares {
            for x in each(e, x) {
                *squares = e.fma(x, x, *squares);
            }
        }
        each(e, x)
    }

    /// Each lane takes one row and column.
    fn stages(&self, e: &mut Emit, sums: &[Val], squares: &[Val]) {
        let kernel = self.kernel();
        let dims = &kernel.outer[self.c.batch..];
        let (rows, pairs) = (e.int(self.rows, I32), self.rows * self.columns);
        let (column, row) = (e.div(self.lane, rows), e.rem(self.lane, rows));
        let mine = |e: &mut Emit, of: &[Val], by: Val| {
            let mut x = of[0];
            for (i, other) in of.iter().enumerate().skip(1) {
                let i = e.int(i as i64, I32);
                let is_mine = e.cmp(Cmp::Eq, by, i);
                x = e.select(is_mine, *other, x);
            }
            x
        };
        let products: Vec<Val> = sums.chunks(pairs as usize).map(|of| mine(e, of, self.lane)).collect();
        let (row64, column64) = (e.extend_signed(row, Elem::I64), e.extend_signed(column, Elem::I64));
        let n = self.body.size(e, &Size::product(dims));
        let column = e.add(self.first, column64);
        let (row_there, column_there) = (e.cmp(Cmp::Lt, row64, n), e.cmp(Cmp::Lt, column, self.cols));
        let lanes = e.int(pairs, I32);
        let lane_there = e.cmp(Cmp::Lt, self.lane, lanes);
        let here = e.and(row_there, column_there);
        let here = e.and(here, lane_there);
        let row64 = clamped(e, row64, n);
        let column = clamped(e, column, self.cols);
        let index = self.body.unravel(e, row64, dims);
        let mut point = self.body.point(index);
        if !squares.is_empty() {
            point.squares = Some(mine(e, squares, row));
        }
        kernel.stages.iter().for_each(|s| self.body.hoist(e, &mut point, s));
        let acc = e.vector(&products[..1]);
        let mut cols = Columns::new(column, None, Some(acc));
        cols.also = products.get(1).map(|x| e.vector(&[*x]));
        for stage in &kernel.stages {
            let Stage::Store { to, value, when } = stage else {
                continue;
            };
            let value = self.body.vector(e, &mut point, &mut cols, *value);
            let mut here = here;
            if let Some(when) = when {
                let when = self.body.vector(e, &mut point, &mut cols, *when);
                let when = e.extract(when, 0);
                here = e.and(here, when);
            }
            e.if_then(here, &[], |e| {
                self.body.store_vector(e, &mut point, &mut cols, to, value, None);
                vec![]
            });
        }
    }
}
