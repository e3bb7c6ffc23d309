//! bf16 weights by many rows on Hopper: `wgmma` on tiles that the copy engine brings, warp-specialised and persistent.
//!
//!     [rows]   what is f32, measured or irregular is rounded to a workspace first, its rows' squares beside it
//!     block = tiles from its number on
//!       producer (one thread)      for tile, for k step 64: a stage of A and B by the copy engine
//!       consumers (two groups)     for tile, for k step 64: 64 rows x the tile's columns; then the kernel's stages in registers
//!
//! A stage's rows are 128 bytes, swizzled as `wgmma` reads them. While consumers store a tile the producer fills stages of the next one.

use ir::plan::{Access, Arg, Contraction, Expr, Kernel, Rhs, Stage};
use ir::{DType, Size};
use runtime::artefact::{MapSource, Step, TensorMap, Variant};

use super::epilogue::clamped;
use super::mma::lane_bits;
use super::pipeline::{self, BARRIERS, Ring};
use super::ptx::{self, F32, I32, Params, Signature};
use super::{Target, map, math, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::pipeline::size;
use crate::scalar::{Body, Columns, Math, memory, widen};

/// A tile of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Columns, of all weights together.
    pub columns: i64,
    pub stages: i64,
}

/// Rows of a tile: 64 for each consumer.
const ROWS: i64 = 128;
/// k of a stage: a row of 128 bytes.
const DEPTH: i64 = 64;
const THREADS: i64 = 384;
/// Weights larger than this do not stay in the second cache: then rows go by in the inner order, so that each weight is read once.
const CACHED: i64 = 24 << 20;

pub const WIDE: Shape = Shape {
    columns: 256,
    stages: 4,
};
pub const NARROW: Shape = Shape {
    columns: 128,
    stages: 6,
};

/// By their names in tables (`tuning`).
pub const SHAPES: &[(&str, Shape)] = &[("n128", NARROW), ("n256", WIDE)];

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
            let (step, function) = rounding(kernel, c, &format!("{name}_rows"));
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
    let mut maps = vec![matrix(source, &rows, &stride, &offset, ROWS)];
    for arg in &weights {
        let source = MapSource::Buffer(*arg as u32);
        maps.push(matrix(source, &kernel.cols, &c.k, &Size::from(0), columns));
    }
    let signature = Signature {
        buffers: kernel.args.len(),
        workspaces: workspaces.len(),
        maps: maps.len(),
        threads: THREADS as u32,
        overlap: true,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| block(e, kernel, c, shape, params));
    functions.push((name.to_string(), text));
    steps.push(Step {
        function: name.to_string(),
        tiles: tiles(&[(rows, ROWS), (kernel.cols.clone(), columns)]),
        more_tiles: vec![],
        per_multiprocessor: 1,
        threads: THREADS as u32,
        shared: (BARRIERS + shape.stages * stage_bytes(shape)) as u32,
        cluster: 0,
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

fn weights(c: &Contraction) -> Vec<usize> {
    let arg = |b: &Rhs| match b {
        Rhs::Packed { arg } => Some(*arg),
        _ => None,
    };
    std::iter::once(&c.b).chain(&c.also).filter_map(arg).collect()
}

fn stage_bytes(shape: Shape) -> i64 {
    (ROWS + shape.columns) * DEPTH * 2
}

/// Tiles in the order they are walked.
struct Walk {
    block: Val,
    blocks: Val,
    /// How many are the block's.
    count: Val,
    row_tiles: Val,
    column_tiles: Val,
    rows_inner: bool,
}

impl Walk {
    fn new(e: &mut Emit, body: &Body, c: &Contraction, columns: i64) -> Walk {
        let tiles_of = |e: &mut Emit, n: &Size, tile: i64| {
            let n = body.size(e, n);
            let (less, tile) = (e.i64(tile - 1), e.i64(tile));
            let n = e.add(n, less);
            let n = e.div(n, tile);
            e.truncate_int(n, Elem::I32)
        };
        let row_tiles = tiles_of(e, &Size::product(&body.kernel.outer), ROWS);
        let column_tiles = tiles_of(e, &body.kernel.cols, columns);
        let (block, blocks) = (ptx::block(e), ptx::blocks(e));
        let all = e.mul(row_tiles, column_tiles);
        let one = e.int(1, I32);
        let left = e.sub(all, block);
        let left = e.add(left, blocks);
        let left = e.sub(left, one);
        let bytes = 2 * c.k.as_const().unwrap_or(0) * body.kernel.cols.as_const().unwrap_or(0);
        Walk {
            count: e.div(left, blocks),
            block,
            blocks,
            row_tiles,
            column_tiles,
            rows_inner: bytes > CACHED,
        }
    }

    /// First row and column of the block's tile i, i32.
    fn tile(&self, e: &mut Emit, i: Val, columns: i64) -> (Val, Val) {
        let at = e.mul(i, self.blocks);
        let at = e.add(at, self.block);
        let (row, column) = if self.rows_inner {
            (e.rem(at, self.row_tiles), e.div(at, self.row_tiles))
        } else {
            (e.div(at, self.column_tiles), e.rem(at, self.column_tiles))
        };
        let (height, width) = (e.int(ROWS, I32), e.int(columns, I32));
        (e.mul(row, height), e.mul(column, width))
    }
}

fn block(e: &mut Emit, kernel: &Kernel, c: &Contraction, shape: Shape, params: Params) {
    let mut body = Body::over(kernel, 2, params.buffers, params.symbols, Math::Gpu);
    body.alignment = 8;
    let weights = weights(c).len() as i64;
    let columns = shape.columns / weights;
    let thread = ptx::thread(e);
    let shared = ptx::shared_address(e);
    let ring = Ring::new(e, shared, shape.stages, stage_bytes(shape));
    let zero = e.int(0, I32);
    let first = e.cmp(Cmp::Eq, thread, zero);
    e.if_then(first, &[], |e| {
        // Four warps of each consumer.
        ring.start(e, 8);
        vec![]
    });
    ptx::barrier(e);
    let walk = Walk::new(e, &body, c, columns);
    let steps = (c.k.as_const().unwrap_or(0) + DEPTH - 1) / DEPTH;
    let group = e.shr(thread, 7);
    let produces = e.cmp(Cmp::Eq, group, zero);
    e.if_then(produces, &[], |e| {
        ptx::set_registers(e, 40, false);
        e.if_then(first, &[], |e| {
            producer(e, &walk, &ring, &params.maps, shape, columns, steps);
            vec![]
        });
        vec![]
    });
    let consumes = e.cmp(Cmp::Ne, group, zero);
    e.if_then(consumes, &[], |e| {
        ptx::set_registers(e, 232, true);
        let consumer = Consumer {
            body: &body,
            squares: params.workspaces.get(1).copied(),
            thread,
            group,
            weights,
            columns,
        };
        let zero = e.int(0, I32);
        e.for_loop(zero, walk.count, 1, &[], |e, i, _| {
            let (row, column) = walk.tile(e, i, columns);
            let sums = consumer.sums(e, &ring, i, shape, steps);
            consumer.stages(e, row, column, &sums);
            vec![]
        });
        vec![]
    });
}

/// One thread fills stages, tile after tile.
fn producer(e: &mut Emit, walk: &Walk, ring: &Ring, maps: &[Val], shape: Shape, columns: i64, steps: i64) {
    let zero = e.int(0, I32);
    let end = e.int(steps, I32);
    e.for_loop(zero, walk.count, 1, &[], |e, i, _| {
        let (row, column) = walk.tile(e, i, columns);
        e.for_loop(zero, end, 1, &[], |e, step, _| {
            let before = e.mul(i, end);
            let at = e.add(before, step);
            let stage = ring.stage(e, at);
            stage.fill(e, stage_bytes(shape), |e, barrier| {
                let depth = e.int(DEPTH, I32);
                let k = e.mul(step, depth);
                ptx::copy_tensor(e, stage.at, maps[0], [k, row], barrier);
                for (w, map) in maps[1..].iter().enumerate() {
                    let behind = e.int((ROWS + w as i64 * columns) * DEPTH * 2, I32);
                    let to = e.add(stage.at, behind);
                    ptx::copy_tensor(e, to, *map, [k, column], barrier);
                }
            });
            vec![]
        });
        vec![]
    });
}

/// A warp group: 64 rows of each tile.
struct Consumer<'b, 'k> {
    body: &'b Body<'k>,
    /// The rows' squares, where they were measured.
    squares: Option<Val>,
    thread: Val,
    /// 1 or 2.
    group: Val,
    weights: i64,
    /// Of each weight.
    columns: i64,
}

impl Consumer<'_, '_> {
    /// Of each weight: fragments, [tile of 8 columns][4].
    fn sums(&self, e: &mut Emit, ring: &Ring, tile: Val, shape: Shape, steps: i64) -> Vec<Vec<Val>> {
        let count = (self.columns / 2) as usize;
        let nothing = e.f32(0.0, F32);
        let init = vec![nothing; count * self.weights as usize];
        let (zero, end, one) = (e.int(0, I32), e.int(steps, I32), e.int(1, I32));
        let mine = e.sub(self.group, one);
        let rows = e.int(64 * DEPTH * 2, I32);
        let mine = e.mul(mine, rows);
        let leads = pipeline::leads(e, self.thread);
        debug_assert!(shape.columns == self.columns * self.weights);
        let out = e.for_loop(zero, end, 1, &init, |e, step, acc| {
            let before = e.mul(tile, end);
            let at = e.add(before, step);
            let stage = ring.stage(e, at);
            stage.wait(e);
            ptx::wgmma_fence(e);
            let mut acc: Vec<Vec<Val>> = acc.chunks(count).map(<[Val]>::to_vec).collect();
            for k in 0..DEPTH / 16 {
                // A step of 16 elements is 32 bytes in the swizzled row.
                let right = e.int(32 * k, I32);
                let a = e.add(stage.at, mine);
                let a = e.add(a, right);
                let a = ptx::descriptor(e, a);
                for (w, acc) in acc.iter_mut().enumerate() {
                    let behind = e.int((ROWS + w as i64 * self.columns) * DEPTH * 2 + 32 * k, I32);
                    let b = e.add(stage.at, behind);
                    let b = ptx::descriptor(e, b);
                    let keep = if k == 0 { step } else { one };
                    *acc = ptx::wgmma_bf16(e, acc, a, b, keep);
                }
            }
            ptx::wgmma_commit(e);
            let acc = ptx::wgmma_wait(e, 0, &acc.concat());
            stage.release(e, leads);
            acc
        });
        out.chunks(count).map(<[Val]>::to_vec).collect()
    }

    /// The kernel's stages: rows g and g + 8 of a warp's 16, columns 2 c and 2 c + 1 of each tile of 8.
    fn stages(&self, e: &mut Emit, row: Val, column: Val, sums: &[Vec<Val>]) {
        let kernel = self.body.kernel;
        let (g, c) = (lane_bits(e, self.thread, 2, 3), lane_bits(e, self.thread, 0, 2));
        let (warp, one) = (lane_bits(e, self.thread, 5, 2), e.int(1, I32));
        let group = e.sub(self.group, one);
        let (group, warp, c) = (e.shl(group, 6), e.shl(warp, 4), e.shl(c, 1));
        let row = [group, warp, g].into_iter().fold(row, |row, part| e.add(row, part));
        let (row, column) = (e.extend_signed(row, Elem::I64), e.add(column, c));
        let column = e.extend_signed(column, Elem::I64);
        let rows = self.body.size(e, &Size::product(&kernel.outer));
        let cols = self.body.size(e, &kernel.cols);
        let whole = kernel.cols.as_const().is_some_and(|n| n % self.columns == 0);
        for half in 0..2 {
            let down = e.i64(8 * half);
            let row = e.add(row, down);
            let row_there = e.cmp(Cmp::Lt, row, rows);
            let row = clamped(e, row, rows);
            let index = self.body.unravel(e, row, &kernel.outer);
            let mut point = self.body.point(index);
            if let (Some(squares), true) = (self.squares, kernel.exprs.contains(&Expr::RowSquares)) {
                let at = e.at(squares, row, Elem::F32);
                point.squares = Some(e.load(at, F32));
            }
            kernel.stages.iter().for_each(|s| self.body.hoist(e, &mut point, s));
            for tile in 0..self.columns / 8 {
                let at = (4 * tile + 2 * half) as usize;
                let right = e.i64(8 * tile);
                let first = e.add(column, right);
                let here = if whole {
                    row_there
                } else {
                    let there = e.cmp(Cmp::Lt, first, cols);
                    e.and(there, row_there)
                };
                e.if_then(here, &[], |e| {
                    let acc = e.vector(&sums[0][at..at + 2]);
                    let mut columns = Columns::new(first, None, Some(acc));
                    columns.also = sums.get(1).map(|s| e.vector(&s[at..at + 2]));
                    for stage in &kernel.stages {
                        let Stage::Store { to, value, when } = stage else {
                            continue;
                        };
                        let when = when.map(|w| self.body.vector(e, &mut point, &mut columns, w));
                        let value = self.body.vector(e, &mut point, &mut columns, *value);
                        self.body.store_vector(e, &mut point, &mut columns, to, value, when);
                    }
                    vec![]
                });
            }
        }
    }
}

/// Rows of A in bf16, densely, and the sum of each row's squares before it is rounded: a warp a row.
fn rounding(kernel: &Kernel, c: &Contraction, name: &str) -> (Step, (String, String)) {
    const THREADS: i64 = 256;
    let rows = Size::product(&kernel.outer);
    let signature = Signature {
        buffers: kernel.args.len(),
        workspaces: 2,
        threads: THREADS as u32,
        overlap: true,
        ..Signature::default()
    };
    let k = c.k.as_const().unwrap_or(0);
    let dtype = kernel.args[c.a.arg].dtype;
    let text = ptx::function(name, signature, |e, params| {
        let body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
        let (block, thread) = (ptx::block(e), ptx::thread(e));
        let (warp, lane) = (e.shr(thread, 5), lane_bits(e, thread, 0, 5));
        let warps = e.int(THREADS / 32, I32);
        let at = e.mul(block, warps);
        let row = e.add(at, warp);
        let row = e.extend_signed(row, Elem::I64);
        let n = body.size(e, &rows);
        let is_there = e.cmp(Cmp::Lt, row, n);
        e.if_then(is_there, &[], |e| {
            let index = body.unravel(e, row, &kernel.outer);
            let mut point = body.point(index);
            let base = body.base(e, &mut point, &c.a);
            let eight = e.int(8, I32);
            let first = e.mul(lane, eight);
            let (end, nothing) = (e.int(k, I32), e.f32(0.0, F32));
            let aligned = accesses_align(&c.a);
            let sum = e.for_loop(first, end, 256, &[nothing], |e, at, acc| {
                let at = e.extend_signed(at, Elem::I64);
                let from = e.add(base, at);
                let from = e.at(body.args[c.a.arg], from, memory(dtype));
                let bytes = if aligned { 16 } else { dtype.bytes() as usize };
                let raw = e.load_aligned(from, Ty::vector(memory(dtype), 8), bytes);
                let x = widen(e, raw, dtype);
                let mut sum = acc[0];
                for i in 0..8 {
                    let x = e.extract(x, i);
                    sum = e.fma(x, x, sum);
                }
                let bits = math::bf16_bits(e, x);
                let width = e.i64(k);
                let to = e.mul(row, width);
                let to = e.add(to, at);
                let to = e.at(params.workspaces[0], to, Elem::I16);
                e.store_aligned(bits, to, 16);
                vec![sum]
            });
            let mut sum = sum[0];
            for bits in [16, 8, 4, 2, 1] {
                let other = ptx::shuffle_xor(e, sum, bits);
                sum = e.add(sum, other);
            }
            let to = e.at(params.workspaces[1], row, Elem::F32);
            e.store(sum, to);
            vec![]
        });
    });
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&[(rows.clone(), THREADS / 32)]),
        more_tiles: vec![],
        per_multiprocessor: 0,
        threads: THREADS as u32,
        shared: 0,
        cluster: 0,
        overlap: true,
        maps: vec![],
    };
    (step, (name.to_string(), text))
}

fn accesses_align(a: &Access) -> bool {
    let rows = &a.strides[..a.strides.len() - 1];
    rows.iter().chain([&a.offset]).all(|s| s.coef % 8 == 0)
}

/// A kernel that reduces over its columns, in two: the sums to a workspace, and the stages on them. In the parts' arguments the workspaces
/// follow the kernel's own: the sums, then A's rows in bf16 and their squares, where the product needs them.
pub fn apart(kernel: &Kernel) -> (Kernel, Kernel) {
    let first = kernel.args.len();
    let mut args = kernel.args.clone();
    for dtype in [DType::F32, DType::BF16, DType::F32] {
        args.push(Arg { dtype, written: true });
    }
    // Dense in the order of the outer dimensions, then columns or not.
    let place = |arg: usize, columns: &Size, of_column: i64| {
        let mut stride = columns.clone();
        let mut strides = vec![Size::from(of_column)];
        for n in kernel.outer.iter().rev() {
            strides.insert(0, stride.clone());
            stride = &stride * n;
        }
        Access {
            arg,
            offset: Size::from(0),
            strides,
            indirect: None,
        }
    };
    let sums = place(first, &kernel.cols, 1);
    let product = Kernel {
        args: args[..=first].to_vec(),
        exprs: if kernel.exprs.contains(&Expr::RowSquares) {
            vec![Expr::Acc, Expr::RowSquares]
        } else {
            vec![Expr::Acc]
        },
        stages: vec![Stage::Store {
            to: sums.clone(),
            value: 0,
            when: None,
        }],
        ..kernel.clone()
    };
    let mut rest = kernel.clone();
    rest.args = args;
    rest.contraction = None;
    for e in &mut rest.exprs {
        match e {
            Expr::Acc => *e = Expr::Load(sums.clone()),
            Expr::RowSquares => *e = Expr::Load(place(first + 2, &Size::one(), 0)),
            _ => {}
        }
    }
    (product, rest)
}

/// The way of a kernel that reduces over its columns: `apart`'s two, one after the other.
pub fn reduced(kernel: &Kernel, name: &str, target: &Target) -> Option<(Variant, Vec<(String, String)>)> {
    let (product, rest) = apart(kernel);
    let c = product.contraction.as_ref()?;
    if !takes(&product, c) {
        return None;
    }
    let (mut variant, mut functions) = way(&product, c, WIDE, name, true);
    // Behind the sums, which are a buffer to the product.
    for map in variant.steps.iter_mut().flat_map(|s| &mut s.maps) {
        if let MapSource::Workspace(i) = &mut map.source {
            *i += 1;
        }
    }
    let elements = &Size::product(&kernel.outer) * &kernel.cols;
    variant.workspaces.insert(0, size(&(&elements * &Size::from(4))));
    let stages = Kernel {
        name: format!("{name}_stages"),
        ..rest
    };
    let emitted = map::emit(&stages, target);
    variant
        .steps
        .extend(emitted.kernel.variants.into_iter().flat_map(|v| v.steps));
    functions.extend(emitted.functions);
    Some((variant, functions))
}
