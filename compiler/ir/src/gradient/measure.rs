//! Gradients through `sweep` and `mean`, which share no single value with a gradient of its own shape: a state is a measure.
//!
//! With the state's mass Z = e^lse, what the loss sees of it is d (per unit of sum_j e^(x_j - lse) v_j) and z (per unit of mass). A
//! mean's share is d = dy, z = -dy . mean. A state that goes on in another one gets the other's, times Z / Z' <= 1. So each range of
//! keys ends with one d and one z, however many means it is part of, and its backward is that of plain flash attention:
//! with p_j = e^(x_j - lse), dv_j = p_j d, dx_j = p_j (d . v_j + z). For Loop Attention this is the two-delta form of one sweep.

use std::collections::{HashMap, HashSet};

use crate::graph::{Attr, Attrs, Function, Op, ValueId};
use crate::ops::attrs;
use crate::types::DType;

/// What the loss sees of a state: d [.., M, E] and z [.., M, 1], f32.
struct Cotangent {
    d: ValueId,
    z: ValueId,
}

/// A range of distances and what its backward needs.
#[derive(Clone)]
struct Range {
    near: i64,
    far: i64,
    d: ValueId,
    z: ValueId,
    lse: ValueId,
}

/// States on the walk back.
#[derive(Default)]
pub struct Measures {
    seen: HashMap<ValueId, Cotangent>,
    /// Ranges of sweeps over the same keys that went on from this state.
    later: HashMap<ValueId, Vec<Range>>,
}

fn try_op(f: &mut Function, name: &str, operands: &[ValueId], attrs: Attrs) -> Result<ValueId, String> {
    f.try_op(name, operands, attrs)
}

fn int(op: &Op, name: &str) -> Option<i64> {
    match op.attrs.get(name) {
        Some(Attr::Int(n)) => Some(*n),
        _ => None,
    }
}

fn flag(op: &Op, name: &str) -> bool {
    op.attrs.get(name) == Some(&Attr::Bool(true))
}

impl Measures {
    fn add(&mut self, f: &mut Function, state: ValueId, d: ValueId, z: ValueId) {
        let sum = match self.seen.remove(&state) {
            None => Cotangent { d, z },
            Some(known) => Cotangent {
                d: f.add(known.d, d),
                z: f.add(known.z, z),
            },
        };
        self.seen.insert(state, sum);
    }

    /// Through `mean`.
    pub fn mean(&mut self, f: &mut Function, op: &Op, dy: ValueId) {
        let axis = f.ty(dy).rank() as i64 - 1;
        let product = f.mul(dy, op.results[0]);
        let delta = f.reduce_sum(product, axis);
        let z = f.unary("neg", delta);
        self.add(f, op.operands[0], dy, z);
    }

    /// Through `sweep`, which `f` holds with all the ops before it: gradients of q, k, v where they are active.
    pub fn sweep(
        &mut self,
        f: &mut Function,
        op: &Op,
        active: &HashSet<ValueId>,
    ) -> Result<Vec<(ValueId, ValueId)>, String> {
        let state = op.results[0];
        let Some(Cotangent { d, z }) = self.seen.remove(&state) else {
            return Ok(vec![]);
        };
        if flag(op, "starts") {
            return Err("with a start".to_string());
        }
        let lse = mass(f, state)?;
        let mut ranges = self.later.remove(&state).unwrap_or_default();
        ranges.push(Range {
            near: int(op, "near").unwrap_or(0),
            far: int(op, "far").unwrap_or(i64::MAX),
            d,
            z,
            lse,
        });
        if flag(op, "continues") {
            let before = op.operands[op.operands.len() - 1];
            let own = mass(f, before)?;
            let difference = f.sub(own, lse);
            let part = f.unary("exp", difference);
            let (d, z) = (f.mul(d, part), f.mul(z, part));
            self.add(f, before, d, z);
            let alike = |o: &&Op| {
                o.name == "sweep"
                    && o.operands[..3] == op.operands[..3]
                    && o.attrs.get("scale") == op.attrs.get("scale")
            };
            if f.ops
                .iter()
                .filter(|o| o.results.first() == Some(&before))
                .any(|o| alike(&o))
            {
                self.later.entry(before).or_default().extend(ranges);
                return Ok(vec![]);
            }
        }
        let mut operands = op.operands[..3].to_vec();
        let dtype = f.ty(operands[0]).dtype;
        for r in &ranges {
            let d = f.cast(r.d, dtype);
            operands.extend([d, r.z, r.lse]);
        }
        let list = |g: fn(&Range) -> i64| Attr::Ints(ranges.iter().map(g).collect());
        let mut gradients = vec![];
        for (of, v) in ["q", "k", "v"].into_iter().zip(&op.operands) {
            if active.contains(v) {
                let scale = op.attrs.get("scale").cloned().unwrap_or(Attr::Float(1.0));
                let list = attrs([
                    ("of", Attr::Str(of.to_string())),
                    ("scale", scale),
                    ("near", list(|r| r.near)),
                    ("far", list(|r| r.far)),
                ]);
                let mut d = try_op(f, "sweep_gradient", &operands, list)?;
                d = f.cast(d, DType::F32);
                gradients.push((*v, d));
            }
        }
        Ok(gradients)
    }
}

/// The logarithm of a state's mass, once.
fn mass(f: &mut Function, state: ValueId) -> Result<ValueId, String> {
    let known = f.ops.iter().find(|o| o.name == "lse" && o.operands[0] == state);
    match known {
        Some(op) => Ok(op.results[0]),
        None => try_op(f, "lse", &[state], Attrs::new()),
    }
}
