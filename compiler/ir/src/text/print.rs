//! Module to text.

use std::fmt::{self, Display, Formatter, Write};

use crate::graph::{Attr, Function, Module, Op, Param};

impl Display for Module {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("module {\n")?;
        for (i, function) in self.functions.iter().enumerate() {
            if i > 0 {
                f.write_char('\n')?;
            }
            write!(f, "{function}")?;
        }
        f.write_str("}\n")
    }
}

impl Display for Function {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "  func.func @{}(", self.name)?;
        for (i, (v, param)) in self.params.iter().enumerate() {
            let (kind, name) = match param {
                Param::Input(name) => ("input", name),
                Param::Weight(name) => ("weight", name),
                Param::State(name) => ("state", name),
            };
            let comma = if i + 1 < self.params.len() { "," } else { "" };
            writeln!(
                f,
                "    %{}: {} {{loop.{kind} = {}}}{comma}",
                self.value_name(*v),
                self.ty(*v),
                Quoted(name)
            )?;
        }
        let results: Vec<String> = self
            .returns
            .iter()
            .map(|(name, v)| format!("{} {{loop.name = {}}}", self.ty(*v), Quoted(name)))
            .collect();
        writeln!(f, "  ) -> ({}) {{", results.join(", "))?;
        for op in &self.ops {
            f.write_str("    ")?;
            self.fmt_op(op, f)?;
            f.write_char('\n')?;
        }
        let values: Vec<String> = self
            .returns
            .iter()
            .map(|(_, v)| format!("%{}", self.value_name(*v)))
            .collect();
        let types: Vec<String> = self.returns.iter().map(|(_, v)| self.ty(*v).to_string()).collect();
        if values.is_empty() {
            f.write_str("    return\n  }\n")
        } else {
            write!(f, "    return {} : {}\n  }}\n", values.join(", "), types.join(", "))
        }
    }
}

impl Function {
    fn fmt_op(&self, op: &Op, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, v) in op.results.iter().enumerate() {
            write!(f, "{}%{}", if i > 0 { ", " } else { "" }, self.value_name(*v))?;
        }
        if !op.results.is_empty() {
            f.write_str(" = ")?;
        }
        let list = |values: &[crate::ValueId], show: &dyn Fn(crate::ValueId) -> String| {
            values.iter().map(|v| show(*v)).collect::<Vec<_>>().join(", ")
        };
        write!(
            f,
            "\"loop.{}\"({})",
            op.name,
            list(&op.operands, &|v| format!("%{}", self.value_name(v)))
        )?;
        if !op.attrs.is_empty() {
            let attrs: Vec<String> = op.attrs.iter().map(|(k, v)| format!("{k} = {v}")).collect();
            write!(f, " {{{}}}", attrs.join(", "))?;
        }
        let ty = |v| self.ty(v).to_string();
        let results = list(&op.results, &ty);
        let results = if op.results.len() == 1 {
            results
        } else {
            format!("({results})")
        };
        write!(f, " : ({}) -> {results}", list(&op.operands, &ty))
    }
}

impl Display for Attr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Attr::Int(i) => write!(f, "{i} : i64"),
            // By its bits where decimal has no form for it.
            Attr::Float(x) if !x.is_finite() => write!(f, "0x{:016X} : f64", x.to_bits()),
            Attr::Float(x) => {
                let text = format!("{x:?}");
                let (mantissa, exponent) = text
                    .split_once('e')
                    .map_or((text.as_str(), None), |(m, e)| (m, Some(e)));
                let point = if mantissa.contains('.') { "" } else { ".0" };
                write!(f, "{mantissa}{point}")?;
                if let Some(e) = exponent {
                    write!(f, "e{e}")?;
                }
                f.write_str(" : f64")
            }
            Attr::Bool(b) => write!(f, "{b}"),
            Attr::Str(s) => write!(f, "{}", Quoted(s)),
            Attr::Ints(v) => write!(f, "{v:?}"),
            Attr::Type(t) => write!(f, "{t}"),
        }
    }
}

/// A string as MLIR writes it: `\` and two hex digits for what is not printable ASCII.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for b in self.0.bytes() {
            match b {
                b'"' | b'\\' | 0..0x20 | 0x7f.. => write!(f, "\\{b:02X}")?,
                b => f.write_char(b as char)?,
            }
        }
        f.write_char('"')
    }
}
