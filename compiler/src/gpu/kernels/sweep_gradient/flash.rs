//! The backward of attention on Hopper, bf16: flash attention's with warp groups that have roles (Dao, arXiv 2307.08691; Shah et al., arXiv
//! 2407.08608), for a plan's ranges of keys.
//!
//!     block of 3 warp groups, as many as there are multiprocessors, walks tiles of 128 keys (order.rs)
//!       producer, one thread          keys and values; queries and d of blocks of rows through rings, by the copy engine (producer.rs)
//!       producer, another thread      adds blocks of dq to memory, in their turn
//!       2 consumers of 64 keys        for range, block of rows that sees the keys in it, group (consumer.rs):
//!                                     s = k q^T, dp = v d^T, dv += p d, dk += dx q; together dq = dx^T k
//!
//! Two ranges meet the same rows only where an edge between them crosses a block; else the work is plain flash attention's.

use ir::plan::{Kernel, Range, Rows, SweepGradient};
use ir::{DType, Size};
use runtime::artefact::{MapSource, Step, TensorMap, Variant};

use super::{consumer, producer};
use crate::gpu::hopper;
use crate::gpu::ptx::{self, I32, Params, Signature};
use crate::gpu::{Target, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};
use crate::pipeline;
use crate::scalar::{Body, Math};

/// Keys of a tile and of each of its consumers.
pub const KEYS: i64 = 128;
pub const HALF: i64 = 64;
const THREADS: i64 = 384;
/// Of a producer's and a consumer's thread: together what 384 threads have at launch.
const REGISTERS: [i64; 2] = [24, 240];
/// Elements of a panel: rows of 128 bytes, swizzled (PTX ISA, "Swizzling modes").
pub const PANEL: i64 = 64;
/// bf16 rows of queries and d that are there or on their way.
pub const STAGES: i64 = 2;
/// Warps that give a stage back.
const RELEASES: i64 = 8;

/// Everything that is known when compiling.
pub struct Plan<'k> {
    pub kernel: &'k Kernel,
    pub g: &'k SweepGradient,
    /// The nearest first: at an even point a row's own diagonal comes before what lies further back.
    pub ranges: Vec<&'k Range>,
    pub tokens: i64,
    pub points: i64,
    /// Elements of queries, keys and values.
    pub depth: i64,
    /// Of a block.
    pub rows: i64,
    pub dq: &'k Rows,
    pub dk: &'k Rows,
    pub dv: &'k Rows,
}

impl<'k> Plan<'k> {
    /// None: not for this file.
    fn new(kernel: &'k Kernel, g: &'k SweepGradient) -> Option<Plan<'k>> {
        let depth = g.depth;
        // Sums of 64 keys, scores and dp have to fit into a consumer's registers.
        let rows = match depth {
            128 => 64,
            64 => 128,
            _ => return None,
        };
        let tokens = g.tokens.as_const()?;
        let points = Size::product(&kernel.outer).as_const()?;
        let mut ranges: Vec<&Range> = g.ranges.iter().collect();
        ranges.sort_by_key(|r| r.near);
        let plan = Plan {
            kernel,
            g,
            ranges,
            tokens,
            points,
            depth,
            rows,
            dq: g.dq.as_ref()?,
            dk: g.dk.as_ref()?,
            dv: g.dv.as_ref()?,
        };
        let is = |r: &Rows, dtype| kernel.args[r.arg].dtype == dtype;
        let aligned = |r: &Rows, n: i64| r.strides.iter().chain([&r.offset]).all(|s| s.coef % n == 0);
        let line = |r: &Rows| is(r, DType::BF16) && aligned(r, 8);
        let number = |r: &Rows| {
            let (token, rest) = r.strides.split_last().expect("a stride of tokens");
            let even = rest.iter().chain([&r.offset]).all(|s| s.coef % 4 == 0);
            is(r, DType::F32) && *token == Size::one() && even
        };
        let sum = |r: &Rows| is(r, DType::F32) && aligned(r, 4);
        // What stands behind the last token and key is zero, and seen by no token that is there.
        let causal = g.keys == g.tokens && plan.ranges.first().is_some_and(|r| r.near == 0);
        let some = |r: &&Range| r.near < 1 << 24 && r.far.is_none_or(|far| far > r.near && far < 1 << 24);
        let fits = kernel.cols.as_const() == Some(depth)
            && causal
            && plan.ranges.iter().all(some)
            && plan.dims(&g.q, true).len() <= 4
            && [&g.q, &g.k, &g.v].into_iter().all(line)
            && [plan.dq, plan.dk, plan.dv].into_iter().all(sum)
            && (g.ranges.iter()).all(|r| line(&r.d) && number(&r.z) && number(&r.lse))
            && (plan.points * g.groups * plan.row_blocks()) < 1 << 22;
        fits.then_some(plan)
    }

    pub fn key_blocks(&self) -> i64 {
        (self.tokens + KEYS - 1) / KEYS
    }

    pub fn row_blocks(&self) -> i64 {
        (self.tokens + self.rows - 1) / self.rows
    }

    pub fn row_bits(&self) -> i64 {
        self.rows.trailing_zeros().into()
    }

    pub fn panels(&self) -> i64 {
        self.depth / PANEL
    }

    // Bytes of shared memory, in this order.

    /// Keys or values.
    pub fn key_bytes(&self) -> i64 {
        KEYS * self.depth * 2
    }

    /// Queries or d of a block of rows.
    pub fn row_bytes(&self) -> i64 {
        self.rows * self.depth * 2
    }

    /// Numbers of a block of rows.
    pub fn number_bytes(&self) -> i64 {
        self.rows * 4
    }

    pub fn at_values(&self) -> i64 {
        self.key_bytes()
    }

    pub fn at_queries(&self) -> i64 {
        2 * self.key_bytes()
    }

    pub fn at_d(&self) -> i64 {
        self.at_queries() + STAGES * self.row_bytes()
    }

    /// dx of a block of rows, by keys: panels of 64 rows.
    pub fn dx_bytes(&self) -> i64 {
        KEYS * self.rows * 2
    }

    pub fn at_dx(&self) -> i64 {
        self.at_d() + STAGES * self.row_bytes()
    }

    /// f32, panels of 32 columns.
    pub fn at_dq(&self) -> i64 {
        self.at_dx() + 2 * self.dx_bytes()
    }

    pub fn at_lse(&self) -> i64 {
        self.at_dq() + self.rows * self.depth * 4
    }

    pub fn at_z(&self) -> i64 {
        self.at_lse() + STAGES * self.number_bytes()
    }

    fn at_barriers(&self) -> i64 {
        self.at_z() + STAGES * self.number_bytes()
    }

    fn bytes(&self) -> i64 {
        self.at_barriers() + 16 * (2 + 2 * STAGES)
    }

    /// (size, stride) of a matrix behind its columns, innermost first: rows, groups if it has them, batch. What has one element is no
    /// dimension.
    fn dims(&self, r: &Rows, of_tokens: bool) -> Vec<(Size, Size)> {
        let (row, rest) = r.strides.split_last().expect("a stride of rows");
        let mut sizes = self.kernel.outer.clone();
        if of_tokens {
            sizes.push(self.g.groups.into());
        }
        let outer = sizes.into_iter().zip(rest.iter().cloned()).rev();
        let mut dims = vec![(self.g.tokens.clone(), row.clone())];
        dims.extend(outer.filter(|(n, _)| n.as_const() != Some(1)));
        dims
    }

    /// As `dims`: where the rows of a point, and of a group if the matrix has them, begin.
    pub fn at(&self, e: &mut Emit, row: Val, group: Option<Val>, batch: &[Val]) -> Vec<Val> {
        let mut all = vec![row];
        all.extend(group.filter(|_| self.g.groups != 1));
        let sized = batch.iter().zip(&self.kernel.outer).rev();
        for (i, _) in sized.filter(|(_, n)| n.as_const() != Some(1)) {
            all.push(e.truncate_int(*i, Elem::I32));
        }
        all
    }

    /// q, k, v, dq, then d, z and lse of each range.
    fn maps(&self) -> Vec<TensorMap> {
        let map = |r: &Rows, of_tokens: bool, columns: i64, width: i64, rows: i64| {
            let dims = self.dims(r, of_tokens);
            let mut r#box = vec![width as u32, rows as u32];
            r#box.resize(dims.len() + 1, 1);
            let dtype = self.kernel.args[r.arg].dtype;
            TensorMap {
                source: MapSource::Buffer(r.arg as u32),
                dtype: if dtype == DType::BF16 {
                    runtime::artefact::DType::BF16
                } else {
                    runtime::artefact::DType::F32
                },
                offset: pipeline::size(&r.offset),
                dims: (std::iter::once(&Size::from(columns)).chain(dims.iter().map(|d| &d.0)))
                    .map(pipeline::size)
                    .collect(),
                strides: dims.iter().map(|d| pipeline::size(&d.1)).collect(),
                r#box,
                swizzle: 128,
            }
        };
        let numbers = |r: &Rows| {
            let dims = self.dims(r, true);
            let mut r#box = vec![self.rows as u32];
            r#box.resize(dims.len(), 1);
            TensorMap {
                source: MapSource::Buffer(r.arg as u32),
                dtype: runtime::artefact::DType::F32,
                offset: pipeline::size(&r.offset),
                dims: dims.iter().map(|d| pipeline::size(&d.0)).collect(),
                strides: dims[1..].iter().map(|d| pipeline::size(&d.1)).collect(),
                r#box,
                swizzle: 0,
            }
        };
        let mut all = vec![
            map(&self.g.q, true, self.depth, PANEL, self.rows),
            map(&self.g.k, false, self.depth, PANEL, KEYS),
            map(&self.g.v, false, self.depth, PANEL, KEYS),
            map(self.dq, true, self.depth, PANEL / 2, self.rows),
        ];
        for r in &self.ranges {
            all.push(map(&r.d, true, self.depth, PANEL, self.rows));
            all.extend([numbers(&r.z), numbers(&r.lse)]);
        }
        all
    }
}

/// The variant and its function, if the kernel is for this file.
pub fn variant(kernel: &Kernel, g: &SweepGradient, name: &str, target: &Target) -> Option<(Variant, String)> {
    let plan = Plan::new(kernel, g).filter(|_| target.hopper)?;
    let maps = plan.maps();
    let signature = Signature {
        buffers: kernel.args.len(),
        counters: true,
        threads: THREADS as u32,
        maps: maps.len(),
        overlap: true,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| block(e, &plan, params));
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&[(plan.points.into(), 1), (plan.tokens.into(), KEYS)]),
        per_multiprocessor: 1,
        threads: THREADS as u32,
        shared: plan.bytes() as u32,
        overlap: true,
        maps,
        ..Step::default()
    };
    let variant = Variant {
        counters: (plan.points * g.groups * plan.row_blocks()) as u32,
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
    /// By point, group and block of rows: so many have added to dq.
    pub counters: Val,
    /// The start of shared memory, i32, and as a pointer.
    pub shared: Val,
    pub memory: Val,
}

/// What barriers guard.
#[derive(Clone, Copy)]
pub enum Guard {
    Keys,
    Dq,
    Queries,
    D,
}

/// A barrier's pair for one use of what it guards.
pub struct Turn {
    pub stage: Val,
    full: Val,
    empty: Val,
    parity: Val,
}

impl Turn {
    pub fn full(&self) -> Val {
        self.full
    }

    pub fn wait_full(&self, e: &mut Emit) {
        hopper::wait(e, self.full, self.parity);
    }

    /// The phase before the first one counts as over.
    pub fn wait_empty(&self, e: &mut Emit) {
        let one = e.int(1, I32);
        let before = e.sub(one, self.parity);
        hopper::wait(e, self.empty, before);
    }

    pub fn release(&self, e: &mut Emit, who: Val) {
        e.if_then(who, &[], |e| {
            hopper::arrive(e, self.empty);
            vec![]
        });
    }

    pub fn filled(&self, e: &mut Emit, who: Val) {
        e.if_then(who, &[], |e| {
            hopper::arrive(e, self.full);
            vec![]
        });
    }
}

impl Block<'_, '_> {
    pub fn address(&self, e: &mut Emit, bytes: i64) -> Val {
        let bytes = e.int(bytes, I32);
        e.add(self.shared, bytes)
    }

    fn barrier(&self, e: &mut Emit, number: i64) -> Val {
        self.address(e, self.plan.at_barriers() + 8 * number)
    }

    /// Use number n (i32) of what is guarded.
    pub fn turn(&self, e: &mut Emit, what: Guard, n: Val) -> Turn {
        let (first, stages) = match what {
            Guard::Keys => (0, 1),
            Guard::Dq => (2, 1),
            Guard::Queries => (4, STAGES),
            Guard::D => (4 + 2 * STAGES, STAGES),
        };
        let (count, one) = (e.int(stages, I32), e.int(1, I32));
        let (stage, round) = (e.rem(n, count), e.div(n, count));
        let base = self.barrier(e, first);
        let (at, behind) = (e.shl(stage, 4), e.int(8, I32));
        let full = e.add(base, at);
        Turn {
            stage,
            full,
            empty: e.add(full, behind),
            parity: e.and(round, one),
        }
    }

    /// Walks the block's tiles; `f` gets a tile's number, how many came before it, and carried values.
    /// Blocks beyond those of a round (order.rs) have none.
    pub fn tiles(&self, e: &mut Emit, init: &[Val], f: impl FnOnce(&mut Emit, Val, Val, &[Val]) -> Vec<Val>) {
        let (first, blocks, most) = (ptx::block(e), ptx::blocks(e), e.int(self.plan.most_blocks(), I32));
        let step = e.min(blocks, most);
        let total = e.int(self.plan.points * self.plan.key_blocks(), I32);
        let left = e.sub(total, first);
        let one = e.int(1, I32);
        let more = e.add(left, step);
        let more = e.sub(more, one);
        let (count, zero) = (e.div(more, step), e.int(0, I32));
        let takes = e.cmp(Cmp::Lt, first, step);
        let count = e.select(takes, count, zero);
        e.for_loop(zero, count, 1, init, |e, i, carried| {
            let at = e.mul(i, step);
            let number = e.add(first, at);
            f(e, number, i, carried)
        });
    }

    /// The batch indices of a point (i32), i64.
    pub fn batch(&self, e: &mut Emit, point: Val) -> Vec<Val> {
        let point = e.extend_signed(point, Elem::I64);
        self.body.unravel(e, point, &self.plan.kernel.outer)
    }
}

fn block(e: &mut Emit, plan: &Plan, params: Params) {
    let b = Block {
        plan,
        body: Body::over(plan.kernel, 1, params.buffers, params.symbols, Math::Gpu),
        maps: params.maps,
        counters: params.counters.expect("asked for"),
        shared: ptx::shared_address(e),
        memory: ptx::shared(e),
    };
    let (thread, zero) = (ptx::thread(e), e.int(0, I32));
    let is_first = e.cmp(Cmp::Eq, thread, zero);
    e.if_then(is_first, &[], |e| {
        for map in &b.maps {
            hopper::prefetch_map(e, *map);
        }
        for pair in 0..2 + 2 * STAGES {
            // Consumers fill dq, and one thread empties it.
            let (full, empty) = if pair == 1 { (RELEASES, 1) } else { (1, RELEASES) };
            for (half, arrivals) in [(0, full), (1, empty)] {
                let at = b.barrier(e, 2 * pair + half);
                hopper::init_barrier(e, at, arrivals);
            }
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
                producer::bring(e, &b);
                vec![]
            });
            let second = e.int(32, I32);
            let is_second = e.cmp(Cmp::Eq, thread, second);
            e.if_then(is_second, &[], |e| {
                producer::add(e, &b);
                vec![]
            });
            vec![]
        },
        |e| {
            hopper::more_registers(e, REGISTERS[1]);
            let one = e.int(1, I32);
            let number = e.sub(group, one);
            consumer::run(e, &b, number);
            vec![]
        },
    );
}
