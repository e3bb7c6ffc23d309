//! The first look at an instruction: its name's parts, and which group decodes it.

use super::*;
use crate::op::{Barrier, Moving, Reduce};
use crate::types::Type;

/// `ld.global.v4.b32` as its parts.
pub struct Name<'a> {
    pub parts: Vec<&'a str>,
}

impl<'a> Name<'a> {
    pub fn has(&self, part: &str) -> bool {
        self.parts[1..].contains(&part)
    }

    /// The types it names, in order.
    pub fn types(&self) -> Vec<Type> {
        self.parts[1..].iter().filter_map(|p| Type::parse(p)).collect()
    }

    /// The last type, by which most instructions are known.
    pub fn ty(&self) -> Option<Type> {
        self.types().last().copied()
    }

    /// The first of `names` that is there.
    pub fn first(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().find(|n| self.has(n)).copied()
    }
}

impl<'t> Decoder<'t> {
    pub(super) fn instruction(&mut self, i: &'t Instruction) -> Result<()> {
        let name = Name {
            parts: i.op.split('.').collect(),
        };
        let o = i.operands.as_slice();
        match name.parts[0] {
            "bra" => {
                let to = self.label(o.first())?;
                self.push(Op::Branch(to));
            }
            "brx" => {
                let a = self.source(o.first(), Type::U32)?;
                let Some(Operand::Name(table)) = o.get(1) else {
                    return Err(self.error("no table of targets"));
                };
                let names = self.find(|s| s.tables.get(table).cloned());
                let names = names.ok_or_else(|| self.error(format!("no table {table}")))?;
                let targets = names.iter().map(|n| self.label(Some(&Operand::Name(n.clone()))));
                let targets = targets.collect::<Result<_>>()?;
                self.push(Op::Indexed { a, targets });
            }
            "call" => self.call(i)?,
            "ret" => {
                let link = if self.entry { None } else { self.link };
                self.push(Op::Return(link));
            }
            "exit" => self.push(Op::Exit),
            "trap" | "brkpt" => self.push(Op::Trap),
            "nanosleep" => self.push(Op::Sleep),
            "fence" if name.has("proxy") && name.parts.iter().any(|p| p.starts_with("async")) => {
                self.push(Op::FenceProxy);
            }
            "fence" | "membar" | "setmaxnreg" | "griddepcontrol" | "prefetch" | "prefetchu" | "discard"
            | "applypriority" | "createpolicy" | "pmevent" | "tensormap" => self.nothing(&name, o)?,
            "mov" if matches!(o.get(1), Some(Operand::Name(n)) if moving(n).is_some()) => {
                let Some(Operand::Name(n)) = o.get(1) else {
                    unreachable!("matched above")
                };
                let d = self.target(o.first())?;
                if let Some(what) = moving(n) {
                    self.push(Op::Moving { d, what });
                }
            }
            "activemask" => {
                let d = self.target(o.first())?;
                self.push(Op::Moving {
                    d,
                    what: Moving::Activemask,
                });
            }
            "bar" | "barrier" if name.has("warp") => self.warp(&name, o)?,
            "bar" | "barrier" if name.has("cluster") => self.push(match name.parts.get(2) {
                Some(&"wait") => Op::ClusterWait,
                _ => Op::ClusterArrive,
            }),
            "bar" | "barrier" => self.barrier(&name, o)?,
            "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "isspacep" | "mapa" | "getctarank" => {
                self.memory(&name, o)?
            }
            "shfl" | "vote" | "match" | "redux" | "elect" | "ldmatrix" | "stmatrix" | "movmatrix" | "mma" | "wgmma" => {
                self.warp(&name, o)?
            }
            "mbarrier" | "cp" => self.asynchronous(&name, o)?,
            _ => self.scalar(&name, o)?,
        }
        Ok(())
    }

    /// Instructions that change nothing here. `createpolicy` writes a register that only hints read.
    fn nothing(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        if name.parts[0] == "createpolicy" {
            let d = self.target(o.first())?;
            let a = self.bits(0);
            self.push(Op::Mov { d, a });
            return Ok(());
        }
        if name.parts[0] == "tensormap" {
            return Err(self.error("tensormap.* is not supported"));
        }
        self.push(Op::Nop);
        Ok(())
    }

    fn barrier(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        // bar.* is barrier.cta.*.aligned.
        let aligned = name.parts[0] == "bar" || name.has("aligned");
        let arrive = name.has("arrive");
        let (reduce, o) = if name.has("red") {
            let op = match name.first(&["popc", "and", "or"]) {
                Some("popc") => Reduce::Popc,
                Some("and") => Reduce::And,
                _ => Reduce::Or,
            };
            let d = self.target(o.first())?;
            let (a, negated) = self.predicate(o.last())?;
            (Some((op, d, a, negated)), &o[1..o.len().max(2) - 1])
        } else {
            (None, o)
        };
        let id = self.source(o.first(), Type::U32)?;
        let count = match o.get(1) {
            Some(c) => Some(self.source(Some(c), Type::U32)?),
            None => None,
        };
        if arrive && count.is_none() {
            return Err(self.error("bar.arrive needs a count of threads"));
        }
        self.push(Op::Barrier(Box::new(Barrier {
            id,
            count,
            arrive,
            aligned,
            reduce,
        })));
        Ok(())
    }

    /// A predicate operand, which may be negated.
    pub(super) fn predicate(&mut self, operand: Option<&Operand>) -> Result<(Reg, bool)> {
        match operand {
            Some(Operand::Not(inner)) => Ok((self.source(Some(inner), Type::Pred)?, true)),
            other => Ok((self.source(other, Type::Pred)?, false)),
        }
    }
}

fn moving(name: &str) -> Option<Moving> {
    match name {
        "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%globaltimer_lo" | "%globaltimer_hi" => {
            Some(Moving::Clock)
        }
        _ => None,
    }
}
