//! One kernel for a root and all that waits for it: each op becomes expressions of the kernel's point.

use ir::plan::{Binary, Expr, ExprId, Reduction, Unary};
use ir::{Attr, DType, Op, Size, ValueId};

use super::build::KernelBuilder;
use super::view::{View, sizes};
use super::{Def, Frame, Scheduler};
use crate::PassError;
use crate::attrs::{float, int};

pub fn is_elementwise(name: &str) -> bool {
    unary(name).is_some()
        || binary(name).is_some()
        || matches!(name, "cast" | "where" | "mask" | "constant" | "one_hot" | "is_target")
}

fn unary(name: &str) -> Option<Unary> {
    Some(match name {
        "neg" => Unary::Neg,
        "exp" => Unary::Exp,
        "log" => Unary::Log,
        "rsqrt" => Unary::Rsqrt,
        "sigmoid" => Unary::Sigmoid,
        "silu" => Unary::Silu,
        _ => return None,
    })
}

fn binary(name: &str) -> Option<Binary> {
    Some(match name {
        "add" => Binary::Add,
        "sub" => Binary::Sub,
        "mul" | "scale_columns" => Binary::Mul,
        "div" => Binary::Div,
        "max" => Binary::Max,
        _ => return None,
    })
}

impl Scheduler<'_> {
    /// The kernel whose root is `op`.
    pub(super) fn kernel(&mut self, frame: &mut Frame, op: &Op) -> Result<View, PassError> {
        let root = op.results[0];
        let ty = frame.f.ty(root).clone();
        let shape = sizes(&ty.shape);
        let mut names = vec![];
        let mut k = if frame.groups().is_heavy(root) {
            KernelBuilder::keeping_columns("", &shape)
        } else {
            KernelBuilder::new("", &shape)
        };
        let value = self.expression(frame, &mut k, op, shape.len(), &mut names)?;
        let to = match op.name.as_str() {
            "update" => match self.view(frame, op.operands[0])? {
                state if self.is_state(&state) => {
                    frame.panels.retain(|(from, _)| from.buffer != state.buffer);
                    state
                }
                _ => self.temporary(&ty),
            },
            _ => self.placed(frame, root, &ty),
        };
        if self.options.epilogues && k.contraction.as_ref().is_some_and(|c| c.batch == 0 && c.also.is_none()) {
            self.rows_of_logits(frame, &mut k, root, value)?;
        }
        let mut strides = to.broadcast_strides(shape.len());
        if frame.groups().is_heavy(root) {
            // A contraction's columns have a stride even if there is one.
            *strides.last_mut().expect("a matmul has columns") = Size::one();
        }
        k.store_at(&to, &strides, None, value, None);
        if names.is_empty() {
            names.push(op.name.clone());
        }
        names.dedup();
        names.truncate(4);
        k.rename(&names.join("_"));
        self.launch(k.finish());
        Ok(to)
    }

    /// The op's value at the kernel's point, not rounded to its type yet.
    pub(super) fn expression(
        &mut self,
        frame: &mut Frame,
        k: &mut KernelBuilder,
        op: &Op,
        rank: usize,
        names: &mut Vec<String>,
    ) -> Result<ExprId, PassError> {
        if let Some(known) = k.value(op.results[0]) {
            return Ok(known);
        }
        let value = match op.name.as_str() {
            "constant" => k.float(float(op, "value")),
            "mask" => self.mask(frame, k, op, rank)?,
            "one_hot" | "is_target" => self.targets(frame, k, op, rank)?,
            "mean" => {
                names.push("sweep".to_string());
                self.swept(frame, k, op)?
            }
            "matmul" => self.contract(frame, k, op, names)?,
            "update" => {
                names.push(op.name.clone());
                self.operand(frame, k, op.operands[1], rank, names)?
            }
            "rms_scale" => {
                // Of the rows that the kernel's matmul reads.
                let columns = frame
                    .f
                    .ty(op.operands[0])
                    .shape
                    .last()
                    .and_then(|d| d.size().as_const());
                let columns = columns.ok_or_else(|| PassError("rms_scale wants a known row".into()))?;
                let squares = k.expr(Expr::RowSquares);
                rms_scale(k, squares, columns, float(op, "eps"))
            }
            "reduce_sum" | "reduce_max" => {
                names.push(op.name.clone());
                let x = self.operand(frame, k, op.operands[0], rank, names)?;
                let how = if op.name == "reduce_sum" {
                    Reduction::Sum
                } else {
                    Reduction::Max
                };
                k.reduce(how, x)
            }
            name => {
                names.push(name.to_string());
                let mut args = vec![];
                for v in &op.operands {
                    args.push(self.operand(frame, k, *v, rank, names)?);
                }
                match (unary(name), binary(name)) {
                    (Some(u), _) => k.unary(u, args[0]),
                    (_, Some(b)) => k.binary(b, args[0], args[1]),
                    _ if name == "where" => k.select(args[0], args[1], args[2]),
                    _ => args[0],
                }
            }
        };
        k.remember(op.results[0], value);
        Ok(value)
    }

    fn operand(
        &mut self,
        frame: &mut Frame,
        k: &mut KernelBuilder,
        v: ValueId,
        rank: usize,
        names: &mut Vec<String>,
    ) -> Result<ExprId, PassError> {
        if let Some(Def::Lazy(op)) = frame.defs.get(&v).cloned() {
            let value = self.expression(frame, k, op, rank, names)?;
            // What a store and a load would have done.
            return match frame.f.ty(v).dtype {
                DType::BF16 => Ok(k.unary(Unary::RoundBf16, value)),
                DType::F16 => Err(PassError("f16 is a type of weights, not of values".into())),
                _ => Ok(value),
            };
        }
        let view = self.view(frame, v)?;
        Ok(k.load_broadcast(&view))
    }

    /// `one_hot`, `is_target`: the target of the kernel's row, and what the column makes of it.
    fn targets(&mut self, frame: &mut Frame, k: &mut KernelBuilder, op: &Op, rank: usize) -> Result<ExprId, PassError> {
        let targets = self.view(frame, op.operands[0])?;
        let mut strides = vec![Size::from(0); rank];
        strides[rank - 3..rank - 1].clone_from_slice(&targets.strides);
        let target = k.load(&targets, &strides, None);
        let (zero, one) = (k.float(0.0), k.float(1.0));
        if op.name == "is_target" {
            let first = k.int(0);
            let none = k.binary(Binary::Lt, target, first);
            return Ok(k.select(none, zero, one));
        }
        let column = k.index(rank - 1);
        let hit = k.binary(Binary::Eq, column, target);
        Ok(k.select(hit, one, zero))
    }

    /// Which keys a row sees; dimensions are aligned at the end of the kernel's shape.
    fn mask(&mut self, frame: &mut Frame, k: &mut KernelBuilder, op: &Op, rank: usize) -> Result<ExprId, PassError> {
        let own = frame.f.ty(op.results[0]).shape.clone();
        let t = if own[own.len() - 2].size().as_const() == Some(1) {
            k.int(0)
        } else {
            k.index(rank - 2)
        };
        let j = if own[own.len() - 1].size().as_const() == Some(1) {
            k.int(0)
        } else {
            k.index(rank - 1)
        };
        let mut p = t;
        if let Some(start) = op.operands.first() {
            let start = self.view(frame, *start)?;
            let mut strides = vec![ir::Size::from(0); rank];
            strides[rank - own.len()] = start.strides[0].clone();
            let start = k.load(&start, &strides, None);
            p = k.binary(Binary::Add, start, t);
        }
        let mut seen = k.binary(Binary::Le, j, p);
        if let Some(Attr::Int(_)) = op.attrs.get("window") {
            let window = i32::try_from(int(op, "window")).unwrap_or(i32::MAX / 2);
            let window = k.int(window);
            let edge = k.binary(Binary::Sub, p, window);
            let near = k.binary(Binary::Lt, edge, j);
            seen = k.binary(Binary::And, seen, near);
        }
        Ok(seen)
    }
}

/// rsqrt(squares / n + eps)
pub(super) fn rms_scale(k: &mut KernelBuilder, squares: ExprId, n: i64, eps: f64) -> ExprId {
    let part = k.float(1.0 / n as f64);
    let mean = k.binary(Binary::Mul, squares, part);
    let eps = k.float(eps);
    let sum = k.binary(Binary::Add, mean, eps);
    k.unary(Unary::Rsqrt, sum)
}
