//! Who does what: batch points and their splits are dealt to blocks, as many as there are.

use ir::Size;
use ir::plan::Kernel;

use super::{Block, Lead, MOST, Plan};
use crate::gpu::map::Shape;
use crate::gpu::ptx::{self, I32, Params};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};
use crate::scalar::{Body, Math};

/// A token's attention in a function that does other things too (`gpu::persistent`), whatever the sizes.
pub struct Token<'k> {
    plan: Plan<'k>,
    prologue: Vec<(&'k Kernel, i64)>,
}

impl<'k> Token<'k> {
    /// Blocks have so many warps; before it the kernels of its prologue, and how many of their points a batch point does.
    pub fn new(kernel: &'k Kernel, prologue: Vec<(&'k Kernel, i64)>, warps: i64) -> Option<Token<'k>> {
        let mut even = vec![];
        let plan = Plan::new(kernel, kernel.sweep.as_ref()?, warps, &mut even)?;
        let few = prologue.len() <= warps as usize && prologue.iter().all(|(k, _)| Shape::new(k).is_of_warps());
        (few && even.is_empty()).then_some(Token { plan, prologue })
    }

    /// Bytes of shared memory, and of the workspace.
    pub fn memory(&self) -> (i64, i64) {
        (self.plan.shared(), self.plan.workspace())
    }

    /// Before what stands in front of it has ended: its first keys and values to the second cache.
    pub fn prefetch(&self, e: &mut Emit, params: Params) {
        Work::new(e, &self.plan, &self.prologue, params).prefetch(e);
    }

    /// The prologue's buffers come first.
    pub fn run(&self, e: &mut Emit, params: Params) {
        Work::new(e, &self.plan, &self.prologue, params).run(e);
    }
}

/// A block and its tasks: a task is a batch point's split.
pub struct Work<'b, 'k> {
    block: Block<'b, 'k>,
    /// Workspace and counters.
    memory: [Val; 2],
    first: Val,
    blocks: Val,
    splits: Val,
    tasks: Val,
}

impl<'b, 'k> Work<'b, 'k> {
    pub fn new(e: &mut Emit, plan: &'b Plan<'k>, prologue: &[(&'k Kernel, i64)], params: Params) -> Work<'b, 'k> {
        let memory = [params.workspaces[0], params.counters.expect("they were asked for")];
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
        let (shared, behind) = (ptx::shared(e), e.int(plan.warps * plan.part(), I32));
        let block = Block {
            plan,
            body,
            prologue: leads,
            thread,
            lane: e.and(thread, warp),
            warp: e.shr(thread, 5),
            shared,
            result: e.at(shared, behind, Elem::F32),
        };
        let points = block.body.size(e, &Size::product(block.batch()));
        let points = e.truncate_int(points, Elem::I32);
        let (first, blocks, most, one) = (ptx::block(e), ptx::blocks(e), e.int(MOST, I32), e.int(1, I32));
        // No more than have keys, whatever the grid.
        let (keys, each) = (block.body.size(e, plan.most_keys()), e.int(plan.keys(), I32));
        let keys = e.truncate_int(keys, Elem::I32);
        let less = e.int(plan.keys() - 1, I32);
        let keys = e.add(keys, less);
        let busy = e.div(keys, each);
        let places = e.min(blocks, most);
        let splits = e.div(places, points);
        let splits = e.min(splits, busy);
        let splits = e.max(splits, one);
        Work {
            block,
            memory,
            first,
            blocks,
            splits,
            tasks: e.mul(points, splits),
        }
    }

    /// What the block's first task begins with, to the second cache: before what stands in front of it has ended.
    pub fn prefetch(&self, e: &mut Emit) {
        let (b, splits) = (&self.block, self.splits);
        let some = e.cmp(Cmp::Lt, self.first, self.tasks);
        e.if_then(some, &[], |e| {
            let (point, split) = (e.div(self.first, splits), e.rem(self.first, splits));
            let linear = e.extend_signed(point, Elem::I64);
            let at = b.body.unravel(e, linear, b.batch());
            b.prefetch(e, &at, split, splits);
            vec![]
        });
    }

    pub fn run(&self, e: &mut Emit) {
        let (first, blocks, splits) = (self.first, self.blocks, self.splits);
        // Mostly one each.
        let (zero, one) = (e.int(0, I32), e.int(1, I32));
        let left = e.sub(self.tasks, first);
        let more = e.add(left, blocks);
        let more = e.sub(more, one);
        let some = e.cmp(Cmp::Gt, left, zero);
        let count = e.div(more, blocks);
        let count = e.select(some, count, zero);
        e.for_loop(zero, count, 1, &[], |e, i, _| {
            let at = e.mul(i, blocks);
            let task = e.add(first, at);
            let (point, split) = (e.div(task, splits), e.rem(task, splits));
            self.block.task(e, self.memory, point, split, splits, task);
            vec![]
        });
    }
}
