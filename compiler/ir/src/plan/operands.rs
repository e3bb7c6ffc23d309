//! What expressions and stages refer to, which expressions differ between columns, and the same with other numbers.

use super::{Access, Expr, ExprId, Kernel, Stage};

impl Expr {
    /// The expressions it refers to, a look-up's index included.
    pub fn operands(&self) -> Vec<ExprId> {
        match self {
            Expr::Load(a) => a.indirect.iter().map(|(e, _)| *e).collect(),
            Expr::Unary(_, a) => vec![*a],
            Expr::Binary(_, a, b) => vec![*a, *b],
            Expr::Select(c, a, b) => vec![*c, *a, *b],
            _ => vec![],
        }
    }

    /// The expression whose operands are where `now` says they are.
    pub fn with_operands(&self, now: &[ExprId]) -> Expr {
        match self {
            Expr::Load(a) => Expr::Load(moved(a, now)),
            Expr::Unary(op, a) => Expr::Unary(*op, now[*a]),
            Expr::Binary(op, a, b) => Expr::Binary(*op, now[*a], now[*b]),
            Expr::Select(c, a, b) => Expr::Select(now[*c], now[*a], now[*b]),
            leaf => leaf.clone(),
        }
    }
}

impl Stage {
    pub fn operands(&self) -> Vec<ExprId> {
        match self {
            Stage::Reduce { value, .. } => vec![*value],
            Stage::Store { to, value, when } => to
                .indirect
                .iter()
                .map(|(e, _)| *e)
                .chain([*value])
                .chain(*when)
                .collect(),
        }
    }

    /// The stage whose expressions are where `now` says they are.
    pub fn with_operands(&self, now: &[ExprId]) -> Stage {
        match self {
            Stage::Reduce { op, value } => Stage::Reduce {
                op: *op,
                value: now[*value],
            },
            Stage::Store { to, value, when } => Stage::Store {
                to: moved(to, now),
                value: now[*value],
                when: when.map(|w| now[w]),
            },
        }
    }
}

impl Kernel {
    /// Which expressions differ between columns.
    pub fn column_dependent(&self) -> Vec<bool> {
        let mut depends: Vec<bool> = vec![];
        for e in &self.exprs {
            let own = match e {
                Expr::Load(a) => a.strides.last().is_some_and(|s| s.coef != 0),
                Expr::Index(d) => *d == self.outer.len(),
                Expr::Acc | Expr::AccAlso | Expr::Swept(_) => true,
                _ => false,
            };
            let inherited = e.operands().iter().any(|&o| depends.get(o).copied().unwrap_or(false));
            depends.push(own || inherited);
        }
        depends
    }
}

fn moved(a: &Access, now: &[ExprId]) -> Access {
    Access {
        indirect: a.indirect.as_ref().map(|(e, s)| (now[*e], s.clone())),
        ..a.clone()
    }
}
