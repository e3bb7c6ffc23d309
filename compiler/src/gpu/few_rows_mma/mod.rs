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

mod warp;

use ir::plan::{Contraction, Kernel};
use ir::{DType, Size};
use runtime::artefact::{Step, Variant};

pub use self::warp::Warp;
use super::epilogue::{Element, clamped};
use super::ptx::{self, F32, I32, Params, Signature, lane_bits};
use super::{Target, few_rows, tiles, weights};
use crate::mlir::emit::{Elem, Emit, Val};
use crate::pipeline;
use crate::scalar::{Body, Math};

pub const WARPS: i64 = 8;
pub const THREADS: i64 = 32 * WARPS;
/// Rows that a function is made for.
pub const ROWS: [i64; 2] = [8, 16];
/// k of a step: four lanes' 16 bytes.
pub const DEPTH: i64 = 32;
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
        shared: shared(rows, columns, products) as u32,
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

/// Bytes of shared memory: the warps' sums, and their squares of the rows.
pub fn shared(rows: i64, columns: i64, products: i64) -> i64 {
    WARPS * rows * (products * columns + 1) * 4
}

fn block(e: &mut Emit, kernel: &Kernel, c: &Contraction, shape: [i64; 2], target: &Target, params: Params) {
    let body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
    let (block, width) = (ptx::block(e), e.int(shape[1], I32));
    let column = e.mul(block, width);
    let column = e.extend_signed(column, Elem::I64);
    let cols = body.size(e, &kernel.cols);
    let part = Part {
        warp: Warp::new(e, &body, c, shape, cols),
        column,
        waits: target.hopper,
    };
    let sums = part.sums(e);
    part.park(e, &sums);
    ptx::barrier(e);
    let tile = &part.warp.tile;
    match sums.element {
        Some(element) => tile.store_element(e, element),
        None => tile.stores(e, column),
    }
}

/// A warp's part of a block.
struct Part<'b, 'k> {
    warp: Warp<'b, 'k>,
    /// The block's first column, i64.
    column: Val,
    waits: bool,
}

/// A warp's sums: fragments of each product's tiles of 8 columns; the lane's squares of its rows. And what the thread will store.
struct Sums {
    products: Vec<Vec<Val>>,
    squares: Vec<Val>,
    element: Option<Element>,
}

impl Part<'_, '_> {
    /// Of 8 columns.
    fn tiles(&self) -> i64 {
        self.warp.tile.width / 8
    }

    fn sums(&self, e: &mut Emit) -> Sums {
        let (warp, steps) = (&self.warp, self.warp.steps());
        let lines = warp.weights.len() as i64 * self.tiles();
        let group = (IN_FLIGHT / lines).clamp(1, steps);
        let mut at = vec![];
        for &arg in &warp.weights {
            for tile in 0..self.tiles() {
                at.push((arg, self.weight_row(e, tile)));
            }
        }
        let nothing = e.f32(0.0, F32);
        let mut products = vec![vec![nothing; 4]; lines as usize];
        let mut squares = vec![nothing; warp.rows() as usize];
        let (mut bases, mut element) = (vec![], None);
        for begin in (0..steps).step_by(group as usize) {
            let loaded: Vec<_> = (begin..(begin + group).min(steps))
                .map(|i| {
                    let k = warp.place(e, i);
                    let lines: Vec<Vec<Val>> = (at.iter())
                        .map(|(arg, row)| {
                            let from = self.weight(e, *arg, *row, k.0);
                            ptx::load_once(e, from)
                        })
                        .collect();
                    (lines, k)
                })
                .collect();
            if begin == 0 {
                for i in group..steps {
                    let (k, _) = warp.place(e, i);
                    for (arg, row) in &at {
                        let from = self.weight(e, *arg, *row, k);
                        ptx::prefetch(e, from);
                    }
                }
                if self.waits {
                    ptx::wait_for_earlier(e);
                    ptx::let_next_begin(e);
                }
                element = warp.tile.ahead(e, self.column);
                bases = warp.row_bases(e);
            }
            for (lines, k) in loaded {
                let rows: Vec<Vec<Val>> = (bases.iter().zip(&mut squares))
                    .map(|(base, squares)| warp.left(e, *base, k, squares))
                    .collect();
                warp.multiply(e, &rows, &lines, &mut products);
            }
        }
        Sums {
            products,
            squares,
            element,
        }
    }

    /// First element of the weights of the lane's column of a tile; behind the last column it is the last one again.
    fn weight_row(&self, e: &mut Emit, tile: i64) -> Val {
        let own = lane_bits(e, self.warp.lane, 2, 3);
        let first = e.int(8 * tile, I32);
        let own = e.add(own, first);
        let n = self.warp.tile.offset(e, self.column, own);
        let n = clamped(e, n, self.warp.tile.cols);
        let k = e.i64(self.warp.k);
        e.mul(n, k)
    }

    fn weight(&self, e: &mut Emit, arg: usize, row: Val, k: Val) -> Val {
        let at = self.warp.tile.offset(e, row, k);
        e.at(self.warp.tile.body.args[arg], at, Elem::I16)
    }

    fn park(&self, e: &mut Emit, sums: &Sums) {
        for (i, acc) in sums.products.iter().enumerate() {
            let (product, tile) = (i as i64 / self.tiles(), i as i64 % self.tiles());
            let column = e.int(8 * tile, I32);
            self.warp.park(e, product as usize, column, acc);
        }
        self.warp.park_squares(e, &sums.squares);
    }
}
