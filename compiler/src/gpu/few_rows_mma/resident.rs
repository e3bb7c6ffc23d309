//! A block's weights, all of them in shared memory before they are needed.
//!
//! A thread brings a row by one copy. Rows lie 64 bytes off a multiple of 128 apart, so that the eight lanes whose 16 bytes are read at a time,
//! four of each of two rows, touch all banks once.

use ir::plan::{Contraction, Kernel};

use super::{THREADS, weights};
use crate::gpu::epilogue::{Tile, clamped};
use crate::gpu::hopper;
use crate::gpu::ptx::{self, I32};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};

/// Bytes of a block's weights: beside them stand those of the functions in front and behind, which a multiprocessor has at the same time.
const MOST: i64 = 112 << 10;
/// Blocks that one wave of a whole Hopper GPU takes.
const BLOCKS: i64 = 132;
/// The copy engine writes at multiples of 16 bytes; rows of a swizzle-free tile want no more.
const ALIGN: i64 = 128;

/// Columns of a block: one wave of blocks, if their weights fit; none where not even eight columns' do, or where there are many waves.
pub fn columns(kernel: &Kernel, c: &Contraction) -> Option<i64> {
    let n = kernel.cols.as_const()?;
    let most = (MOST / (8 * weights(c).len() as i64 * pitch(c))).min(THREADS / 8);
    let wave = (n + 8 * BLOCKS - 1) / (8 * BLOCKS);
    (most > 0 && wave <= 4 * most).then(|| 8 * wave.min(most))
}

/// Bytes from row to row.
fn pitch(c: &Contraction) -> i64 {
    let row = 2 * c.k.as_const().unwrap_or(0);
    (row + ALIGN - 1) / ALIGN * ALIGN + 64
}

/// Shared memory of so many columns' weights, where it begins aligned, and a barrier's.
pub fn bytes(c: &Contraction, columns: i64) -> i64 {
    ALIGN + weights(c).len() as i64 * columns * pitch(c) + 8
}

pub struct Resident {
    /// The first row, and its barrier, i32.
    first: Val,
    barrier: Val,
    columns: i64,
    pitch: i64,
    products: i64,
}

impl Resident {
    /// All copies under way. `behind`: bytes of shared memory in front of the rows; `column`: the block's first one, i64.
    pub fn begin(e: &mut Emit, tile: &Tile, c: &Contraction, behind: i64, column: Val) -> Resident {
        let (columns, pitch) = (tile.width, pitch(c));
        let args = weights(c);
        let products = args.len() as i64;
        let place = |e: &mut Emit, bytes: i64| {
            let (start, bytes) = (ptx::shared_address(e), e.int(bytes, I32));
            e.add(start, bytes)
        };
        let start = (behind + ALIGN - 1) / ALIGN * ALIGN;
        let rows = products * columns;
        let (first, barrier) = (place(e, start), place(e, start + rows * pitch));
        let k = c.k.as_const().unwrap_or(0);
        let zero = e.int(0, I32);
        let leads = e.cmp(Cmp::Eq, tile.thread, zero);
        e.if_then(leads, &[], |e| {
            hopper::init_barrier(e, barrier, 1);
            hopper::publish_barriers(e);
            let bytes = e.int(rows * 2 * k, I32);
            hopper::expect(e, barrier, bytes);
            vec![]
        });
        ptx::barrier(e);
        let all = e.int(rows, I32);
        let has_one = e.cmp(Cmp::Lt, tile.thread, all);
        e.if_then(has_one, &[], |e| {
            let width = e.int(columns, I32);
            let (product, own) = (e.div(tile.thread, width), e.rem(tile.thread, width));
            let n = tile.offset(e, column, own);
            let n = clamped(e, n, tile.cols);
            let k64 = e.i64(k);
            let at = e.mul(n, k64);
            let mut from = e.at(tile.body.args[args[0]], at, Elem::I16);
            for (p, arg) in args.iter().enumerate().skip(1) {
                let number = e.int(p as i64, I32);
                let is_its = e.cmp(Cmp::Eq, product, number);
                let other = e.at(tile.body.args[*arg], at, Elem::I16);
                from = e.select(is_its, other, from);
            }
            let apart = e.int(pitch, I32);
            let to = e.mul(tile.thread, apart);
            let to = e.add(first, to);
            let bytes = e.int(2 * k, I32);
            hopper::copy_line(e, to, from, bytes, barrier);
            vec![]
        });
        Resident {
            first,
            barrier,
            columns,
            pitch,
            products,
        }
    }

    /// Until all of them are there.
    pub fn wait(&self, e: &mut Emit) {
        let zero = e.int(0, I32);
        hopper::wait(e, self.barrier, zero);
    }

    /// The lane's 16 bytes at k (i64) of column `own` of each tile of eight, product by product.
    pub fn lines(&self, e: &mut Emit, own: Val, k: Val, tiles: i64) -> Vec<Vec<Val>> {
        let (pitch, k) = (e.int(self.pitch, I32), e.truncate_int(k, Elem::I32));
        let (row, k) = (e.mul(own, pitch), e.shl(k, 1));
        let at = e.add(self.first, row);
        let at = e.add(at, k);
        let at = ptx::shared_at(e, at);
        let mut all = vec![];
        for product in 0..self.products {
            for tile in 0..tiles {
                let more = e.int((product * self.columns + 8 * tile) * self.pitch / 4, I32);
                let from = e.at(at, more, Elem::I32);
                let line = e.load_aligned(from, Ty::vector(Elem::I32, 4), 16);
                all.push((0..4).map(|i| e.extract(line, i)).collect());
            }
        }
        all
    }
}
