//! The order of the backward's work: tiles, the steps of a tile, and whose turn it is to add to a row block of dq.
//!
//!     for batch point
//!       for block of keys           of a round's points from the last one on, of the next round's from the first on
//!         for block of rows, range in which it sees keys of the block, group     there backwards
//!
//! Blocks of threads take tiles in this order. All that add to the same rows of dq do it in this order too: a sum has one order, whatever
//! runs at the same time. A round is the points whose tiles run at one time, with no more blocks than they have tiles: each block has one of a
//! round's tiles, in the same place of each.
//!
//! They rarely wait. In the first round each tile begins at its own diagonal, and the tile in front of it is a block of rows ahead. Short tiles
//! end first, and take long ones of the next round, so that pairs of rounds are even work. There a tile begins at the last row, when the tile in
//! front of it, which is longer, has begun already (benches/gpu/backward_order.py is a model of it).
//!
//! Two ranges in which a block of rows meets the keys come one after the other: a tile that came back to its rows later would hold up the tile
//! behind it, which holds up the next (layers with heads of 64, 4,096 tokens: 4.9 ms instead of 2.3). Of three or more, which no model has, and
//! of two of which one lies in the other, all rows of a range come before the next range.
//!
//! Sizes are known when compiling; tiles and steps are i32.

use super::flash::{KEYS, Plan};
use crate::gpu::ptx::I32;
use crate::mlir::emit::{Cmp, Emit, Val};

/// Multiprocessors of a large Hopper, and for how many of them a round of several points must have tiles. Else a point is a round, and blocks take
/// tiles across them.
const BLOCKS: i64 = 132;
const FULL: i64 = 120;

/// A block of keys.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Linear over the batch.
    pub point: Val,
    /// Number of the block of keys.
    pub keys: Val,
    /// Is the point's round odd?
    pub odd: Val,
}

/// A tile's steps.
pub struct Steps {
    /// By range: the first block of rows, and how many.
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
    /// Points of a round, if they are several.
    fn round(&self) -> Option<i64> {
        let points = BLOCKS / self.key_blocks();
        (points > 1 && points * self.key_blocks() >= FULL).then_some(points)
    }

    /// Blocks that take tiles, at most.
    pub fn most_blocks(&self) -> i64 {
        self.round().map_or(BLOCKS, |points| points * self.key_blocks())
    }

    pub fn tile(&self, e: &mut Emit, number: Val) -> Tile {
        let (blocks, one) = (e.int(self.key_blocks(), I32), e.int(1, I32));
        let (point, at) = (e.div(number, blocks), e.rem(number, blocks));
        let points = e.int(self.round().unwrap_or(1), I32);
        let round = e.div(point, points);
        let bit = e.and(round, one);
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
                count = e.add(count, blocks);
                (first, blocks)
            })
            .collect();
        Steps {
            ranges,
            count: e.mul(count, groups),
            odd: tile.odd,
        }
    }

    pub fn step(&self, e: &mut Emit, steps: &Steps, number: Val) -> Step {
        let one = e.int(1, I32);
        let last = e.sub(steps.count, one);
        let back = e.sub(last, number);
        let at = e.select(steps.odd, back, number);
        let groups = e.int(self.g.groups, I32);
        let (at, group) = (e.div(at, groups), e.rem(at, groups));
        let (range, rows) = match steps.ranges[..] {
            [near, far] if self.ends_in_order() => together(e, near, far, at),
            _ => one_by_one(e, &steps.ranges, at),
        };
        Step { range, rows, group }
    }

    /// Does each range, nearest first, end no nearer than the one before it?
    fn ends_in_order(&self) -> bool {
        self.ranges.is_sorted_by_key(|r| r.far.unwrap_or(i64::MAX))
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

/// Range and block of rows of number `at`: all blocks of a range, then those of the next.
fn one_by_one(e: &mut Emit, ranges: &[(Val, Val)], mut at: Val) -> (Val, Val) {
    // The last range, unless the number lies in an earlier one.
    let (mut range, mut first) = (e.int(0, I32), ranges[0].0);
    for (i, (next, _)) in ranges.iter().enumerate().skip(1) {
        let n = ranges[i - 1].1;
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
    (range, e.add(first, at))
}

/// As `one_by_one`, of two ranges of which the second begins and ends no earlier: blocks of the first one, blocks of both, twice each, blocks of the
/// second one.
fn together(e: &mut Emit, (near, n): (Val, Val), (far, _): (Val, Val), at: Val) -> (Val, Val) {
    let (zero, one) = (e.int(0, I32), e.int(1, I32));
    let ahead = e.sub(far, near);
    let alone = e.min(ahead, n);
    let both = e.sub(n, alone);
    let twice = e.shl(both, 1);
    let rest = e.sub(at, alone);
    let is_first = e.cmp(Cmp::Lt, at, alone);
    let is_both = e.cmp(Cmp::Lt, rest, twice);
    let (block, bit) = (e.shr(rest, 1), e.and(rest, one));
    let behind = e.sub(rest, both);
    let block = e.select(is_both, block, behind);
    let range = e.select(is_both, bit, one);
    let (first, later) = (e.add(near, at), e.add(far, block));
    (e.select(is_first, zero, range), e.select(is_first, first, later))
}
