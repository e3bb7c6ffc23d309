//! Attention by `mma.sync` in bf16, on every GPU from sm_80 on: FlashAttention-2's shape (Dao, arXiv 2307.08691) for a plan's segments.
//!
//!     block = (64 rows of one head, batch point)       four warps of 16 rows; the last rows, which see most, first
//!       queries to shared memory
//!       for segment                                    its accumulator starts at zero, or as a copy of the one that it continues
//!         for block of 64 keys in its range            keys and values by cp.async, the next block's under way
//!           s = q k; mask at the edges alone; p = 2^(s - max); o = o * 2^(max before - max) + p v
//!       the kernel's stages on o / l, in registers
//!
//! Results of all segments stay in registers: two segments at most. Fewer rows than a tile are computed all the same.

mod stages;
mod steps;

use ir::plan::{Kernel, Sweep};
use ir::{DType, Size};
use runtime::artefact::{Step, Variant};

use self::stages::Ended;
use crate::gpu::epilogue::clamped;
use crate::gpu::ptx::{self, Params, Signature, lane_bits};
use crate::gpu::{Target, tiles};
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::pipeline;
use crate::scalar::{Body, Math};

const THREADS: i64 = 128;
/// Rows of a block, and keys of a step.
const TILE: i64 = 64;
/// A maximum before any key was seen: below every score, and far from where subtracting it overflows.
const LOWEST: f32 = -1e30;
const LOG2E: f32 = std::f32::consts::LOG2_E;

/// The sizes that must be multiples of 8 elements for it; none if it cannot be.
pub fn takes(kernel: &Kernel, sweep: &Sweep) -> Option<Vec<Size>> {
    let is_bf16 = |arg: usize| kernel.args[arg].dtype == DType::BF16;
    let width = |n: i64| n == 64 || n == 128;
    let fits = width(sweep.depth) && kernel.cols.as_const().is_some_and(width) && sweep.q.indirect.is_none();
    let chains = sweep.segments.len() <= 2 && kernel.allows_lanes(2);
    let mut sizes: Vec<&Size> = sweep.q.strides[..kernel.outer.len()]
        .iter()
        .chain([&sweep.q.offset])
        .collect();
    for rows in sweep.segments.iter().flat_map(|s| [&s.k, &s.v]) {
        sizes.extend(rows.strides.iter().chain([&rows.offset]));
    }
    let types = is_bf16(sweep.q.arg) && sweep.segments.iter().all(|s| is_bf16(s.k.arg) && is_bf16(s.v.arg));
    let odd = sizes.iter().any(|s| s.as_const().is_some_and(|n| n % 8 != 0));
    (types && fits && chains && !odd).then(|| sizes.into_iter().filter(|s| s.coef % 8 != 0).cloned().collect())
}

/// Batch points, heads that share keys, rows of one head.
fn grid(kernel: &Kernel, sweep: &Sweep) -> [(Size, i64); 3] {
    let (batch, rows) = kernel.outer.split_at(sweep.batch);
    let batch = (Size::product(batch), 1);
    match rows.split_last() {
        Some((tokens, groups)) if sweep.tokens => [batch, (Size::product(groups), 1), (tokens.clone(), TILE)],
        _ => [batch, (Size::one(), 1), (Size::product(rows), TILE)],
    }
}

/// `even`: what `takes` gave.
pub fn variant(kernel: &Kernel, sweep: &Sweep, even: &[Size], name: &str, target: &Target) -> (Variant, String) {
    let signature = Signature {
        buffers: kernel.args.len(),
        threads: THREADS as u32,
        overlap: target.hopper,
        ..Signature::default()
    };
    let text = ptx::function(name, signature, |e, params| block(e, kernel, sweep, params));
    let cols = kernel.cols.as_const().unwrap_or(0);
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&grid(kernel, sweep)),
        threads: THREADS as u32,
        shared: (TILE * sweep.depth * 2 + 2 * TILE * (sweep.depth + cols) * 2) as u32,
        overlap: target.hopper,
        ..Step::default()
    };
    let variant = Variant {
        multiples: even.iter().map(|s| (pipeline::size(s), 8)).collect(),
        steps: vec![step],
        ..Variant::default()
    };
    (variant, text)
}

/// An accumulator: fragments of o, then for rows g and g + 8 maximum and the thread's part of the mass.
#[derive(Clone)]
struct State {
    o: Vec<Val>,
    max: [Val; 2],
    mass: [Val; 2],
}

struct Block<'b, 'k> {
    body: &'b Body<'k>,
    sweep: &'k Sweep,
    thread: Val,
    lane: Val,
    /// The warp's first row in the tile.
    warp_row: Val,
    batch: Vec<Val>,
    /// Of the heads that share keys, i64.
    group: Val,
    /// First row, and how many there are.
    first: Val,
    rows: Val,
    /// Positions of the tile's first and last row, i64.
    from: Val,
    to: Val,
    shared: Val,
    depth: i64,
    cols: i64,
}

fn block(e: &mut Emit, kernel: &Kernel, sweep: &Sweep, params: Params) {
    let mut body = Body::over(kernel, 2, params.buffers, params.symbols, Math::Gpu);
    body.alignment = 8;
    let [(batch, _), (groups, _), (rows, _)] = grid(kernel, sweep);
    let (points, group_count, rows) = (body.size(e, &batch), body.size(e, &groups), body.size(e, &rows));
    let block = ptx::block(e);
    let block = e.extend_signed(block, Elem::I64);
    // Row blocks outermost, the last one first: blocks that begin together are equally long.
    let heads = e.mul(points, group_count);
    let (block, head) = div_rem(e, block, heads);
    let (point, group) = div_rem(e, head, group_count);
    let (less, tile) = (e.i64(TILE - 1), e.i64(TILE));
    let blocks = e.add(rows, less);
    let blocks = e.div(blocks, tile);
    let last = clamped(e, blocks, blocks);
    let block = e.sub(last, block);
    let first = e.mul(block, tile);
    let batch = body.unravel(e, point, &kernel.outer[..sweep.batch]);
    let start = super::start(e, &body, sweep, &batch);
    let (from, to) = if sweep.tokens {
        let behind = e.add(first, tile);
        let end = e.min(behind, rows);
        let last = clamped(e, end, end);
        (e.add(start, first), e.add(start, last))
    } else {
        (start, start)
    };
    let thread = ptx::thread(e);
    let lane = lane_bits(e, thread, 0, 5);
    let warp = e.shr(thread, 5);
    let b = Block {
        thread,
        lane,
        warp_row: e.shl(warp, 4),
        batch,
        group,
        first,
        rows,
        from,
        to,
        shared: ptx::shared_address(e),
        depth: sweep.depth,
        cols: kernel.cols.as_const().unwrap_or(0),
        sweep,
        body: &body,
    };
    b.queries(e);
    let (mut states, mut results): (Vec<State>, Vec<Ended>) = (vec![], vec![]);
    for (i, segment) in sweep.segments.iter().enumerate() {
        e.comment(&format!("segment {i}"));
        let before = segment.after.map(|a| states[a].clone());
        let state = b.segment(e, segment, before);
        results.push(b.ended(e, &state, i + 1 == sweep.segments.len()));
        states.push(state);
    }
    b.stages(e, &results);
}

/// Of numbers that 32 bits hold.
fn div_rem(e: &mut Emit, a: Val, b: Val) -> (Val, Val) {
    let [a, b] = [a, b].map(|x| e.truncate_int(x, Elem::I32));
    let (q, r) = (e.div(a, b), e.rem(a, b));
    (e.extend_signed(q, Elem::I64), e.extend_signed(r, Elem::I64))
}

impl Block<'_, '_> {
    /// The kernel's indices of a row, clamped to the last one.
    fn index(&self, e: &mut Emit, row: Val) -> Vec<Val> {
        let row = clamped(e, row, self.rows);
        let dims = &self.body.kernel.outer[self.sweep.batch..];
        let mut index = self.batch.clone();
        if self.sweep.tokens {
            index.extend(self.body.unravel(e, self.group, &dims[..dims.len() - 1]));
            index.push(row);
        } else {
            index.extend(self.body.unravel(e, row, dims));
        }
        index
    }
}

/// Two bf16 in one register, the first one low.
fn pair(e: &mut Emit, low: Val, high: Val) -> Val {
    let both = e.vector(&[low, high]);
    let both = e.truncate_float(both, Elem::BF16);
    // A vector of one i32.
    let bits = e.bitcast(both, Ty::vector(Elem::I32, 1));
    e.extract(bits, 0)
}
