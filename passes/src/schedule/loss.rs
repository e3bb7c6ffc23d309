//! The loss and what its gradient wants of logits: in the kernel of their product if it can be, else on logits in memory.

use ir::plan::{Binary, ExprId, Reduction, Unary};
use ir::{Op, Size, TensorType, ValueId};

use super::build::KernelBuilder;
use super::rows::store_once;
use super::view::{View, sizes};
use super::{Def, Frame, Scheduler};
use crate::PassError;

impl Scheduler<'_> {
    /// The loss in the kernel of its logits' matmul: the columns go by once and are never stored.
    pub(super) fn joined_loss(
        &mut self,
        frame: &mut Frame,
        op: &Op,
        logits: &Op,
        ty: &TensorType,
    ) -> Result<View, PassError> {
        let shape = sizes(&frame.f.ty(logits.results[0]).shape);
        let targets = self.view(frame, op.operands[1])?;
        let mut k = KernelBuilder::keeping_columns("", &shape);
        let mut names = vec!["cross_entropy".to_string()];
        let x = self.expression(frame, &mut k, logits, shape.len(), &mut names)?;
        k.rename(&names.join("_"));
        let nll = loss(&mut k, x, &targets);
        let to = self.placed(frame, op.results[0], ty);
        store_rows(&mut k, &to, nll);
        self.launch(k.finish());
        Ok(to)
    }

    /// What a loss and its gradient want of the rows of logits that this kernel stores: sums over the columns as they go by.
    pub(super) fn rows_of_logits(
        &mut self,
        frame: &mut Frame,
        k: &mut KernelBuilder,
        logits: ValueId,
        x: ExprId,
    ) -> Result<(), PassError> {
        let readers = frame.f.ops.iter().filter(|o| o.operands.first() == Some(&logits));
        let mut rows = vec![];
        for op in readers {
            let value = match op.name.as_str() {
                "log_sum_exp" => k.reduce(Reduction::LogSumExp, x),
                "cross_entropy" if frame.defs.contains_key(&op.operands[1]) => {
                    let targets = self.view(frame, op.operands[1])?;
                    loss(k, x, &targets)
                }
                _ => continue,
            };
            rows.push((op.results[0], value));
        }
        for (v, value) in rows {
            let mut to = self.temporary(&frame.f.ty(v).clone());
            if to.shape.len() == 3 {
                // A column of its own: [B, T, 1].
                to.shape.pop();
                to.strides.pop();
            }
            store_rows(k, &to, value);
            let ty = frame.f.ty(v).clone();
            let whole = View::whole(to.buffer, ty.dtype, sizes(&ty.shape));
            frame.defs.insert(v, Def::View(whole));
        }
        Ok(())
    }
}

/// The negative log-likelihood of the kernel's row, whose logits are x.
fn loss(k: &mut KernelBuilder, x: ExprId, targets: &View) -> ExprId {
    let row = [targets.strides[0].clone(), targets.strides[1].clone(), Size::from(0)];
    let target = k.load(targets, &row, None);
    let total = k.reduce(Reduction::LogSumExp, x);
    let column = k.index(2);
    let is_target = k.binary(Binary::Eq, column, target);
    let nothing = k.float(0.0);
    let chosen = k.select(is_target, x, nothing);
    let chosen = k.reduce(Reduction::Sum, chosen);
    let nll = k.binary(Binary::Sub, total, chosen);
    let first = k.int(0);
    let none = k.binary(Binary::Lt, target, first);
    k.select(none, nothing, nll)
}

/// Into [B, T], once per row.
fn store_rows(k: &mut KernelBuilder, to: &View, value: ExprId) {
    let row = [to.strides[0].clone(), to.strides[1].clone(), Size::from(0)];
    k.store_at(to, &row, None, value, None);
}

pub(super) fn log_sum_exp(x: &View, to: &View) -> KernelBuilder {
    let mut k = KernelBuilder::keeping_columns("log_sum_exp", &x.shape);
    let x = k.load_broadcast(x);
    let max = k.reduce(Reduction::Max, x);
    let shifted = k.binary(Binary::Sub, x, max);
    let e = k.unary(Unary::Exp, shifted);
    let sum = k.reduce(Reduction::Sum, e);
    let log = k.unary(Unary::Log, sum);
    let total = k.binary(Binary::Add, log, max);
    store_once(&mut k, to, total);
    k
}

pub(super) fn cross_entropy(logits: &View, targets: &View, to: &View) -> KernelBuilder {
    let mut k = KernelBuilder::keeping_columns("cross_entropy", &logits.shape);
    let zero = || Size::from(0);
    let x = k.load(logits, &logits.strides, None);
    let max = k.reduce(Reduction::Max, x);
    let shifted = k.binary(Binary::Sub, x, max);
    let e = k.unary(Unary::Exp, shifted);
    let sum = k.reduce(Reduction::Sum, e);
    let log = k.unary(Unary::Log, sum);
    let target = k.load(
        targets,
        &[targets.strides[0].clone(), targets.strides[1].clone(), zero()],
        None,
    );
    let first = k.int(0);
    let none = k.binary(Binary::Lt, target, first);
    let at = k.binary(Binary::Max, target, first);
    let strides = [logits.strides[0].clone(), logits.strides[1].clone(), zero()];
    let chosen = k.load(logits, &strides, Some((at, logits.strides[2].clone())));
    let total = k.binary(Binary::Add, log, max);
    let nll = k.binary(Binary::Sub, total, chosen);
    let nothing = k.float(0.0);
    let nll = k.select(none, nothing, nll);
    k.store_at(
        to,
        &[to.strides[0].clone(), to.strides[1].clone(), zero()],
        None,
        nll,
        None,
    );
    k
}
