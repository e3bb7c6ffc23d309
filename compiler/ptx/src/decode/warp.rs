//! Instructions that a warp or a warpgroup executes together.

use super::instruction::Name;
use super::*;
use crate::op::{MmaKind, ShuffleMode, VoteMode, WarpOp, Wgmma, WgmmaA};
use crate::types::Type;

impl<'t> Decoder<'t> {
    pub(super) fn warp(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let (op, mask) = match name.parts[0] {
            "bar" | "barrier" => (WarpOp::Sync, o.first()),
            "shfl" => (self.shuffle(name, o)?, o.get(4)),
            "vote" => {
                let mode = match name.first(&["all", "any", "uni", "ballot"]) {
                    Some("all") => VoteMode::All,
                    Some("any") => VoteMode::Any,
                    Some("uni") => VoteMode::Uni,
                    _ => VoteMode::Ballot,
                };
                let d = self.target(o.first())?;
                let (a, negated) = self.predicate(o.get(1))?;
                (WarpOp::Vote { mode, d, a, negated }, o.get(2))
            }
            "match" => {
                let (d, p) = self.with_predicate(o.first())?;
                let ty = name.ty().unwrap_or(Type::B32);
                let a = self.source(o.get(1), ty)?;
                let all = name.has("all");
                (
                    WarpOp::Match {
                        all,
                        d,
                        p,
                        a,
                        bits: ty.bits(),
                    },
                    o.get(2),
                )
            }
            "redux" => {
                let op = Self::atomic_op(name).ok_or_else(|| self.error("an operation that is not known"))?;
                let ty = name.ty().unwrap_or(Type::B32);
                let d = self.target(o.first())?;
                let a = self.source(o.get(1), ty)?;
                (WarpOp::Redux { op, ty, d, a }, o.get(2))
            }
            "elect" => {
                let (d, p) = self.with_predicate(o.first())?;
                let p = p.ok_or_else(|| self.error("elect.sync without a predicate"))?;
                (WarpOp::Elect { d, p }, o.get(1))
            }
            "ldmatrix" | "stmatrix" => (self.matrix(name, o)?, None),
            "movmatrix" => {
                let d = self.target(o.first())?;
                let a = self.source(o.get(1), Type::B32)?;
                (WarpOp::Movmatrix { d, a }, None)
            }
            "mma" => (self.mma(name, o)?, None),
            _ => return self.wgmma(name, o),
        };
        let mask = match mask {
            Some(m) => Some(self.source(Some(m), Type::B32)?),
            None => None,
        };
        self.push(Op::Warp { op: Box::new(op), mask });
        Ok(())
    }

    fn with_predicate(&mut self, operand: Option<&Operand>) -> Result<(Reg, Option<Reg>)> {
        match operand {
            Some(Operand::Pair(d, p)) => Ok((self.target(Some(d))?, Some(self.target(Some(p))?))),
            other => Ok((self.target(other)?, None)),
        }
    }

    fn shuffle(&mut self, name: &Name, o: &[Operand]) -> Result<WarpOp> {
        if !name.has("sync") {
            return Err(self.error("shfl without .sync"));
        }
        let mode = match name.first(&["up", "down", "bfly", "idx"]) {
            Some("up") => ShuffleMode::Up,
            Some("down") => ShuffleMode::Down,
            Some("bfly") => ShuffleMode::Bfly,
            _ => ShuffleMode::Idx,
        };
        let (d, p) = self.with_predicate(o.first())?;
        Ok(WarpOp::Shuffle {
            mode,
            d,
            p,
            a: self.source(o.get(1), Type::B32)?,
            b: self.source(o.get(2), Type::B32)?,
            c: self.source(o.get(3), Type::B32)?,
        })
    }

    fn matrix(&mut self, name: &Name, o: &[Operand]) -> Result<WarpOp> {
        if !name.has("m8n8") || !name.has("b16") {
            return Err(self.error("matrices other than m8n8 of b16"));
        }
        let transposed = name.has("trans");
        let space = Self::space(name);
        let number = name
            .first(&["x1", "x2", "x4"])
            .map_or(0, |x| x[1..].parse().unwrap_or(0));
        let load = name.parts[0] == "ldmatrix";
        let regs = if load {
            self.targets(o.first())?
        } else {
            self.sources(o.get(1), Type::B32)?
        };
        if regs.len() != number {
            return Err(self.error(format!("{} registers for {number} matrices", regs.len())));
        }
        let at = self.address(o.get(load as usize))?;
        Ok(if load {
            WarpOp::Ldmatrix {
                d: regs,
                at,
                transposed,
                space,
            }
        } else {
            WarpOp::Stmatrix {
                a: regs,
                at,
                transposed,
                space,
            }
        })
    }

    fn mma(&mut self, name: &Name, o: &[Operand]) -> Result<WarpOp> {
        let types = name.types();
        let kind = match (name.first(&["m16n8k16", "m16n8k8"]), types.as_slice()) {
            (Some("m16n8k16"), [Type::F32, a @ (Type::BF16 | Type::F16), b, Type::F32]) if a == b => {
                MmaKind::M16N8K16(*a)
            }
            (Some("m16n8k8"), [Type::F32, a @ (Type::BF16 | Type::F16 | Type::TF32), b, Type::F32]) if a == b => {
                MmaKind::M16N8K8(*a)
            }
            _ => return Err(self.error("a shape or type of mma that is not supported")),
        };
        if !name.has("row") || !name.has("col") {
            return Err(self.error("an mma that is not .row.col"));
        }
        let (d, a) = (self.targets(o.first())?, self.sources(o.get(1), Type::B32)?);
        let (b, c) = (self.sources(o.get(2), Type::B32)?, self.sources(o.get(3), Type::F32)?);
        let words = match kind {
            MmaKind::M16N8K16(_) | MmaKind::M16N8K8(Type::TF32) => (4, 2),
            MmaKind::M16N8K8(_) => (2, 1),
        };
        if (d.len(), a.len(), b.len(), c.len()) != (4, words.0, words.1, 4) {
            return Err(self.error("a wrong number of registers in a fragment"));
        }
        Ok(WarpOp::Mma { kind, d, a, b, c })
    }

    fn immediate(&self, operand: Option<&Operand>) -> Result<i64> {
        match operand {
            Some(Operand::Int(value)) => Ok(*value as i64),
            _ => Err(self.error("an operand that must be a number")),
        }
    }

    fn wgmma(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        match name.parts.get(1) {
            Some(&"fence") => self.push(Op::WgmmaFence),
            Some(&"commit_group") => self.push(Op::WgmmaCommit),
            Some(&"wait_group") => {
                let n = self.immediate(o.first())?;
                self.push(Op::WgmmaWait(n as u32));
            }
            Some(&"mma_async") => self.mma_async(name, o)?,
            _ => return Err(self.error("an instruction that is not known")),
        }
        Ok(())
    }

    fn mma_async(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let types = name.types();
        let [Type::F32, ty @ (Type::BF16 | Type::F16 | Type::TF32), same] = types[..] else {
            return Err(self.error("types of wgmma that are not supported"));
        };
        let depth = if ty == Type::TF32 { "k8" } else { "k16" };
        let shape = name
            .parts
            .iter()
            .find_map(|p| p.strip_prefix("m64n")?.strip_suffix(depth));
        let n: u32 = shape.and_then(|n| n.parse().ok()).unwrap_or(0);
        if ty != same || n == 0 || n % 8 != 0 || n > 256 {
            return Err(self.error("a shape of wgmma that does not exist"));
        }
        let d = self.targets(o.first())?;
        if d.len() as u32 != n / 2 {
            return Err(self.error(format!("{} registers of accumulators where {} belong", d.len(), n / 2)));
        }
        let a = match o.get(1) {
            Some(Operand::Vector(_)) => WgmmaA::Registers(self.sources(o.get(1), Type::B32)?),
            other => WgmmaA::Descriptor(self.source(other, Type::B64)?),
        };
        if matches!(&a, WgmmaA::Registers(r) if r.len() != 4) {
            return Err(self.error("a wrong number of registers for A"));
        }
        let b = self.source(o.get(2), Type::B64)?;
        let scale_d = self.source(o.get(3), Type::Pred)?;
        let sign = |d: &Self, i: usize| match d.immediate(o.get(i))? {
            1 => Ok(false),
            -1 => Ok(true),
            _ => Err(d.error("imm-scale must be 1 or -1")),
        };
        let (negate_a, negate_b) = (sign(self, 4)?, sign(self, 5)?);
        // tf32 has no transposed form; A from registers has only B's bit.
        let bits = match (&a, ty) {
            (_, Type::TF32) => vec![],
            (WgmmaA::Descriptor(_), _) => vec![self.immediate(o.get(6))? == 1, self.immediate(o.get(7))? == 1],
            (WgmmaA::Registers(_), _) => vec![false, self.immediate(o.get(6))? == 1],
        };
        let registers = matches!(a, WgmmaA::Registers(_));
        let wanted = 6 + if registers { bits.len().min(1) } else { bits.len() };
        if o.len() != wanted {
            return Err(self.error(format!("{} operands where {wanted} belong", o.len())));
        }
        let op = Wgmma {
            n,
            ty,
            d,
            a,
            b,
            scale_d,
            negate_a,
            negate_b,
            transpose_a: bits.first() == Some(&true),
            transpose_b: bits.get(1) == Some(&true),
        };
        self.push(Op::Warp {
            op: Box::new(WarpOp::Wgmma(Box::new(op))),
            mask: None,
        });
        Ok(())
    }
}
