//! `matmul` as a contraction: which dimensions are batch, which are rows, and how b lies in memory.

use ir::plan::{Contraction, Expr, ExprId, MATMUL_COLS, Rhs};
use ir::{DType, Op, Size, TensorType};

use super::build::KernelBuilder;
use super::view::{View, sizes};
use super::{Def, Frame, Scheduler};
use crate::PassError;
use crate::attrs::flag;

/// Keys with a longer k are not packed by the kernel; they are turned in memory first.
const LONGEST_KEY: i64 = 1024;

/// Fewer rows than this read a right side where it lies.
const FEW_ROWS: i64 = 16;

impl Scheduler<'_> {
    /// The op as the kernel's contraction; its value there. The kernel's shape is the op's.
    pub(super) fn contract(
        &mut self,
        frame: &mut Frame,
        k: &mut KernelBuilder,
        op: &Op,
        names: &mut Vec<String>,
    ) -> Result<ExprId, PassError> {
        let a = match frame.defs.get(&op.operands[0]) {
            // The kernel rounds what it reads.
            Some(Def::Lazy(cast)) if cast.name == "cast" => self.view(frame, cast.operands[0])?,
            _ => self.view(frame, op.operands[0])?,
        };
        let transposed = flag(op, "transpose_b");
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
                if self.options.panels
                    && let Some((panels, left)) = self.runtime_panels(frame, &a, &b, &shape)
                {
                    names.push(format!("matmul_{}x{depth}", shape[shape.len() - 1]));
                    let arg = k.arg(panels.buffer, panels.dtype, false);
                    let packed_a = left.is_some();
                    let a = left.unwrap_or(a);
                    return Ok(self.contracted(k, a, packed_a, depth, (0, Rhs::Packed { arg }), shape.len()));
                }
                let short = !self.options.panels || depth.as_const().is_some_and(|k| k <= LONGEST_KEY);
                let k_contiguous = b.strides[rank - 2] == Size::one() && short;
                if !k_contiguous && b.strides[rank - 1] != Size::one() {
                    b = self.copy(&b);
                }
                let (batch, rhs) = right_side(k, &b, k_contiguous, &shape);
                names.push(match shape[shape.len() - 1].as_const() {
                    Some(n) if batch == 0 => format!("matmul_{n}x{depth}"),
                    _ if k_contiguous => "matmul_keys".to_string(),
                    _ => "matmul_values".to_string(),
                });
                (batch, rhs)
            }
        };
        Ok(self.contracted(k, a, false, depth, (batch, b), rank))
    }

    fn contracted(
        &mut self,
        k: &mut KernelBuilder,
        mut a: View,
        packed_a: bool,
        depth: Size,
        (batch, b): (usize, Rhs),
        rank: usize,
    ) -> ExprId {
        let packed = matches!(b, Rhs::Packed { .. });
        if a.strides.last() != Some(&Size::one()) && (packed || self.options.panels || !is_turned_matrix(&a)) {
            a = self.copy(&a);
        }
        // Behind the rows' strides stands k's.
        let mut strides = a.broadcast_strides(rank);
        strides[rank - 1] = a.strides.last().expect("a matrix has columns").clone();
        let a = k.access(&a, &strides, None, false);
        if let Some(first) = &mut k.contraction {
            first.also = Some(b);
            return k.expr(Expr::AccAlso);
        }
        k.contraction = Some(Contraction {
            batch,
            k: depth,
            a,
            packed_a,
            b,
            also: None,
        });
        k.expr(Expr::Acc)
    }

    /// Panels of a right side `[.., k, n]` that no load has packed, if that pays: one matrix of known size, for many rows. With them those
    /// of a left side whose rows do not lie one behind the other.
    fn runtime_panels(
        &mut self,
        frame: &mut Frame,
        a: &View,
        b: &View,
        shape: &[Size],
    ) -> Option<(View, Option<View>)> {
        let matrix = |v: &View| {
            let front = v.shape.len() - 2;
            let one = v.shape[..front].iter().all(|n| n.as_const() == Some(1));
            let known = v.shape[front..].iter().all(|n| n.as_const().is_some_and(|n| n > 0));
            (one && known).then(|| View {
                shape: v.shape[front..].to_vec(),
                strides: v.strides[front..].to_vec(),
                ..v.clone()
            })
        };
        let rows = Size::product(&shape[..shape.len() - 1]);
        let b = matrix(b).filter(|_| rows.as_const().is_none_or(|n| n >= FEW_ROWS))?;
        let left = match a.strides.last() {
            Some(last) if *last == Size::one() || a.dtype != b.dtype => None,
            _ => matrix(a),
        };
        let b = self.panels(frame, &b.transposed(&[1, 0]));
        Some((b, left.map(|a| self.panels(frame, &a))))
    }

    /// A matrix `[n, k]` in panels. One that was packed before is not packed again.
    fn panels(&mut self, frame: &mut Frame, m: &View) -> View {
        let known = frame.panels.iter().find(|(from, _)| from == m);
        if let Some((_, panels)) = known {
            return panels.clone();
        }
        let (n, k) = (m.shape[0].coef, m.shape[1].coef);
        // With one k both orders give a column the stride 1, which means that columns are k: then they must be.
        let turned = m.strides[1] == Size::one() || k == 1;
        // Whole panels, and whole units of k: more than the matrix has.
        let pair = if m.dtype == DType::BF16 { 2 } else { 1 };
        let up = |n: i64, to: i64| (n + to - 1) / to * to;
        let room = TensorType::new([up(n, MATMUL_COLS), up(k, pair)], m.dtype);
        let mut to = self.temporary(&room);
        (to.shape, to.strides) = (m.shape.clone(), vec![Size::from(k), Size::one()]);
        let order: &[i64] = if turned { &[0, 1] } else { &[1, 0] };
        let (from, place) = (m.transposed(order), to.transposed(order));
        let mut kernel = KernelBuilder::keeping_all("pack", &from.shape);
        let value = kernel.load(&from, &from.strides, None);
        kernel.store_at(&place, &place.strides, None, value, None);
        kernel.panels = true;
        self.launch(kernel.finish());
        frame.panels.push((m.clone(), to.clone()));
        to
    }
}

/// One matrix whose rows are contiguous.
fn is_turned_matrix(v: &View) -> bool {
    let (front, matrix) = v.shape.split_at(v.shape.len() - 2);
    let known = matrix.iter().all(|n| n.as_const().is_some_and(|n| n > 1));
    known && front.iter().all(|n| n.as_const() == Some(1)) && v.strides[v.shape.len() - 2] == Size::one()
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
