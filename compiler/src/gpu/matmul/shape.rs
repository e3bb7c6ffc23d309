//! How a product is cut into tiles: data, from which the kernel is made.

use super::super::pipeline::BARRIERS;

/// A tile of the product, and how a block makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: i64,
    /// Of all weights together.
    pub columns: i64,
    /// Stages of shared memory.
    pub stages: i64,
    /// Blocks that share the weights' tile: each brings a part of it to all. 1: none.
    pub cluster: i64,
    /// The two consumers take whole tiles by turns, one multiplies while the other stores; else each takes half of a tile's rows.
    pub turns: bool,
    /// That a thread stores together, at most: 8 or 16.
    pub bytes: i64,
}

/// k of a stage: a row of 128 bytes, as the swizzle has it.
pub const DEPTH: i64 = 64;
/// What Hopper gives a block.
const SHARED: i64 = 227 << 10;
/// Registers of a thread for sums: more leave too little for the stages.
const SUMS: i64 = 128;

const fn shape(rows: i64, columns: i64, stages: i64, cluster: i64, turns: bool) -> Shape {
    Shape {
        rows,
        columns,
        stages,
        cluster,
        turns,
        bytes: 16,
    }
}

/// What tables and the tuner choose from (`gpu/tuning`); the first one serves where nothing is said.
pub const SHAPES: &[Shape] = &[
    shape(128, 256, 4, 1, false),
    shape(128, 128, 6, 1, true),
    shape(64, 128, 8, 1, true),
    shape(128, 256, 4, 2, false),
    shape(128, 128, 6, 2, true),
    shape(64, 256, 5, 2, true),
    shape(256, 128, 4, 2, false),
    shape(64, 64, 8, 1, true),
    shape(128, 192, 5, 1, false),
    Shape {
        bytes: 8,
        ..shape(128, 256, 4, 1, false)
    },
];

impl Shape {
    /// Rows of a consumer.
    pub fn height(&self) -> i64 {
        if self.turns { self.rows } else { self.rows / 2 }
    }

    pub fn stage_bytes(&self) -> i64 {
        (self.rows + self.columns) * DEPTH * 2
    }

    pub fn shared(&self) -> i64 {
        BARRIERS + self.stages * self.stage_bytes()
    }

    /// Can a kernel be made of it? For a pair of weights too: each has half of the columns, of which each block brings a part.
    pub fn is_possible(&self) -> bool {
        self.height() % 64 == 0
            && self.height() / 64 * self.columns / 2 <= SUMS
            && self.columns % 64 == 0
            && self.columns <= 256
            && self.columns / 2 % (8 * self.cluster) == 0
            && self.rows <= 256
            && self.shared() <= SHARED
            && 2 <= self.stages
            && self.stages <= 16
    }

    /// `128x256x4c2b16`: what its functions are called by.
    pub fn name(&self) -> String {
        let turns = if self.turns { "t" } else { "" };
        let [rows, columns, stages] = [self.rows, self.columns, self.stages];
        format!("{rows}x{columns}x{stages}c{}b{}{turns}", self.cluster, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_possible() {
        for s in SHAPES {
            assert!(s.is_possible(), "{s:?}");
        }
    }
}
