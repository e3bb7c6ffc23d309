//! Hopper, where nobody has measured and the rows are known, as in a training step: the tile whose waves end first.
//!
//!     time = waves of tiles over the multiprocessors * (steps of k + end) * elements of a tile
//!
//! A step's time is the tile's pace; smaller tiles read more for each element. Where two tiles take turns, ends hide behind steps but for
//! the last one. What an end loads and stores is not looked at.

use std::collections::BTreeMap;

use ir::Size;
use ir::plan::{Contraction, Kernel};

use super::{Choice, Table};
use crate::gpu::matmul::{DEPTH, SHAPES, Shape};

/// Of an H100 and an H200.
const MULTIPROCESSORS: i64 = 132;
/// Fewer rows than these have ways of their own.
const FEW: i64 = 16;
/// An end in steps of k: 4.2 us against 0.81.
const END: f64 = 5.0;

/// A step's time for each element against the largest tile's, for left sides that lie along k and for turned ones. Measured on an H100:
/// docs/notes/2026-11-26-training-gpu.md.
const PACES: [(&str, [f64; 2]); 5] = [
    ("128x256x4c1b16", [1.0, 1.0]),
    ("128x192x5c1b16", [1.02, 1.02]),
    ("128x128x6c2b16t", [1.09, 1.2]),
    ("64x128x8c1b16t", [1.25, 1.25]),
    ("64x64x8c1b16t", [1.6, 1.6]),
];

/// A table with one line: the shape for a kernel of known rows.
pub fn by_waves(kernel: &Kernel, c: &Contraction, key: &str, target: &str) -> Option<Table> {
    let choice = Choice {
        from: Some(FEW + 1),
        to: None,
        elements: None,
        way: shape(kernel, c)?.name(),
    };
    Some(Table {
        device: None,
        target: target.to_string(),
        kernels: BTreeMap::from([(key.to_string(), vec![choice])]),
    })
}

/// The shape for known rows.
pub fn shape(kernel: &Kernel, c: &Contraction) -> Option<Shape> {
    let rows = Size::product(&kernel.outer).as_const().filter(|n| *n > FEW)?;
    let columns = kernel.cols.as_const()? * (1 + i64::from(c.also.is_some()));
    best([rows, columns, c.k.as_const()?], kernel.is_turned())
}

/// `size`: rows, columns and k.
fn best(size: [i64; 3], turned: bool) -> Option<Shape> {
    let timed = |(name, paces): &(&str, [f64; 2])| {
        let shape = SHAPES.iter().find(|s| s.name() == *name)?;
        Some((time(size, shape, paces[usize::from(turned)]), *shape))
    };
    let all = PACES.iter().filter_map(timed);
    all.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|best| best.1)
}

fn time([rows, columns, k]: [i64; 3], shape: &Shape, pace: f64) -> f64 {
    let parts = |n: i64, of: i64| (n as u64).div_ceil(of as u64);
    let units = parts(rows, shape.rows * shape.cluster) * parts(columns, shape.columns);
    let waves = units.div_ceil((MULTIPROCESSORS / shape.cluster) as u64) as f64;
    let steps = parts(k, DEPTH) as f64 * pace;
    let ends = if shape.turns { 1.0 } else { waves };
    (waves * steps + ends * END) * (shape.rows * shape.columns) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_there() {
        for (name, _) in PACES {
            assert!(SHAPES.iter().any(|s| s.name() == name), "{name}");
        }
    }

    /// What was the fastest on an H100.
    #[test]
    fn as_it_was_measured() {
        let name = |size, turned| best(size, turned).unwrap().name();
        let plain = |rows, columns, k| name([rows, columns, k], false);
        let turned = |rows, columns, k| name([rows, columns, k], true);
        // Gradients of weights: one wave if there is one.
        assert_eq!(turned(1024, 3072, 8192), "128x192x5c1b16");
        assert_eq!(turned(2048, 1024, 8192), "128x128x6c2b16t");
        assert_eq!(turned(1024, 1024, 8192), "64x128x8c1b16t");
        // Of the table, by blocks of logits.
        assert_eq!(turned(151936, 1024, 2816), "128x256x4c1b16");
        assert_eq!(plain(2816, 1024, 151936), "128x192x5c1b16");
        // Many waves and short sums.
        for (columns, k) in [(3072, 1024), (2048, 1024), (1024, 1024), (1024, 2048)] {
            assert_eq!(plain(8192, columns, k), "128x128x6c2b16t");
        }
    }
}
