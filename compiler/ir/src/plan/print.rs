//! The plan's text, for people: buffers, kernels as loop nests, launches. Nothing reads it back.

use std::fmt::{self, Display, Formatter, Write};

use super::{
    Access, Binary, BufferKind, Expr, ExprId, Kernel, Plan, Reduction, Rhs, Rows, Stage, Sweep, SweepGradient, Unary,
    WeightRecipe,
};
use crate::types::Size;

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {}\n\nbuffers", self.entry)?;
        let names: Vec<String> = self.buffers.iter().map(|b| b.name.clone()).collect();
        let types: Vec<String> = self
            .buffers
            .iter()
            .map(|b| format!("{}{}", b.dtype, list(&b.shape)))
            .collect();
        let width = |texts: &[String]| texts.iter().map(|t| t.chars().count()).max().unwrap_or(0);
        let (name_width, type_width) = (width(&names), width(&types));
        for ((name, ty), b) in names.iter().zip(&types).zip(&self.buffers) {
            writeln!(f, "  {name:name_width$}  {ty:type_width$}  {}", b.kind)?;
        }
        for kernel in &self.kernels {
            write!(f, "\n{kernel}")?;
        }
        writeln!(f, "\nlaunches")?;
        for (i, launch) in self.launches.iter().enumerate() {
            let kernel = &self.kernels[launch.kernel];
            let side = |written: bool| {
                let args = kernel
                    .args
                    .iter()
                    .zip(&launch.args)
                    .filter(|(a, _)| a.written == written);
                args.map(|(_, &b)| names[b].as_str()).collect::<Vec<_>>().join(", ")
            };
            writeln!(f, "  {i:3}  {} = {}({})", side(true), kernel.name, side(false))?;
        }
        Ok(())
    }
}

impl Display for BufferKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            BufferKind::Temp { slot } => write!(f, "slot {slot}"),
            BufferKind::Input(name) => write!(f, "input {name}"),
            BufferKind::Output(name) => write!(f, "output {name}"),
            BufferKind::State(name) => write!(f, "state {name}"),
            BufferKind::Weight(recipe) => write!(f, "weight {recipe}"),
        }
    }
}

impl Display for WeightRecipe {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            WeightRecipe::Tensors { names, packed, scale } => {
                write!(f, "{}", names.join(" | "))?;
                if let Some(scale) = scale {
                    write!(f, " * {scale}")?;
                }
                f.write_str(if *packed { ", packed" } else { "" })
            }
            WeightRecipe::RopeTable {
                rows,
                dim,
                theta_bits,
                sin,
            } => {
                let what = if *sin { "sin" } else { "cos" };
                write!(
                    f,
                    "{what} of {rows} positions, dim {dim}, theta {}",
                    f64::from_bits(*theta_bits)
                )
            }
        }
    }
}

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

impl Kernel {
    /// Which expressions get a line of their own: those used more than once that are more than a name.
    fn shared(&self) -> Vec<bool> {
        let mut uses = vec![0; self.exprs.len()];
        let mut count = |e: &ExprId| {
            if let Some(n) = uses.get_mut(*e) {
                *n += 1;
            }
        };
        for expr in &self.exprs {
            expr.operands().iter().for_each(&mut count);
        }
        for stage in &self.stages {
            stage.operands().iter().for_each(&mut count);
        }
        let leaf = |e: &Expr| !matches!(e, Expr::Load(_) | Expr::Unary(..) | Expr::Binary(..) | Expr::Select(..));
        self.exprs.iter().zip(uses).map(|(e, n)| n > 1 && !leaf(e)).collect()
    }
}

struct Body<'a> {
    kernel: &'a Kernel,
    shared: Vec<bool>,
    /// Whether the line of a shared expression is already there.
    named: Vec<bool>,
    lines: Vec<String>,
}

impl Body<'_> {
    fn sweep(&mut self, s: &Sweep) {
        let q = self.access(&s.q, "d");
        let mut position: Vec<String> = s.start.iter().map(|e| self.expr(*e, 4)).collect();
        if s.tokens {
            position.push(self.index(self.kernel.outer.len() - 1));
        }
        if position.is_empty() {
            position.push("0".to_string());
        }
        self.lines.push(format!("p = {}", position.join(" + ")));
        for (i, segment) in s.segments.iter().enumerate() {
            let k = self.rhs(segment.k.arg, &segment.k.offset, &segment.k.strides, "key", "d");
            let v = self.rhs(segment.v.arg, &segment.v.offset, &segment.v.strides, "key", "j");
            let far = segment.far.map(|f| format!(" < {f}")).unwrap_or_default();
            let after = segment
                .after
                .map(|a| format!(", going on from s{a}"))
                .unwrap_or_default();
            let scale = float(f32::from_bits(segment.scale));
            self.lines.push(format!(
                "s{i} = mean over key in {} with {} <= p - key{far} of {v} by exp({scale} * (sum over d in {} of {q} * {k})){after}",
                segment.keys, segment.near, s.depth
            ));
        }
    }

    fn sweep_gradient(&mut self, g: &SweepGradient) {
        let rows = |rows: &Rows, names: &[&str], last: Option<&str>| {
            let mut terms = vec![];
            if rows.offset.coef != 0 {
                terms.push(rows.offset.to_string());
            }
            let batch = rows.strides.len() - names.len();
            for (d, stride) in rows.strides.iter().enumerate().filter(|(_, s)| s.coef != 0) {
                let name = if d < batch {
                    format!("i{d}")
                } else {
                    names[d - batch].to_string()
                };
                terms.push(term(&name, stride));
            }
            terms.extend(last.map(str::to_string));
            brackets(rows.arg, terms)
        };
        let (token, key) = (&["group", "token"][..], &["key"][..]);
        self.lines.push(format!(
            "for group in {}, token in {}, key in {}",
            g.groups, g.tokens, g.keys
        ));
        let scale = float(f32::from_bits(g.scale));
        let (q, k) = (rows(&g.q, token, Some("d")), rows(&g.k, key, Some("d")));
        self.lines
            .push(format!("x = {scale} * (sum over d in {} of {q} * {k})", g.depth));
        for r in &g.ranges {
            let far = r.far.map(|f| format!(" < {f}")).unwrap_or_default();
            self.lines.push(format!("where {} <= token - key{far}", r.near));
            let (d, v) = (rows(&r.d, token, Some("j")), rows(&g.v, key, Some("j")));
            self.lines.push(format!("  p = exp(x - {})", rows(&r.lse, token, None)));
            let z = rows(&r.z, token, None);
            self.lines
                .push(format!("  dx = {scale} * p * ((sum over j of {d} * {v}) + {z})"));
            for (to, names, last, value) in [
                (&g.dq, token, "d", format!("dx * {k}")),
                (&g.dk, key, "d", format!("dx * {q}")),
                (&g.dv, key, "j", format!("p * {d}")),
            ] {
                if let Some(to) = to {
                    self.lines.push(format!("  {} += {value}", rows(to, names, Some(last))));
                }
            }
        }
    }

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

    fn index(&self, d: usize) -> String {
        if d == self.kernel.outer.len() {
            "j".to_string()
        } else {
            format!("i{d}")
        }
    }

    fn access(&mut self, a: &Access, last: &str) -> String {
        let mut terms = vec![];
        if a.offset.coef != 0 {
            terms.push(a.offset.to_string());
        }
        if let Some((e, stride)) = &a.indirect {
            let index = self.expr(*e, 9);
            terms.push(term(&index, stride));
        }
        for (d, stride) in a.strides.iter().enumerate().filter(|(_, s)| s.coef != 0) {
            let name = if d + 1 == a.strides.len() {
                last.to_string()
            } else {
                self.index(d)
            };
            terms.push(term(&name, stride));
        }
        brackets(a.arg, terms)
    }

    fn rhs(&self, arg: usize, offset: &Size, strides: &[Size], strided: &str, contiguous: &str) -> String {
        let mut terms = vec![];
        if offset.coef != 0 {
            terms.push(offset.to_string());
        }
        for (d, stride) in strides.iter().enumerate().filter(|(_, s)| s.coef != 0) {
            let name = if d + 1 == strides.len() {
                strided.to_string()
            } else {
                format!("i{d}")
            };
            terms.push(term(&name, stride));
        }
        terms.push(contiguous.to_string());
        brackets(arg, terms)
    }

    /// The text of an expression that stands where operators bind with strength `outer` (9: brackets around any operator).
    fn expr(&mut self, id: ExprId, outer: u8) -> String {
        let Some(expr) = self.kernel.exprs.get(id) else {
            return format!("<no expression {id}>");
        };
        let shared = self.shared[id];
        if shared && self.named[id] {
            return format!("x{id}");
        }
        let (text, strength) = self.write(expr);
        if shared {
            self.named[id] = true;
            self.lines.push(format!("x{id} = {text}"));
            return format!("x{id}");
        }
        if strength < outer { format!("({text})") } else { text }
    }

    fn write(&mut self, expr: &Expr) -> (String, u8) {
        const ATOM: u8 = 10;
        match expr {
            Expr::Load(a) => (self.access(a, "j"), ATOM),
            Expr::Float(bits) => (float(f32::from_bits(*bits)), ATOM),
            Expr::Int(n) => (n.to_string(), ATOM),
            Expr::Index(d) => (self.index(*d), ATOM),
            Expr::SizeOf(s) => (s.to_string(), if s.coef != 1 || s.syms.len() > 1 { 5 } else { ATOM }),
            Expr::Reduced(s) => (format!("r{s}"), ATOM),
            Expr::Acc => ("acc".to_string(), ATOM),
            Expr::AccAlso => ("also".to_string(), ATOM),
            Expr::RowSquares => ("squares".to_string(), ATOM),
            Expr::Swept(p) => (format!("s{p}"), ATOM),
            Expr::Lse(p) => (format!("lse(s{p})"), ATOM),
            Expr::Unary(Unary::Neg, a) => (format!("-{}", self.expr(*a, 9)), 6),
            Expr::Unary(op, a) => (format!("{}({})", unary(*op), self.expr(*a, 0)), ATOM),
            Expr::Binary(Binary::Max, a, b) => (format!("max({}, {})", self.expr(*a, 0), self.expr(*b, 0)), ATOM),
            Expr::Binary(op, a, b) => {
                let (sign, strength) = match op {
                    Binary::Add => ("+", 4),
                    Binary::Sub => ("-", 4),
                    Binary::Mul => ("*", 5),
                    Binary::Div => ("/", 5),
                    Binary::Rem => ("%", 5),
                    Binary::Lt => ("<", 3),
                    Binary::Le => ("<=", 3),
                    Binary::Eq => ("==", 3),
                    Binary::And => ("and", 2),
                    Binary::Max => unreachable!("written above"),
                };
                let left = self.expr(*a, strength);
                (format!("{left} {sign} {}", self.expr(*b, strength + 1)), strength)
            }
            Expr::Select(c, a, b) => {
                let c = self.expr(*c, 2);
                let a = self.expr(*a, 2);
                (format!("if {c} then {a} else {}", self.expr(*b, 2)), 1)
            }
        }
    }
}

fn unary(op: Unary) -> &'static str {
    match op {
        Unary::Neg => "neg",
        Unary::Exp => "exp",
        Unary::Log => "log",
        Unary::Rsqrt => "rsqrt",
        Unary::Sigmoid => "sigmoid",
        Unary::Silu => "silu",
        Unary::ToFloat => "float",
        Unary::RoundBf16 => "bf16",
    }
}

fn float(x: f32) -> String {
    if x != 0.0 && (x.abs() >= 1e6 || x.abs() < 1e-3) {
        format!("{x:e}")
    } else {
        format!("{x:?}")
    }
}

fn term(name: &str, stride: &Size) -> String {
    if *stride == Size::one() {
        name.to_string()
    } else {
        format!("{name}*{stride}")
    }
}

fn brackets(arg: usize, terms: Vec<String>) -> String {
    let inside = if terms.is_empty() {
        "0".to_string()
    } else {
        terms.join(" + ")
    };
    format!("a{arg}[{inside}]")
}

fn list(sizes: &[Size]) -> String {
    let mut text = String::from("[");
    for (i, s) in sizes.iter().enumerate() {
        let _ = write!(text, "{}{s}", if i > 0 { ", " } else { "" });
    }
    text + "]"
}
