//! Names and memory: registers, variables of each space, parameters, and operands as registers.

use super::*;
use crate::op::Address;
use crate::text::{Parameter as Declared, Variable};
use crate::types::Type;

/// A variable in global or constant memory: bytes to allocate and fill.
pub struct Global {
    pub name: String,
    pub bytes: Vec<u8>,
}

fn size(ty: &str, count: Option<u64>) -> u64 {
    let bytes = Type::parse(ty).map_or(1, |t| (t.bits() / 8).max(1)) as u64;
    bytes * count.unwrap_or(1)
}

/// The module's variables outside shared memory.
pub fn globals(tree: &Tree) -> Vec<Global> {
    let of = |v: &Variable| {
        let mut bytes = vec![0; size(&v.ty, v.count) as usize];
        let each = size(&v.ty, None) as usize;
        for (i, value) in v.init.iter().enumerate() {
            let bits = match value {
                Operand::Int(x) => *x,
                Operand::F32(x) => *x as u64,
                Operand::F64(x) => *x,
                _ => 0,
            };
            if let Some(place) = bytes.get_mut(i * each..(i + 1) * each) {
                place.copy_from_slice(&bits.to_le_bytes()[..each.min(8)]);
            }
        }
        Global {
            name: v.name.clone(),
            bytes,
        }
    };
    tree.variables.iter().filter(|v| v.space != "shared").map(of).collect()
}

impl<'t> Decoder<'t> {
    pub(super) fn scope(&mut self) -> &mut Scope {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    pub(super) fn module_names(&mut self) -> Result<()> {
        let tree = self.tree;
        for v in tree.variables.iter().filter(|v| v.space == "shared") {
            self.variable(v)?;
        }
        for (n, v) in tree.variables.iter().filter(|v| v.space != "shared").enumerate() {
            if v.init
                .iter()
                .any(|o| matches!(o, Operand::Name(_) | Operand::Offset(..)))
            {
                return Err(self.error(format!(
                    "variable {}: addresses as initial values are not supported",
                    v.name
                )));
            }
            self.scope().symbols.insert(v.name.clone(), Symbol::Global(n));
        }
        Ok(())
    }

    pub(super) fn declare(&mut self, ty: &str, name: &str, count: Option<u32>) {
        let names = match count {
            None => vec![name.to_owned()],
            Some(n) => (0..n).map(|i| format!("{name}{i}")).collect(),
        };
        for name in names {
            let r = self.fresh();
            self.scope().registers.insert(name, r);
            if ty == "pred" {
                self.predicates.insert(r);
            }
        }
    }

    pub(super) fn variable(&mut self, v: &Variable) -> Result<()> {
        let bytes = size(&v.ty, v.count) as u32;
        let align = v.align.max(1);
        let symbol = match v.space.as_str() {
            "shared" if v.external || v.count == Some(0) => {
                self.dynamic = self.dynamic.max(align);
                Symbol::Dynamic
            }
            "shared" => {
                let at = self.shared.next_multiple_of(align);
                self.shared = at + bytes;
                Symbol::Shared(at)
            }
            // Parameters of calls are the thread's own memory like any other.
            "local" | "param" => {
                let at = self.local.next_multiple_of(align.max(16));
                self.local = at + bytes;
                Symbol::Local(at)
            }
            other => return Err(self.error(format!("a variable in .{other} inside a function"))),
        };
        self.scope().symbols.insert(v.name.clone(), symbol);
        Ok(())
    }

    pub(super) fn place_local(&mut self, p: &Declared) -> (u32, u32) {
        let at = self.local.next_multiple_of(p.align.max(16));
        let bytes = size(&p.ty, p.count) as u32;
        self.local = at + bytes;
        (at, bytes)
    }

    pub(super) fn kernel_parameters(&mut self, f: &Function) -> (Vec<Parameter>, u32) {
        let mut at = 0u32;
        let mut all = vec![];
        for p in &f.parameters {
            let bytes = size(&p.ty, p.count) as u32;
            let offset = at.next_multiple_of(p.align.max(1));
            at = offset + bytes;
            all.push(Parameter { offset, bytes });
            self.scope().symbols.insert(p.name.clone(), Symbol::Param(offset));
        }
        (all, at)
    }

    pub(super) fn symbol(&self, name: &str) -> Option<Symbol> {
        self.find(|s| s.symbols.get(name).copied())
    }

    pub(super) fn local_symbol(&self, operand: &Operand) -> Result<u32> {
        match operand {
            Operand::Name(name) => match self.symbol(name) {
                Some(Symbol::Local(at)) => Ok(at),
                _ => Err(self.error(format!("{name} is no parameter of a call"))),
            },
            other => Err(self.error(format!("{other} as a parameter of a call"))),
        }
    }

    pub(super) fn label(&self, operand: Option<&Operand>) -> Result<u32> {
        let Some(Operand::Name(name)) = operand else {
            return Err(self.error("no label"));
        };
        let id = self.find(|s| s.labels.get(name).copied());
        id.map(|id| id as u32)
            .ok_or_else(|| self.error(format!("no label {name}")))
    }

    /// A register to write. `_` is a register that nobody reads.
    pub(super) fn target(&mut self, operand: Option<&Operand>) -> Result<Reg> {
        match operand {
            Some(Operand::Name(name)) if name == "_" => Ok(self.fresh()),
            Some(Operand::Name(name)) => {
                let found = self.find(|s| s.registers.get(name).copied());
                found.ok_or_else(|| self.error(format!("no register {name}")))
            }
            Some(other) => Err(self.error(format!("{other} is no register"))),
            None => Err(self.error("too few operands")),
        }
    }

    /// An operand to read, as a register.
    pub(super) fn source(&mut self, operand: Option<&Operand>, ty: Type) -> Result<Reg> {
        match operand {
            Some(Operand::Int(value)) => Ok(self.bits(*value)),
            Some(Operand::F32(bits)) if ty == Type::F64 => Ok(self.bits((f32::from_bits(*bits) as f64).to_bits())),
            Some(Operand::F32(bits)) => Ok(self.bits(*bits as u64)),
            Some(Operand::F64(bits)) if matches!(ty, Type::F32) => {
                Ok(self.bits((f64::from_bits(*bits) as f32).to_bits() as u64))
            }
            Some(Operand::F64(bits)) => Ok(self.bits(*bits)),
            Some(Operand::Name(name)) => self.named(name, 0),
            Some(Operand::Offset(name, by)) => self.named(name, *by),
            Some(other) => Err(self.error(format!("{other} as an operand"))),
            None => Err(self.error("too few operands")),
        }
    }

    fn named(&mut self, name: &str, offset: i64) -> Result<Reg> {
        if let Some(r) = self.find(|s| s.registers.get(name).copied()) {
            return if offset == 0 {
                Ok(r)
            } else {
                Err(self.error("a register plus a number outside brackets"))
            };
        }
        if let Some(c) = special::special(name) {
            return Ok(self.constant(c));
        }
        match self.symbol(name) {
            Some(Symbol::Param(at) | Symbol::Local(at)) => Ok(self.bits(at as i64 as u64 + offset as u64)),
            Some(Symbol::Shared(at)) => Ok(self.constant(Constant::Shared(at.wrapping_add(offset as u32)))),
            Some(Symbol::Global(n)) => Ok(self.constant(Constant::Global(n, offset))),
            Some(Symbol::Dynamic) if offset == 0 => {
                let r = self.fresh();
                self.dynamic_users.push(r);
                Ok(r)
            }
            Some(Symbol::Dynamic) => Err(self.error(format!("{name} plus a number outside brackets"))),
            None => Err(self.error(format!("no name {name}"))),
        }
    }

    pub(super) fn address(&mut self, operand: Option<&Operand>) -> Result<Address> {
        match operand {
            Some(Operand::Address { base, offset, rest }) if rest.is_empty() => {
                let base = self.source(Some(base), Type::U64)?;
                Ok(Address { base, offset: *offset })
            }
            Some(other) => Err(self.error(format!("{other} as an address"))),
            None => Err(self.error("too few operands")),
        }
    }

    /// `{a, b}`, or one register.
    pub(super) fn targets(&mut self, operand: Option<&Operand>) -> Result<Box<[Reg]>> {
        match operand {
            Some(Operand::Vector(all)) => all.iter().map(|o| self.target(Some(o))).collect(),
            other => Ok(Box::new([self.target(other)?])),
        }
    }

    pub(super) fn sources(&mut self, operand: Option<&Operand>, ty: Type) -> Result<Box<[Reg]>> {
        match operand {
            Some(Operand::Vector(all)) => all.iter().map(|o| self.source(Some(o), ty)).collect(),
            other => Ok(Box::new([self.source(other, ty)?])),
        }
    }
}
