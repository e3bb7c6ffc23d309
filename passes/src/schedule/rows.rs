//! Ops that are one kernel each: norms, softmax, look-ups, reductions, concat. Rotated rows and caches: `rotated`; losses: `loss`.

use ir::plan::{Binary, ExprId, Reduction, Unary};
use ir::{DType, Op, Size, TensorType};

use super::build::KernelBuilder;
use super::expression::rms_scale;
use super::loss::{cross_entropy, log_sum_exp};
use super::rotated::Norm;
use super::view::View;
use super::{Def, Frame, Scheduler};
use crate::PassError;
use crate::attrs::{float, int};

/// The most negative finite f32: below every score, and no infinity minus infinity.
const LOWEST: f64 = f32::MIN as f64;

impl Scheduler<'_> {
    pub(super) fn row_op(&mut self, frame: &mut Frame, op: &Op, ty: &TensorType) -> Result<View, PassError> {
        if op.name == "cross_entropy"
            && let Some(Def::Lazy(logits)) = frame.defs.get(&op.operands[0]).cloned()
        {
            return self.joined_loss(frame, op, logits, ty);
        }
        let mut norm = None;
        let mut operands = vec![];
        for v in &op.operands {
            operands.push(match frame.defs.get(v).cloned() {
                Some(Def::Lazy(waits)) if waits.name == "rms_norm" => {
                    let w = self.view(frame, waits.operands[1])?;
                    norm = Some(Norm {
                        w,
                        eps: float(waits, "eps"),
                        rounded: frame.f.ty(*v).dtype == DType::BF16,
                    });
                    self.view(frame, waits.operands[0])?
                }
                _ => self.view(frame, *v)?,
            });
        }
        if op.name == "cache_write" {
            return self.cache_write(op, &operands);
        }
        if op.name == "scatter_rows" {
            let to = self.placed(frame, op.results[0], ty);
            self.scatter_rows(&operands[0], &operands[1], &to);
            return Ok(to);
        }
        if op.name == "concat" {
            let to = match frame.stacks.get(&op.results[0]) {
                Some(begun) => begun.clone(),
                None => self.placed(frame, op.results[0], ty),
            };
            self.concat(op, &operands, &to);
            return Ok(to);
        }
        if op.name == "rope" {
            return self.turned_rows(frame, op, &operands, norm, ty);
        }
        let to = self.placed(frame, op.results[0], ty);
        let mut k = KernelBuilder::keeping_columns(&op.name, &to.shape);
        match op.name.as_str() {
            "softmax" => softmax(&mut k, &operands[0], &to),
            "rms_norm" => rms_norm(&mut k, &operands[0], &operands[1], float(op, "eps"), &to),
            "rms_scale" => k = row_scale(&operands[0], float(op, "eps"), &to),
            "reduce_sum" => k = reduce(Reduction::Sum, int(op, "axis") as usize, &operands[0], &to),
            "reduce_max" => k = reduce(Reduction::Max, int(op, "axis") as usize, &operands[0], &to),
            "embed" => {
                let (table, tokens) = (&operands[0], &operands[1]);
                let zero = Size::from(0);
                let token = k.load(
                    tokens,
                    &[tokens.strides[0].clone(), tokens.strides[1].clone(), zero.clone()],
                    None,
                );
                let row = Some((token, table.strides[0].clone()));
                let value = k.load(table, &[zero.clone(), zero, table.broadcast_strides(2)[1].clone()], row);
                k.store(&to, value);
            }
            "take_rows" => {
                let (x, last) = (&operands[0], &operands[1]);
                let zero = Size::from(0);
                let row = k.load(last, &[last.strides[0].clone(), zero.clone(), zero.clone()], None);
                let row = Some((row, x.strides[1].clone()));
                let value = k.load(x, &[x.strides[0].clone(), zero, x.broadcast_strides(3)[2].clone()], row);
                k.store(&to, value);
            }
            "log_sum_exp" => k = log_sum_exp(&operands[0], &to),
            "arg_max" => k = self.arg_max(&operands[0], &to),
            "cross_entropy" => k = cross_entropy(&operands[0], &operands[1], &to),
            other => return Err(PassError(format!("there is no kernel for `{other}`"))),
        }
        self.launch(k.finish());
        Ok(to)
    }

    /// Zeros, then row after row: a tile owns a block of columns and walks all rows in order, so that sums have one order.
    fn scatter_rows(&mut self, x: &View, rows: &View, to: &View) {
        let mut zeros = KernelBuilder::new("zeros", &to.shape);
        let zero = zeros.float(0.0);
        zeros.store(to, zero);
        self.launch(zeros.finish());
        let width = to.shape[1].coef;
        let block = (1..=64).rev().find(|b| width % b == 0).unwrap_or(1);
        let none = || Size::from(0);
        let shape = [
            Size::from(width / block),
            x.shape[0].clone(),
            x.shape[1].clone(),
            Size::from(block),
        ];
        let mut k = KernelBuilder::keeping_all("scatter_rows", &shape);
        k.ordered = 2;
        let row = k.load(
            rows,
            &[none(), rows.strides[0].clone(), rows.strides[1].clone(), none()],
            None,
        );
        let column = &x.strides[2];
        let by_block = |stride: &Size| stride * &Size::from(block);
        let strides = [
            by_block(column),
            x.strides[0].clone(),
            x.strides[1].clone(),
            column.clone(),
        ];
        let value = k.load(x, &strides, None);
        let column = &to.strides[1];
        let place = [by_block(column), none(), none(), column.clone()];
        let to_row = || Some((row, to.strides[0].clone()));
        let sum = k.load(to, &place, to_row());
        let sum = k.binary(Binary::Add, sum, value);
        k.store_at(to, &place, to_row(), sum, None);
        self.launch(k.finish());
    }

    fn concat(&mut self, op: &Op, operands: &[View], to: &View) {
        let axis = int(op, "axis") as usize;
        let mut begin = 0;
        for part in operands {
            let n = part.shape[axis].coef;
            // A part that was written into its place is there already.
            if part.buffer != to.buffer
                && let Some(place) = to.sliced(axis, begin, Size::from(n))
            {
                self.copy_into(part, &place);
            }
            begin += n;
        }
    }
}

fn softmax(k: &mut KernelBuilder, x: &View, to: &View) {
    let x = k.load_broadcast(x);
    let max = k.reduce(Reduction::Max, x);
    let lowest = k.float(LOWEST);
    let max = k.binary(Binary::Max, max, lowest);
    let shifted = k.binary(Binary::Sub, x, max);
    let e = k.unary(Unary::Exp, shifted);
    let sum = k.reduce(Reduction::Sum, e);
    // A row that sees nothing sums to 0 and stays 0.
    let tiny = k.float(1e-30);
    let sum = k.binary(Binary::Max, sum, tiny);
    let one = k.float(1.0);
    let scale = k.binary(Binary::Div, one, sum);
    let y = k.binary(Binary::Mul, e, scale);
    k.store(to, y);
}

/// Into [.., 1], once per row.
pub(super) fn store_once(k: &mut KernelBuilder, to: &View, value: ExprId) {
    let mut strides = to.broadcast_strides(to.shape.len());
    *strides.last_mut().expect("it has a row") = Size::from(0);
    k.store_at(to, &strides, None, value, None);
}

fn rms_norm(k: &mut KernelBuilder, x: &View, w: &View, eps: f64, to: &View) {
    let n = x.shape[x.shape.len() - 1].coef;
    let x = k.load_broadcast(x);
    let square = k.binary(Binary::Mul, x, x);
    let sum = k.reduce(Reduction::Sum, square);
    let scale = rms_scale(k, sum, n, eps);
    let w = k.load_broadcast(w);
    let y = k.binary(Binary::Mul, x, scale);
    let y = k.binary(Binary::Mul, y, w);
    k.store(to, y);
}

/// An `rms_scale` of its own: once per row.
fn row_scale(x: &View, eps: f64, to: &View) -> KernelBuilder {
    let mut k = KernelBuilder::keeping_columns("rms_scale", &x.shape);
    let n = x.shape[x.shape.len() - 1].coef;
    let x = k.load(x, &x.strides, None);
    let square = k.binary(Binary::Mul, x, x);
    let sum = k.reduce(Reduction::Sum, square);
    let scale = rms_scale(&mut k, sum, n, eps);
    let mut strides = to.strides.clone();
    *strides.last_mut().expect("a row has columns") = Size::from(0);
    k.store_at(to, &strides, None, scale, None);
    k
}

/// The axis moves to the columns.
fn reduce(op: Reduction, axis: usize, x: &View, to: &View) -> KernelBuilder {
    let rank = x.shape.len();
    let mut perm: Vec<i64> = (0..rank as i64).filter(|d| *d != axis as i64).collect();
    perm.push(axis as i64);
    let x = x.transposed(&perm);
    let mut to = to.transposed(&perm);
    to.strides[rank - 1] = Size::from(0);
    let mut k = KernelBuilder::keeping_columns(
        if op == Reduction::Sum {
            "reduce_sum"
        } else {
            "reduce_max"
        },
        &x.shape,
    );
    let value = k.load(&x, &x.strides, None);
    let value = k.reduce(op, value);
    k.store_at(&to, &to.strides, None, value, None);
    k
}
