//! A worker's memory for a tile: scores and weights, keys turned and values paired, each segment's accumulator.

use ir::plan::{Kernel, Sweep};

use crate::cpu::keys::BLOCK;

/// Where things lie in a worker's scratch, in bytes.
pub struct Scratch {
    pub rows: i64,
    /// Columns of an accumulator: whole register tiles.
    pub width: i64,
    pub scores: i64,
    pub weights: i64,
    pub keys: i64,
    pub values: i64,
    pub factors: i64,
    /// Of segment 0; each has O, m, l.
    pub states: i64,
    pub state: i64,
    pub end: i64,
}

impl Scratch {
    pub fn new(kernel: &Kernel, sweep: &Sweep) -> Scratch {
        let tokens = if sweep.tokens {
            sweep.tile_tokens(&kernel.outer)
        } else {
            1
        };
        let rows = tokens * sweep.groups(&kernel.outer);
        let cols = kernel.cols.as_const().unwrap_or(1);
        let width = (cols + BLOCK - 1) / BLOCK * BLOCK;
        let mut at = 0;
        let mut take = |bytes: i64| {
            let here = at;
            at += (bytes + 63) / 64 * 64;
            here
        };
        let scores = take(rows * BLOCK * 4);
        let weights = take(rows * BLOCK * 2);
        let keys = take((sweep.depth + 1) * BLOCK * 4);
        let values = take(BLOCK / 2 * width * 4);
        let factors = take(rows * 4);
        let state = (rows * width * 4 + 2 * rows * 4 + 63) / 64 * 64;
        let states = take(state * sweep.segments.len() as i64);
        Scratch {
            rows,
            width,
            scores,
            weights,
            keys,
            values,
            factors,
            states,
            state,
            end: at,
        }
    }
}
