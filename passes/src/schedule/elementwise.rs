//! Chains of element-wise ops as one kernel: an op waits if its only reader is element-wise too.

use std::collections::HashMap;

use ir::plan::{Binary, ExprId, Unary};
use ir::{Attr, DType, Function, Op, ValueId};

use super::build::KernelBuilder;
use super::view::{View, sizes};
use super::{Def, Frame, Scheduler, float, int};
use crate::PassError;

/// How values are read.
pub struct Uses {
    /// Readers of a value; a return counts as one that is not element-wise.
    count: HashMap<ValueId, usize>,
    all_elementwise: HashMap<ValueId, bool>,
}

pub fn uses(f: &Function) -> Uses {
    let mut uses = Uses {
        count: HashMap::new(),
        all_elementwise: HashMap::new(),
    };
    let mut read = |v: ValueId, elementwise: bool| {
        *uses.count.entry(v).or_insert(0) += 1;
        *uses.all_elementwise.entry(v).or_insert(true) &= elementwise;
    };
    for op in &f.ops {
        op.operands.iter().for_each(|v| read(*v, is_elementwise(&op.name)));
    }
    f.returns.iter().for_each(|(_, v)| read(*v, false));
    uses
}

impl Uses {
    /// May the op's readers compute it themselves? Constants and masks cost next to nothing, others are computed once.
    pub fn can_wait(&self, op: &Op) -> bool {
        let v = op.results[0];
        let cheap = matches!(op.name.as_str(), "constant" | "mask");
        self.all_elementwise.get(&v) == Some(&true) && (cheap || self.count.get(&v) == Some(&1))
    }
}

pub fn is_elementwise(name: &str) -> bool {
    unary(name).is_some() || binary(name).is_some() || matches!(name, "cast" | "where" | "mask" | "constant")
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
        "mul" => Binary::Mul,
        "div" => Binary::Div,
        "max" => Binary::Max,
        _ => return None,
    })
}

impl Scheduler<'_> {
    /// One kernel for the op and all that waits for it.
    pub(super) fn elementwise(&mut self, frame: &mut Frame, op: &Op) -> Result<View, PassError> {
        let ty = frame.f.ty(op.results[0]).clone();
        let shape = sizes(&ty.shape);
        let mut names = vec![];
        let mut k = KernelBuilder::new("", &shape);
        let value = self.expression(frame, &mut k, op, shape.len(), &mut names)?;
        let to = self.temporary(&ty);
        k.store(&to, value);
        names.dedup();
        names.truncate(4);
        let (mut kernel, launch) = k.finish(None);
        kernel.name = names.join("_");
        self.launch((kernel, launch));
        Ok(to)
    }

    /// The op's value at the kernel's point, not rounded to its type yet.
    fn expression(
        &mut self,
        frame: &mut Frame,
        k: &mut KernelBuilder,
        op: &Op,
        rank: usize,
        names: &mut Vec<String>,
    ) -> Result<ExprId, PassError> {
        if op.name != "constant" {
            names.push(op.name.clone());
        }
        if op.name == "mask" {
            return self.mask(frame, k, op, rank);
        }
        if op.name == "constant" {
            return Ok(k.float(float(op, "value")));
        }
        let mut args = vec![];
        for v in &op.operands {
            args.push(self.operand(frame, k, *v, rank, names)?);
        }
        Ok(match (unary(&op.name), binary(&op.name)) {
            (Some(u), _) => k.unary(u, args[0]),
            (_, Some(b)) => k.binary(b, args[0], args[1]),
            _ if op.name == "where" => k.select(args[0], args[1], args[2]),
            _ => args[0],
        })
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
