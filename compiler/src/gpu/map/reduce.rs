//! Reductions over a row's columns by its team: one loop for all that do not need each other, then lanes, a warp by shuffles, warps through
//! shared memory, always in one order.

use ir::plan::{Expr, ExprId, Reduction, Stage};

use super::super::ptx::{self, F32, I32};
use super::super::reduction::{add, finish, identity, merge};
use super::{Map, THREADS};
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::scalar::{Columns, Point};

impl Map<'_, '_> {
    /// How many of these stages, the first of which is stage `first`, are reductions that do not need each other's results: one loop reads
    /// the row for all of them.
    pub(super) fn together(&self, stages: &[Stage], first: usize) -> usize {
        let free = |s: &Stage| {
            let reduces = matches!(s, Stage::Reduce { .. });
            reduces && !s.operands().into_iter().any(|id| self.needs(id, first))
        };
        stages.iter().take_while(|s| free(s)).count().max(1)
    }

    /// Does the value need the result of stage `first` or one behind it?
    fn needs(&self, id: ExprId, first: usize) -> bool {
        match &self.body.kernel.exprs[id] {
            Expr::Reduced(stage) => *stage >= first,
            other => other.operands().into_iter().any(|id| self.needs(id, first)),
        }
    }

    /// Reductions that do not need each other's results.
    pub(super) fn reduce(&self, e: &mut Emit, point: &mut Point, kept: &mut [Columns], stages: &[Stage]) -> Vec<Val> {
        let all: Vec<(Reduction, ExprId)> = (stages.iter())
            .filter_map(|s| match s {
                Stage::Reduce { op, value } => Some((*op, *value)),
                Stage::Store { .. } => None,
            })
            .collect();
        if self.body.single_column() {
            return all.iter().map(|(_, v)| self.body.scalar(e, point, *v)).collect();
        }
        let ty = Ty::vector(Elem::F32, self.shape.lanes as usize);
        let init: Vec<Vec<Val>> = all.iter().map(|(op, _)| identity(e, *op, ty)).collect();
        // Of several reductions one behind the other.
        let apart = |flat: &[Val]| -> Vec<Vec<Val>> {
            let mut left = flat;
            (init.iter())
                .map(|state| {
                    let (own, rest) = left.split_at(state.len());
                    left = rest;
                    own.to_vec()
                })
                .collect()
        };
        let mut more = |e: &mut Emit, cols: &mut Columns, acc: &[Val]| -> Vec<Val> {
            (all.iter().zip(apart(acc)))
                .flat_map(|((op, value), state)| {
                    let v = self.body.vector(e, point, cols, *value);
                    add(e, *op, &state, v)
                })
                .collect()
        };
        let acc = match kept {
            [] => self.columns(e, &init.concat(), |e, first, acc| {
                more(e, &mut Columns::new(first, None, None), acc)
            }),
            kept => kept.iter_mut().fold(init.concat(), |acc, cols| more(e, cols, &acc)),
        };
        (all.iter().zip(apart(&acc)))
            .map(|((op, _), acc)| self.of_team(e, *op, &acc))
            .collect()
    }

    /// What a thread's lanes have, and the threads of its team.
    fn of_team(&self, e: &mut Emit, op: Reduction, acc: &[Val]) -> Val {
        let lane = |e: &mut Emit, i: usize| acc.iter().map(|v| e.extract(*v, i)).collect::<Vec<Val>>();
        let mut state = lane(e, 0);
        for i in 1..self.shape.lanes as usize {
            let other = lane(e, i);
            state = merge(e, op, &state, &other);
        }
        let team = self.shape.team;
        if self.shape.along_points {
            if team > 1 {
                state = self.across(e, op, &state, team);
            }
            return finish(e, op, &state);
        }
        let mut bits = team.min(32) / 2;
        while bits > 0 {
            let other: Vec<Val> = state.iter().map(|x| ptx::shuffle_xor(e, *x, bits)).collect();
            state = merge(e, op, &state, &other);
            bits /= 2;
        }
        if team > 32 {
            state = self.across(e, op, &state, team / 32);
        }
        finish(e, op, &state)
    }

    /// Combines what `parts` groups of a team have, through shared memory, in the groups' order.
    fn across(&self, e: &mut Emit, op: Reduction, mine: &[Val], parts: i64) -> Vec<Val> {
        let shared = ptx::shared(e);
        let warp = e.int(32, I32);
        // Along points a part is a thread of (member, point); else a warp, whose threads all hold the same.
        let (at, base, stride) = if self.shape.along_points {
            let points = e.int(self.shape.points(), I32);
            (self.thread, e.rem(self.thread, points), self.shape.points())
        } else {
            let at = e.div(self.thread, warp);
            let team = e.int(self.shape.team, I32);
            let base = e.div(self.thread, team);
            let parts = e.int(parts, I32);
            (at, e.mul(base, parts), 1)
        };
        let mut all: Option<Vec<Val>> = None;
        for (n, x) in mine.iter().enumerate() {
            let first = e.int(n as i64 * THREADS, I32);
            let at = e.add(at, first);
            let place = e.at(shared, at, Elem::F32);
            e.store(*x, place);
        }
        ptx::barrier(e);
        for i in 0..parts {
            let mut part = vec![];
            for n in 0..mine.len() as i64 {
                let i = e.int(i * stride + n * THREADS, I32);
                let at = e.add(base, i);
                let place = e.at(shared, at, Elem::F32);
                part.push(e.load(place, F32));
            }
            all = Some(match all {
                None => part,
                Some(all) => merge(e, op, &all, &part),
            });
        }
        // Before the next reduction overwrites it.
        ptx::barrier(e);
        all.unwrap_or_default()
    }
}
