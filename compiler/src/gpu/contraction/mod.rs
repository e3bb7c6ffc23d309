//! Any contraction, the plain way: f32, batches, keys and values, odd sizes. What no faster variant takes; right before it is fast.
//!
//!     block = (batch point, 64 rows, 64 columns)       or all columns of 64 rows, one block after the other, where they are reduced
//!       for k step 16                                  A and B to shared memory in f32, [k][row] and [k][column]
//!         thread = 4 rows x 4 columns                  outer products in registers
//!       sums to shared memory, then the kernel's stages: neighbouring threads take neighbouring columns
//!
//! No tensor cores: bf16 factors are multiplied in f32. What threads bring is `factor`'s, running results `reduced`'s.

mod factor;
mod reduced;

use ir::plan::{Contraction, Expr, Kernel, Rhs};
use ir::{DType, Size};
use runtime::artefact::Step;

use self::factor::Factor;
use super::epilogue::Tile;
use super::ptx::{self, F32, I32, Params, Signature};
use super::{Emitted, Target, tiles};
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::scalar::{Body, Math, widen};

const THREADS: i64 = 256;
/// Rows and columns of a block.
const TILE: i64 = 64;
/// Rows and columns of a thread.
const PART: i64 = 4;
/// Of the sum, at a time.
const DEPTH: i64 = 16;
/// Elements from row to row of a tile in shared memory: no two rows begin in one bank.
const PITCH: i64 = TILE + 4;

pub fn emit(kernel: &Kernel, c: &Contraction, target: &Target) -> Emitted {
    let (batch, rows) = kernel.outer.split_at(c.batch);
    let mut grid = vec![(Size::product(batch), 1), (Size::product(rows), TILE)];
    if !kernel.reduces() {
        grid.push((kernel.cols.clone(), TILE));
    }
    let signature = Signature {
        buffers: kernel.args.len(),
        threads: THREADS as u32,
        overlap: target.hopper,
        ..Signature::default()
    };
    let text = ptx::function(&kernel.name, signature, |e, params| block(e, kernel, c, params));
    let products = 1 + i64::from(c.also.is_some());
    let shared = DEPTH * PITCH * (1 + products) + TILE * PITCH * products + TILE;
    let step = Step {
        function: kernel.name.clone(),
        tiles: tiles(&grid),
        threads: THREADS as u32,
        shared: (shared * 4) as u32,
        overlap: target.hopper,
        ..Step::default()
    };
    Emitted::one(&kernel.name, step, text)
}

/// What all parts of a block know.
struct Block<'b, 'k> {
    c: &'k Contraction,
    tile: Tile<'b, 'k>,
    shared: Val,
}

fn block(e: &mut Emit, kernel: &Kernel, c: &Contraction, params: Params) {
    let body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
    let (batch, rows) = kernel.outer.split_at(c.batch);
    let block = ptx::block(e);
    let count = body.size(e, &Size::product(rows));
    let cols = body.size(e, &kernel.cols);
    let column_blocks = if kernel.reduces() { None } else { Some(blocks(e, cols)) };
    let (column, rest) = match column_blocks {
        None => (e.i64(0), block),
        Some(n) => {
            let at = e.rem(block, n);
            let at = e.extend_signed(at, Elem::I64);
            let tile = e.i64(TILE);
            (e.mul(at, tile), e.div(block, n))
        }
    };
    let row_blocks = blocks(e, count);
    let at = e.rem(rest, row_blocks);
    let point = e.div(rest, row_blocks);
    let (at, point) = (e.extend_signed(at, Elem::I64), e.extend_signed(point, Elem::I64));
    let batch = body.unravel(e, point, batch);
    let tile = e.i64(TILE);
    let shared = ptx::shared(e);
    let place = |e: &mut Emit, elements: i64| {
        let at = e.int(elements, I32);
        e.at(shared, at, Elem::F32)
    };
    let products = 1 + i64::from(c.also.is_some());
    let sums: Vec<Val> = (0..products).map(|p| place(e, sums_at(products, p))).collect();
    let measures = kernel.exprs.contains(&Expr::RowSquares);
    let b = Block {
        c,
        tile: Tile {
            body: &body,
            thread: ptx::thread(e),
            threads: THREADS,
            batch,
            first: e.mul(at, tile),
            rows: count,
            cols,
            height: TILE,
            width: TILE,
            sums,
            pitch: PITCH,
            squares: measures.then(|| place(e, sums_at(products, products))),
            parts: (1, 0),
        },
        shared,
    };
    if kernel.reduces() {
        b.reduced(e);
    } else {
        b.product(e, column);
        b.tile.stores(e, column);
    }
}

/// Where product p's sums begin in shared memory, in elements; behind the last one's stand the rows' squares.
fn sums_at(products: i64, p: i64) -> i64 {
    DEPTH * PITCH * (1 + products) + TILE * PITCH * p
}

/// How many tiles so many rows or columns are, i32.
fn blocks(e: &mut Emit, n: Val) -> Val {
    let (less, tile) = (e.i64(TILE - 1), e.i64(TILE));
    let n = e.add(n, less);
    let n = e.div(n, tile);
    e.truncate_int(n, Elem::I32)
}

impl Block<'_, '_> {
    fn kernel(&self) -> &Kernel {
        self.tile.body.kernel
    }

    fn dtype(&self, arg: usize) -> DType {
        self.kernel().args[arg].dtype
    }

    /// In shared memory: A's piece, one of B for each product, the sums, the rows' squares.
    fn place(&self, e: &mut Emit, elements: i64) -> Val {
        let at = e.int(elements, I32);
        e.at(self.shared, at, Elem::F32)
    }

    fn products(&self) -> Vec<&Rhs> {
        std::iter::once(&self.c.b).chain(&self.c.also).collect()
    }

    /// The sums of a tile of columns, to shared memory.
    fn product(&self, e: &mut Emit, column: Val) {
        let c = self.c;
        let (four, sixteen) = (e.int(4, I32), e.int(16, I32));
        // Who brings what: a row of A, four k of it; the same for a K-major B, else one column and four k.
        let (line, quarter) = (e.div(self.tile.thread, four), e.rem(self.tile.thread, four));
        let quarter = e.mul(quarter, four);
        let left = self.left(e, line, quarter);
        let rounds = match c.b {
            Rhs::Packed { arg } => self.dtype(c.a.arg) == DType::F32 && self.dtype(arg) == DType::BF16,
            _ => false,
        };
        let measures = self.kernel().exprs.contains(&Expr::RowSquares);
        let factors: Vec<Factor> = self
            .products()
            .into_iter()
            .map(|b| self.factor(e, b, column, line, quarter))
            .collect();

        let (ty, tx) = (e.div(self.tile.thread, sixteen), e.rem(self.tile.thread, sixteen));
        let k_end = self.tile.body.size(e, &c.k);
        let (zero, nothing) = (e.i64(0), e.f32(0.0, F32));
        let mut init = vec![nothing; (PART * PART) as usize * factors.len()];
        init.push(nothing);
        let sums = e.for_loop(zero, k_end, DEPTH, &init, |e, k, acc| {
            let mut squares = acc[acc.len() - 1];
            for i in 0..4 {
                let i = e.int(i, I32);
                let at = e.add(left.depth, i);
                let depth = self.tile.offset(e, k, at);
                let x = self.factor_element(e, &left, depth, k_end);
                squares = e.fma(x, x, squares);
                let x = if rounds { round(e, x) } else { x };
                self.put(e, 0, at, left.line, x);
            }
            for (p, f) in factors.iter().enumerate() {
                for i in 0..4 {
                    let i = e.int(i, I32);
                    let at = e.add(f.depth, i);
                    let depth = self.tile.offset(e, k, at);
                    let x = self.factor_element(e, f, depth, k_end);
                    self.put(e, DEPTH * PITCH * (1 + p as i64), at, f.line, x);
                }
            }
            ptx::barrier(e);
            let (none, all) = (e.int(0, I32), e.int(DEPTH, I32));
            let mut out = e.for_loop(none, all, 1, &acc[..acc.len() - 1], |e, d, acc| {
                let a: Vec<Val> = self.get(e, 0, d, ty);
                let mut out = vec![];
                for p in 0..factors.len() {
                    let b = self.get(e, DEPTH * PITCH * (1 + p as i64), d, tx);
                    let acc = &acc[p * 16..(p + 1) * 16];
                    out.extend(acc.iter().enumerate().map(|(i, acc)| e.fma(a[i / 4], b[i % 4], *acc)));
                }
                out
            });
            ptx::barrier(e);
            out.push(squares);
            out
        });
        for p in 0..factors.len() {
            for i in 0..PART {
                let (row, at) = (e.int(i, I32), e.mul(ty, four));
                let row = e.add(at, row);
                for j in 0..PART {
                    let (column, at) = (e.int(j, I32), e.mul(tx, four));
                    let column = e.add(at, column);
                    self.put_sum(e, p, row, column, sums[p * 16 + (i * PART + j) as usize]);
                }
            }
        }
        if measures {
            let mut all = sums[sums.len() - 1];
            for bits in [1, 2] {
                let other = ptx::shuffle_xor(e, all, bits);
                all = e.add(all, other);
            }
            let base = self.tile.squares.expect("a kernel that measures has a place for it");
            let at = e.at(base, line, Elem::F32);
            e.store(all, at);
        }
        ptx::barrier(e);
    }

    /// Element (line, column) of a tile in shared memory.
    fn put(&self, e: &mut Emit, tile: i64, line: Val, column: Val, x: Val) {
        let at = self.tile_at(e, tile, line, column);
        e.store(x, at);
    }

    fn put_sum(&self, e: &mut Emit, product: usize, row: Val, column: Val, x: Val) {
        let at = self.tile.sum_at(e, product, row, column);
        e.store(x, at);
    }

    fn tile_at(&self, e: &mut Emit, tile: i64, line: Val, column: Val) -> Val {
        let pitch = e.int(PITCH, I32);
        let at = e.mul(line, pitch);
        let at = e.add(at, column);
        let base = self.place(e, tile);
        e.at(base, at, Elem::F32)
    }

    /// Four neighbours of line d: those of part `at`.
    fn get(&self, e: &mut Emit, tile: i64, d: Val, at: Val) -> Vec<Val> {
        let four = e.int(4, I32);
        let column = e.mul(at, four);
        let place = self.tile_at(e, tile, d, column);
        let all = e.load_aligned(place, Ty::vector(Elem::F32, 4), 16);
        (0..4).map(|i| e.extract(all, i)).collect()
    }
}

fn round(e: &mut Emit, x: Val) -> Val {
    let bits = super::math::bf16_bits(e, x);
    widen(e, bits, DType::BF16)
}
