//! bf16 weights by few rows, as in decoding: bound by reading each weight once, where plain products would be bound by arithmetic.
//!
//!     block = 8 or 32 columns                           k steps of 32 dealt to eight warps
//!       the warp's weights to registers, or begun       before the wait for earlier kernels: weights depend on none
//!       for step: the rows' elements, `mma.sync`        rows by 8 columns; rows are the left side, so that 8 or 16 cost the same
//!       what the stages load                            at once behind the wait, with the rows
//!       the warps' sums through shared memory, then the kernel's stages
//!
//! A lane's 16 bytes are eight neighbours of k, and the same eight of both sides: which slots of the sum they take does not matter, so that
//! nothing goes through shared memory or `ldmatrix` on its way in. Sums have one order.

use ir::plan::{Contraction, Expr, Kernel};
use ir::{DType, Size};
use runtime::artefact::{Step, Variant};

use super::epilogue::{Element, Tile, clamped};
use super::ptx::{self, F32, I32, Params, Signature, lane_bits};
use super::{Target, few_rows, math, tiles, weights};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::pipeline;
use crate::scalar::{Body, Math, memory, widen};

const WARPS: i64 = 8;
const THREADS: i64 = 32 * WARPS;
/// Rows that a function is made for.
pub const ROWS: [i64; 2] = [8, 16];
/// k of a step: four lanes' 16 bytes.
const DEPTH: i64 = 32;
/// Loads of 16 bytes that a lane has under way; what is beyond is brought to the second cache meanwhile. Few registers are many blocks, and
/// room for the next function's (measured: docs/notes/2026-11-26-cuda.md).
const IN_FLIGHT: i64 = 8;

pub fn takes(kernel: &Kernel, c: &Contraction) -> bool {
    few_rows::weights_of(kernel, c) == Some(DType::BF16)
        && weights(c).iter().all(|w| kernel.args[*w].dtype == DType::BF16)
}

/// The way for at most `rows` rows.
pub fn variant(kernel: &Kernel, c: &Contraction, rows: i64, name: &str, target: &Target) -> (Variant, String) {
    // With many columns a block takes more, so that the rows' elements are read less often.
    let many = kernel.cols.as_const().is_some_and(|n| n > 1 << 14);
    let columns = if many { 32 } else { 8 };
    let signature = Signature {
        buffers: kernel.args.len(),
        threads: THREADS as u32,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| {
        block(e, kernel, c, [rows, columns], target, params)
    });
    let products = weights(c).len() as i64;
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&[(kernel.cols.clone(), columns)]),
        threads: THREADS as u32,
        shared: (WARPS * rows * (products * columns + 1) * 4) as u32,
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

fn block(e: &mut Emit, kernel: &Kernel, c: &Contraction, [rows, columns]: [i64; 2], target: &Target, params: Params) {
    let body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
    let (block, thread) = (ptx::block(e), ptx::thread(e));
    let width = e.int(columns, I32);
    let column = e.mul(block, width);
    let column = e.extend_signed(column, Elem::I64);
    let shared = ptx::shared(e);
    let products = weights(c).len() as i64;
    let place = |e: &mut Emit, floats: i64| {
        let at = e.int(floats, I32);
        e.at(shared, at, Elem::F32)
    };
    let (part, squares) = (products * rows * columns, WARPS * products * rows * columns);
    let measures = kernel.exprs.contains(&Expr::RowSquares);
    let tile = Tile {
        thread,
        threads: THREADS,
        batch: vec![],
        first: e.i64(0),
        rows: body.size(e, &Size::product(&kernel.outer)),
        cols: body.size(e, &kernel.cols),
        height: rows,
        width: columns,
        sums: (0..products).map(|p| place(e, p * rows * columns)).collect(),
        pitch: columns,
        squares: measures.then(|| place(e, squares)),
        parts: (WARPS, part),
        body: &body,
    };
    let warp = Warp {
        lane: lane_bits(e, thread, 0, 5),
        warp: e.shr(thread, 5),
        weights: weights(c),
        k: c.k.as_const().unwrap_or(0),
        column,
        waits: target.hopper,
        c,
        tile,
    };
    let sums = warp.sums(e);
    warp.park(e, &sums);
    ptx::barrier(e);
    match sums.element {
        Some(element) => warp.tile.store_element(e, element),
        None => warp.tile.stores(e, column),
    }
}

/// What all parts of a block know.
struct Warp<'b, 'k> {
    tile: Tile<'b, 'k>,
    c: &'k Contraction,
    weights: Vec<usize>,
    lane: Val,
    warp: Val,
    /// The block's first column, i64.
    column: Val,
    k: i64,
    waits: bool,
}

/// A warp's sums: fragments of each product's tiles of 8 columns; the lane's squares of its rows. And what the thread will store.
struct Sums {
    products: Vec<Vec<Val>>,
    squares: Vec<Val>,
    element: Option<Element>,
}

impl Warp<'_, '_> {
    /// Tiles of 8 columns, and rows of a lane.
    fn shape(&self) -> (i64, i64) {
        (self.tile.width / 8, self.tile.height / 8)
    }

    /// First k of the lane's part of the warp's step i (i64), and whether it is there, if it may not be.
    fn place(&self, e: &mut Emit, i: i64) -> (Val, Option<Val>) {
        let member = lane_bits(e, self.lane, 0, 2);
        let (first, depth) = (e.int(i * WARPS, I32), e.int(DEPTH, I32));
        let step = e.add(self.warp, first);
        let at = e.mul(step, depth);
        let more = e.shl(member, 3);
        let at = e.add(at, more);
        if (i + 1) * WARPS * DEPTH <= self.k {
            return (e.extend_signed(at, Elem::I64), None);
        }
        let (end, last) = (e.int(self.k, I32), e.int(self.k - 8, I32));
        let is_there = e.cmp(Cmp::Lt, at, end);
        let at = e.min(at, last);
        (e.extend_signed(at, Elem::I64), Some(is_there))
    }

    fn sums(&self, e: &mut Emit) -> Sums {
        let (tiles, lane_rows) = self.shape();
        let steps = (self.k + WARPS * DEPTH - 1) / (WARPS * DEPTH);
        let lines = self.weights.len() as i64 * tiles;
        let group = (IN_FLIGHT / lines).clamp(1, steps);
        let own = lane_bits(e, self.lane, 2, 3);
        let mut at = vec![];
        for &arg in &self.weights {
            for tile in 0..tiles {
                at.push((arg, self.weight_row(e, own, tile)));
            }
        }
        let nothing = e.f32(0.0, F32);
        let mut products = vec![vec![nothing; 4]; lines as usize];
        let mut squares = vec![nothing; lane_rows as usize];
        let (mut bases, mut element) = (vec![], None);
        for begin in (0..steps).step_by(group as usize) {
            let loaded: Vec<_> = (begin..(begin + group).min(steps))
                .map(|i| {
                    let (k, is_there) = self.place(e, i);
                    let lines: Vec<Vec<Val>> = (at.iter())
                        .map(|(arg, row)| {
                            let at = e.add(*row, k);
                            let from = e.at(self.tile.body.args[*arg], at, Elem::I16);
                            ptx::load_once(e, from)
                        })
                        .collect();
                    (lines, k, is_there)
                })
                .collect();
            if begin == 0 {
                for i in group..steps {
                    let (k, _) = self.place(e, i);
                    for (arg, row) in &at {
                        let from = e.add(*row, k);
                        let from = e.at(self.tile.body.args[*arg], from, Elem::I16);
                        ptx::prefetch(e, from);
                    }
                }
                if self.waits {
                    ptx::wait_for_earlier(e);
                    ptx::let_next_begin(e);
                }
                element = self.tile.ahead(e, self.column);
                bases = (0..lane_rows).map(|r| self.row_base(e, own, r)).collect();
            }
            for (lines, k, is_there) in loaded {
                let rows: Vec<Vec<Val>> = (bases.iter().zip(&mut squares))
                    .map(|(base, squares)| self.left(e, *base, k, is_there, squares))
                    .collect();
                let none = e.int(0, I32);
                for half in 0..2 {
                    let of = |r: usize, pair: usize| rows.get(r).map_or(none, |x| x[2 * half + pair]);
                    let a = [of(0, 0), of(1, 0), of(0, 1), of(1, 1)];
                    for (line, acc) in lines.iter().zip(&mut products) {
                        *acc = ptx::mma_bf16(e, &a, &line[2 * half..2 * half + 2], acc);
                    }
                }
            }
        }
        Sums {
            products,
            squares,
            element,
        }
    }

    /// First element of the weights of the lane's column of a tile; behind the last column it is the last one again.
    fn weight_row(&self, e: &mut Emit, own: Val, tile: i64) -> Val {
        let first = e.int(8 * tile, I32);
        let own = e.add(own, first);
        let n = self.tile.offset(e, self.column, own);
        let n = clamped(e, n, self.tile.cols);
        let k = e.i64(self.k);
        e.mul(n, k)
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
    fn left(&self, e: &mut Emit, base: Val, k: Val, is_there: Option<Val>, squares: &mut Val) -> Vec<Val> {
        let arg = self.c.a.arg;
        let dtype = self.tile.body.kernel.args[arg].dtype;
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

    /// The warp's sums to its part of shared memory: a lane holds columns 2 c and 2 c + 1 of rows g and g + 8.
    fn park(&self, e: &mut Emit, sums: &Sums) {
        let (tiles, lane_rows) = self.shape();
        let (rows, columns) = (self.tile.height, self.tile.width);
        let (g, c) = (lane_bits(e, self.lane, 2, 3), lane_bits(e, self.lane, 0, 2));
        let part = e.int(self.weights.len() as i64 * rows * columns, I32);
        let part = e.mul(self.warp, part);
        let (pitch, right) = (e.int(columns, I32), e.shl(c, 1));
        let own = e.mul(g, pitch);
        let own = e.add(own, right);
        let own = e.add(own, part);
        for (i, acc) in sums.products.iter().enumerate() {
            let (product, tile) = (i as i64 / tiles, i as i64 % tiles);
            for r in 0..lane_rows {
                let more = e.int((product * rows + 8 * r) * columns + 8 * tile, I32);
                let at = e.add(own, more);
                let to = e.at(self.tile.sums[0], at, Elem::F32);
                let both = e.vector(&acc[2 * r as usize..2 * r as usize + 2]);
                e.store_aligned(both, to, 8);
            }
        }
        let Some(place) = self.tile.squares else {
            return;
        };
        let zero = e.int(0, I32);
        let leads = e.cmp(Cmp::Eq, c, zero);
        for (r, x) in sums.squares.iter().enumerate() {
            let mut x = *x;
            for bits in [1, 2] {
                let other = ptx::shuffle_xor(e, x, bits);
                x = e.add(x, other);
            }
            let (height, first) = (e.int(rows, I32), e.int(8 * r as i64, I32));
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
