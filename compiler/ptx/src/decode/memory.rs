//! Loads, stores, atomics and conversions of addresses.

use super::instruction::Name;
use super::*;
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::op::{Access, Atomic, AtomicOp, Space};
use crate::types::Type;

impl<'t> Decoder<'t> {
    pub(super) fn memory(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        match name.parts[0] {
            "ld" | "ldu" => {
                let access = self.access(name, o.first(), o.get(1), true)?;
                self.push(Op::Load(Box::new(access)));
            }
            "st" => {
                let access = self.access(name, o.get(1), o.first(), false)?;
                self.push(Op::Store(Box::new(access)));
            }
            "atom" | "red" => self.atomic(name, o)?,
            "cvta" => self.cvta(name, o)?,
            "isspacep" => self.isspacep(name, o)?,
            "mapa" => {
                let d = self.target(o.first())?;
                let a = self.source(o.get(1), Type::U64)?;
                let rank = self.source(o.get(2), Type::U32)?;
                let generic = !name.parts[1].starts_with("shared");
                self.push(Op::Mapa { d, a, rank, generic });
            }
            _ => {
                // getctarank: which block of the cluster a shared address belongs to.
                let d = self.target(o.first())?;
                let a = self.source(o.get(1), Type::U64)?;
                self.push(Op::Lane1 {
                    f: |a| (a as u32 >> 24) as u64,
                    d,
                    a,
                });
            }
        }
        Ok(())
    }

    pub(super) fn space(name: &Name) -> Space {
        for part in &name.parts[1..] {
            match *part {
                "global" | "const" => return Space::Global,
                "shared" | "shared::cta" | "shared::cluster" => return Space::Shared,
                "local" => return Space::Local,
                "param" | "param::entry" | "param::func" => return Space::Param,
                _ => {}
            }
        }
        Space::Generic
    }

    fn access(&mut self, name: &Name, values: Option<&Operand>, at: Option<&Operand>, load: bool) -> Result<Access> {
        let ty = name.ty().ok_or_else(|| self.error("no type"))?;
        if ty.bits() > 64 || ty == Type::Pred {
            return Err(self.error("memory access of this type"));
        }
        let mut space = Self::space(name);
        // Parameters of calls live in the thread's own memory; so do all parameters of a function that is not the kernel.
        if space == Space::Param {
            let own = match at {
                Some(Operand::Address { base, .. }) => match &**base {
                    Operand::Name(n) => matches!(self.symbol(n), Some(Symbol::Local(_))),
                    _ => false,
                },
                _ => false,
            };
            if own || !self.entry {
                space = Space::Local;
            }
        }
        let at = self.address(at)?;
        let regs = if load {
            self.targets(values)?
        } else {
            self.sources(values, ty)?
        };
        let wanted = name
            .first(&["v2", "v4", "v8"])
            .map_or(1, |v| v[1..].parse().unwrap_or(1));
        if regs.len() != wanted {
            return Err(self.error(format!("{} registers where {wanted} belong", regs.len())));
        }
        let orders = name.first(&["volatile", "relaxed", "acquire", "mmio"]);
        Ok(Access {
            space,
            at,
            regs,
            bytes: (ty.bits() / 8) as u8,
            signed: ty.signed(),
            polls: load && orders.is_some(),
        })
    }

    pub(super) fn atomic_op(name: &Name) -> Option<AtomicOp> {
        Some(
            match name.first(&["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"])? {
                "add" => AtomicOp::Add,
                "min" => AtomicOp::Min,
                "max" => AtomicOp::Max,
                "and" => AtomicOp::And,
                "or" => AtomicOp::Or,
                "xor" => AtomicOp::Xor,
                "exch" => AtomicOp::Exch,
                "cas" => AtomicOp::Cas,
                "inc" => AtomicOp::Inc,
                _ => AtomicOp::Dec,
            },
        )
    }

    fn atomic(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let op = Self::atomic_op(name).ok_or_else(|| self.error("an atomic operation that is not known"))?;
        let ty = name.ty().ok_or_else(|| self.error("no type"))?;
        let (d, o) = if name.parts[0] == "atom" {
            (Some(self.targets(o.first())?), &o[1..])
        } else {
            (None, o)
        };
        let at = self.address(o.first())?;
        let a = self.sources(o.get(1), ty)?;
        let b = if op == AtomicOp::Cas {
            self.source(o.get(2), ty)?
        } else {
            0
        };
        if ty.bits() > 64 || ty == Type::F32x2 {
            return Err(self.error("an atomic operation of this type"));
        }
        self.push(Op::Atomic(Box::new(Atomic {
            op,
            ty,
            space: Self::space(name),
            at,
            d,
            a,
            b,
        })));
        Ok(())
    }

    fn cvta(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let d = self.target(o.first())?;
        let a = self.source(o.get(1), Type::U64)?;
        let f = match (Self::space(name), name.has("to")) {
            (Space::Shared, false) => |a| SHARED_WINDOW | a & 0xffff_ffff,
            (Space::Local, false) => |a| LOCAL_WINDOW | a & 0xffff_ffff,
            (Space::Param, false) => |a| PARAM_WINDOW | a & 0xffff_ffff,
            (Space::Shared | Space::Local | Space::Param, true) => |a| a & 0xffff_ffff,
            _ => |a| a,
        };
        self.push(Op::Lane1 { f, d, a });
        Ok(())
    }

    fn isspacep(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let d = self.target(o.first())?;
        let a = self.source(o.get(1), Type::U64)?;
        let f = match Self::space(name) {
            Space::Shared => |a| (a >> 32 == SHARED_WINDOW >> 32) as u64,
            Space::Local => |a| (a >> 32 == LOCAL_WINDOW >> 32) as u64,
            Space::Param => |a| (a >> 32 == PARAM_WINDOW >> 32) as u64,
            _ => |a| (a >= crate::memory::GLOBAL_WINDOW) as u64,
        };
        self.push(Op::Lane1 { f, d, a });
        Ok(())
    }
}
