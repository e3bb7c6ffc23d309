//! bf16 contractions by `mma.sync`: weights, keys or values, batched or not, on every GPU from sm_80 on.
//!
//!     block = (batch point, 128 rows, 128 columns)     eight warps of 64 rows x 32 columns
//!       for k step 64                                  three stages in flight by cp.async, chunks of 16 bytes swizzled by their row
//!         for k step 16: fragments by ldmatrix (transposed where k is the row), 16 products a warp
//!       sums to shared memory, then the kernel's stages
//!
//! Two right sides share a tile: 64 columns of each. Rows and columns behind the last one are the last one again, or zero; k behind the
//! last one is zero. What is rounded or measured as it is
//! read, and what is reduced over columns, is not for this file.

mod side;
pub mod warp;

use ir::plan::{Access, Contraction, Expr, Kernel, Rhs};
use ir::{DType, Size};
use runtime::artefact::{Step, Variant};

use self::side::{Side, bring, left, right};
use self::warp::Warp;
use super::epilogue::Tile;
use super::ptx::{self, F32, I32, Params, Signature, lane_bits};
use super::{Target, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::pipeline;
use crate::scalar::{Body, Math};

const THREADS: i64 = 256;
/// Rows and columns of a block.
const TILE: i64 = 128;
/// Of the sum, at a time: a row of 128 bytes.
const DEPTH: i64 = 64;
const STAGES: i64 = 3;
/// Bytes of one side of a stage.
const SIDE: i64 = TILE * DEPTH * 2;
/// Rows and columns of a warp.
const WARP: [i64; 2] = [64, 32];
/// Elements from row to row of the parked sums.
const PITCH: i64 = TILE + 4;

/// Can it be multiplied here? All chunks of 16 bytes must lie at multiples of 16: the sizes that must be multiples of 8 elements for it,
/// or none where they never are.
pub fn takes(kernel: &Kernel, c: &Contraction) -> Option<Vec<Size>> {
    let is_bf16 = |arg: usize| kernel.args[arg].dtype == DType::BF16;
    let (mut sizes, mut all_bf16) = (vec![], is_bf16(c.a.arg));
    for b in c.rights() {
        match b {
            Rhs::Packed { .. } => sizes.push(&c.k),
            Rhs::KContiguous { offset, strides, .. } | Rhs::NContiguous { offset, strides, .. } => {
                sizes.extend(strides.iter().chain([offset]));
            }
        }
        all_bf16 &= is_bf16(arg(b));
    }
    sizes.extend(lines(kernel, &c.a).iter().chain([&c.a.offset]));
    let plain = c.a.indirect.is_none() && !kernel.exprs.contains(&Expr::RowSquares);
    let known_odd = sizes.iter().any(|s| s.as_const().is_some_and(|n| n % 8 != 0));
    let takes = all_bf16 && plain && !kernel.reduces() && !known_odd;
    takes.then(|| sizes.into_iter().filter(|s| s.coef % 8 != 0).cloned().collect())
}

fn arg(b: &Rhs) -> usize {
    match b {
        Rhs::Packed { arg } | Rhs::KContiguous { arg, .. } | Rhs::NContiguous { arg, .. } => *arg,
    }
}

/// Columns of a tile, of each right side.
fn width(c: &Contraction) -> i64 {
    if c.also.is_some() { TILE / 2 } else { TILE }
}

/// The strides from one contiguous line to the next: the rows', or k's of a turned matrix.
fn lines<'k>(kernel: &Kernel, a: &'k Access) -> &'k [Size] {
    let (k, rows) = a.strides.split_last().expect("k has a stride");
    if kernel.is_turned() {
        std::slice::from_ref(k)
    } else {
        rows
    }
}

/// `even`: what `takes` gave.
pub fn variant(kernel: &Kernel, c: &Contraction, even: &[Size], name: &str, target: &Target) -> (Variant, String) {
    let (batch, rows) = kernel.outer.split_at(c.batch);
    let grid = [
        (Size::product(batch), 1),
        (Size::product(rows), TILE),
        (kernel.cols.clone(), width(c)),
    ];
    let signature = Signature {
        buffers: kernel.args.len(),
        threads: THREADS as u32,
        overlap: target.hopper,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| block(e, kernel, c, params));
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&grid),
        threads: THREADS as u32,
        shared: (STAGES * 2 * SIDE).max(TILE * PITCH * 4) as u32,
        overlap: target.hopper,
        ..Step::default()
    };
    let variant = Variant {
        multiples: even.iter().map(|s| (pipeline::size(s), 8)).collect(),
        steps: vec![step],
        ..Variant::default()
    };
    (variant, text)
}

fn block(e: &mut Emit, kernel: &Kernel, c: &Contraction, params: Params) {
    let body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
    let (batch, rows) = kernel.outer.split_at(c.batch);
    let count = body.size(e, &Size::product(rows));
    let cols = body.size(e, &kernel.cols);
    let (column_blocks, row_blocks) = (blocks(e, cols, width(c)), blocks(e, count, TILE));
    let block = ptx::block(e);
    let (at, rest) = (e.rem(block, column_blocks), e.div(block, column_blocks));
    let (tile, wide) = (e.i64(TILE), e.i64(width(c)));
    let at = e.extend_signed(at, Elem::I64);
    let column = e.mul(at, wide);
    let (at, point) = (e.rem(rest, row_blocks), e.div(rest, row_blocks));
    let (at, point) = (e.extend_signed(at, Elem::I64), e.extend_signed(point, Elem::I64));
    let batch = body.unravel(e, point, batch);
    let thread = ptx::thread(e);
    let shared = ptx::shared(e);
    // The second right side's sums stand right of the first's.
    let mut sums = vec![shared];
    if c.also.is_some() {
        let right = e.int(width(c), I32);
        sums.push(e.at(shared, right, Elem::F32));
    }
    let tile = Tile {
        thread,
        threads: THREADS,
        batch,
        first: e.mul(at, tile),
        rows: count,
        cols,
        height: TILE,
        width: width(c),
        sums,
        pitch: PITCH,
        squares: None,
        parts: (1, 0),
        body: &body,
    };
    let a = left(e, &tile, c);
    let b = right(e, &tile, c, column);
    let sums = sum(e, &tile, c, &a, &b);
    park(e, &tile, &sums);
    tile.stores(e, column);
}

/// How many tiles so many rows or columns are, i32.
fn blocks(e: &mut Emit, n: Val, tile: i64) -> Val {
    let (less, tile) = (e.i64(tile - 1), e.i64(tile));
    let n = e.add(n, less);
    let n = e.div(n, tile);
    e.truncate_int(n, Elem::I32)
}

/// The sums of the thread's fragments: [m tile][n tile][4].
fn sum(e: &mut Emit, t: &Tile, c: &Contraction, a: &Side, b: &Side) -> Vec<Val> {
    let k_end = t.body.size(e, &c.k);
    let base = ptx::shared_address(e);
    let (less, depth) = (e.i64(DEPTH - 1), e.i64(DEPTH));
    let steps = e.add(k_end, less);
    let steps = e.div(steps, depth);
    let stage = |e: &mut Emit, step: Val| {
        let n = e.i64(STAGES);
        let at = e.rem(step, n);
        let at = e.truncate_int(at, Elem::I32);
        let bytes = e.int(2 * SIDE, I32);
        let at = e.mul(at, bytes);
        e.add(base, at)
    };
    let fetch = |e: &mut Emit, step: Val| {
        let is_there = e.cmp(Cmp::Lt, step, steps);
        e.if_then(is_there, &[], |e| {
            let to = stage(e, step);
            let depth = e.i64(DEPTH);
            let k = e.mul(step, depth);
            bring(e, t, a, k, k_end, to);
            let side = e.int(SIDE, I32);
            let to = e.add(to, side);
            bring(e, t, b, k, k_end, to);
            vec![]
        });
        ptx::commit_copies(e);
    };
    for i in 0..STAGES - 1 {
        let step = e.i64(i);
        fetch(e, step);
    }
    let warp = Warp::new(e, t.thread);
    let nothing = e.f32(0.0, F32);
    let init = vec![nothing; (WARP[0] / 16 * WARP[1] / 8 * 4) as usize];
    let zero = e.i64(0);
    let out = e.for_loop(zero, steps, 1, &init, |e, step, acc| {
        ptx::wait_copies(e, STAGES - 2);
        ptx::barrier(e);
        let ahead = e.i64(STAGES - 1);
        let next = e.add(step, ahead);
        fetch(e, next);
        let from = stage(e, step);
        warp.products(e, from, [a, b].map(|side| side.by_k.is_some()), acc)
    });
    // The stages become the place of the sums.
    ptx::wait_copies(e, 0);
    ptx::barrier(e);
    out
}

/// Fragments to the tile in shared memory: a thread holds columns 2 c and 2 c + 1 of rows g and g + 8.
fn park(e: &mut Emit, t: &Tile, sums: &[Val]) {
    let warp = Warp::new(e, t.thread);
    let (g, c) = (lane_bits(e, warp.lane, 2, 3), lane_bits(e, warp.lane, 0, 2));
    let c = e.shl(c, 1);
    let n_tiles = WARP[1] / 8;
    for (i, pair) in sums.chunks(2).enumerate() {
        let (tile, half) = (i as i64 / 2, i as i64 % 2);
        let (m, n) = (tile / n_tiles, tile % n_tiles);
        let (down, right) = (e.int(16 * m + 8 * half, I32), e.int(8 * n, I32));
        let row = e.add(warp.row, g);
        let row = e.add(row, down);
        let column = e.add(warp.column, c);
        let column = e.add(column, right);
        // Of the second right side too: its columns are behind the first's.
        let at = t.sum_at(e, 0, row, column);
        let both = e.vector(pair);
        debug_assert_eq!(both.ty, Ty::vector(Elem::F32, 2));
        e.store_aligned(both, at, 8);
    }
    ptx::barrier(e);
}
