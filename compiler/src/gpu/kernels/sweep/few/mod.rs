//! Attention of one token a sequence (decoding), bf16: keys and values are read once, at the memory's speed; the keys are split over blocks
//! (flash decoding, Dao et al.).
//!
//!     block = (batch point, split)                 as many splits as blocks fit on the GPU; what is split is what the position sees
//!       a chunk of each warp's keys and values to the second cache, while earlier functions end
//!       the prologue's kernels, its points of them, some warps each
//!       warp = keys from..to of all segments' keys, one segment behind the other
//!         for segment, for chunk of keys           16 bytes a load; all of a chunk are on their way together
//!           threads of a key: scores of all rows that share it; maximum, weights
//!           threads of eight columns: O = O * factor + p v
//!       (m, l, O) of each segment and row: the warps' parts, in shared memory, to one; into a workspace if the point is split
//!     the last block of a batch point: the splits' parts to one; segments to results, the kernel's stages
//!
//! What a block does with its keys is `keys`', how parts become one `merge`'s.

mod keys;
mod merge;

use ir::plan::{Kernel, Sweep};
use ir::{DType, Size};
use runtime::artefact::{self, Step, Variant};

use crate::gpu::map::Shape;
use crate::gpu::ptx::{self, I32, Params, Signature};
use crate::gpu::{Target, hopper, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::pipeline;
use crate::scalar::{Body, Math};

pub const WARPS: i64 = 4;
const THREADS: i64 = 32 * WARPS;
/// Blocks for each multiprocessor.
const AT_ONCE: i64 = 2;
/// More blocks have no place in the workspace.
const MOST: i64 = 512;
/// Elements of a load.
const LOAD: i64 = 8;
/// Splits' parts that are loaded together.
const PARTS: i64 = 16;
/// Columns of a thread where parts are merged: a load of 16 bytes.
const QUAD: i64 = 4;
/// Elements of a line of the caches.
const LINE: i64 = 64;
/// A maximum before any key was seen.
const LOWEST: f32 = -1e30;

struct Plan<'k> {
    kernel: &'k Kernel,
    sweep: &'k Sweep,
    rows: i64,
    cols: i64,
    /// Threads of a key, and of a value.
    key_threads: i64,
    value_threads: i64,
    /// Keys that a warp takes at a time.
    chunk: i64,
}

impl<'k> Plan<'k> {
    fn new(kernel: &'k Kernel, sweep: &'k Sweep, even: &mut Vec<Size>) -> Option<Plan<'k>> {
        let cols = kernel.cols.as_const()?;
        let depth = sweep.depth;
        let rows = Size::product(&kernel.outer[sweep.batch..]).as_const()?;
        let bf16 = |arg: usize| kernel.args[arg].dtype == DType::BF16;
        let all = bf16(sweep.q.arg) && sweep.segments.iter().all(|s| bf16(s.k.arg) && bf16(s.v.arg));
        let fits = |n: i64| n % LOAD == 0 && (16..=256).contains(&n);
        if sweep.tokens || !all || !fits(depth) || !fits(cols) || sweep.q.indirect.is_some() {
            return None;
        }
        let log = |s: &ir::plan::Stage| {
            matches!(
                s,
                ir::plan::Stage::Reduce {
                    op: ir::plan::Reduction::LogSumExp,
                    ..
                }
            )
        };
        if kernel.stages.iter().any(log) {
            return None;
        }
        let value_threads = (cols as u64 / LOAD as u64).next_power_of_two() as i64;
        // Queries stay in registers.
        let key_threads = [2, 4, 8, 16, 32]
            .into_iter()
            .find(|n| depth % (LOAD * n) == 0 && depth / n * rows <= 80)
            .filter(|n| *n <= value_threads && rows <= 8)?;
        let columns = kernel.outer.len();
        let mut sizes: Vec<&Size> = sweep.q.strides[..columns].iter().chain([&sweep.q.offset]).collect();
        for r in sweep.segments.iter().flat_map(|s| [&s.k, &s.v]) {
            sizes.extend(r.strides.iter().chain([&r.offset]));
        }
        for s in sizes.into_iter().filter(|s| s.coef % LOAD != 0) {
            if s.as_const().is_some() {
                return None;
            }
            even.push(s.clone());
        }
        Some(Plan {
            kernel,
            sweep,
            rows,
            cols,
            key_threads,
            value_threads,
            chunk: (2048 / depth.max(cols)).max(32 / key_threads) / (32 / key_threads) * (32 / key_threads),
        })
    }

    /// Of a block, at least: a chunk for each warp. More blocks than have work are more parts to merge.
    fn keys(&self) -> i64 {
        WARPS * self.chunk
    }

    fn segments(&self) -> i64 {
        self.sweep.segments.len() as i64
    }

    /// Floats of one block's, or warp's, results: O by segment and row, then maxima and masses. Whole loads of 16 bytes.
    fn part(&self) -> i64 {
        (self.segments() * self.rows * (self.cols + 2) + QUAD - 1) / QUAD * QUAD
    }
}

/// Is the kernel for this file, whatever the sizes?
pub fn takes(kernel: &Kernel, sweep: &Sweep) -> bool {
    let mut even = vec![];
    Plan::new(kernel, sweep, &mut even).is_some() && even.is_empty()
}

/// The variant and its function, if the kernel is for this file. With the kernels in front of it, and how many of their points a batch
/// point does; their buffers come first.
pub fn variant(
    kernel: &Kernel,
    sweep: &Sweep,
    name: &str,
    prologue: &[(&Kernel, i64)],
    target: &Target,
) -> Option<(Variant, String)> {
    let mut even = vec![];
    let plan = Plan::new(kernel, sweep, &mut even)?;
    let signature = Signature {
        buffers: prologue.iter().map(|(k, _)| k.args.len()).sum::<usize>() + kernel.args.len(),
        workspaces: 1,
        counters: true,
        threads: THREADS as u32,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| block(e, &plan, prologue, params, target));
    let most = sweep
        .segments
        .iter()
        .map(|s| &s.keys)
        .max_by_key(|s| (s.syms.len(), s.coef))?;
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&[
            (Size::product(&kernel.outer[..sweep.batch]), 1),
            (most.clone(), plan.keys()),
        ]),
        per_multiprocessor: AT_ONCE as u32,
        threads: THREADS as u32,
        shared: (((WARPS + 1) * plan.part() + 1) * 4) as u32,
        overlap: target.hopper,
        ..Step::default()
    };
    let variant = Variant {
        multiples: even.iter().map(|s| (pipeline::size(s), LOAD)).collect(),
        workspaces: vec![artefact::Size {
            coef: MOST * plan.part() * 4,
            syms: vec![],
        }],
        counters: MOST as u32,
        steps: vec![step],
        ..Variant::default()
    };
    Some((variant, text))
}

/// What all parts of a block know; numbers are i32.
struct Block<'b, 'k> {
    plan: &'b Plan<'k>,
    body: Body<'k>,
    prologue: Vec<Lead<'k>>,
    thread: Val,
    lane: Val,
    warp: Val,
    /// The warps' parts, f32.
    shared: Val,
    /// Behind them the point's part, in the block that finishes it.
    result: Val,
}

/// A kernel of the prologue, and how many of its points a batch point does.
struct Lead<'k> {
    body: Body<'k>,
    shape: Shape,
    points: i64,
}

/// A warp's accumulator of a segment, by row: in units of log2. Masses by key thread, O by value thread.
#[derive(Clone)]
struct State {
    max: Vec<Val>,
    mass: Vec<Val>,
    o: Vec<Val>,
}

impl State {
    fn values(&self) -> Vec<Val> {
        self.max.iter().chain(&self.mass).chain(&self.o).copied().collect()
    }

    fn from(values: &[Val], rows: usize) -> State {
        State {
            max: values[..rows].to_vec(),
            mass: values[rows..2 * rows].to_vec(),
            o: values[2 * rows..].to_vec(),
        }
    }
}

fn block(e: &mut Emit, plan: &Plan, prologue: &[(&Kernel, i64)], params: Params, target: &Target) {
    let (workspace, counters) = (params.workspaces[0], params.counters.expect("they were asked for"));
    let mut buffers = params.buffers;
    let mut leads = vec![];
    for &(kernel, points) in prologue {
        let shape = Shape::new(kernel);
        let own = buffers.drain(..kernel.args.len()).collect();
        let body = shape.body(kernel, own, params.symbols.clone());
        leads.push(Lead { body, shape, points });
    }
    let body = Body::over(plan.kernel, 1, buffers, params.symbols, Math::Gpu);
    let (thread, warp) = (ptx::thread(e), e.int(31, I32));
    let (shared, behind) = (ptx::shared(e), e.int(WARPS * plan.part(), I32));
    let b = Block {
        plan,
        body,
        prologue: leads,
        thread,
        lane: e.and(thread, warp),
        warp: e.shr(thread, 5),
        shared,
        result: e.at(shared, behind, Elem::F32),
    };
    let batch = &plan.kernel.outer[..plan.sweep.batch];
    let points = b.body.size(e, &Size::product(batch));
    let points = e.truncate_int(points, Elem::I32);
    let (first, blocks, most, one) = (ptx::block(e), ptx::blocks(e), e.int(MOST, I32), e.int(1, I32));
    let places = e.min(blocks, most);
    let splits = e.div(places, points);
    let splits = e.max(splits, one);
    let tasks = e.mul(points, splits);
    if target.hopper {
        let some = e.cmp(Cmp::Lt, first, tasks);
        e.if_then(some, &[], |e| {
            let (point, split) = (e.div(first, splits), e.rem(first, splits));
            let linear = e.extend_signed(point, Elem::I64);
            let at = b.body.unravel(e, linear, batch);
            b.prefetch(e, &at, split, splits);
            vec![]
        });
        ptx::wait_for_earlier(e);
    }
    // Mostly one each.
    let left = e.sub(tasks, first);
    let more = e.add(left, blocks);
    let more = e.sub(more, one);
    let zero = e.int(0, I32);
    let some = e.cmp(Cmp::Gt, left, zero);
    let count = e.div(more, blocks);
    let count = e.select(some, count, zero);
    e.for_loop(zero, count, 1, &[], |e, i, _| {
        let at = e.mul(i, blocks);
        let task = e.add(first, at);
        let (point, split) = (e.div(task, splits), e.rem(task, splits));
        b.task(e, [workspace, counters], point, split, splits, task);
        vec![]
    });
}

impl Block<'_, '_> {
    /// The batch point's points of the prologue, each kernel's by warps of its own: they wait for memory together. Blocks that share the
    /// batch point all write the same there, and each of them reads what it has written itself.
    fn begin(&self, e: &mut Emit, point: Val) {
        if self.prologue.is_empty() {
            return;
        }
        let warps = WARPS / self.prologue.len() as i64;
        let each = e.int(warps, I32);
        let mine = e.div(self.warp, each);
        for (i, lead) in self.prologue.iter().enumerate() {
            let number = e.int(i as i64, I32);
            let is_mine = e.cmp(Cmp::Eq, mine, number);
            e.if_then(is_mine, &[], |e| {
                let (points, first) = (e.int(lead.points, I32), e.int(i as i64 * warps * 32, I32));
                let (point, thread) = (e.mul(point, points), e.sub(self.thread, first));
                lead.shape
                    .emit_points(e, &lead.body, [point, thread], warps * 32, lead.points);
                vec![]
            });
        }
        ptx::barrier(e);
    }

    fn task(&self, e: &mut Emit, [workspace, counters]: [Val; 2], point: Val, split: Val, splits: Val, task: Val) {
        let plan = self.plan;
        let outer = &plan.kernel.outer[..plan.sweep.batch];
        let linear = e.extend_signed(point, Elem::I64);
        let batch = self.body.unravel(e, linear, outer);
        self.begin(e, point);
        self.split(e, &batch, split, splits);
        ptx::barrier(e);
        let (zero, one, warps) = (e.int(0, I32), e.int(1, I32), e.int(WARPS, I32));
        let alone = e.cmp(Cmp::Eq, splits, one);
        let yes = e.int(1, Ty::scalar(Elem::I1));
        let last = e.if_else(
            alone,
            &[yes.ty],
            |e| {
                self.merge(e, warps, WARPS, self.shared, self.result);
                vec![yes]
            },
            |e| {
                let part = e.int(plan.part(), I32);
                let at = e.mul(task, part);
                let to = e.at(workspace, at, Elem::F32);
                self.merge(e, warps, WARPS, self.shared, to);
                // The block's writes are before what its first thread counts, by the barrier; what others wrote before they counted is
                // before what the block reads then (PTX ISA, "Causality order").
                ptx::barrier(e);
                let first = e.cmp(Cmp::Eq, self.thread, zero);
                let counter = e.at(counters, point, Elem::I32);
                let flag = e.int(plan.part(), I32);
                let flag = e.at(self.result, flag, Elem::I32);
                e.if_then(first, &[], |e| {
                    let before = hopper::count(e, counter);
                    e.store(before, flag);
                    vec![]
                });
                ptx::barrier(e);
                let before = e.load(flag, I32);
                let others = e.sub(splits, one);
                let last = e.cmp(Cmp::Eq, before, others);
                e.if_then(last, &[], |e| {
                    e.if_then(first, &[], |e| {
                        e.store(zero, counter);
                        vec![]
                    });
                    let first = e.mul(point, splits);
                    let at = e.mul(first, part);
                    let from = e.at(workspace, at, Elem::F32);
                    self.merge(e, splits, PARTS, from, self.result);
                    vec![]
                });
                vec![last]
            },
        )[0];
        e.if_then(last, &[], |e| {
            ptx::barrier(e);
            self.finish(e, &batch);
            vec![]
        });
        // Another task may write where this one reads.
        ptx::barrier(e);
    }
}
