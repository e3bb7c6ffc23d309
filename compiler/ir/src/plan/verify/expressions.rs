//! A kernel's expressions: each refers to earlier ones only, takes what they are, and names what the kernel has.

use super::super::{Binary, Expr, ExprId, Rhs, Stage, Unary};
use super::Check;
use crate::types::DType;

/// What a scalar expression is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    Int,
    Truth,
}

impl Kind {
    pub(super) fn of(dtype: DType) -> Kind {
        match dtype {
            DType::I32 => Kind::Int,
            DType::I1 => Kind::Truth,
            DType::F32 | DType::BF16 | DType::F16 => Kind::Float,
        }
    }
}

impl Check<'_> {
    pub(super) fn expr(&mut self, id: ExprId) {
        let expr = &self.kernel.exprs[id];
        let what = format!("expression {id}");
        if let Some(&late) = expr.operands().iter().find(|&&o| o >= id) {
            self.fail(format!(
                "{what} refers to expression {late}, which does not stand before it"
            ));
            self.kinds.push(None);
            return;
        }
        let kind = |e: &ExprId| self.kinds[*e];
        let mut wanted: Option<String> = None;
        let mut want = |e: &ExprId, wants: Kind| {
            if kind(e).is_some_and(|k| k != wants) {
                wanted = Some(format!(
                    "{what} takes {wants:?}, expression {e} is {:?}",
                    kind(e).unwrap_or(wants)
                ));
            }
        };
        let result = match expr {
            Expr::Load(a) => self.kernel.args.get(a.arg).map(|arg| Kind::of(arg.dtype)),
            Expr::Float(_)
            | Expr::Reduced(_)
            | Expr::Acc
            | Expr::AccAlso
            | Expr::RowSquares
            | Expr::Swept(_)
            | Expr::Lse(_) => Some(Kind::Float),
            Expr::Int(_) | Expr::Index(_) | Expr::SizeOf(_) => Some(Kind::Int),
            Expr::Unary(Unary::ToFloat, a) => {
                want(a, Kind::Int);
                Some(Kind::Float)
            }
            Expr::Unary(_, a) => {
                want(a, Kind::Float);
                Some(Kind::Float)
            }
            Expr::Binary(op, a, b) => {
                let takes = match op {
                    Binary::Rem => Some(Kind::Int),
                    Binary::And => Some(Kind::Truth),
                    Binary::Div => Some(Kind::Float),
                    _ => kind(a),
                };
                if let Some(takes) = takes {
                    want(a, takes);
                    want(b, takes);
                }
                match op {
                    Binary::Lt | Binary::Le | Binary::Eq | Binary::And => Some(Kind::Truth),
                    _ => takes,
                }
            }
            Expr::Select(c, a, b) => {
                want(c, Kind::Truth);
                if let Some(k) = kind(a) {
                    want(b, k);
                }
                kind(a)
            }
        };
        if let Some(message) = wanted {
            self.fail(message);
        }
        match expr {
            Expr::Load(a) => {
                // What a kernel writes it may read only where the same point writes: an update in place.
                let in_place = |s: &Stage| matches!(s, Stage::Store { to, .. } if self.is_one_place(to, a));
                let written = self.kernel.stages.iter().any(in_place);
                self.arg(a.arg, Some(written), &what);
                self.access(a, Some(id), &what);
            }
            Expr::Index(d) if *d > self.kernel.outer.len() => {
                self.fail(format!("{what} is the index of dimension {d}"))
            }
            Expr::Acc if self.kernel.contraction.is_none() => self.fail(format!("{what} is Acc without a contraction")),
            Expr::RowSquares
                if !self
                    .kernel
                    .contraction
                    .as_ref()
                    .is_some_and(|c| matches!(c.b, Rhs::Packed { .. })) =>
            {
                self.fail(format!("{what} is RowSquares without a contraction by a weight"));
            }
            Expr::AccAlso if self.kernel.contraction.as_ref().is_none_or(|c| c.also.is_none()) => {
                self.fail(format!("{what} is AccAlso without a second right side"));
            }
            Expr::Swept(p) | Expr::Lse(p) if self.kernel.sweep.as_ref().is_none_or(|s| *p >= s.segments.len()) => {
                self.fail(format!("{what} is segment {p} of a sweep that has none such"));
            }
            Expr::Reduced(s) if !matches!(self.kernel.stages.get(*s), Some(Stage::Reduce { .. })) => {
                self.fail(format!("{what} is the result of stage {s}, which is no reduction"));
            }
            _ => {}
        }
        self.kinds.push(result);
    }
}
