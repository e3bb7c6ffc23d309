//! bf16 weights by many rows on Hopper: `wgmma` on tiles that the copy engine brings, warp-specialised and persistent.
//!
//!     [rows]   what is f32, measured or irregular is rounded to a workspace first, its rows' squares beside it
//!     block = tiles from its cluster's number on
//!       producer (one thread)      for tile, for k step 64: a stage of A and B by the copy engine
//!       consumers (two groups)     for tile, for k step 64: products; then the kernel's stages in registers
//!
//! A stage's rows are 128 bytes, swizzled as `wgmma` reads them. The blocks of a cluster share the weights' part of each stage: tiles of
//! 128 x 256 read 48 bytes a cycle from the second cache, which is more than it has for all multiprocessors, and 32 if two share it.

mod apart;
mod consumer;
mod producer;
mod rounding;
mod shape;
mod store;
mod walk;

pub use apart::reduced;
pub use shape::{SHAPES, Shape};

use ir::plan::{Contraction, Expr, Kernel, Rhs};
use ir::{DType, Size};
use runtime::artefact::{MapSource, Step, TensorMap, Variant};

use self::consumer::Consumer;
use self::shape::DEPTH;
use self::store::Store;
use self::walk::Walk;
use super::mma::lane_bits;
use super::pipeline::{self, Ring, Turns};
use super::ptx::{self, I32, Params, Signature};
use super::{hopper, map, tiles, weights};
use crate::mlir::emit::{Cmp, Emit};
use crate::pipeline::size;
use crate::scalar::{Body, Math};

const THREADS: i64 = 384;
/// Registers of the producer's threads and of the consumers': 65,536 for all.
const REGISTERS: [i64; 2] = [40, 232];

pub fn takes(kernel: &Kernel, c: &Contraction) -> bool {
    let weight = |b: &Rhs| matches!(b, Rhs::Packed { arg } if kernel.args[*arg].dtype == DType::BF16);
    let left = matches!(kernel.args[c.a.arg].dtype, DType::BF16 | DType::F32) && c.a.indirect.is_none();
    let known = c.k.as_const().is_some_and(|k| k % 8 == 0) && kernel.cols.as_const().is_some();
    c.batch == 0
        && left
        && known
        && weight(&c.b)
        && c.also.as_ref().is_none_or(weight)
        && !kernel.reduces()
        && map::allows(kernel, 2)
}

/// Is A multiplied where it lies? Then: the elements from row to row.
fn direct(kernel: &Kernel, c: &Contraction) -> Option<Size> {
    let [stride, _] = &c.a.strides[..] else { return None };
    let plain = kernel.args[c.a.arg].dtype == DType::BF16 && !kernel.exprs.contains(&Expr::RowSquares);
    (plain && stride.coef % 8 == 0 && c.a.offset.coef % 8 == 0 && stride.coef > 0).then(|| stride.clone())
}

/// A way and the functions it takes.
pub fn variant(kernel: &Kernel, c: &Contraction, shape: Shape, name: &str) -> (Variant, Vec<(String, String)>) {
    way(kernel, c, shape, name, false)
}

/// `spaces`: the workspaces of rounded rows are there even where none are rounded.
fn way(kernel: &Kernel, c: &Contraction, shape: Shape, name: &str, spaces: bool) -> (Variant, Vec<(String, String)>) {
    assert!(shape.is_possible(), "{shape:?}");
    let k = c.k.as_const().unwrap_or(0);
    let rows = Size::product(&kernel.outer);
    let (mut steps, mut functions, mut workspaces) = (vec![], vec![], vec![]);
    let (source, stride, offset) = match direct(kernel, c) {
        Some(stride) => {
            if spaces {
                workspaces = vec![Size::from(0); 2];
            }
            (MapSource::Buffer(c.a.arg as u32), stride, c.a.offset.clone())
        }
        None => {
            workspaces = vec![&rows * &Size::from(2 * k), &rows * &Size::from(4)];
            let (step, function) = rounding::rounding(kernel, c, &format!("{name}_rows"));
            steps.push(step);
            functions.push(function);
            (MapSource::Workspace(0), Size::from(k), Size::from(0))
        }
    };
    let matrix = |source, rows: &Size, stride: &Size, offset: &Size, height: i64| TensorMap {
        source,
        dtype: runtime::artefact::DType::BF16,
        offset: size(offset),
        dims: vec![size(&c.k), size(rows)],
        strides: vec![size(stride)],
        r#box: vec![DEPTH as u32, height as u32],
        swizzle: 128,
    };
    let weights = weights(c);
    let columns = shape.columns / weights.len() as i64;
    let mut maps = vec![matrix(source, &rows, &stride, &offset, shape.rows)];
    for arg in &weights {
        let source = MapSource::Buffer(*arg as u32);
        maps.push(matrix(
            source,
            &kernel.cols,
            &c.k,
            &Size::from(0),
            columns / shape.cluster,
        ));
    }
    let signature = Signature {
        buffers: kernel.args.len(),
        workspaces: workspaces.len(),
        maps: maps.len(),
        threads: THREADS as u32,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| block(e, kernel, c, shape, params));
    functions.push((name.to_string(), text));
    steps.push(Step {
        function: name.to_string(),
        // Clusters, and their blocks.
        tiles: tiles(&[
            (rows, shape.rows * shape.cluster),
            (kernel.cols.clone(), columns),
            (Size::from(shape.cluster), 1),
        ]),
        more_tiles: vec![],
        per_multiprocessor: 1,
        threads: THREADS as u32,
        shared: shape.shared() as u32,
        cluster: if shape.cluster > 1 { shape.cluster as u32 } else { 0 },
        overlap: true,
        maps,
    });
    let variant = Variant {
        at_most: None,
        multiples: vec![],
        workspaces: workspaces.iter().map(size).collect(),
        counters: 0,
        steps,
    };
    (variant, functions)
}

fn block(e: &mut Emit, kernel: &Kernel, c: &Contraction, shape: Shape, params: Params) {
    let weights = weights(c).len() as i64;
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
                producer::run(e, &walk, &ring, &params.maps, shape, steps);
                vec![]
            });
            vec![]
        },
        |e| {
            hopper::more_registers(e, REGISTERS[1]);
            let one = e.int(1, I32);
            let squares = params.workspaces.get(1).copied();
            let bands = shape.height() / 64;
            let consumer = Consumer {
                shape,
                ring,
                turns,
                number: e.sub(group, one),
                lane: lane_bits(e, thread, 0, 5),
                steps,
                store: Store::new(e, &body, thread, squares, bands, shape.columns / weights),
            };
            consumer.run(e, &walk);
            vec![]
        },
    );
    if shape.cluster > 1 {
        pipeline::together(e, shape.cluster);
    }
}
