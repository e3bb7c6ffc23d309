//! A product of few rows, its weights from units (`units`): a block makes neighbouring columns, eight at a time.
//!
//!     the rows' fragments to registers                      of the warp's k: every eighth 32
//!     for group of the block's tiles of 8 columns
//!       for tile, for matrix, for unit: `mma.sync`          all of a group beside each other: sums of several tiles wait for nothing
//!       the warps' sums through shared memory; the kernel's stores

use ir::plan::{Contraction, Kernel};
use runtime::artefact::Matrices;

use super::units::{DEPTH, PITCH, ROWS, Units};
use crate::gpu::few_rows_mma::{self, Warp};
use crate::gpu::pipeline::Place;
use crate::gpu::ptx::{self, F32, I32, Params, lane_bits};
use crate::gpu::weights;
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, Math};

/// Tiles of a group, at most: a thread for each element of eight rows.
const TILES: i64 = 4;
/// Units of a group, at most: registers, and room.
const UNITS: i64 = 8;
/// Multiprocessors of a large GPU: with fewer, blocks have more groups.
const BLOCKS: i64 = 132;

pub struct Product<'k> {
    kernel: &'k Kernel,
    c: &'k Contraction,
    weights: Vec<usize>,
    /// Of each matrix, rows; of the product, columns.
    cols: i64,
    k: i64,
}

impl<'k> Product<'k> {
    pub fn new(kernel: &'k Kernel, c: &'k Contraction) -> Option<Product<'k>> {
        let (cols, k) = (kernel.cols.as_const()?, c.k.as_const()?);
        let product = Product {
            kernel,
            c,
            weights: weights(c),
            cols,
            k,
        };
        let fits = few_rows_mma::takes(kernel, c) && cols % ROWS == 0 && product.units_of_tile() <= UNITS;
        fits.then_some(product)
    }

    /// Units of a matrix's tile.
    fn depths(&self) -> i64 {
        (self.k + DEPTH - 1) / DEPTH
    }

    fn units_of_tile(&self) -> i64 {
        self.depths() * self.weights.len() as i64
    }

    /// Tiles of a group: what a block has, if that is not too much.
    fn tiles(&self) -> i64 {
        let of_block = (self.cols / ROWS + BLOCKS - 1) / BLOCKS;
        of_block.min(UNITS / self.units_of_tile()).clamp(1, TILES)
    }

    pub fn units_of_group(&self) -> i64 {
        self.tiles() * self.units_of_tile()
    }

    fn width(&self) -> i64 {
        ROWS * self.tiles()
    }

    pub fn shared(&self) -> i64 {
        few_rows_mma::shared(few_rows_mma::ROWS[0], self.width(), self.weights.len() as i64)
    }

    pub fn matrices(&self) -> Matrices {
        Matrices {
            args: self.weights.iter().map(|a| *a as u32).collect(),
            rows: self.cols,
            columns: self.k,
        }
    }

    /// `place`: of the first unit that the block has not used; gives that behind the last one.
    pub fn run(&self, e: &mut Emit, units: &Units, params: Params, place: Place) -> Place {
        let body = Body::over(self.kernel, 1, params.buffers, params.symbols, Math::Gpu);
        let (block, blocks) = (ptx::block(e), ptx::blocks(e));
        let (one, eight) = (e.int(1, I32), e.int(ROWS, I32));
        // The block's tiles, as the host deals them (`runtime::cuda::persistent`).
        let all = e.int(self.cols / ROWS, I32);
        let begin = e.mul(block, all);
        let begin = e.div(begin, blocks);
        let next = e.add(block, one);
        let end = e.mul(next, all);
        let end = e.div(end, blocks);
        let last = e.mul(end, eight);
        let last = e.extend_signed(last, Elem::I64);
        let warp = Warp::new(e, &body, self.c, [few_rows_mma::ROWS[0], self.width()], last);
        let some = e.cmp(Cmp::Lt, begin, end);
        let place = place.values();
        let after = e.if_then(some, &place, |e| {
            let bases = warp.row_bases(e);
            let mut squares = vec![e.f32(0.0, F32); bases.len()];
            let steps: Vec<Vec<Vec<Val>>> = (0..warp.steps())
                .map(|i| {
                    let k = warp.place(e, i);
                    let rows = bases.iter().zip(&mut squares);
                    rows.map(|(base, squares)| warp.left(e, *base, k, squares)).collect()
                })
                .collect();
            warp.park_squares(e, &squares);
            e.for_loop(begin, end, self.tiles(), &place, |e, first, carried| {
                let place = Place::of(carried);
                let column = e.mul(first, eight);
                let column = e.extend_signed(column, Elem::I64);
                let element = warp.tile.ahead(e, column).expect("a thread has one element");
                let (tiles, left) = (e.int(self.tiles(), I32), e.sub(end, first));
                let count = e.min(tiles, left);
                self.group(e, units, &warp, &steps, place, count);
                ptx::barrier(e);
                warp.tile.store_element(e, element);
                // The next group's sums go where these were read.
                ptx::barrier(e);
                let each = e.int(self.units_of_tile(), I32);
                let n = e.mul(count, each);
                units.behind(e, place, n).values().to_vec()
            })
        });
        Place::of(&after)
    }

    /// The sums of `count` tiles to shared memory. A tile that is not there is the last one again.
    fn group(&self, e: &mut Emit, units: &Units, warp: &Warp, steps: &[Vec<Vec<Val>>], place: Place, count: Val) {
        let (own, pitch) = (lane_bits(e, warp.lane, 2, 3), e.int(PITCH / 2, I32));
        let line = e.mul(own, pitch);
        let (one, of_tile) = (e.int(1, I32), e.int(self.units_of_tile(), I32));
        let last = e.sub(count, one);
        // Steps of all warps that a unit has.
        let each = (DEPTH / (few_rows_mma::WARPS * few_rows_mma::DEPTH)) as usize;
        let mut sums = vec![];
        let mut tiles = vec![];
        for tile in 0..self.tiles() {
            let tile = e.int(tile, I32);
            let tile = e.min(tile, last);
            let first = e.mul(tile, of_tile);
            tiles.push(first);
            for product in 0..self.weights.len() as i64 {
                let mut parts = vec![];
                for (unit, steps) in steps.chunks(each).enumerate() {
                    let after = e.int(product * self.depths() + unit as i64, I32);
                    let after = e.add(first, after);
                    let at = units.wait(e, place, after);
                    let at = e.at(at, line, Elem::I16);
                    let before = e.int(unit as i64 * DEPTH, I32);
                    let lines = (0..steps.len()).map(|i| {
                        let (k, _) = warp.place(e, (unit * each + i) as i64);
                        let k = e.sub(k, before);
                        let from = e.at(at, k, Elem::I16);
                        let raw = e.load_aligned(from, Ty::vector(Elem::I32, 4), 16);
                        (0..4).map(|i| e.extract(raw, i)).collect::<Vec<Val>>()
                    });
                    let lines: Vec<Vec<Val>> = lines.collect();
                    parts.push((lines, steps));
                }
                sums.push(parts);
            }
        }
        for (i, parts) in sums.into_iter().enumerate() {
            let (tile, product) = (i / self.weights.len(), i % self.weights.len());
            // Sums of neighbouring steps in different registers: a step would wait for the one before it.
            let nothing = e.f32(0.0, F32);
            let mut all: Vec<[Vec<Val>; 1]> = vec![];
            for (lines, steps) in parts {
                let mut halves = [[vec![nothing; 4]], [vec![nothing; 4]]];
                for (i, (line, rows)) in lines.into_iter().zip(steps).enumerate() {
                    warp.multiply(e, rows, &[line], &mut halves[i % 2]);
                }
                all.extend(halves);
            }
            let (first, rest) = all.split_first().expect("a product has steps");
            let mut sum = first[0].clone();
            for part in rest {
                for (x, y) in sum.iter_mut().zip(&part[0]) {
                    *x = e.add(*x, *y);
                }
            }
            let column = e.int(tile as i64 * ROWS, I32);
            warp.park(e, product, column, &sum);
        }
        for (i, first) in tiles.into_iter().enumerate() {
            let number = e.int(i as i64, I32);
            let is_there = e.cmp(Cmp::Lt, number, count);
            e.if_then(is_there, &[], |e| {
                for unit in 0..self.units_of_tile() {
                    let unit = e.int(unit, I32);
                    let after = e.add(first, unit);
                    units.release(e, warp.lane, place, after);
                }
                vec![]
            });
        }
    }
}
