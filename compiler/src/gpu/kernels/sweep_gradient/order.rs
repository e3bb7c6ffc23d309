//! The order of the backward's work: tiles, the steps of a tile, and whose turn it is to add to a row block of dq.
//!
//!     for batch point
//!       for block of keys           of even points from the last one on, of odd ones from the first on
//!         for range, block of rows that sees keys of the block in it, group      of odd points backwards
//!
//! Blocks of threads take tiles in this order. All that add to the same rows of dq do it in this order too: a sum has one order, whatever
//! runs at the same time. They rarely wait. At an even point each tile begins at its own diagonal, and the tile in front of it is a block of
//! rows ahead; at an odd point the tile in front of it began a block of rows earlier at the last row. A block that takes a short tile of an
//! even point takes a long one of the next, so that pairs of points are even work.
//!
//! Sizes are known when compiling; tiles and steps are i32.

use super::flash::{KEYS, Plan};
use crate::gpu::ptx::I32;
use crate::mlir::emit::{Cmp, Emit, Val};

/// A block of keys.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Linear over the batch.
    pub point: Val,
    /// Number of the block of keys.
    pub keys: Val,
    /// Is the point odd?
    pub odd: Val,
}

/// A tile's steps.
pub struct Steps {
    /// By range: the first block of rows, and steps.
    ranges: Vec<(Val, Val)>,
    pub count: Val,
    odd: Val,
}

/// Rows that meet the keys.
pub struct Step {
    /// Number of the range: that of `Plan::ranges`.
    pub range: Val,
    /// Number of the block of rows.
    pub rows: Val,
    pub group: Val,
}

/// Of a block of rows' sum.
pub struct Turn {
    /// So many add before.
    pub before: Val,
    pub is_last: Val,
}

impl Plan<'_> {
    pub fn tile(&self, e: &mut Emit, number: Val) -> Tile {
        let (blocks, one) = (e.int(self.key_blocks(), I32), e.int(1, I32));
        let (point, at) = (e.div(number, blocks), e.rem(number, blocks));
        let bit = e.and(point, one);
        let odd = e.cmp(Cmp::Eq, bit, one);
        let last = e.int(self.key_blocks() - 1, I32);
        let back = e.sub(last, at);
        Tile {
            point,
            keys: e.select(odd, at, back),
            odd,
        }
    }

    /// The rows that see keys of the block, in each range.
    pub fn steps(&self, e: &mut Emit, tile: Tile) -> Steps {
        let width = e.int(KEYS, I32);
        let key = e.mul(tile.keys, width);
        let (zero, groups) = (e.int(0, I32), e.int(self.g.groups, I32));
        let mut count = zero;
        let ranges = (self.ranges.iter())
            .map(|r| {
                let near = e.int(r.near, I32);
                let first = e.add(key, near);
                let first = e.shr_signed(first, self.row_bits());
                let mut end = e.int(self.tokens, I32);
                if let Some(far) = r.far {
                    let reach = e.int(KEYS - 1 + far, I32);
                    let last = e.add(key, reach);
                    end = e.min(end, last);
                }
                let less = e.int(self.rows - 1, I32);
                let end = e.add(end, less);
                let end = e.shr_signed(end, self.row_bits());
                let blocks = e.sub(end, first);
                let blocks = e.max(blocks, zero);
                let n = e.mul(blocks, groups);
                count = e.add(count, n);
                (first, n)
            })
            .collect();
        Steps {
            ranges,
            count,
            odd: tile.odd,
        }
    }

    pub fn step(&self, e: &mut Emit, steps: &Steps, number: Val) -> Step {
        let one = e.int(1, I32);
        let last = e.sub(steps.count, one);
        let back = e.sub(last, number);
        let mut at = e.select(steps.odd, back, number);
        // The last range, unless the number lies in an earlier one.
        let (mut range, mut first) = (e.int(0, I32), steps.ranges[0].0);
        for (i, (next, _)) in steps.ranges.iter().enumerate().skip(1) {
            let n = steps.ranges[i - 1].1;
            let here = e.cmp(Cmp::Le, n, at);
            // What lies behind an empty range too lies behind all that is in front of it.
            let reached = e.int(i as i64 - 1, I32);
            let in_turn = e.cmp(Cmp::Eq, range, reached);
            let here = e.and(here, in_turn);
            let rest = e.sub(at, n);
            at = e.select(here, rest, at);
            let i = e.int(i as i64, I32);
            range = e.select(here, i, range);
            first = e.select(here, *next, first);
        }
        let groups = e.int(self.g.groups, I32);
        let (block, group) = (e.div(at, groups), e.rem(at, groups));
        Step {
            range,
            rows: e.add(first, block),
            group,
        }
    }

    /// The step's turn to add to its rows.
    pub fn turn(&self, e: &mut Emit, tile: Tile, step: &Step) -> Turn {
        let (zero, one) = (e.int(0, I32), e.int(1, I32));
        let width = e.int(self.rows, I32);
        let row = e.mul(step.rows, width);
        let (mut before, mut all) = (zero, zero);
        for (i, r) in self.ranges.iter().enumerate() {
            // Blocks of keys that see these rows in this range: first..=last.
            let near = e.int(self.rows - 1 - r.near, I32);
            let last = e.add(row, near);
            let last = e.shr_signed(last, KEYS.trailing_zeros().into());
            let most = e.int(self.key_blocks() - 1, I32);
            let last = e.min(last, most);
            let first = match r.far {
                None => zero,
                Some(far) => {
                    // The smallest that reaches the rows' first one.
                    let reach = e.int(far - 1, I32);
                    let first = e.sub(row, reach);
                    let first = e.shr_signed(first, KEYS.trailing_zeros().into());
                    e.max(first, zero)
                }
            };
            let length = |e: &mut Emit, from: Val, to: Val| {
                let n = e.sub(to, from);
                let n = e.add(n, one);
                e.max(n, zero)
            };
            let n = length(e, first, last);
            all = e.add(all, n);
            let behind = e.add(tile.keys, one);
            let ahead = e.sub(tile.keys, one);
            let (from, to) = (e.max(first, behind), e.min(last, ahead));
            let (higher, lower) = (length(e, from, last), length(e, first, to));
            let others = e.select(tile.odd, lower, higher);
            before = e.add(before, others);
            // The tile's own steps with these rows in ranges that come first.
            let i = e.int(i as i64, I32);
            let (less, more) = (e.cmp(Cmp::Lt, i, step.range), e.cmp(Cmp::Gt, i, step.range));
            let comes_first = e.select(tile.odd, more, less);
            let (above, below) = (e.cmp(Cmp::Le, first, tile.keys), e.cmp(Cmp::Le, tile.keys, last));
            let mut counts = e.and(comes_first, above);
            counts = e.and(counts, below);
            let own = e.select(counts, one, zero);
            before = e.add(before, own);
        }
        let next = e.add(before, one);
        let is_last = e.cmp(Cmp::Eq, next, all);
        Turn { before, is_last }
    }
}
