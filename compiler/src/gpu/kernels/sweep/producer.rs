//! The producer of flash attention: one thread that brings queries, keys and values, in the order in which consumers take them.

use super::flash::{Block, CONSUMERS, Tile};
use super::plan::Panels;
use super::walk::{HALF, KEYS, ranges};
use crate::gpu::hopper;
use crate::gpu::ptx::I32;
use crate::mlir::emit::{Cmp, Elem, Emit, Val};

pub fn run(e: &mut Emit, b: &Block) {
    let zero = e.int(0, I32);
    b.tiles(e, &[zero], |e, number, round, carried| {
        let tile = b.tile(e, number);
        let mut count = carried[0];
        for (s, stream) in b.plan.streams.iter().enumerate() {
            let reach = b.reach(e, &tile, stream);
            for (r, (from, to)) in ranges(&stream.bounds, b.plan.shifts()).into_iter().enumerate() {
                let from = e.int(from, I32);
                let to = match to {
                    None => reach.blocks,
                    Some(to) => {
                        let to = e.int(to, I32);
                        e.min(to, reach.blocks)
                    }
                };
                count = e.for_loop(from, to, 1, &[count], |e, block, count| {
                    let back = e.int(KEYS, I32);
                    let one = e.int(1, I32);
                    let next = e.add(block, one);
                    let back = e.mul(next, back);
                    let key = e.sub(reach.top, back);
                    matrix(e, b, &tile, count[0], key, s, false);
                    // Queries come behind the first keys: those may be brought while the last tile's queries are still read.
                    if s == 0 && r == 0 {
                        let first = e.cmp(Cmp::Eq, block, zero);
                        e.if_then(first, &[], |e| {
                            queries(e, b, &tile, round);
                            vec![]
                        });
                    }
                    if b.plan.sums {
                        matrix(e, b, &tile, count[0], key, s, true);
                    }
                    vec![e.add(count[0], one)]
                })[0];
            }
        }
        vec![count]
    });
}

/// A block of keys or values, into the ring's place for the block with this number.
fn matrix(e: &mut Emit, b: &Block, tile: &Tile, count: Val, key: Val, stream: usize, values: bool) {
    let (stage, parity) = b.stage(e, count);
    let one = e.int(1, I32);
    let before = e.sub(one, parity);
    let empty = b.ring_barrier(e, stage, values, true);
    hopper::wait(e, empty, before);
    let full = b.ring_barrier(e, stage, values, false);
    let (panels, base, bytes) = if values {
        (b.plan.values, b.plan.at_values(), b.plan.value_bytes())
    } else {
        (b.plan.keys, b.plan.at_keys(), b.plan.key_bytes())
    };
    hopper::expect_bytes(e, full, bytes);
    let base = b.address(e, base);
    let size = e.int(bytes, I32);
    let at = e.mul(stage, size);
    let to = e.add(base, at);
    let outer = &b.plan.kernel.outer[..b.plan.sweep.batch];
    let mut rest = vec![key];
    rest.extend(coordinates(e, &tile.batch, outer));
    boxes(
        e,
        panels,
        b.maps[1 + 2 * stream + usize::from(values)],
        to,
        KEYS,
        &rest,
        full,
    );
}

fn queries(e: &mut Emit, b: &Block, tile: &Tile, round: Val) {
    let one = e.int(1, I32);
    let parity = e.and(round, one);
    let before = e.sub(one, parity);
    for consumer in 0..CONSUMERS {
        let empty = b.query_barrier(e, consumer, true);
        hopper::wait(e, empty, before);
        let full = b.query_barrier(e, consumer, false);
        hopper::expect_bytes(e, full, b.plan.query_bytes());
        let more = e.int(if b.plan.paired { 0 } else { consumer * HALF }, I32);
        let token = e.add(tile.token, more);
        let index = head(e, b, tile, consumer);
        let outer = &b.plan.kernel.outer[..index.len()];
        let mut rest = vec![token];
        rest.extend(coordinates(e, &index, outer));
        let to = b.address(e, consumer * b.plan.query_bytes());
        boxes(e, b.plan.keys, b.maps[0], to, HALF, &rest, full);
    }
}

/// The indices of a consumer's rows but their tokens, i64.
fn head(e: &mut Emit, b: &Block, tile: &Tile, consumer: i64) -> Vec<Val> {
    let more = e.int(if b.plan.paired { consumer } else { 0 }, I32);
    let group = e.add(tile.group, more);
    let group = e.extend_signed(group, Elem::I64);
    let outer = &b.plan.kernel.outer;
    let mut index = tile.batch.clone();
    index.extend(b.body.unravel(e, group, &outer[b.plan.sweep.batch..outer.len() - 1]));
    index
}

/// As a tensor map has them: innermost first, without those of size 1.
fn coordinates(e: &mut Emit, index: &[Val], sizes: &[ir::Size]) -> Vec<Val> {
    let wanted = index.iter().zip(sizes).filter(|(_, n)| n.as_const() != Some(1));
    wanted.rev().map(|(i, _)| e.truncate_int(*i, Elem::I32)).collect()
}

fn boxes(e: &mut Emit, panels: Panels, map: Val, to: Val, rows: i64, rest: &[Val], barrier: Val) {
    for panel in 0..panels.count() {
        let bytes = e.int(panel * panels.bytes(rows), I32);
        let to = e.add(to, bytes);
        let mut at = vec![e.int(panel * panels.width, I32)];
        at.extend(rest);
        hopper::copy_box(e, to, map, &at, barrier);
    }
}
