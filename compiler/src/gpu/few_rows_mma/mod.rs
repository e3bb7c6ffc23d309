//! bf16 weights by few rows, as in decoding: bound by reading each weight once, where plain products would be bound by arithmetic.
//!
//!     block = some columns                              k steps of 32 dealt to eight warps
//!       the weights to registers, or begun              before the wait for earlier kernels: weights depend on none
//!       for step: the rows' elements, `mma.sync`        rows by 8 columns; rows are the left side, so that 8 or 16 cost the same
//!       what the stages load                            at once behind the wait, with the rows
//!       the warps' sums through shared memory, then the kernel's stages
//!
//! A lane's 16 bytes are eight neighbours of k, and the same eight of both sides: which slots of the sum they take does not matter, so that
//! no `ldmatrix` is needed. Sums have one order.
//!
//! Where functions wait for values (`awaited`) a block has as many columns as make one block for each multiprocessor, and brings all of their
//! weights to shared memory at once (`resident`): it has its place and its weights long before its rows are there.

mod resident;
mod warp;

use ir::plan::{Contraction, Expr, Kernel};
use ir::{DType, Size};
use runtime::artefact::{Step, Variant};

use self::resident::Resident;
use self::warp::Warp;
use super::awaited::Awaiting;
use super::epilogue::Tile;
use super::ptx::{self, I32, Params, Signature, lane_bits};
use super::{Target, few_rows, tiles, weights};
use crate::mlir::emit::{Elem, Emit};
use crate::pipeline;
use crate::scalar::{Body, Math};

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
    let made = Way {
        rows,
        columns: if many { 32 } else { 8 },
        waits: target.hopper,
        awaited: &[],
        resident: false,
    };
    made.variant(kernel, c, name)
}

/// The same, waiting for values.
pub fn awaiting(kernel: &Kernel, c: &Contraction, rows: i64, name: &str, awaiting: &Awaiting) -> (Variant, String) {
    let columns = resident::columns(kernel, c);
    let made = Way {
        rows,
        columns: columns.unwrap_or(32),
        waits: false,
        awaited: &awaiting.buffers,
        resident: columns.is_some(),
    };
    made.variant(kernel, c, name)
}

/// How a block is made.
struct Way<'a> {
    rows: i64,
    columns: i64,
    /// It waits for the functions in front of it.
    waits: bool,
    /// By argument; empty: it waits for no values.
    awaited: &'a [bool],
    /// All weights of a block in shared memory.
    resident: bool,
}

impl Way<'_> {
    fn variant(&self, kernel: &Kernel, c: &Contraction, name: &str) -> (Variant, String) {
        let awaits = !self.awaited.is_empty();
        let signature = Signature {
            buffers: kernel.args.len(),
            threads: THREADS as u32,
            awaits,
            ..Signature::default()
        };
        let text = ptx::function(name, signature, |e, params| self.block(e, kernel, c, params));
        let resident = if self.resident {
            resident::bytes(c, self.columns)
        } else {
            0
        };
        let step = Step {
            function: name.to_string(),
            tiles: tiles(&[(kernel.cols.clone(), self.columns)]),
            threads: THREADS as u32,
            shared: (self.parts(c) + resident) as u32,
            overlap: self.waits || awaits,
            ..Step::default()
        };
        let all = Size::product(&kernel.outer[c.batch..]);
        let variant = Variant {
            at_most: Some((pipeline::size(&all), self.rows)),
            steps: vec![step],
            ..Variant::default()
        };
        (variant, text)
    }

    /// Bytes of the warps' sums.
    fn parts(&self, c: &Contraction) -> i64 {
        let products = weights(c).len() as i64;
        WARPS * self.rows * (products * self.columns + 1) * 4
    }

    fn block(&self, e: &mut Emit, kernel: &Kernel, c: &Contraction, params: Params) {
        let Way { rows, columns, .. } = *self;
        let mut body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
        body.awaited = self.awaited.to_vec();
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
        let resident = (self.resident).then(|| Resident::begin(e, &tile, c, self.parts(c), column));
        let warp = Warp {
            lane: lane_bits(e, thread, 0, 5),
            warp: e.shr(thread, 5),
            weights: weights(c),
            k: c.k.as_const().unwrap_or(0),
            column,
            waits: self.waits,
            resident,
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
}
