//! `mean` of a chain of `sweep` ops as segments of the kernel's sweep.

use ir::plan::{Expr, ExprId, Rows, Segment, Sweep};
use ir::{Attr, Op, Size, ValueId};

use super::build::KernelBuilder;
use super::view::{View, sizes};
use super::{Def, Frame, Scheduler};
use crate::PassError;
use crate::attrs::{flag, float, int};

impl Scheduler<'_> {
    /// The op's value in the kernel, whose shape is the op's.
    pub(super) fn swept(&mut self, frame: &mut Frame, k: &mut KernelBuilder, mean: &Op) -> Result<ExprId, PassError> {
        let segment = self.segment(frame, k, mean.operands[0])?;
        Ok(k.expr(Expr::Swept(segment)))
    }

    /// One kernel for all means and masses of these queries' sweeps whose keys are there: a backward wants them in memory.
    pub(super) fn means<'f>(&mut self, frame: &mut Frame<'f>, op: &'f Op) -> Result<(), PassError> {
        let f: &'f ir::Function = frame.f;
        let maker = |v: ValueId| f.ops.iter().find(|o| o.results.first() == Some(&v));
        let streams = |o: &Op| maker(o.operands[0]).map(|s| s.operands[0]);
        let mut members = vec![];
        for o in f.ops.iter().filter(|o| matches!(o.name.as_str(), "mean" | "lse")) {
            let alone = !self.options.joined_sweeps && o.operands != op.operands;
            if !alone
                && streams(o) == streams(op)
                && !frame.defs.contains_key(&o.results[0])
                && ready(frame, o.operands[0])
            {
                members.push(o);
            }
        }
        if members.is_empty() {
            return Err(PassError("the mean of what is no sweep's state has no kernel".into()));
        }
        let state = sizes(&f.ty(op.operands[0]).shape);
        let rank = state.len();
        let mut shape = state.clone();
        shape[rank - 1] = Size::from(state[rank - 1].coef - 2);
        let mut k = KernelBuilder::keeping_columns("sweep_stored", &shape);
        for o in members {
            let ty = f.ty(o.results[0]).clone();
            let segment = self.segment(frame, &mut k, o.operands[0])?;
            let to = self.temporary(&ty);
            let mut strides = to.broadcast_strides(rank);
            let value = match o.name.as_str() {
                "mean" => {
                    strides[rank - 1] = Size::one();
                    k.expr(Expr::Swept(segment))
                }
                _ => {
                    strides[rank - 1] = Size::from(0);
                    k.expr(Expr::Lse(segment))
                }
            };
            k.store_at(&to, &strides, None, value, None);
            frame.defs.insert(o.results[0], Def::View(to));
        }
        self.launch(k.finish());
        Ok(())
    }

    fn segment(&mut self, frame: &mut Frame, k: &mut KernelBuilder, state: ValueId) -> Result<usize, PassError> {
        if let Some(known) = k.segments.get(&state) {
            return Ok(*known);
        }
        let Some(Def::Lazy(op)) = frame.defs.get(&state).cloned() else {
            return Err(PassError("the mean of what is no sweep's state has no kernel".into()));
        };
        if op.name != "sweep" {
            return Err(PassError(format!("a state made by `{}` has no kernel", op.name)));
        }
        let after = match flag(op, "continues") {
            true => Some(self.segment(frame, k, op.operands[op.operands.len() - 1])?),
            false => None,
        };
        let mut views = vec![];
        for v in &op.operands[..3] {
            let mut view = self.view(frame, *v)?;
            if view.strides.last() != Some(&Size::one()) {
                view = self.copy(&view);
            }
            views.push(view);
        }
        let (q, keys, values) = (&views[0], &views[1], &views[2]);
        let rank = q.shape.len();
        // Dimensions up to the last that keys have are batch.
        let has = |d: usize| keys.shape[d].as_const() != Some(1) && k.keeps(d);
        let batch = (0..rank - 2).rev().find(|d| has(*d)).map_or(0, |d| d + 1);
        if k.sweep.is_none() {
            let mut start = None;
            if flag(op, "starts") {
                let view = self.view(frame, op.operands[3])?;
                let mut strides = vec![Size::from(0); rank];
                strides[0] = view.strides[0].clone();
                start = Some(k.load(&view, &strides, None));
            }
            let mut strides = q.broadcast_strides(rank);
            strides[rank - 1] = Size::one();
            let access = k.access(q, &strides, None, false);
            k.sweep = Some(Sweep {
                batch: k.kept(batch),
                q: access,
                depth: q.shape[rank - 1].coef,
                tokens: k.keeps(rank - 2),
                start,
                segments: vec![],
            });
        }
        let count = keys.shape[rank - 2].clone();
        let segment = Segment {
            k: rows(k, keys, batch),
            v: rows(k, values, batch),
            keys: count,
            scale: (float(op, "scale") as f32).to_bits(),
            near: int(op, "near"),
            far: match op.attrs.get("far") {
                Some(Attr::Int(far)) => Some(*far),
                _ => None,
            },
            after,
        };
        let sweep = k.sweep.as_mut().expect("it was made above");
        if sweep.batch != k_batch(&segment) {
            return Err(PassError("sweeps of one kernel differ in their batch".into()));
        }
        sweep.segments.push(segment);
        let at = sweep.segments.len() - 1;
        k.segments.insert(state, at);
        Ok(at)
    }
}

/// Are the operands of the sweeps behind this state there? Their ops may stand behind: they wait for this kernel now.
fn ready<'f>(frame: &mut Frame<'f>, state: ValueId) -> bool {
    let f: &'f ir::Function = frame.f;
    let Some(op) = f.ops.iter().find(|o| o.results.first() == Some(&state)) else {
        return false;
    };
    let before = flag(op, "continues").then(|| op.operands[op.operands.len() - 1]);
    let there = op
        .operands
        .iter()
        .all(|v| Some(*v) == before || frame.defs.contains_key(v));
    let all = op.name == "sweep" && there && before.is_none_or(|v| ready(frame, v));
    if all {
        frame.defs.entry(state).or_insert(Def::Lazy(op));
    }
    all
}

fn k_batch(segment: &Segment) -> usize {
    segment.k.strides.len() - 1
}

/// A matrix [batch.., rows, columns] as the kernel's keys or values.
fn rows(k: &mut KernelBuilder, view: &View, batch: usize) -> Rows {
    let arg = k.arg(view.buffer, view.dtype, false);
    let rank = view.shape.len();
    let all = view.broadcast_strides(rank);
    let mut strides: Vec<Size> = (0..batch).filter(|d| k.keeps(*d)).map(|d| all[d].clone()).collect();
    strides.push(view.strides[rank - 2].clone());
    Rows {
        arg,
        offset: view.offset.clone(),
        strides,
    }
}
