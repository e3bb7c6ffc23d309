//! `matmul` as a contraction: which dimensions are batch, which are rows, and how b lies in memory.

use ir::plan::{Contraction, Expr, ExprId, Rhs};
use ir::{Op, Size};

use super::build::KernelBuilder;
use super::view::{View, sizes};
use super::{Def, Frame, Scheduler, flag};
use crate::PassError;

/// Keys with a longer k are not packed by the kernel; they are turned in memory first.
const LONGEST_KEY: i64 = 1024;

impl Scheduler<'_> {
    /// The op as the kernel's contraction; its value there. The kernel's shape is the op's.
    pub(super) fn contract(
        &mut self,
        frame: &mut Frame,
        k: &mut KernelBuilder,
        op: &Op,
        names: &mut Vec<String>,
    ) -> Result<ExprId, PassError> {
        let mut a = match frame.defs.get(&op.operands[0]) {
            // The kernel rounds what it reads.
            Some(Def::Lazy(cast)) if cast.name == "cast" => self.view(frame, cast.operands[0])?,
            _ => self.view(frame, op.operands[0])?,
        };
        let transposed = flag(op, "transpose_b");
        if a.strides.last() != Some(&Size::one()) {
            a = self.copy(&a);
        }
        let shape = sizes(&frame.f.ty(op.results[0]).shape);
        let rank = shape.len();
        let depth = a.shape[a.shape.len() - 1].clone();
        let (batch, b) = match frame.defs.get(&op.operands[1]).cloned() {
            Some(Def::Weight {
                names: tensors,
                scale,
                ty,
            }) if transposed && ty.rank() == 2 => {
                let w = self.weight(&tensors, &scale, &ty, true);
                names.push(format!("matmul_{}x{depth}", shape[rank - 1]));
                let arg = k.arg(w.buffer, w.dtype, false);
                (0, Rhs::Packed { arg })
            }
            _ => {
                let b = self.view(frame, op.operands[1])?;
                let rank = b.shape.len();
                // As [.., k, n].
                let mut perm: Vec<i64> = (0..rank as i64).collect();
                if transposed {
                    perm.swap(rank - 1, rank - 2);
                }
                let mut b = b.transposed(&perm);
                let short = depth.as_const().is_some_and(|k| k <= LONGEST_KEY);
                let k_contiguous = b.strides[rank - 2] == Size::one() && short;
                if !k_contiguous && b.strides[rank - 1] != Size::one() {
                    b = self.copy(&b);
                }
                names.push(if k_contiguous { "matmul_keys" } else { "matmul_values" }.to_string());
                right_side(k, &b, k_contiguous, &shape)
            }
        };
        // Behind the rows' strides stands k's, which is 1.
        let mut strides = a.broadcast_strides(rank);
        strides[rank - 1] = Size::one();
        let a = k.access(&a, &strides, None, false);
        if let Some(first) = &mut k.contraction {
            first.also = Some(b);
            return Ok(k.expr(Expr::AccAlso));
        }
        k.contraction = Some(Contraction {
            batch,
            k: depth,
            a,
            b,
            also: None,
        });
        Ok(k.expr(Expr::Acc))
    }
}

/// Dimensions up to the last that b has are batch; the others are rows, so that one pass over b serves them all.
fn right_side(k: &mut KernelBuilder, b: &View, k_contiguous: bool, shape: &[Size]) -> (usize, Rhs) {
    let rank = shape.len();
    let b_strides = b.broadcast_strides(rank);
    let has = |d: usize| d + b.shape.len() >= rank && b.shape[d + b.shape.len() - rank].as_const() != Some(1);
    let batch = (0..rank - 2).rev().find(|d| has(*d)).map_or(0, |d| d + 1);
    let arg = k.arg(b.buffer, b.dtype, false);
    let mut strides: Vec<Size> = (0..batch)
        .filter(|d| k.keeps(*d))
        .map(|d| b_strides[d].clone())
        .collect();
    let (k_stride, n_stride) = (&b.strides[b.strides.len() - 2], &b.strides[b.strides.len() - 1]);
    let offset = b.offset.clone();
    let rhs = if k_contiguous {
        strides.push(n_stride.clone());
        Rhs::KContiguous { arg, offset, strides }
    } else {
        strides.push(k_stride.clone());
        Rhs::NContiguous { arg, offset, strides }
    };
    (k.kept(batch), rhs)
}
