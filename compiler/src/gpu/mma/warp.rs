//! Fragments of `mma.sync`: which elements a lane holds, how they come from swizzled shared memory, and a warp's products of a stage.

use super::super::ptx::{self, I32, lane_bits};
use super::{DEPTH, SIDE, TILE, WARP};
use crate::mlir::emit::{Emit, Val};

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

/// A warp's part of a tile.
pub struct Warp {
    pub lane: Val,
    /// First row and column.
    pub row: Val,
    pub column: Val,
}

impl Warp {
    pub fn new(e: &mut Emit, thread: Val) -> Warp {
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
    pub fn products(&self, e: &mut Emit, stage: Val, by_k: [bool; 2], acc: &[Val]) -> Vec<Val> {
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
