//! The producers of attention's backward: two threads that move what consumers take and leave, in the order of their steps.
//!
//! The second one adds blocks of dq to memory. The copy engine adds, but in no order of its own: a block waits until all that come before it
//! have added (order.rs), and tells the next only when its own sums are there. Whoever comes first stores instead.

use super::flash::{Block, Guard, KEYS, PANEL};
use super::order::{Step, Tile};
use crate::gpu::hopper;
use crate::gpu::ptx::I32;
use crate::mlir::emit::{Cmp, Elem, Emit, Val};

/// Where d, z and lse of range 0 stand among the maps; each range has three.
const RANGES: usize = 4;

/// Panels of a matrix: boxes of 64 columns.
fn boxes(e: &mut Emit, b: &Block, map: usize, to: Val, rows: i64, at: &[Val], barrier: Val) {
    for panel in 0..b.plan.panels() {
        let bytes = e.int(panel * rows * 128, I32);
        let to = e.add(to, bytes);
        let mut all = vec![e.int(panel * PANEL, I32)];
        all.extend(at);
        hopper::copy_box(e, to, b.maps[map], &all, barrier);
    }
}

/// Tile, batch indices and step, found anew for each step: a producer has few registers and much time.
fn found(e: &mut Emit, b: &Block, number: Val, step: Val) -> (Tile, Vec<Val>, Step) {
    let number = hopper::opaque(e, number);
    let tile = b.plan.tile(e, number);
    let batch = b.batch(e, tile.point);
    let steps = b.plan.steps(e, tile);
    let step = b.plan.step(e, &steps, step);
    (tile, batch, step)
}

/// Keys and values, queries and d.
pub fn bring(e: &mut Emit, b: &Block) {
    let (plan, zero) = (b.plan, e.int(0, I32));
    b.tiles(e, &[zero], |e, number, round, carried| {
        let tile = plan.tile(e, number);
        let batch = b.batch(e, tile.point);
        let count = plan.steps(e, tile).count;
        let turn = b.turn(e, Guard::Keys, round);
        turn.wait_empty(e);
        hopper::expect_bytes(e, turn.full(), 2 * plan.key_bytes());
        let width = e.int(KEYS, I32);
        let key = e.mul(tile.keys, width);
        let at = plan.at(e, key, None, &batch);
        for (map, place) in [(1, 0), (2, plan.at_values())] {
            let to = b.address(e, place);
            boxes(e, b, map, to, KEYS, &at, turn.full());
        }
        e.for_loop(zero, count, 1, &[], |e, s, _| {
            let (_, batch, step) = found(e, b, number, s);
            let n = e.add(carried[0], s);
            let height = e.int(plan.rows, I32);
            let row = e.mul(step.rows, height);
            let at = plan.at(e, row, Some(step.group), &batch);
            for what in [Guard::Queries, Guard::D] {
                let turn = b.turn(e, what, n);
                turn.wait_empty(e);
                hopper::expect_bytes(e, turn.full(), plan.row_bytes() + plan.number_bytes());
                let is_d = matches!(what, Guard::D);
                let (matrix, numbers) = match is_d {
                    true => (plan.at_d(), plan.at_z()),
                    false => (plan.at_queries(), plan.at_lse()),
                };
                let place = |e: &mut Emit, first: i64, bytes: i64| {
                    let first = b.address(e, first);
                    let size = e.int(bytes, I32);
                    let more = e.mul(turn.stage, size);
                    e.add(first, more)
                };
                let to = place(e, matrix, plan.row_bytes());
                if !is_d {
                    boxes(e, b, 0, to, plan.rows, &at, turn.full());
                }
                let numbers = place(e, numbers, plan.number_bytes());
                for range in 0..plan.ranges.len() {
                    let copy = |e: &mut Emit| {
                        let maps = RANGES + 3 * range;
                        if is_d {
                            boxes(e, b, maps, to, plan.rows, &at, turn.full());
                        }
                        let map = b.maps[maps + if is_d { 1 } else { 2 }];
                        hopper::copy_box(e, numbers, map, &at, turn.full());
                    };
                    if plan.ranges.len() == 1 {
                        copy(e);
                        continue;
                    }
                    let this = e.int(range as i64, I32);
                    let here = e.cmp(Cmp::Eq, step.range, this);
                    e.if_then(here, &[], |e| {
                        copy(e);
                        vec![]
                    });
                }
            }
            vec![]
        });
        vec![e.add(carried[0], count)]
    });
}

/// Blocks of dq, each in its turn.
pub fn add(e: &mut Emit, b: &Block) {
    let (plan, zero) = (b.plan, e.int(0, I32));
    b.tiles(e, &[zero], |e, number, _, carried| {
        let tile = plan.tile(e, number);
        let count = plan.steps(e, tile).count;
        e.for_loop(zero, count, 1, &[], |e, s, _| {
            let (tile, batch, step) = found(e, b, number, s);
            let mine = plan.turn(e, tile, &step);
            let (groups, blocks) = (e.int(plan.g.groups, I32), e.int(plan.row_blocks(), I32));
            let at = e.mul(tile.point, groups);
            let at = e.add(at, step.group);
            let at = e.mul(at, blocks);
            let at = e.add(at, step.rows);
            let counter = e.at(b.counters, at, Elem::I32);
            let n = e.add(carried[0], s);
            let turn = b.turn(e, Guard::Dq, n);
            turn.wait_full(e);
            hopper::wait_for_count(e, counter, mine.before);
            hopper::fence_async(e);
            let height = e.int(plan.rows, I32);
            let row = e.mul(step.rows, height);
            let at = plan.at(e, row, Some(step.group), &batch);
            let is_first = e.cmp(Cmp::Eq, mine.before, zero);
            let copy = |e: &mut Emit, adds: bool| {
                for panel in 0..plan.depth / 32 {
                    let from = b.address(e, plan.at_dq() + panel * plan.rows * 128);
                    let mut all = vec![e.int(32 * panel, I32)];
                    all.extend(&at);
                    hopper::store_box(e, b.maps[3], &all, from, adds);
                }
                vec![]
            };
            e.if_else(is_first, &[], |e| copy(e, false), |e| copy(e, true));
            hopper::commit_stores(e);
            hopper::wait_stores(e, true);
            let always = e.cmp(Cmp::Eq, zero, zero);
            turn.release(e, always);
            hopper::wait_stores(e, false);
            let one = e.int(1, I32);
            let next = e.add(mine.before, one);
            let next = e.select(mine.is_last, zero, next);
            hopper::publish_count(e, counter, next);
            vec![]
        });
        vec![e.add(carried[0], count)]
    });
}
