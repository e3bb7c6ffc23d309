//! bf16 matrices on Hopper, weights by many rows and the products of a backward: `wgmma` on tiles that the copy engine brings,
//! warp-specialised and persistent.
//!
//!     [rows]   what is f32, measured or irregular is rounded to a workspace first, its rows' squares beside it
//!     block = tiles from its cluster's number on
//!       producer (one thread)      for tile, for k step 64: a stage of A and B by the copy engine
//!       consumers (two groups)     for tile, for k step 64: products; then the kernel's stages in registers
//!
//! A stage's lines are 128 bytes, swizzled as `wgmma` reads them; lines are k or, turned, rows (`side.rs`). The blocks of a cluster share the weights' part of each stage: tiles of
//! 128 x 256 read 48 bytes a cycle from the second cache, which is more than it has for all multiprocessors, and 32 if two share it.

mod apart;
mod consumer;
mod handed;
mod producer;
mod rounding;
mod shape;
mod side;
mod store;
mod walk;

pub use apart::reduced;
pub use handed::{handed, hands_on};
pub use shape::{DEPTH, SHAPES, Shape};

use ir::plan::{Contraction, Kernel, Rhs};
use ir::{DType, Size};
use runtime::artefact::{Step, TensorMap, Variant};

use self::consumer::Consumer;
use self::side::Side;
use self::store::Store;
use self::walk::Walk;
use super::pipeline::{self, Ring, Turns};
use super::ptx::{self, I32, Params, Signature, lane_bits};
use super::{hopper, tiles};
use crate::mlir::emit::{Cmp, Emit};
use crate::pipeline::size;
use crate::scalar::{Body, Math};

const THREADS: i64 = 384;
/// Registers of the producer's threads and of the consumers': 65,536 for all.
const REGISTERS: [i64; 2] = [40, 232];

pub fn takes(kernel: &Kernel, c: &Contraction) -> bool {
    multiplies(kernel, c) && !kernel.reduces()
}

/// Can the product be made here, whatever comes behind it?
fn multiplies(kernel: &Kernel, c: &Contraction) -> bool {
    let known = c.k.as_const().is_some_and(|k| k > 0) && kernel.cols.as_const().is_some();
    let rights = rights(kernel, c);
    c.batch == 0
        && known
        && rights.is_some()
        && (Side::left(kernel, c).is_some() || is_rounded(kernel, c))
        && kernel.allows_lanes(2)
}

/// The right sides: one, or two that lie alike.
fn rights(kernel: &Kernel, c: &Contraction) -> Option<Vec<Side>> {
    std::iter::once(&c.b)
        .chain(&c.also)
        .map(|b| Side::right(kernel, c, b))
        .collect()
}

/// Can A's rows be rounded in front of the product by a weight?
fn is_rounded(kernel: &Kernel, c: &Contraction) -> bool {
    let rows = matches!(kernel.args[c.a.arg].dtype, DType::BF16 | DType::F32) && c.a.indirect.is_none();
    let even = c.k.as_const().is_some_and(|k| k % 8 == 0);
    rows && even && matches!(c.b, Rhs::Packed { .. })
}

/// A way and the functions it takes.
pub fn variant(kernel: &Kernel, c: &Contraction, shape: Shape, name: &str) -> (Variant, Vec<(String, String)>) {
    way(kernel, c, shape, Rows::Own, name)
}

/// Who rounds and measures A's rows, where they cannot be multiplied as they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// A function in front of the product: `rounding`.
    Own,
    /// The product that made them: a row's squares are so many sums. See `handed`.
    Handed { sums: i64 },
}

impl Rows {
    /// Numbers whose sum is a row's squares.
    fn sums(self) -> i64 {
        match self {
            Rows::Own => 1,
            Rows::Handed { sums } => sums,
        }
    }
}

/// Where the kernel reduces, which is `reduced`'s, tiles' results have a workspace behind those of rounded rows, which are there then.
fn way(kernel: &Kernel, c: &Contraction, shape: Shape, rows_by: Rows, name: &str) -> (Variant, Vec<(String, String)>) {
    assert!(shape.is_possible(), "{shape:?}");
    let k = c.k.as_const().unwrap_or(0);
    let rows = Size::product(&kernel.outer);
    let (mut steps, mut functions, mut workspaces) = (vec![], vec![], vec![]);
    let left = Side::left(kernel, c);
    if left.is_none() {
        if rows_by == Rows::Own {
            let (step, function) = rounding::rounding(kernel, c, &format!("{name}_rows"));
            steps.push(step);
            functions.push(function);
        }
        workspaces = vec![&rows * &Size::from(2 * k), &rows * &Size::from(4 * rows_by.sums())];
    } else if kernel.reduces() {
        workspaces = vec![Size::from(0); 2];
    }
    let mut sides = vec![left.unwrap_or_else(|| Side::rounded(kernel, c))];
    sides.extend(rights(kernel, c).expect("`takes` has seen them"));
    let columns = shape.columns / (sides.len() as i64 - 1);
    let height = |i: usize| if i == 0 { shape.rows } else { columns / shape.cluster };
    let maps: Vec<TensorMap> = (sides.iter().enumerate())
        .map(|(i, side)| side.map(&c.k, height(i)))
        .collect();
    let signature = Signature {
        buffers: kernel.args.len(),
        workspaces: workspaces.len() + usize::from(kernel.reduces()),
        maps: maps.len(),
        threads: THREADS as u32,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| {
        block(e, kernel, c, shape, rows_by, &sides, params)
    });
    functions.push((name.to_string(), text));
    steps.push(Step {
        function: name.to_string(),
        // Clusters, and their blocks.
        tiles: tiles(&[
            (rows, shape.rows * shape.cluster),
            (kernel.cols.clone(), columns),
            (Size::from(shape.cluster), 1),
        ]),
        per_multiprocessor: 1,
        threads: THREADS as u32,
        shared: shape.shared() as u32,
        cluster: if shape.cluster > 1 { shape.cluster as u32 } else { 0 },
        overlap: true,
        maps,
        ..Step::default()
    });
    let variant = Variant {
        workspaces: workspaces.iter().map(size).collect(),
        steps,
        ..Variant::default()
    };
    (variant, functions)
}

fn block(e: &mut Emit, kernel: &Kernel, c: &Contraction, shape: Shape, rows: Rows, sides: &[Side], params: Params) {
    let weights = sides.len() as i64 - 1;
    let lanes = store::lanes(kernel, shape.bytes);
    let mut body = Body::over(kernel, lanes as usize, params.buffers, params.symbols, Math::Gpu);
    body.alignment = store::ALIGNMENT;
    let (thread, shared) = (ptx::thread(e), ptx::shared_address(e));
    let ring = Ring::new(e, shared, shape.stages, shape.stage_bytes(), shape.cluster);
    let turns = Turns::new(e, shared);
    let zero = e.int(0, I32);
    let first = e.cmp(Cmp::Eq, thread, zero);
    e.if_then(first, &[], |e| {
        // The warps that read a stage.
        ring.start(e, if shape.turns { 4 } else { 8 });
        turns.start(e);
        vec![]
    });
    pipeline::publish(e, first, shape.cluster);
    // `Step::overlap`: all of this goes on while the function in front ends.
    ptx::wait_for_earlier(e);
    ptx::let_next_begin(e);
    let walk = Walk::new(e, &body, c, shape);
    let steps = (c.k.as_const().unwrap_or(0) + DEPTH - 1) / DEPTH;
    let group = e.shr(thread, 7);
    let produces = e.cmp(Cmp::Eq, group, zero);
    e.if_else(
        produces,
        &[],
        |e| {
            hopper::fewer_registers(e, REGISTERS[0]);
            e.if_then(first, &[], |e| {
                producer::run(e, &walk, &ring, sides, &params.maps, shape, steps);
                vec![]
            });
            vec![]
        },
        |e| {
            hopper::more_registers(e, REGISTERS[1]);
            let one = e.int(1, I32);
            let bands = shape.height() / 64;
            let consumer = Consumer {
                shape,
                ring,
                turns,
                number: e.sub(group, one),
                lane: lane_bits(e, thread, 0, 5),
                steps,
                left: &sides[0],
                right: &sides[1],
                store: Store::new(
                    e,
                    &body,
                    thread,
                    &params.workspaces,
                    rows,
                    bands,
                    shape.columns / weights,
                ),
            };
            consumer.run(e, &walk);
            vec![]
        },
    );
    if shape.cluster > 1 {
        pipeline::together(e, shape.cluster);
    }
}
