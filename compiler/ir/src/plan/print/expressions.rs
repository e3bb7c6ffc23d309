//! What stands in a kernel's lines: expressions with as few brackets as they need, memory by its indices, numbers.

use super::super::{Access, Binary, Expr, ExprId, Kernel, Unary};
use super::kernel::Body;
use crate::types::Size;

impl Kernel {
    /// Which expressions get a line of their own: those used more than once that are more than a name.
    pub(super) fn shared(&self) -> Vec<bool> {
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

impl Body<'_> {
    pub(super) fn index(&self, d: usize) -> String {
        if d == self.kernel.outer.len() {
            "j".to_string()
        } else {
            format!("i{d}")
        }
    }

    pub(super) fn access(&mut self, a: &Access, last: &str) -> String {
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

    pub(super) fn rhs(&self, arg: usize, offset: &Size, strides: &[Size], strided: &str, contiguous: &str) -> String {
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
    pub(super) fn expr(&mut self, id: ExprId, outer: u8) -> String {
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

pub(super) fn float(x: f32) -> String {
    if x != 0.0 && (x.abs() >= 1e6 || x.abs() < 1e-3) {
        format!("{x:e}")
    } else {
        format!("{x:?}")
    }
}

pub(super) fn term(name: &str, stride: &Size) -> String {
    if *stride == Size::one() {
        name.to_string()
    } else {
        format!("{name}*{stride}")
    }
}

pub(super) fn brackets(arg: usize, terms: Vec<String>) -> String {
    let inside = if terms.is_empty() {
        "0".to_string()
    } else {
        terms.join(" + ")
    };
    format!("a{arg}[{inside}]")
}
