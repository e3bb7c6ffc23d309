//! A kernel as a loop nest: its arguments, the loops around it, and a line for each sum and stage.

use std::fmt::{self, Display, Formatter};

use super::super::{Expr, Kernel, Reduction, Rhs, Stage};

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rights = self.contraction.iter().flat_map(|c| c.rights());
        let mut packed: Vec<usize> = rights
            .filter_map(|b| match b {
                Rhs::Packed { arg } => Some(*arg),
                _ => None,
            })
            .collect();
        packed.extend(self.contraction.iter().filter(|c| c.packed_a).map(|c| c.a.arg));
        if self.panels {
            packed.extend((0..self.args.len()).filter(|i| self.args[*i].written));
        }
        let args = self.args.iter().enumerate().map(|(i, a)| {
            let how = if packed.contains(&i) { "packed " } else { "" };
            format!("{}a{i}: {how}{}", if a.written { "out " } else { "" }, a.dtype)
        });
        writeln!(f, "kernel {}({})", self.name, args.collect::<Vec<_>>().join(", "))?;
        let batch = match (&self.contraction, &self.sweep) {
            (Some(c), _) => c.batch,
            (_, Some(s)) => s.batch,
            _ if self.sweep_gradient.is_some() => self.outer.len(),
            _ => 0,
        };
        let mut indent = "  ".to_string();
        for (d, size) in self.outer.iter().enumerate() {
            let role = if d < batch { " batch" } else { "" };
            writeln!(f, "{indent}for i{d} in {size}{role}")?;
            indent.push_str("  ");
        }
        let mut body = Body {
            kernel: self,
            shared: self.shared(),
            named: vec![false; self.exprs.len()],
            lines: vec![],
        };
        if let Some(c) = &self.contraction {
            let a = body.access(&c.a, "k");
            for (name, b) in ["acc", "also"].into_iter().zip(c.rights()) {
                let b = match b {
                    Rhs::Packed { arg } => format!("a{arg}[j, k]"),
                    Rhs::KContiguous { arg, offset, strides } => body.rhs(*arg, offset, strides, "j", "k"),
                    Rhs::NContiguous { arg, offset, strides } => body.rhs(*arg, offset, strides, "k", "j"),
                };
                body.lines.push(format!("{name} = sum over k in {} of {a} * {b}", c.k));
            }
            if self.exprs.contains(&Expr::RowSquares) {
                body.lines.push(format!("squares = sum over k in {} of {a} * {a}", c.k));
            }
        }
        if let Some(s) = &self.sweep {
            body.sweep(s);
        }
        if let Some(g) = &self.sweep_gradient {
            body.sweep_gradient(g);
        }
        for (s, stage) in self.stages.iter().enumerate() {
            body.stage(s, stage);
        }
        writeln!(f, "{indent}for j in {}", self.cols)?;
        for line in body.lines {
            writeln!(f, "{indent}  {line}")?;
        }
        Ok(())
    }
}

pub(super) struct Body<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) shared: Vec<bool>,
    /// Whether the line of a shared expression is already there.
    pub(super) named: Vec<bool>,
    pub(super) lines: Vec<String>,
}

impl Body<'_> {
    fn stage(&mut self, s: usize, stage: &Stage) {
        match stage {
            Stage::Reduce { op, value } => {
                let value = self.expr(*value, 0);
                let op = match op {
                    Reduction::Sum => "sum",
                    Reduction::Max => "max",
                    Reduction::LogSumExp => "logsumexp",
                };
                self.lines.push(format!("r{s} = {op} over j of {value}"));
            }
            Stage::Store { to, value, when } => {
                let value = self.expr(*value, 0);
                let to = self.access(to, "j");
                let when = when.map(|c| format!(" when {}", self.expr(c, 0))).unwrap_or_default();
                self.lines.push(format!("{to} = {value}{when}"));
            }
        }
    }
}
