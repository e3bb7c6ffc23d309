//! One thread that fills stages, tile after tile: rows of A, then each weight's columns.

use super::super::hopper;
use super::super::pipeline::{Place, Ring};
use super::super::ptx::I32;
use super::walk::Walk;
use super::{DEPTH, Shape};
use crate::mlir::emit::{Emit, Val};

/// `maps`: A's, then the weights'. `steps` of k.
pub fn run(e: &mut Emit, walk: &Walk, ring: &Ring, maps: &[Val], shape: Shape, steps: i64) {
    let (zero, end) = (e.int(0, I32), e.int(steps, I32));
    // Each block of a cluster brings so many of each weight's columns, to all blocks.
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
            hopper::copy_box(e, stage.at, maps[0], &[k, row], full);
            for (w, map) in maps[1..].iter().enumerate() {
                let behind = e.int((shape.rows + w as i64 * part * shape.cluster) * DEPTH * 2, I32);
                let to = e.add(stage.at, behind);
                let to = e.add(to, mine);
                if shape.cluster > 1 {
                    hopper::copy_box_to_all(e, to, *map, [k, column], full, (1 << shape.cluster) - 1);
                } else {
                    hopper::copy_box(e, to, *map, &[k, column], full);
                }
            }
            ring.advance(e, place, 1).values().to_vec()
        })
    });
}
