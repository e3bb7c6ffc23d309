//! Attention for many tokens on Hopper, bf16: warp-specialised flash attention (FlashAttention-3, Shah et al., arXiv 2407.08608) for a plan's
//! segments.
//!
//!     block of 3 warp groups, as many as there are multiprocessors, walks tiles: the longest first
//!       tile = 64 rows for each of two consumers        two heads that share keys, or 128 tokens of one head
//!         producer (one thread)                         queries; blocks of 128 keys and values through rings, by the copy engine
//!         consumer (64 rows)                            for stream of keys: for block, newest first (walk.rs): scores, softmax, values
//!         consumer                                      the kernel's stages on rows (rows.rs)
//!
//! Segments with the same keys are one stream: its accumulator goes on from one to the next, and what a segment ends with is kept as bf16
//! in shared memory. Blocks count from the newest key of a tile's last row, so masks are known when compiling.

use ir::Size;
use ir::plan::{Kernel, Sweep};
use runtime::artefact::{Step, Variant};

use super::consumer::Consumer;
use super::plan::{Plan, Stream, maps};
use super::producer;
use super::walk::KEYS;
use crate::gpu::hopper;
use crate::gpu::ptx::{self, I32, Params, Signature};
use crate::gpu::{Target, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};
use crate::pipeline;
use crate::scalar::{Body, Math};

pub const THREADS: i64 = 384;
pub const CONSUMERS: i64 = 2;
/// Warps that give a stage back.
pub const RELEASES: i64 = 8;
/// Of a producer's and a consumer's thread: together what 384 threads have at launch.
const REGISTERS: [i64; 2] = [24, 240];
/// Numbers of the barriers at which consumers take turns.
const TURNS: i64 = 1;

/// The variant and its function, if the kernel is for this file.
pub fn variant(kernel: &Kernel, sweep: &Sweep, name: &str, target: &Target) -> Option<(Variant, String)> {
    let mut even = vec![];
    let plan = Plan::new(kernel, sweep, &mut even).filter(|_| target.hopper)?;
    let maps = maps(&plan);
    let signature = Signature {
        buffers: kernel.args.len(),
        threads: THREADS as u32,
        maps: maps.len(),
        overlap: true,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| block(e, &plan, params));
    let (batch, rows) = kernel.outer.split_at(sweep.batch);
    let heads = if plan.paired { plan.groups / 2 } else { plan.groups };
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&[
            (Size::product(batch), 1),
            (heads.into(), 1),
            (rows[rows.len() - 1].clone(), plan.tokens()),
        ]),
        per_multiprocessor: 1,
        threads: THREADS as u32,
        shared: plan.bytes() as u32,
        overlap: true,
        maps,
        ..Step::default()
    };
    let variant = Variant {
        multiples: even.iter().map(|s| (pipeline::size(s), 8)).collect(),
        steps: vec![step],
        ..Variant::default()
    };
    Some((variant, text))
}

/// What all roles share.
pub struct Block<'b, 'k> {
    pub plan: &'b Plan<'k>,
    pub body: Body<'k>,
    pub maps: Vec<Val>,
    /// The start of shared memory, i32, and as a pointer.
    pub shared: Val,
    pub memory: Val,
    /// Tokens, i32, their blocks, and tiles with the same tokens, i32.
    pub tokens: Val,
    pub blocks: Val,
    pub heads: Val,
}

/// One tile: its batch point, its first token, and where that stands.
pub struct Tile {
    pub batch: Vec<Val>,
    /// Which heads of those that share keys, i32: a pair's first, or the one.
    pub group: Val,
    /// i32.
    pub token: Val,
    pub position: Val,
}

/// The walk over a stream's blocks, i32: behind the newest key, blocks that hold a key, and blocks whose keys are all there.
pub struct Reach {
    pub top: Val,
    pub blocks: Val,
    pub whole: Val,
}

impl Block<'_, '_> {
    pub fn address(&self, e: &mut Emit, bytes: i64) -> Val {
        let bytes = e.int(bytes, I32);
        e.add(self.shared, bytes)
    }

    fn barrier(&self, e: &mut Emit, number: i64) -> Val {
        self.address(e, self.plan.at_barriers() + 8 * number)
    }

    /// Full, then empty, of a consumer's queries.
    pub fn query_barrier(&self, e: &mut Emit, consumer: i64, empty: bool) -> Val {
        self.barrier(e, 2 * consumer + i64::from(empty))
    }

    /// Of a stage (i32) of the ring of keys or values.
    pub fn ring_barrier(&self, e: &mut Emit, stage: Val, values: bool, empty: bool) -> Val {
        let number = 2 * CONSUMERS + self.plan.stages * (2 * i64::from(values) + i64::from(empty));
        let base = self.barrier(e, number);
        let at = e.shl(stage, 3);
        e.add(base, at)
    }

    /// The stage of the block with this number, and the parity of its phase, i32.
    pub fn stage(&self, e: &mut Emit, number: Val) -> (Val, Val) {
        let mask = e.int(self.plan.stages - 1, I32);
        let stage = e.and(number, mask);
        let round = e.shr(number, self.plan.stages.trailing_zeros().into());
        let one = e.int(1, I32);
        (stage, e.and(round, one))
    }

    /// Tile `number`: those with the last tokens come first, heads that share keys beside each other.
    pub fn tile(&self, e: &mut Emit, number: Val) -> Tile {
        let sweep = self.plan.sweep;
        let rank = e.div(number, self.heads);
        let head = e.rem(number, self.heads);
        let one = e.int(1, I32);
        let last = e.sub(self.blocks, one);
        let block = e.sub(last, rank);
        let n = if self.plan.paired {
            self.plan.groups / 2
        } else {
            self.plan.groups
        };
        let n = e.int(n, I32);
        let (point, group) = (e.div(head, n), e.rem(head, n));
        let group = if self.plan.paired { e.shl(group, 1) } else { group };
        let point = e.extend_signed(point, Elem::I64);
        let batch = self.body.unravel(e, point, &self.plan.kernel.outer[..sweep.batch]);
        let tokens = e.int(self.plan.tokens(), I32);
        let token = e.mul(block, tokens);
        let start = super::start(e, &self.body, sweep, &batch);
        let start = e.truncate_int(start, Elem::I32);
        Tile {
            batch,
            group,
            token,
            position: e.add(start, token),
        }
    }

    pub fn reach(&self, e: &mut Emit, tile: &Tile, stream: &Stream) -> Reach {
        let tokens = e.int(self.plan.tokens(), I32);
        let top = e.add(tile.position, tokens);
        let less = e.int(KEYS - 1, I32);
        let whole = e.shr(top, KEYS.trailing_zeros().into());
        let more = e.add(top, less);
        let mut blocks = e.shr(more, KEYS.trailing_zeros().into());
        if let Some((_, Some(to))) = super::walk::ranges(&stream.bounds, self.plan.shifts()).last() {
            let to = e.int(*to, I32);
            blocks = e.min(blocks, to);
        }
        let whole = e.min(whole, blocks);
        Reach { top, blocks, whole }
    }

    /// Walks the block's tiles; `f` gets a tile's number, how many came before it, and carried values.
    pub fn tiles(&self, e: &mut Emit, init: &[Val], f: impl FnOnce(&mut Emit, Val, Val, &[Val]) -> Vec<Val>) {
        let (first, step) = (ptx::block(e), ptx::blocks(e));
        let total = e.mul(self.blocks, self.heads);
        let left = e.sub(total, first);
        let one = e.int(1, I32);
        let more = e.add(left, step);
        let more = e.sub(more, one);
        let count = e.div(more, step);
        let zero = e.int(0, I32);
        e.for_loop(zero, count, 1, init, |e, i, carried| {
            let at = e.mul(i, step);
            let number = e.add(first, at);
            f(e, number, i, carried)
        });
    }
}

fn block(e: &mut Emit, plan: &Plan, params: Params) {
    let mut body = Body::over(
        plan.kernel,
        plan.lanes as usize,
        params.buffers,
        params.symbols,
        Math::Gpu,
    );
    body.alignment = if plan.lanes > 1 { 16 } else { 1 };
    let tokens = body.size(e, &plan.kernel.outer[plan.kernel.outer.len() - 1]);
    let tokens = e.truncate_int(tokens, Elem::I32);
    let (less, height) = (e.int(plan.tokens() - 1, I32), e.int(plan.tokens(), I32));
    let blocks = e.add(tokens, less);
    let blocks = e.div(blocks, height);
    let heads = if plan.paired { plan.groups / 2 } else { plan.groups };
    let heads = &Size::product(&plan.kernel.outer[..plan.sweep.batch]) * &heads.into();
    let heads = body.size(e, &heads);
    let heads = e.truncate_int(heads, Elem::I32);
    let b = Block {
        plan,
        body,
        maps: params.maps,
        shared: ptx::shared_address(e),
        memory: ptx::shared(e),
        tokens,
        blocks,
        heads,
    };
    let (thread, zero) = (ptx::thread(e), e.int(0, I32));
    let is_first = e.cmp(Cmp::Eq, thread, zero);
    e.if_then(is_first, &[], |e| {
        for map in &b.maps {
            hopper::prefetch_map(e, *map);
        }
        for number in 0..2 * CONSUMERS + 4 * plan.stages {
            let at = b.barrier(e, number);
            let ring = number - 2 * CONSUMERS;
            let arrivals = match (ring < 0, number % 2 == 1, ring / plan.stages % 2 == 1) {
                (true, false, _) | (false, _, false) => 1,
                (true, true, _) => RELEASES / CONSUMERS,
                (false, _, true) => RELEASES,
            };
            hopper::init_barrier(e, at, arrivals);
        }
        hopper::publish_barriers(e);
        vec![]
    });
    ptx::barrier(e);
    let group = e.shr(thread, 7);
    let is_producer = e.cmp(Cmp::Eq, group, zero);
    e.if_else(
        is_producer,
        &[],
        |e| {
            hopper::fewer_registers(e, REGISTERS[0]);
            e.if_then(is_first, &[], |e| {
                producer::run(e, &b);
                vec![]
            });
            vec![]
        },
        |e| {
            hopper::more_registers(e, REGISTERS[1]);
            let one = e.int(1, I32);
            let number = e.sub(group, one);
            if plan.paired {
                Consumer::new(e, &b, number, 0).run(e);
            } else {
                let is_second = e.cmp(Cmp::Eq, number, one);
                e.if_else(
                    is_second,
                    &[],
                    |e| {
                        Consumer::new(e, &b, number, 0).run(e);
                        vec![]
                    },
                    |e| {
                        Consumer::new(e, &b, number, 1).run(e);
                        vec![]
                    },
                );
            }
            vec![]
        },
    );
}

/// The barrier at which this consumer (i32) waits for its turn.
pub fn turn(e: &mut Emit, consumer: Val) -> Val {
    let first = e.int(TURNS, I32);
    e.add(first, consumer)
}
