//! `matmul` as a contraction: which dimensions are batch, which are rows, and how b lies in memory.

use ir::plan::{Contraction, Expr, Rhs};
use ir::{Op, Size, TensorType};

use super::build::KernelBuilder;
use super::view::View;
use super::{Def, Frame, Scheduler, flag};
use crate::PassError;

/// Keys with a longer k are not packed by the kernel; they are turned in memory first.
const LONGEST_KEY: i64 = 1024;

impl Scheduler<'_> {
    pub(super) fn matmul(&mut self, frame: &mut Frame, op: &Op, ty: &TensorType) -> Result<View, PassError> {
        let mut a = self.view(frame, op.operands[0])?;
        let transposed = flag(op, "transpose_b");
        if a.strides.last() != Some(&Size::one()) {
            a = self.copy(&a);
        }
        let to = self.temporary(ty);
        let k = a.shape[a.shape.len() - 1].clone();
        let n = to.shape[to.shape.len() - 1].clone();
        match frame.defs.get(&op.operands[1]).cloned() {
            Some(Def::Weight { name, ty }) if transposed && ty.rank() == 2 => {
                let w = self.weight(&name, &ty, true);
                let mut builder = KernelBuilder::keeping_columns(&format!("matmul_{n}x{k}"), &to.shape);
                let arg = builder.arg(w.buffer, w.dtype, false);
                self.contract(builder, 0, &a, &k, Rhs::Packed { arg }, &to);
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
                let short = k.as_const().is_some_and(|k| k <= LONGEST_KEY);
                let k_contiguous = b.strides[rank - 2] == Size::one() && short;
                if !k_contiguous && b.strides[rank - 1] != Size::one() {
                    b = self.copy(&b);
                }
                self.batched(&a, &b, k_contiguous, &k, &to);
            }
        }
        Ok(to)
    }

    /// Dimensions up to the last that b has are batch; the others are rows, so that one pass over b serves them all.
    fn batched(&mut self, a: &View, b: &View, k_contiguous: bool, k: &Size, to: &View) {
        let rank = to.shape.len();
        let b_strides = b.broadcast_strides(rank);
        let has = |d: usize| d + b.shape.len() >= rank && b.shape[d + b.shape.len() - rank].as_const() != Some(1);
        let batch = (0..rank - 2).rev().find(|d| has(*d)).map_or(0, |d| d + 1);
        let kept = to.shape[..batch].iter().filter(|n| n.as_const() != Some(1)).count();
        let mut builder =
            KernelBuilder::keeping_columns(if k_contiguous { "matmul_keys" } else { "matmul_values" }, &to.shape);
        let arg = builder.arg(b.buffer, b.dtype, false);
        let real = |list: &[Size]| -> Vec<Size> {
            list.iter()
                .zip(&to.shape)
                .filter(|(_, n)| n.as_const() != Some(1))
                .map(|(s, _)| s.clone())
                .collect()
        };
        let mut strides = real(&b_strides[..batch]);
        let (k_stride, n_stride) = (&b.strides[b.strides.len() - 2], &b.strides[b.strides.len() - 1]);
        let offset = b.offset.clone();
        let rhs = if k_contiguous {
            strides.push(n_stride.clone());
            Rhs::KContiguous { arg, offset, strides }
        } else {
            strides.push(k_stride.clone());
            Rhs::NContiguous { arg, offset, strides }
        };
        self.contract(builder, kept, a, k, rhs, to);
    }

    fn contract(&mut self, mut builder: KernelBuilder, batch: usize, a: &View, k: &Size, b: Rhs, to: &View) {
        let rank = to.shape.len();
        // Behind the rows' strides stands k's, which is 1.
        let mut strides = a.broadcast_strides(rank);
        strides[rank - 1] = Size::one();
        let mut access = builder.access(a, &strides, None, false);
        let acc = builder.expr(Expr::Acc);
        let mut strides = to.strides.clone();
        strides[rank - 1] = Size::one();
        builder.store_at(to, &strides, None, acc, None);
        let (mut kernel, launch) = builder.finish(None);
        merge_rows(&mut kernel, &mut access, batch);
        kernel.contraction = Some(Contraction {
            batch,
            k: k.clone(),
            a: access,
            b,
        });
        self.launch((kernel, launch));
    }
}

/// Row dimensions that lie one behind the other in A and in the result become one.
fn merge_rows(kernel: &mut ir::plan::Kernel, a: &mut ir::plan::Access, batch: usize) {
    let mut d = kernel.outer.len();
    while d >= batch + 2 {
        d -= 1;
        let follows = |strides: &[Size]| strides[d - 1] == &strides[d] * &kernel.outer[d];
        let stores = kernel.stages.iter().all(|s| match s {
            ir::plan::Stage::Store { to, .. } => follows(&to.strides),
            ir::plan::Stage::Reduce { .. } => false,
        });
        if !stores || !follows(&a.strides) {
            continue;
        }
        let inner = kernel.outer.remove(d);
        kernel.outer[d - 1] = &kernel.outer[d - 1] * &inner;
        a.strides.remove(d - 1);
        for stage in &mut kernel.stages {
            if let ir::plan::Stage::Store { to, .. } = stage {
                to.strides.remove(d - 1);
            }
        }
    }
}
