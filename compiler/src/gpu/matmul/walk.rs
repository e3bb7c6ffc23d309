//! Which tiles a block takes, and in which order.
//!
//! Bands of some rows, in them columns, in them rows: what runs at one time is about as high as wide, so that it reads the fewest rows and
//! columns, and they stay in the second cache. Blocks of a cluster take tiles that stand below each other.

use ir::Size;
use ir::plan::Contraction;

use super::super::hopper;
use super::super::ptx::{self, I32};
use super::Shape;
use crate::mlir::emit::{Elem, Emit, Val};
use crate::scalar::Body;

/// Rows of a band.
const BAND: i64 = 2048;

/// Tiles in the order they are walked. A unit is a cluster's tiles; all i32.
pub struct Walk {
    shape: Shape,
    /// Columns of each weight's tile.
    columns: i64,
    cluster: Val,
    clusters: Val,
    pub rank: Val,
    /// How many units are the cluster's.
    pub count: Val,
    high: Val,
    wide: Val,
}

impl Walk {
    pub fn new(e: &mut Emit, body: &Body, c: &Contraction, shape: Shape) -> Walk {
        let columns = shape.columns / (1 + i64::from(c.also.is_some()));
        let tiles_of = |e: &mut Emit, n: &Size, tile: i64| {
            let n = body.size(e, n);
            let (less, tile) = (e.i64(tile - 1), e.i64(tile));
            let n = e.add(n, less);
            let n = e.div(n, tile);
            e.truncate_int(n, Elem::I32)
        };
        let high = tiles_of(e, &Size::product(&body.kernel.outer), shape.rows * shape.cluster);
        let wide = tiles_of(e, &body.kernel.cols, columns);
        let (block, blocks, size) = (ptx::block(e), ptx::blocks(e), e.int(shape.cluster, I32));
        let (cluster, clusters) = (e.div(block, size), e.div(blocks, size));
        let rank = if shape.cluster > 1 {
            hopper::rank(e)
        } else {
            e.int(0, I32)
        };
        let all = e.mul(high, wide);
        let one = e.int(1, I32);
        let left = e.sub(all, cluster);
        let left = e.add(left, clusters);
        let left = e.sub(left, one);
        Walk {
            shape,
            columns,
            count: e.div(left, clusters),
            cluster,
            clusters,
            rank,
            high,
            wide,
        }
    }

    /// First row and column of the block's tile i.
    pub fn tile(&self, e: &mut Emit, i: Val) -> (Val, Val) {
        let at = e.mul(i, self.clusters);
        let at = e.add(at, self.cluster);
        let most = e.int(BAND / (self.shape.rows * self.shape.cluster), I32);
        let units = e.mul(most, self.wide);
        let (band, at) = (e.div(at, units), e.rem(at, units));
        let above = e.mul(band, most);
        let left = e.sub(self.high, above);
        let height = e.min(left, most);
        let (column, row) = (e.div(at, height), e.rem(at, height));
        let row = e.add(above, row);
        let size = e.int(self.shape.cluster, I32);
        let row = e.mul(row, size);
        let row = e.add(row, self.rank);
        let (height, width) = (e.int(self.shape.rows, I32), e.int(self.columns, I32));
        (e.mul(row, height), e.mul(column, width))
    }
}
