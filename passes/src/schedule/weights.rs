//! Weights as kernels read them: one buffer for each recipe, and what of stacking and scaling is done when they are loaded.

use ir::plan::{BufferKind, WeightRecipe};
use ir::{DType, Op, TensorType};

use super::view::{View, sizes};
use super::{Def, Frame, Scheduler};
use crate::attrs::int;

impl Scheduler<'_> {
    /// A checkpoint tensor in memory, packed or as it is.
    pub(super) fn weight(&mut self, names: &[String], scale: &Option<String>, ty: &TensorType, packed: bool) -> View {
        let kind = BufferKind::Weight(WeightRecipe::Tensors {
            names: names.to_vec(),
            packed,
            scale: scale.clone(),
        });
        let name = names.join(" | ") + &scale.as_ref().map_or(String::new(), |s| format!(" * {s}"));
        let buffer = self.shared_buffer(format!("{name} {} {packed}", ty.dtype), &name, ty, kind);
        View::whole(buffer, ty.dtype, sizes(&ty.shape))
    }

    pub(super) fn rope_table(&mut self, rows: i64, dim: i64, theta: f64, sin: bool) -> View {
        let name = if sin { "sin" } else { "cos" };
        let ty = TensorType::new([rows, dim / 2], DType::F32);
        let recipe = WeightRecipe::RopeTable {
            rows,
            dim,
            theta_bits: theta.to_bits(),
            sin,
        };
        let buffer = self.shared_buffer(format!("{recipe:?}"), name, &ty, BufferKind::Weight(recipe));
        View::whole(buffer, DType::F32, sizes(&ty.shape))
    }
}

/// Weights that stand one below the other are one weight, made when it is loaded.
pub(super) fn stacked<'f>(frame: &Frame<'f>, op: &Op, ty: &TensorType) -> Option<Def<'f>> {
    if op.name != "concat" || int(op, "axis") != 0 {
        return None;
    }
    let mut all = vec![];
    for v in &op.operands {
        match frame.defs.get(v) {
            Some(Def::Weight { names, scale: None, .. }) => all.extend(names.iter().cloned()),
            _ => return None,
        }
    }
    Some(Def::Weight {
        names: all,
        scale: None,
        ty: ty.clone(),
    })
}

/// A weight by another's elements is one weight, made when it is loaded.
pub(super) fn scaled<'f>(frame: &Frame<'f>, op: &Op, ty: &TensorType) -> Option<Def<'f>> {
    if op.name != "scale_columns" {
        return None;
    }
    match op.operands.iter().map(|v| frame.defs.get(v)).collect::<Vec<_>>()[..] {
        [
            Some(Def::Weight { names, scale: None, .. }),
            Some(Def::Weight {
                names: by, scale: None, ..
            }),
        ] if by.len() == 1 => Some(Def::Weight {
            names: names.clone(),
            scale: by.first().cloned(),
            ty: ty.clone(),
        }),
        _ => None,
    }
}
