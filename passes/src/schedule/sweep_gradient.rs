//! `sweep_gradient` ops of the same operands as one kernel: dq, dk and dv need the same scores.

use ir::plan::{Range, Rows, SweepGradient};
use ir::{Attr, Op, Size};

use super::build::KernelBuilder;
use super::view::View;
use super::{Def, Frame, Scheduler};
use crate::PassError;
use crate::attrs::{float, ints};

fn of(op: &Op) -> &str {
    match op.attrs.get("of") {
        Some(Attr::Str(of)) => of,
        _ => "",
    }
}

/// Are they the same walk, whatever is asked of it?
fn alike(a: &Op, b: &Op) -> bool {
    let same = |name: &str| a.attrs.get(name) == b.attrs.get(name);
    a.name == b.name && a.operands == b.operands && ["scale", "near", "far"].into_iter().all(same)
}

impl Scheduler<'_> {
    pub(super) fn sweep_gradient(&mut self, frame: &mut Frame, op: &Op) -> Result<(), PassError> {
        let mut views = vec![];
        for v in &op.operands {
            let mut view = self.view(frame, *v)?;
            if view.strides.last() != Some(&Size::one()) && view.shape.last().and_then(Size::as_const) != Some(1) {
                view = self.copy(&view);
            }
            views.push(view);
        }
        let (q, keys, values) = (&views[0], &views[1], &views[2]);
        let rank = q.shape.len();
        let has = |d: usize| keys.shape[d].as_const() != Some(1);
        let batch = (0..rank - 2).rev().find(|d| has(*d)).map_or(0, |d| d + 1);
        let groups: Vec<usize> = (batch..rank - 2)
            .filter(|d| q.shape[*d].as_const() != Some(1))
            .collect();
        let group = match groups[..] {
            [] => None,
            [d] if q.shape[d].as_const().is_some() => Some(d),
            _ => return Err(PassError("the rows that share keys are not one known dimension".into())),
        };
        let mut shape = q.shape[..batch].to_vec();
        shape.push(values.shape[rank - 1].clone());
        let mut k = KernelBuilder::keeping_all("sweep_gradient", &shape);
        let rows = |k: &mut KernelBuilder, view: &View, of_keys: bool, written: bool| {
            let all = view.broadcast_strides(rank);
            let mut strides = all[..batch].to_vec();
            if !of_keys {
                strides.push(group.map_or(Size::from(0), |d| all[d].clone()));
            }
            strides.push(all[rank - 2].clone());
            Rows {
                arg: k.arg(view.buffer, view.dtype, written),
                offset: view.offset.clone(),
                strides,
            }
        };
        let mut asked = [None, None, None];
        for other in frame.f.ops.iter().filter(|o| alike(o, op)) {
            let to = self.temporary(frame.f.ty(other.results[0]));
            let at = ["q", "k", "v"].iter().position(|n| *n == of(other)).unwrap_or(0);
            if asked[at].is_none() {
                asked[at] = Some(to.clone());
            }
            let to = asked[at].clone().unwrap_or(to);
            frame.defs.insert(other.results[0], Def::View(to));
        }
        let (near, far) = (ints(op, "near"), ints(op, "far"));
        let ranges = near.iter().zip(&far).enumerate().map(|(i, (near, far))| {
            let [d, z, lse] = std::array::from_fn(|o| rows(&mut k, &views[3 + 3 * i + o], false, false));
            Range {
                near: *near,
                far: (*far != i64::MAX).then_some(*far),
                d,
                z,
                lse,
            }
        });
        let ranges = ranges.collect();
        let gradient = SweepGradient {
            groups: group.map_or(1, |d| q.shape[d].coef),
            tokens: q.shape[rank - 2].clone(),
            keys: keys.shape[rank - 2].clone(),
            depth: q.shape[rank - 1].coef,
            scale: (float(op, "scale") as f32).to_bits(),
            q: rows(&mut k, q, false, false),
            k: rows(&mut k, keys, true, false),
            v: rows(&mut k, values, true, false),
            ranges,
            dq: asked[0].as_ref().map(|v| rows(&mut k, v, false, true)),
            dk: asked[1].as_ref().map(|v| rows(&mut k, v, true, true)),
            dv: asked[2].as_ref().map(|v| rows(&mut k, v, true, true)),
        };
        k.sweep_gradient = Some(gradient);
        self.launch(k.finish());
        Ok(())
    }
}
