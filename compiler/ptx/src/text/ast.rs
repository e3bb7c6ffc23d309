//! The tree of a PTX module, and its printing: `parse(print(tree)) == tree` except for lines.

use std::fmt;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    /// `.version 9.0`, `.target sm_90a`, `.address_size 64`: words as written.
    pub header: Vec<(String, String)>,
    pub variables: Vec<Variable>,
    pub functions: Vec<Function>,
}

/// A variable of a state space (`.shared`, `.global`, `.const`, `.local`, `.param`).
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    pub space: String,
    pub external: bool,
    pub align: u32,
    /// Without its dot: `b8`.
    pub ty: String,
    pub name: String,
    /// `None` for a scalar; `Some(0)` for `name[]`.
    pub count: Option<u64>,
    /// Elements; a name stands for an address.
    pub init: Vec<Operand>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub ty: String,
    pub align: u32,
    pub name: String,
    pub count: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    pub entry: bool,
    pub name: String,
    pub results: Vec<Parameter>,
    pub parameters: Vec<Parameter>,
    /// `.reqntid 128`, `.minnctapersm 1`, ...
    pub directives: Vec<(String, Vec<u64>)>,
    /// `None`: only declared.
    pub body: Option<Vec<Item>>,
    pub line: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// `.reg .b32 %r<5>;` is `("b32", "%r", Some(5))`.
    Register {
        ty: String,
        name: String,
        count: Option<u32>,
    },
    Variable(Variable),
    Label(String),
    /// `name: .branchtargets a, b;`
    Targets {
        name: String,
        targets: Vec<String>,
    },
    Block(Vec<Item>),
    Instruction(Instruction),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    pub name: String,
    pub negated: bool,
}

#[derive(Clone, Debug)]
pub struct Instruction {
    pub line: u32,
    pub guard: Option<Guard>,
    /// With its dots: `ld.global.v4.b32`.
    pub op: String,
    pub operands: Vec<Operand>,
}

impl PartialEq for Instruction {
    fn eq(&self, other: &Self) -> bool {
        (&self.guard, &self.op, &self.operands) == (&other.guard, &other.op, &other.operands)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, special register, symbol or label.
    Name(String),
    /// `name+4` outside brackets.
    Offset(String, i64),
    Int(u64),
    F32(u32),
    F64(u64),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[base+offset]`, and `[base, {x, y}, ...]` of tensor copies.
    Address {
        base: Box<Operand>,
        offset: i64,
        rest: Vec<Operand>,
    },
    /// `(a, b)` of calls.
    List(Vec<Operand>),
    /// `a|b`
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`
    Not(Box<Operand>),
}

/// `a, b, c`
struct Commas<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Commas<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, x) in self.0.iter().enumerate() {
            write!(f, "{}{x}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

fn plus(f: &mut fmt::Formatter, offset: i64) -> fmt::Result {
    if offset != 0 { write!(f, "+{offset}") } else { Ok(()) }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Operand::Name(name) => f.write_str(name),
            Operand::Offset(name, by) => write!(f, "{name}+{by}"),
            Operand::Int(value) => write!(f, "{}", *value as i64),
            Operand::F32(bits) => write!(f, "0f{bits:08X}"),
            Operand::F64(bits) => write!(f, "0d{bits:016X}"),
            Operand::Vector(all) => write!(f, "{{{}}}", Commas(all)),
            Operand::List(all) => write!(f, "({})", Commas(all)),
            Operand::Pair(a, b) => write!(f, "{a}|{b}"),
            Operand::Not(a) => write!(f, "!{a}"),
            Operand::Address { base, offset, rest } => {
                write!(f, "[{base}")?;
                plus(f, *offset)?;
                rest.iter().try_for_each(|r| write!(f, ", {r}"))?;
                f.write_str("]")
            }
        }
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let Some(Guard { name, negated }) = &self.guard {
            write!(f, "@{}{name} ", if *negated { "!" } else { "" })?;
        }
        f.write_str(&self.op)?;
        if !self.operands.is_empty() {
            write!(f, " {}", Commas(&self.operands))?;
        }
        f.write_str(";")
    }
}

fn count(f: &mut fmt::Formatter, count: Option<u64>) -> fmt::Result {
    match count {
        None => Ok(()),
        Some(0) => f.write_str("[]"),
        Some(n) => write!(f, "[{n}]"),
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.external {
            f.write_str(".extern ")?;
        }
        write!(f, ".{} .align {} .{} {}", self.space, self.align, self.ty, self.name)?;
        count(f, self.count)?;
        match (&self.init[..], self.count) {
            ([], _) => {}
            ([one], None) => write!(f, " = {one}")?,
            (all, _) => write!(f, " = {{{}}}", Commas(all))?,
        }
        f.write_str(";")
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, ".param .align {} .{} {}", self.align, self.ty, self.name)?;
        count(f, self.count)
    }
}

fn items(f: &mut fmt::Formatter, all: &[Item]) -> fmt::Result {
    for item in all {
        match item {
            Item::Register { ty, name, count: None } => writeln!(f, ".reg .{ty} {name};")?,
            Item::Register {
                ty,
                name,
                count: Some(n),
            } => writeln!(f, ".reg .{ty} {name}<{n}>;")?,
            Item::Variable(v) => writeln!(f, "{v}")?,
            Item::Label(name) => writeln!(f, "{name}:")?,
            Item::Targets { name, targets } => writeln!(f, "{name}: .branchtargets {};", targets.join(", "))?,
            Item::Block(inner) => {
                f.write_str("{\n")?;
                items(f, inner)?;
                f.write_str("}\n")?;
            }
            Item::Instruction(i) => writeln!(f, "{i}")?,
        }
    }
    Ok(())
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(if self.entry { ".entry " } else { ".func " })?;
        if !self.results.is_empty() {
            write!(f, "({}) ", Commas(&self.results))?;
        }
        write!(f, "{}({})", self.name, Commas(&self.parameters))?;
        for (name, values) in &self.directives {
            write!(f, " .{name} {}", Commas(values))?;
        }
        match &self.body {
            None => f.write_str(";\n"),
            Some(body) => {
                f.write_str("\n{\n")?;
                items(f, body)?;
                f.write_str("}\n")
            }
        }
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (name, value) in &self.header {
            writeln!(f, ".{name} {value}")?;
        }
        self.variables.iter().try_for_each(|v| writeln!(f, "{v}"))?;
        self.functions.iter().try_for_each(|x| write!(f, "{x}"))
    }
}
