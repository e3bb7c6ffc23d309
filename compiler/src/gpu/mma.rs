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

use ir::plan::{Access, Contraction, Expr, Kernel, Rhs};
use ir::{DType, Size};
use runtime::artefact::{Step, Variant};

use super::epilogue::{Tile, clamped};
use super::ptx::{self, F32, I32, Params, Signature};
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

/// Where a thread's chunks of one side come from and go to.
struct Side {
    /// Of each chunk.
    args: Vec<usize>,
    /// Of each chunk: its row's first element, i64.
    bases: Vec<Val>,
    /// First element in the row, or for values in the columns, i64; then the place in the stage, in bytes.
    at: Vec<(Val, Val)>,
    /// Where a line is one k of the tile's rows or columns.
    by_k: Option<ByK>,
}

/// Then `Side::bases` are places in k, and a line begins so many elements behind the one before.
struct ByK {
    /// Element 0 of the first line.
    first: Val,
    stride: Val,
    /// How many rows or columns there are.
    end: Val,
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

/// Chunks that a row's number mixes among each other.
pub const SWIZZLED: i64 = 8;

/// Byte of chunk `chunk` of row `row`, rows of 8 or 16 chunks: the swizzle lets eight rows of one chunk lie in eight banks' groups.
pub fn place(e: &mut Emit, row: Val, chunk: Val, chunks: i64) -> Val {
    let low = e.int(SWIZZLED - 1, I32);
    let turn = e.and(row, low);
    let chunk = e.op(I32, &format!("arith.xori {chunk}, {turn} : i32"));
    let chunks = e.int(chunks, I32);
    let at = e.mul(row, chunks);
    let at = e.add(at, chunk);
    e.shl(at, 4)
}

/// Chunk i of the thread: (row, chunk) in rows of `chunks`.
fn chunk_of(e: &mut Emit, thread: Val, i: i64, chunks: i64) -> (Val, Val) {
    let n = e.int(chunks, I32);
    let (row, chunk) = (e.div(thread, n), e.rem(thread, n));
    let more = e.int(i * (THREADS / chunks), I32);
    (e.add(row, more), chunk)
}

/// A's rows, or its lines of rows.
fn left(e: &mut Emit, t: &Tile, c: &Contraction) -> Side {
    if t.body.kernel.is_turned() {
        let k = t.body.size(e, c.a.strides.last().expect("k has a stride"));
        let first = t.body.size(e, &c.a.offset);
        let lines = ByK {
            first,
            stride: k,
            end: t.rows,
        };
        return by_k(e, t, c.a.arg, t.first, lines);
    }
    let mut side = Side {
        args: vec![],
        bases: vec![],
        at: vec![],
        by_k: None,
    };
    for i in 0..SIDE / 16 / THREADS {
        let (row, chunk) = chunk_of(e, t.thread, i, DEPTH / 8);
        let to = place(e, row, chunk, DEPTH / 8);
        let row = t.offset(e, t.first, row);
        let row = clamped(e, row, t.rows);
        let mut point = t.point(e, row);
        side.args.push(c.a.arg);
        side.bases.push(t.body.base(e, &mut point, &c.a));
        side.at.push((elements(e, chunk), to));
    }
    side
}

/// A side whose lines are k, from row or column `begin` on.
fn by_k(e: &mut Emit, t: &Tile, arg: usize, begin: Val, lines: ByK) -> Side {
    let mut side = Side {
        args: vec![],
        bases: vec![],
        at: vec![],
        by_k: Some(lines),
    };
    for i in 0..SIDE / 16 / THREADS {
        let (line, chunk) = chunk_of(e, t.thread, i, TILE / 8);
        let to = place(e, line, chunk, TILE / 8);
        let first = elements(e, chunk);
        side.args.push(arg);
        side.bases.push(e.extend_signed(line, Elem::I64));
        side.at.push((e.add(begin, first), to));
    }
    side
}

fn elements(e: &mut Emit, chunk: Val) -> Val {
    let first = e.shl(chunk, 3);
    e.extend_signed(first, Elem::I64)
}

/// B's columns as rows of k, or its rows of columns. Where there are two right sides, the second's columns follow the first's.
fn right(e: &mut Emit, t: &Tile, c: &Contraction, column: Val) -> Side {
    let k = t.body.size(e, &c.k);
    let place_of = |e: &mut Emit, b: &Rhs| match b {
        Rhs::Packed { .. } => (e.i64(0), k),
        Rhs::KContiguous { offset, strides, .. } | Rhs::NContiguous { offset, strides, .. } => {
            let (last, batch) = strides.split_last().expect("a matrix has a stride for its rows");
            (t.body.linear(e, offset, &t.batch, batch), t.body.size(e, last))
        }
    };
    let places: Vec<(usize, Val, Val)> = (c.rights())
        .map(|b| {
            let (base, stride) = place_of(e, b);
            (arg(b), base, stride)
        })
        .collect();
    if matches!(c.b, Rhs::NContiguous { .. }) {
        let (arg, first, stride) = places[0];
        let lines = ByK {
            first,
            stride,
            end: t.cols,
        };
        return by_k(e, t, arg, column, lines);
    }
    let mut side = Side {
        args: vec![],
        bases: vec![],
        at: vec![],
        by_k: None,
    };
    let chunks = SIDE / 16 / THREADS;
    for i in 0..chunks {
        let (row, chunk) = chunk_of(e, t.thread, i, DEPTH / 8);
        let to = place(e, row, chunk, DEPTH / 8);
        let which = i * places.len() as i64 / chunks;
        let (arg, base, stride) = places[which as usize];
        let before = e.int(which * t.width, I32);
        let row = e.sub(row, before);
        let n = t.offset(e, column, row);
        let n = clamped(e, n, t.cols);
        let at = e.mul(n, stride);
        side.args.push(arg);
        side.bases.push(e.add(base, at));
        side.at.push((elements(e, chunk), to));
    }
    side
}

/// Bytes of a chunk that are there: up to 16 of what lies before `end`.
fn bytes_before(e: &mut Emit, at: Val, end: Val) -> Val {
    let left = e.sub(end, at);
    let (none, most) = (e.i64(0), e.i64(8));
    let left = e.max(left, none);
    let left = e.min(left, most);
    let left = e.shl(left, 1);
    e.truncate_int(left, Elem::I32)
}

/// Brings one side of the step that begins at `k` to shared memory.
fn bring(e: &mut Emit, t: &Tile, side: &Side, k: Val, k_end: Val, to: Val) {
    for (i, (at, place)) in side.at.iter().enumerate() {
        let base = t.body.args[side.args[i]];
        let (element, bytes) = match &side.by_k {
            None => {
                let k = e.add(k, *at);
                let bytes = bytes_before(e, k, k_end);
                let k = clamped(e, k, k_end);
                (e.add(side.bases[i], k), bytes)
            }
            Some(lines) => {
                let line = e.add(k, side.bases[i]);
                let is_there = e.cmp(Cmp::Lt, line, k_end);
                let line = clamped(e, line, k_end);
                let bytes = bytes_before(e, *at, lines.end);
                let none = e.int(0, I32);
                let bytes = e.select(is_there, bytes, none);
                let at = clamped(e, *at, lines.end);
                let line = e.mul(line, lines.stride);
                let first = e.add(lines.first, line);
                (e.add(first, at), bytes)
            }
        };
        // Where nothing is there nothing is read, but the address must be aligned all the same.
        let eight = e.i64(-8);
        let element = e.and(element, eight);
        let from = e.at(base, element, Elem::I16);
        let to = e.add(to, *place);
        ptx::copy_async(e, to, from, bytes);
    }
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

/// Bits `from..from + n` of a lane's number.
pub fn lane_bits(e: &mut Emit, lane: Val, from: i64, n: i64) -> Val {
    let x = e.shr(lane, from);
    let mask = e.int((1 << n) - 1, I32);
    e.and(x, mask)
}

/// A warp's part of a tile.
struct Warp {
    lane: Val,
    /// First row and column.
    row: Val,
    column: Val,
}

impl Warp {
    fn new(e: &mut Emit, thread: Val) -> Warp {
        let (lanes, across) = (e.int(32, I32), e.int(TILE / WARP[1], I32));
        let (warp, lane) = (e.div(thread, lanes), e.rem(thread, lanes));
        let (row, column) = (e.div(warp, across), e.rem(warp, across));
        let (height, width) = (e.int(WARP[0], I32), e.int(WARP[1], I32));
        Warp {
            lane,
            row: e.mul(row, height),
            column: e.mul(column, width),
        }
    }

    /// `by_k`: of each side.
    fn products(&self, e: &mut Emit, stage: Val, by_k: [bool; 2], acc: &[Val]) -> Vec<Val> {
        let mut acc = acc.to_vec();
        let (m_tiles, n_tiles) = (WARP[0] / 16, WARP[1] / 8);
        let side = e.int(SIDE, I32);
        let right = e.add(stage, side);
        for k in 0..DEPTH / 16 {
            let left = if by_k[0] { Warp::left_by_k } else { Warp::left };
            let a: Vec<Vec<Val>> = (0..m_tiles).map(|m| left(self, e, stage, m, k)).collect();
            let mut b: Vec<[Val; 2]> = vec![];
            for pair in 0..n_tiles / 2 {
                let r = if by_k[1] {
                    self.right_by_k(e, right, pair, k)
                } else {
                    self.right(e, right, pair, k)
                };
                b.extend([[r[0], r[1]], [r[2], r[3]]]);
            }
            for (m, a) in a.iter().enumerate() {
                for (n, b) in b.iter().enumerate() {
                    let at = (m * n_tiles as usize + n) * 4;
                    let sums = ptx::mma_bf16(e, a, b, &acc[at..at + 4]);
                    acc.splice(at..at + 4, sums);
                }
            }
        }
        acc
    }

    /// A lane's line and chunk of four matrices: (low lines, first chunk), (high, first), (low, second), (high, second).
    fn lines_first(&self, e: &mut Emit) -> (Val, Val) {
        (lane_bits(e, self.lane, 0, 4), lane_bits(e, self.lane, 4, 1))
    }

    /// As `lines_first`, but (low, first), (low, second), (high, first), (high, second).
    fn chunks_first(&self, e: &mut Emit) -> (Val, Val) {
        let (low, high) = (lane_bits(e, self.lane, 0, 3), lane_bits(e, self.lane, 4, 1));
        let high = e.shl(high, 3);
        (e.or(low, high), lane_bits(e, self.lane, 3, 1))
    }

    /// Four matrices of a side whose lines are k, at chunk `chunk` of the lane's, from line 16 k on; turned as they are read. `begin`: the
    /// warp's first row or column.
    fn by_k(&self, e: &mut Emit, side: Val, (line, chunk): (Val, Val), begin: Val, tile: i64, k: i64) -> Vec<Val> {
        let first = e.int(16 * k, I32);
        let line = e.add(line, first);
        let begin = e.shr(begin, 3);
        let chunk = e.add(chunk, begin);
        let first = e.int(2 * tile, I32);
        let chunk = e.add(chunk, first);
        let at = place(e, line, chunk, TILE / 8);
        let at = e.add(side, at);
        ptx::load_matrices(e, at, true)
    }

    /// Four matrices of a side whose lines are rows or columns, from line `begin` + 16 tile on, k chunks 2 k...
    fn by_line(&self, e: &mut Emit, side: Val, (line, chunk): (Val, Val), begin: Val, tile: i64, k: i64) -> Vec<Val> {
        let line = e.add(line, begin);
        let first = e.int(16 * tile, I32);
        let line = e.add(line, first);
        let first = e.int(2 * k, I32);
        let chunk = e.add(chunk, first);
        let at = place(e, line, chunk, DEPTH / 8);
        let at = e.add(side, at);
        ptx::load_matrices(e, at, false)
    }

    /// Rows m * 16..: fragments (low rows, first k), (high, first), (low, second), (high, second).
    fn left(&self, e: &mut Emit, stage: Val, m: i64, k: i64) -> Vec<Val> {
        let mine = self.lines_first(e);
        self.by_line(e, stage, mine, self.row, m, k)
    }

    fn left_by_k(&self, e: &mut Emit, stage: Val, m: i64, k: i64) -> Vec<Val> {
        let mine = self.chunks_first(e);
        self.by_k(e, stage, mine, self.row, m, k)
    }

    /// Columns pair * 16..: fragments (low columns, first k), (low, second), (high, first), (high, second).
    fn right(&self, e: &mut Emit, stage: Val, pair: i64, k: i64) -> Vec<Val> {
        let mine = self.chunks_first(e);
        self.by_line(e, stage, mine, self.column, pair, k)
    }

    fn right_by_k(&self, e: &mut Emit, stage: Val, pair: i64, k: i64) -> Vec<Val> {
        let mine = self.lines_first(e);
        self.by_k(e, stage, mine, self.column, pair, k)
    }
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
