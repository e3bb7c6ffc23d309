//! One thread that fills stages, tile after tile: rows of A, then each right side's columns.

use super::super::hopper;
use super::super::pipeline::{Place, Ring};
use super::super::ptx::I32;
use super::side::{self, Side};
use super::walk::Walk;
use super::{DEPTH, Shape};
use crate::mlir::emit::{Emit, Val};

/// `sides` and their `maps`: A's, then the right sides'. `steps` of k.
pub fn run(e: &mut Emit, walk: &Walk, ring: &Ring, sides: &[Side], maps: &[Val], shape: Shape, steps: i64) {
    let (zero, end) = (e.int(0, I32), e.int(steps, I32));
    // Each block of a cluster brings so many of each right side's columns, to all blocks.
    let part = shape.columns / (maps.len() as i64 - 1) / shape.cluster;
    let part_bytes = e.int(part * DEPTH * 2, I32);
    let mine = e.mul(walk.rank, part_bytes);
    for map in maps {
        hopper::prefetch_map(e, *map);
    }
    let place = Place::first(e);
    e.for_loop(zero, walk.count, 1, &place.values(), |e, i, place| {
        let (row, column) = walk.tile(e, i);
        let columns = e.int(part, I32);
        let first = e.mul(walk.rank, columns);
        let column = e.add(column, first);
        e.for_loop(zero, end, 1, place, |e, step, place| {
            let place = Place::of(place);
            let stage = ring.stage(e, place);
            let full = stage.fill(e, shape.stage_bytes());
            let depth = e.int(DEPTH, I32);
            let k = e.mul(step, depth);
            sides[0].bring(e, stage.at, [k, row], shape.rows, &|e, to, at| {
                hopper::copy_box(e, to, maps[0], &at, full);
            });
            for (i, (right, map)) in sides.iter().zip(maps).skip(1).enumerate() {
                let behind = e.int((shape.rows + i as i64 * part * shape.cluster) * DEPTH * 2, I32);
                let to = e.add(stage.at, behind);
                let to = e.add(to, mine);
                right.bring(e, to, [k, column], part, &|e, to, at| {
                    side::copy(e, to, *map, at, full, shape.cluster);
                });
            }
            ring.advance(e, place, 1).values().to_vec()
        })
    });
}
