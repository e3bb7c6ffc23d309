//! From the tree to compact code: names become registers, literals become registers that are filled at the start, labels become
//! positions, and functions that a kernel calls are laid out behind it.
//!
//! `place` finds names and memory, the other modules one group of instructions each.

mod asynchronous;
mod code;
mod instruction;
mod memory;
mod place;
mod scalar;
mod special;
mod warp;

use std::collections::{HashMap, HashSet};

pub use code::{Code, Guard, Parameter, Written};
pub use place::{Global, globals};

use crate::op::{Constant, Op, Reg};
use crate::text::{Function, Instruction, Item, Operand, ParseError, Tree};

pub type Result<T> = std::result::Result<T, ParseError>;

/// Where a name points to.
#[derive(Clone, Copy, Debug)]
enum Symbol {
    /// Offset in the kernel's parameters.
    Param(u32),
    Local(u32),
    Shared(u32),
    /// Declared `.extern .shared`: where dynamic memory begins, known at the end.
    Dynamic,
    Global(usize),
}

/// Names of one pair of braces.
#[derive(Default)]
struct Scope {
    registers: HashMap<String, Reg>,
    symbols: HashMap<String, Symbol>,
    labels: HashMap<String, usize>,
    tables: HashMap<String, Vec<String>>,
}

/// A function that has its registers and memory, in the order of laying out.
struct Frame {
    start: usize,
    link: Reg,
    arguments: Vec<(u32, u32)>,
    results: Vec<(u32, u32)>,
}

struct Decoder<'t> {
    tree: &'t Tree,
    scopes: Vec<Scope>,
    ops: Vec<Op>,
    guards: Vec<Option<Guard>>,
    origin: Vec<u32>,
    written: Vec<Written>,
    registers: u32,
    predicates: HashSet<Reg>,
    constants: HashMap<Constant, Reg>,
    /// Labels by number; positions come when they are reached.
    labels: Vec<Option<u32>>,
    local: u32,
    shared: u32,
    /// Alignment of dynamic shared memory.
    dynamic: u32,
    dynamic_users: Vec<Reg>,
    frames: HashMap<String, Frame>,
    pending: Vec<&'t Function>,
    /// Inside the kernel itself rather than a function it calls.
    entry: bool,
    link: Option<Reg>,
    guard: Option<Guard>,
    line: u32,
    carry: Option<Reg>,
}

/// Decodes the kernel `function` with all it calls.
pub fn decode(tree: &Tree, function: &Function) -> Result<Code> {
    let mut d = Decoder {
        tree,
        scopes: vec![Scope::default()],
        ops: vec![],
        guards: vec![],
        origin: vec![],
        written: vec![],
        registers: 1,
        predicates: HashSet::new(),
        constants: HashMap::new(),
        labels: vec![],
        local: 16,
        shared: 0,
        dynamic: 16,
        dynamic_users: vec![],
        frames: HashMap::new(),
        pending: vec![],
        entry: true,
        link: None,
        guard: None,
        line: function.line,
        carry: None,
    };
    d.module_names()?;
    d.scopes.push(Scope::default());
    let (parameters, parameter_bytes) = d.kernel_parameters(function);
    let body = function
        .body
        .as_deref()
        .ok_or_else(|| d.error("a kernel without a body"))?;
    d.body(body)?;
    d.push(Op::Exit);
    d.entry = false;
    while let Some(called) = d.pending.pop() {
        d.function(called)?;
    }
    d.resolve()?;
    let dynamic_shared = d.shared.next_multiple_of(d.dynamic);
    let users = std::mem::take(&mut d.dynamic_users);
    let mut constants: Vec<(Reg, Constant)> = d.constants.iter().map(|(c, r)| (*r, *c)).collect();
    constants.extend(users.into_iter().map(|r| (r, Constant::Shared(dynamic_shared))));
    let directive = |name: &str| function.directives.iter().find(|d| d.0 == name).map(|d| &d.1);
    let three = |v: &Vec<u64>| [0, 1, 2].map(|i| v.get(i).map_or(1, |x| *x as u32));
    Ok(Code {
        name: function.name.clone(),
        registers: d.registers,
        constants,
        parameters,
        parameter_bytes,
        static_shared: d.shared,
        dynamic_shared,
        local_bytes: d.local,
        required_block: directive("reqntid").map(three),
        max_block: directive("maxntid").map(|v| v.iter().product::<u64>() as u32),
        required_cluster: directive("reqnctapercluster").map(|v| v.iter().product::<u64>() as u32),
        ops: d.ops,
        guards: d.guards,
        origin: d.origin,
        written: d.written,
    })
}

impl<'t> Decoder<'t> {
    fn error(&self, what: impl Into<String>) -> ParseError {
        ParseError {
            line: self.line,
            what: what.into(),
        }
    }

    fn push(&mut self, op: Op) {
        self.ops.push(op);
        self.guards.push(self.guard);
        self.origin.push(self.written.len().saturating_sub(1) as u32);
    }

    fn fresh(&mut self) -> Reg {
        self.registers += 1;
        self.registers - 1
    }

    fn constant(&mut self, c: Constant) -> Reg {
        if let Some(&r) = self.constants.get(&c) {
            return r;
        }
        let r = self.fresh();
        self.constants.insert(c, r);
        r
    }

    fn bits(&mut self, value: u64) -> Reg {
        self.constant(Constant::Bits(value))
    }

    fn find<T>(&self, get: impl Fn(&Scope) -> Option<T>) -> Option<T> {
        self.scopes.iter().rev().find_map(get)
    }

    /// The items of one pair of braces. Labels and variables may be used before they are met.
    fn body(&mut self, items: &'t [Item]) -> Result<()> {
        for item in items {
            match item {
                Item::Label(name) => {
                    self.labels.push(None);
                    let id = self.labels.len() - 1;
                    self.scope().labels.insert(name.clone(), id);
                }
                Item::Targets { name, targets } => {
                    self.scope().tables.insert(name.clone(), targets.clone());
                }
                Item::Register { ty, name, count } => self.declare(ty, name, *count),
                Item::Variable(v) => self.variable(v)?,
                _ => {}
            }
        }
        for item in items {
            match item {
                Item::Label(name) => {
                    let id = self.scope().labels[name];
                    self.labels[id] = Some(self.ops.len() as u32);
                }
                Item::Block(inner) => {
                    self.scopes.push(Scope::default());
                    self.body(inner)?;
                    self.scopes.pop();
                }
                Item::Instruction(i) => self.statement(i)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn statement(&mut self, i: &'t Instruction) -> Result<()> {
        self.line = i.line;
        self.written.push(Written {
            line: i.line,
            text: i.to_string(),
            name: i.op.clone(),
        });
        self.guard = match &i.guard {
            None => None,
            Some(g) => {
                let reg = self.find(|s| s.registers.get(&g.name).copied());
                let reg = reg.ok_or_else(|| self.error(format!("no register {}", g.name)))?;
                Some(Guard {
                    reg,
                    negated: g.negated,
                })
            }
        };
        let result = self.instruction(i);
        self.guard = None;
        result.map_err(|e| ParseError {
            line: i.line,
            what: format!("{} in `{i}`", e.what),
        })
    }

    fn function(&mut self, f: &'t Function) -> Result<()> {
        self.line = f.line;
        let body = f
            .body
            .as_deref()
            .ok_or_else(|| self.error(format!("function {} has no body", f.name)))?;
        self.scopes.truncate(1);
        self.scopes.push(Scope::default());
        let start = self.ops.len() as u32;
        let frame = &self.frames[&f.name];
        let (label, link) = (frame.start, frame.link);
        self.labels[label] = Some(start);
        let places: Vec<(String, u32)> = f
            .parameters
            .iter()
            .zip(&frame.arguments)
            .chain(f.results.iter().zip(&frame.results))
            .map(|(p, at)| (p.name.clone(), at.0))
            .collect();
        for (name, at) in places {
            self.scope().symbols.insert(name, Symbol::Local(at));
        }
        self.link = Some(link);
        self.body(body)?;
        self.push(Op::Return(Some(link)));
        Ok(())
    }

    /// Turns label numbers in branches into positions.
    fn resolve(&mut self) -> Result<()> {
        for at in 0..self.ops.len() {
            let position = |id: u32| self.labels[id as usize];
            let ok = match &mut self.ops[at] {
                Op::Branch(to) | Op::Call { target: to, .. } => position(*to).map(|p| *to = p).is_some(),
                Op::Indexed { targets, .. } => targets.iter_mut().all(|t| position(*t).map(|p| *t = p).is_some()),
                _ => true,
            };
            if !ok {
                return Err(self.error("a branch to a label that is nowhere"));
            }
        }
        Ok(())
    }

    /// A call: arguments are copied into the function's memory, results back.
    fn call(&mut self, i: &'t Instruction) -> Result<()> {
        let list = |o: Option<&'t Operand>| match o {
            Some(Operand::List(all)) => all.as_slice(),
            _ => &[],
        };
        let first_is_list = matches!(i.operands.first(), Some(Operand::List(_)));
        let results = if first_is_list { list(i.operands.first()) } else { &[] };
        let rest = &i.operands[first_is_list as usize..];
        let Some(Operand::Name(name)) = rest.first() else {
            return Err(self.error("a call of no named function"));
        };
        let arguments = list(rest.get(1));
        let tree = self.tree;
        let named = |f: &&Function| !f.entry && &f.name == name && f.body.is_some();
        let f = tree
            .functions
            .iter()
            .find(named)
            .ok_or_else(|| self.error(format!("no body of function {name}")))?;
        if !self.frames.contains_key(name) {
            let link = self.fresh();
            self.labels.push(None);
            let start = self.labels.len() - 1;
            let arguments = f.parameters.iter().map(|p| self.place_local(p)).collect();
            let results = f.results.iter().map(|p| self.place_local(p)).collect();
            let frame = Frame {
                start,
                link,
                arguments,
                results,
            };
            self.frames.insert(name.clone(), frame);
            self.pending.push(f);
        }
        let frame = &self.frames[name];
        let (label, link) = (frame.start as u32, frame.link);
        let (to, back) = (frame.arguments.clone(), frame.results.clone());
        for (operand, (to, bytes)) in arguments.iter().zip(to) {
            let from = self.local_symbol(operand)?;
            self.push(Op::CopyLocal { from, to, bytes });
        }
        self.push(Op::Call { target: label, link });
        for (operand, (from, bytes)) in results.iter().zip(back) {
            let to = self.local_symbol(operand)?;
            self.push(Op::CopyLocal { from, to, bytes });
        }
        Ok(())
    }
}
