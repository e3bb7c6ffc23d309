//! A warp's part of a block: steps of k whose weights and rows it multiplies, and its sums' way to shared memory.

use ir::DType;
use ir::plan::Contraction;

use super::resident::Resident;
use super::{DEPTH, IN_FLIGHT, WARPS};
use crate::gpu::awaited::{self, Asked};
use crate::gpu::epilogue::{Element, Tile, clamped};
use crate::gpu::ptx::{self, F32, I32, lane_bits};
use crate::gpu::{hopper, math};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{memory, widen};

/// Registers of a thread for the rows' elements of steps that are waited for together.
const AWAITED: i64 = 48;

/// What all parts of a block know.
pub struct Warp<'b, 'k> {
    pub tile: Tile<'b, 'k>,
    pub c: &'k Contraction,
    pub weights: Vec<usize>,
    pub lane: Val,
    pub warp: Val,
    /// The block's first column, i64.
    pub column: Val,
    pub k: i64,
    /// It waits for the functions in front of it.
    pub waits: bool,
    /// The block's weights in shared memory, if all of them are there.
    pub resident: Option<Resident>,
}

/// A warp's sums: fragments of each product's tiles of 8 columns; the lane's squares of its rows. And what the thread will store.
pub struct Sums {
    products: Vec<Vec<Val>>,
    squares: Vec<Val>,
    pub element: Option<Element>,
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

    pub fn sums(&self, e: &mut Emit) -> Sums {
        let (tiles, lane_rows) = self.shape();
        let steps = (self.k + WARPS * DEPTH - 1) / (WARPS * DEPTH);
        let lines = self.weights.len() as i64 * tiles;
        let group = if self.resident.is_some() {
            AWAITED / (lane_rows * self.row_words())
        } else {
            IN_FLIGHT / lines
        };
        let group = group.clamp(1, steps);
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
            let places: Vec<_> = (begin..(begin + group).min(steps)).map(|i| self.place(e, i)).collect();
            let mut loaded: Vec<Vec<Vec<Val>>> = vec![];
            if self.resident.is_none() {
                for (k, _) in &places {
                    loaded.push(self.loaded(e, &at, *k));
                }
            }
            if begin == 0 {
                if self.resident.is_none() {
                    for i in group..steps {
                        let (k, _) = self.place(e, i);
                        for (arg, row) in &at {
                            let from = e.add(*row, k);
                            let from = e.at(self.tile.body.args[*arg], from, Elem::I16);
                            ptx::prefetch(e, from);
                        }
                    }
                }
                if self.waits {
                    ptx::wait_for_earlier(e);
                    ptx::let_next_begin(e);
                }
                element = self.tile.ahead(e, self.column);
                bases = (0..lane_rows).map(|r| self.row_base(e, own, r)).collect();
            }
            let mut awaited = self.awaited(e, &bases, &places).into_iter();
            if begin == 0
                && let Some(resident) = &self.resident
            {
                resident.wait(e);
            }
            for (i, (k, is_there)) in places.iter().enumerate() {
                let rows: Vec<Vec<Val>> = (bases.iter().zip(&mut squares))
                    .map(|(base, squares)| {
                        let raw = awaited.next().unwrap_or_else(|| self.row(e, *base, *k));
                        self.left(e, raw, *is_there, squares)
                    })
                    .collect();
                let lines = match &self.resident {
                    None => std::mem::take(&mut loaded[i]),
                    Some(resident) => resident.lines(e, own, *k, tiles),
                };
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

    /// The lane's 16 bytes of each line of weights.
    fn loaded(&self, e: &mut Emit, at: &[(usize, Val)], k: Val) -> Vec<Vec<Val>> {
        at.iter()
            .map(|(arg, row)| {
                let at = e.add(*row, k);
                let from = e.at(self.tile.body.args[*arg], at, Elem::I16);
                ptx::load_once(e, from)
            })
            .collect()
    }

    /// Registers of a step's elements of a row, as they are loaded.
    fn row_words(&self) -> i64 {
        8 * memory(self.dtype()).bytes() as i64 / 4
    }

    fn dtype(&self) -> DType {
        self.tile.body.kernel.args[self.c.a.arg].dtype
    }

    /// The rows' elements of these steps once all of them are there, step by step; nothing where they are not waited for.
    fn awaited(&self, e: &mut Emit, bases: &[Val], places: &[(Val, Option<Val>)]) -> Vec<Val> {
        if !self.tile.body.awaits(self.c.a.arg) {
            return vec![];
        }
        let elem = memory(self.dtype());
        // All warps of the GPU that ask for whole rows again and again are in the way of who makes them: first one load, then the rest.
        let from = self.row_at(e, bases[0], places[0].0);
        let one = awaited::ask(e, from, 16, elem.bytes());
        awaited::settle(e, &[one]);
        let mut asked: Vec<Asked> = vec![];
        for (k, _) in places {
            for base in bases {
                for part in 0..self.row_words() / 4 {
                    let from = self.row_at(e, *base, *k);
                    let more = e.int(part * 16 / elem.bytes() as i64, I32);
                    let from = e.at(from, more, elem);
                    asked.push(awaited::ask(e, from, 16, elem.bytes()));
                }
            }
        }
        let words = awaited::settle(e, &asked);
        // Lanes have waited by themselves, and multiply together.
        hopper::warp_barrier(e);
        let parts = (self.row_words() / 4) as usize;
        (words.chunks(parts))
            .map(|words| awaited::value(e, &words.concat(), Ty::vector(elem, 8)))
            .collect()
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

    fn row_at(&self, e: &mut Emit, base: Val, k: Val) -> Val {
        let at = e.add(base, k);
        e.at(self.tile.body.args[self.c.a.arg], at, memory(self.dtype()))
    }

    /// A row's eight elements, as they lie in memory.
    fn row(&self, e: &mut Emit, base: Val, k: Val) -> Val {
        let from = self.row_at(e, base, k);
        e.load_aligned(from, Ty::vector(memory(self.dtype()), 8), 16)
    }

    /// The elements as four pairs of bf16; nothing behind the last k. Their squares are of what was read.
    fn left(&self, e: &mut Emit, raw: Val, is_there: Option<Val>, squares: &mut Val) -> Vec<Val> {
        let dtype = self.dtype();
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
    pub fn park(&self, e: &mut Emit, sums: &Sums) {
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
