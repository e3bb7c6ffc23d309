//! Products whose columns are reduced: one tile of columns after the other, and running results beside them.

use ir::plan::{Reduction, Stage};

use super::{Block, TILE};
use crate::gpu::epilogue::{clamped, is_per_column};
use crate::gpu::ptx::{self, F32, I32};
use crate::gpu::reduction::{add, finish, identity, merge};
use crate::mlir::emit::{Cmp, Emit, Val};

/// The running result of a reduction: a value, or maximum and mass.
#[derive(Clone)]
struct Running {
    stage: usize,
    op: Reduction,
    value: usize,
    state: Vec<Val>,
}

impl Block<'_, '_> {
    /// All columns of the block's rows: four threads a row, each with every fourth column of a tile.
    pub fn reduced(&self, e: &mut Emit) {
        let stages = &self.kernel().stages;
        let mut running = vec![];
        for (stage, s) in stages.iter().enumerate() {
            let Stage::Reduce { op, value } = s else { continue };
            let state = identity(e, *op, F32);
            running.push(Running {
                stage,
                op: *op,
                value: *value,
                state,
            });
        }
        let four = e.int(4, I32);
        let (line, quarter) = (e.div(self.tile.thread, four), e.rem(self.tile.thread, four));
        let (zero, init) = (
            e.i64(0),
            running.iter().flat_map(|r| r.state.clone()).collect::<Vec<_>>(),
        );
        let last = e.for_loop(zero, self.tile.cols, TILE, &init, |e, column, state| {
            self.product(e, column);
            let (mut point, is_there) = self.tile.row(e, line);
            stages
                .iter()
                .filter(|s| matches!(s, Stage::Reduce { .. }) || is_per_column(s))
                .for_each(|s| {
                    self.tile.body.hoist(e, &mut point, s);
                });
            let end = e.int(TILE, I32);
            let state = e.for_loop(quarter, end, 4, state, |e, at, state| {
                let wanted = self.tile.offset(e, column, at);
                let inside = e.cmp(Cmp::Lt, wanted, self.tile.cols);
                let wanted = clamped(e, wanted, self.tile.cols);
                let mut cols = self.tile.columns(e, wanted, line, at);
                let mut out = vec![];
                let mut rest = state;
                for r in &running {
                    let (mine, others) = rest.split_at(r.state.len());
                    rest = others;
                    let x = self.tile.body.vector(e, &mut point, &mut cols, r.value);
                    let x = e.extract(x, 0);
                    let next = add(e, r.op, mine, x);
                    out.extend(
                        next.iter()
                            .zip(mine)
                            .map(|(next, before)| e.select(inside, *next, *before)),
                    );
                }
                let here = e.and(inside, is_there);
                for stage in stages.iter().filter(|s| is_per_column(s)) {
                    self.tile.store(e, &mut point, &mut cols, stage, here);
                }
                out
            });
            // The next tile overwrites the sums.
            ptx::barrier(e);
            state
        });
        let (mut point, is_there) = self.tile.row(e, line);
        let mut rest = &last[..];
        for r in &running {
            let (mine, others) = rest.split_at(r.state.len());
            rest = others;
            let mut state = mine.to_vec();
            for bits in [1, 2] {
                let other: Vec<Val> = state.iter().map(|x| ptx::shuffle_xor(e, *x, bits)).collect();
                state = merge(e, r.op, &state, &other);
            }
            let result = finish(e, r.op, &state);
            point.reduced.insert(r.stage, result);
        }
        let none = e.int(0, I32);
        let first = e.cmp(Cmp::Eq, quarter, none);
        let here = e.and(first, is_there);
        for stage in stages.iter().filter(|s| !is_per_column(s)) {
            let Stage::Store { to, value, when } = stage else {
                continue;
            };
            self.tile.body.hoist(e, &mut point, stage);
            let value = self.tile.body.scalar(e, &mut point, *value);
            let here = match when {
                None => here,
                Some(when) => {
                    let when = self.tile.body.scalar(e, &mut point, *when);
                    e.and(here, when)
                }
            };
            e.if_then(here, &[], |e| {
                self.tile.body.store_scalar(e, &mut point, to, value);
                vec![]
            });
        }
    }
}
