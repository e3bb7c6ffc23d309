//! What a segment comes to, and the kernel's stages on the results of all, in registers.

use ir::DType;
use ir::plan::{Reduction, Stage};

use super::{Block, LOWEST, State, pair};
use crate::gpu::math;
use crate::gpu::ptx::{self, F32, lane_bits};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Columns, Point, widen};

/// What a segment came to, by half (rows g and g + 8).
pub(super) struct Ended {
    /// Tile by tile of 8 columns: o / l as two f32, or, where another segment follows, as a pair of bf16.
    means: Vec<[Val; 2]>,
    lse: [Val; 2],
}

impl Block<'_, '_> {
    /// Two accumulators in f32 leave no registers for a step: only the last segment's result stays one.
    pub(super) fn ended(&self, e: &mut Emit, state: &State, is_last: bool) -> Ended {
        let nothing = e.f32(0.0, F32);
        let (mut shares, mut lse) = ([nothing; 2], [nothing; 2]);
        for half in 0..2 {
            let mut mass = state.mass[half];
            for bits in [1, 2] {
                let other = ptx::shuffle_xor(e, mass, bits);
                mass = e.add(mass, other);
            }
            let seen = e.cmp(Cmp::Lt, nothing, mass);
            let one_over = math::reciprocal(e, mass);
            shares[half] = e.select(seen, one_over, nothing);
            let log = math::log2(e, mass);
            let log = e.add(log, state.max[half]);
            let ln2 = e.f32(std::f32::consts::LN_2, F32);
            let log = e.mul(log, ln2);
            let lowest = e.f32(LOWEST, F32);
            lse[half] = e.select(seen, log, lowest);
        }
        let means = state.o.chunks(4).map(|tile| {
            [0, 1].map(|half| {
                let both = [0, 1].map(|i| e.mul(tile[2 * half + i], shares[half]));
                match is_last {
                    true => e.vector(&both),
                    false => pair(e, both[0], both[1]),
                }
            })
        });
        Ended {
            means: means.collect(),
            lse,
        }
    }

    /// The kernel's stages on each segment's o / l: rows g and g + 8 of the warp, columns 2 c and 2 c + 1 of each tile of 8.
    pub(super) fn stages(&self, e: &mut Emit, results: &[Ended]) {
        let (g, c) = (lane_bits(e, self.lane, 2, 3), lane_bits(e, self.lane, 0, 2));
        let c = e.shl(c, 1);
        let c = e.extend_signed(c, Elem::I64);
        let row = e.add(self.warp_row, g);
        let row = e.extend_signed(row, Elem::I64);
        let row = e.add(self.first, row);
        for half in 0..2 {
            let down = e.i64(8 * half);
            let row = e.add(row, down);
            let is_there = e.cmp(Cmp::Lt, row, self.rows);
            let index = self.index(e, row);
            let mut point = self.body.point(index);
            let half = half as usize;
            point.lse.extend(results.iter().map(|r| r.lse[half]));
            let columns = |e: &mut Emit, tile: i64| {
                let first = e.i64(8 * tile);
                let first = e.add(first, c);
                let mut cols = Columns::new(first, None, None);
                for (i, result) in results.iter().enumerate() {
                    let mean = result.means[tile as usize][half];
                    cols.swept.push(match i + 1 == results.len() {
                        true => mean,
                        false => unpaired(e, mean),
                    });
                }
                cols
            };
            for (i, stage) in self.body.kernel.stages.iter().enumerate() {
                self.body.hoist(e, &mut point, stage);
                match stage {
                    Stage::Reduce { op, value } => {
                        let result = self.reduce(e, &mut point, *op, *value, &columns);
                        point.reduced.insert(i, result);
                    }
                    Stage::Store { .. } => {
                        e.if_then(is_there, &[], |e| {
                            self.store(e, &mut point, stage, &columns);
                            vec![]
                        });
                    }
                }
            }
        }
    }

    fn reduce(
        &self,
        e: &mut Emit,
        point: &mut Point,
        op: Reduction,
        value: usize,
        columns: &dyn Fn(&mut Emit, i64) -> Columns,
    ) -> Val {
        let combine: fn(&mut Emit, Val, Val) -> Val = match op {
            Reduction::Sum => Emit::add,
            Reduction::Max => Emit::max,
            Reduction::LogSumExp => panic!("kernel {}: a sweep's columns are not reduced so", self.body.kernel.name),
        };
        let mut all: Option<Val> = None;
        for tile in 0..self.cols / 8 {
            let mut cols = columns(e, tile);
            let v = self.body.vector(e, point, &mut cols, value);
            let (x, y) = (e.extract(v, 0), e.extract(v, 1));
            let v = combine(e, x, y);
            all = Some(all.map_or(v, |all| combine(e, all, v)));
        }
        let mut all = all.expect("there are columns");
        for bits in [1, 2] {
            let other = ptx::shuffle_xor(e, all, bits);
            all = combine(e, all, other);
        }
        all
    }

    fn store(&self, e: &mut Emit, point: &mut Point, stage: &Stage, columns: &dyn Fn(&mut Emit, i64) -> Columns) {
        let Stage::Store { to, value, when } = stage else {
            return;
        };
        if to.strides.last().is_none_or(|s| s.coef == 0) {
            // All four threads of a row store the same.
            let value = self.body.scalar(e, point, *value);
            self.body.store_scalar(e, point, to, value);
            return;
        }
        for tile in 0..self.cols / 8 {
            let mut cols = columns(e, tile);
            let when = when.map(|w| self.body.vector(e, point, &mut cols, w));
            let value = self.body.vector(e, point, &mut cols, *value);
            self.body.store_vector(e, point, &mut cols, to, value, when);
        }
    }
}

/// The two as a vector of f32.
fn unpaired(e: &mut Emit, bits: Val) -> Val {
    let both = e.vector(&[bits]);
    let both = e.bitcast(both, Ty::vector(Elem::I16, 2));
    widen(e, both, DType::BF16)
}
