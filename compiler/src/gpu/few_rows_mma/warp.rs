//! What a warp does with few rows, wherever its weights come from: which k it takes, the rows' fragments and squares, its sums to shared memory.

use ir::plan::{Contraction, Expr};
use ir::{DType, Size};

use super::{DEPTH, THREADS, WARPS};
use crate::gpu::epilogue::{Tile, clamped};
use crate::gpu::ptx::{self, F32, I32, lane_bits};
use crate::gpu::{math, weights};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, memory, widen};

pub struct Warp<'b, 'k> {
    pub tile: Tile<'b, 'k>,
    pub c: &'k Contraction,
    /// Arguments that are weights.
    pub weights: Vec<usize>,
    pub lane: Val,
    pub warp: Val,
    pub k: i64,
}

impl<'b, 'k> Warp<'b, 'k> {
    /// `cols`: columns of the kernel, or those that the block stores no others than (i64).
    pub fn new(e: &mut Emit, body: &'b Body<'k>, c: &'k Contraction, [rows, columns]: [i64; 2], cols: Val) -> Self {
        let (thread, shared, weights) = (ptx::thread(e), ptx::shared(e), weights(c));
        let products = weights.len() as i64;
        let place = |e: &mut Emit, floats: i64| {
            let at = e.int(floats, I32);
            e.at(shared, at, Elem::F32)
        };
        let (part, squares) = (products * rows * columns, WARPS * products * rows * columns);
        let measures = body.kernel.exprs.contains(&Expr::RowSquares);
        let tile = Tile {
            thread,
            threads: THREADS,
            batch: vec![],
            first: e.i64(0),
            rows: body.size(e, &Size::product(&body.kernel.outer)),
            cols,
            height: rows,
            width: columns,
            sums: (0..products).map(|p| place(e, p * rows * columns)).collect(),
            pitch: columns,
            squares: measures.then(|| place(e, squares)),
            parts: (WARPS, part),
            body,
        };
        Warp {
            lane: lane_bits(e, thread, 0, 5),
            warp: e.shr(thread, 5),
            weights,
            k: c.k.as_const().unwrap_or(0),
            c,
            tile,
        }
    }

    /// Rows of a lane.
    pub fn rows(&self) -> i64 {
        self.tile.height / 8
    }

    /// Steps of `DEPTH` that a warp takes.
    pub fn steps(&self) -> i64 {
        (self.k + WARPS * DEPTH - 1) / (WARPS * DEPTH)
    }

    /// First k of the lane's part of the warp's step i (i32), and whether it is there, if it may not be.
    pub fn place(&self, e: &mut Emit, i: i64) -> (Val, Option<Val>) {
        let member = lane_bits(e, self.lane, 0, 2);
        let (first, depth) = (e.int(i * WARPS, I32), e.int(DEPTH, I32));
        let step = e.add(self.warp, first);
        let at = e.mul(step, depth);
        let more = e.shl(member, 3);
        let at = e.add(at, more);
        if (i + 1) * WARPS * DEPTH <= self.k {
            return (at, None);
        }
        let (end, last) = (e.int(self.k, I32), e.int(self.k - 8, I32));
        let is_there = e.cmp(Cmp::Lt, at, end);
        (e.min(at, last), Some(is_there))
    }

    /// First element of each of the lane's rows.
    pub fn row_bases(&self, e: &mut Emit) -> Vec<Val> {
        let own = lane_bits(e, self.lane, 2, 3);
        (0..self.rows()).map(|r| self.row_base(e, own, r)).collect()
    }

    fn row_base(&self, e: &mut Emit, own: Val, r: i64) -> Val {
        let first = e.int(8 * r, I32);
        let row = e.add(own, first);
        let row = e.extend_signed(row, Elem::I64);
        let row = clamped(e, row, self.tile.rows);
        let mut point = self.tile.point(e, row);
        self.tile.body.base(e, &mut point, &self.c.a)
    }

    /// A row's eight elements as four pairs of bf16; nothing behind the last k. Their squares are of what was read.
    pub fn left(&self, e: &mut Emit, base: Val, (k, is_there): (Val, Option<Val>), squares: &mut Val) -> Vec<Val> {
        let arg = self.c.a.arg;
        let dtype = self.tile.body.kernel.args[arg].dtype;
        let k = e.extend_signed(k, Elem::I64);
        let at = e.add(base, k);
        let from = e.at(self.tile.body.args[arg], at, memory(dtype));
        let raw = e.load_aligned(from, Ty::vector(memory(dtype), 8), 16);
        if self.tile.squares.is_some() {
            let (x, nothing) = (widen(e, raw, dtype), e.f32(0.0, F32));
            for i in 0..8 {
                let x = e.extract(x, i);
                let x = is_there.map_or(x, |there| e.select(there, x, nothing));
                *squares = e.fma(x, x, *squares);
            }
        }
        let bits = if dtype == DType::BF16 {
            raw
        } else {
            math::bf16_bits(e, raw)
        };
        let pairs = e.bitcast(bits, Ty::vector(Elem::I32, 4));
        let none = e.int(0, I32);
        (0..4)
            .map(|i| {
                let x = e.extract(pairs, i);
                is_there.map_or(x, |there| e.select(there, x, none))
            })
            .collect()
    }

    /// A step's products: rows as `left` gives them, by each of the lines' 16 bytes, to that line's sums.
    pub fn multiply(&self, e: &mut Emit, rows: &[Vec<Val>], lines: &[Vec<Val>], sums: &mut [Vec<Val>]) {
        let none = e.int(0, I32);
        for half in 0..2 {
            let of = |r: usize, pair: usize| rows.get(r).map_or(none, |x| x[2 * half + pair]);
            let a = [of(0, 0), of(1, 0), of(0, 1), of(1, 1)];
            for (line, acc) in lines.iter().zip(&mut *sums) {
                *acc = ptx::mma_bf16(e, &a, &line[2 * half..2 * half + 2], acc);
            }
        }
    }

    /// The sums of a product's 8 columns, from this one of the tile's (i32) on, to the warp's part of shared memory: a lane holds columns 2 c
    /// and 2 c + 1 of rows g and g + 8.
    pub fn park(&self, e: &mut Emit, product: usize, column: Val, sums: &[Val]) {
        let (rows, columns) = (self.tile.height, self.tile.width);
        let (g, c) = (lane_bits(e, self.lane, 2, 3), lane_bits(e, self.lane, 0, 2));
        let part = e.int(self.weights.len() as i64 * rows * columns, I32);
        let part = e.mul(self.warp, part);
        let (pitch, right) = (e.int(columns, I32), e.shl(c, 1));
        let own = e.mul(g, pitch);
        let own = e.add(own, right);
        let own = e.add(own, part);
        let own = e.add(own, column);
        for r in 0..self.rows() {
            let more = e.int((product as i64 * rows + 8 * r) * columns, I32);
            let at = e.add(own, more);
            let to = e.at(self.tile.sums[0], at, Elem::F32);
            let both = e.vector(&sums[2 * r as usize..2 * r as usize + 2]);
            e.store_aligned(both, to, 8);
        }
    }

    /// The lane's squares of its rows, to the warp's part.
    pub fn park_squares(&self, e: &mut Emit, squares: &[Val]) {
        let Some(place) = self.tile.squares else {
            return;
        };
        let (g, c) = (lane_bits(e, self.lane, 2, 3), lane_bits(e, self.lane, 0, 2));
        let zero = e.int(0, I32);
        let leads = e.cmp(Cmp::Eq, c, zero);
        for (r, x) in squares.iter().enumerate() {
            let mut x = *x;
            for bits in [1, 2] {
                let other = ptx::shuffle_xor(e, x, bits);
                x = e.add(x, other);
            }
            let (height, first) = (e.int(self.tile.height, I32), e.int(8 * r as i64, I32));
            let at = e.mul(self.warp, height);
            let at = e.add(at, g);
            let at = e.add(at, first);
            let to = e.at(place, at, Elem::F32);
            e.if_then(leads, &[], |e| {
                e.store(x, to);
                vec![]
            });
        }
    }
}
