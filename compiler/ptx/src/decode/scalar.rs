//! Instructions of one thread on its registers: arithmetic, logic, comparisons, moves, conversions.

use super::instruction::Name;
use super::*;
use crate::lane::convert::{Convert, Rounding};
use crate::lane::float::{self, Flags};
use crate::lane::{F2, Lane, int};
use crate::op::CarryOp;
use crate::types::Type;

impl<'t> Decoder<'t> {
    pub(super) fn scalar(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let ty = name
            .ty()
            .ok_or_else(|| self.error("an instruction that is not known"))?;
        match name.parts[0] {
            "mov" => return self.mov(ty, o),
            "cvt" => return self.cvt(name, o),
            "setp" => return self.setp(name, o),
            "set" => return self.set(name, o),
            "selp" => {
                let [d, a, b] = self.three(o, ty)?;
                let (c, negated) = self.predicate(o.get(3))?;
                let f = if negated {
                    |a, b, c| if c == 0 { a } else { b }
                } else {
                    |a, b, c| if c != 0 { a } else { b }
                };
                self.push(Op::Lane3 { f, d, a, b, c });
                return Ok(());
            }
            "prmt" => {
                if name.parts.len() > 2 {
                    return Err(self.error("modes of prmt are not supported"));
                }
                let [d, a, b] = self.three(o, ty)?;
                let c = self.source(o.get(3), ty)?;
                self.push(Op::Lane3 {
                    f: int::prmt,
                    d,
                    a,
                    b,
                    c,
                });
                return Ok(());
            }
            "shf" => {
                let [d, a, b] = self.three(o, ty)?;
                let c = self.source(o.get(3), ty)?;
                let f = int::funnel(name.has("l"), name.has("wrap"));
                self.push(Op::Lane3 { f, d, a, b, c });
                return Ok(());
            }
            "bfe" => {
                let [d, a, b] = self.three(o, ty)?;
                let c = self.source(o.get(3), Type::U32)?;
                let f = int::bfe(ty).ok_or_else(|| self.error("bfe of this type"))?;
                self.push(Op::Lane3 { f, d, a, b, c });
                return Ok(());
            }
            "bfi" | "lop3" => {
                let [d, a, b] = self.three(o, ty)?;
                let s = [
                    a,
                    b,
                    self.source(o.get(3), Type::U32)?,
                    self.source(o.get(4), Type::U32)?,
                ];
                let f = match (name.parts[0], ty.bits()) {
                    ("lop3", _) => int::lop3,
                    (_, 32) => |a, b, c, d| int::bfi(a, b, c, d, 32),
                    _ => |a, b, c, d| int::bfi(a, b, c, d, 64),
                };
                self.push(Op::Lane4 { f, d, s });
                return Ok(());
            }
            "testp" => {
                let f = float::test(name.parts[1], ty).ok_or_else(|| self.error("a test that is not known"))?;
                return self.emit(Lane::One(f), ty, o);
            }
            _ => {}
        }
        if matches!(name.parts[0], "add" | "addc" | "sub" | "subc" | "mad" | "madc") && !ty.float() {
            let (reads, writes) = (name.parts[0].ends_with('c'), name.has("cc"));
            if reads || writes {
                return self.carry(name, ty, o, reads, writes);
            }
        }
        let lane = if ty.float() {
            self.float_lane(name, ty)?
        } else {
            self.int_lane(name, ty)
        };
        let lane = lane.ok_or_else(|| self.error("an instruction, or a form of it, that is not known"))?;
        self.emit(lane, ty, o)
    }

    fn three(&mut self, o: &[Operand], ty: Type) -> Result<[Reg; 3]> {
        Ok([
            self.target(o.first())?,
            self.source(o.get(1), ty)?,
            self.source(o.get(2), ty)?,
        ])
    }

    fn emit(&mut self, lane: Lane, ty: Type, o: &[Operand]) -> Result<()> {
        let d = self.target(o.first())?;
        let arity = match lane {
            Lane::One(_) => 1,
            Lane::Two(_) => 2,
            Lane::Three(_) => 3,
        };
        if o.len() != arity + 1 {
            return Err(self.error(format!("{} operands where {} belong", o.len(), arity + 1)));
        }
        let mut s = [0; 3];
        for (i, reg) in s.iter_mut().take(arity).enumerate() {
            *reg = self.source(o.get(i + 1), ty)?;
        }
        let [a, b, c] = s;
        if let Some(half) = ty.half() {
            let bits = half.bits();
            self.push(match lane {
                Lane::Three(f) => Op::Packed { f, bits, d, s },
                Lane::One(f) => Op::Packed1 { f, bits, d, a },
                Lane::Two(f) => Op::Packed2 { f, bits, d, a, b },
            });
            return Ok(());
        }
        self.push(match lane {
            Lane::One(f) => Op::Lane1 { f, d, a },
            Lane::Two(f) => Op::Lane2 { f, d, a, b },
            Lane::Three(f) => Op::Lane3 { f, d, a, b, c },
        });
        Ok(())
    }

    fn int_lane(&self, name: &Name, ty: Type) -> Option<Lane> {
        let mode = name.first(&["lo", "hi", "wide", "sat", "relu"]).unwrap_or("");
        int::arithmetic(name.parts[0], mode, ty).or_else(|| int::bits(name.parts[0], ty))
    }

    fn float_lane(&self, name: &Name, ty: Type) -> Result<Option<Lane>> {
        let flags = Flags {
            ftz: name.has("ftz"),
            sat: name.has("sat"),
            nan: name.has("NaN"),
            relu: name.has("relu"),
        };
        let directed = name.first(&["rz", "rm", "rp", "xorsign", "oob"]);
        if let Some(which) = directed {
            return Err(self.error(format!(".{which} of this instruction is not supported")));
        }
        Ok(float::arithmetic(name.parts[0], ty, flags))
    }

    fn mov(&mut self, ty: Type, o: &[Operand]) -> Result<()> {
        let parts = o.iter().filter_map(|o| {
            if let Operand::Vector(all) = o {
                Some(all.len())
            } else {
                None
            }
        });
        if ty == Type::B128 || parts.into_iter().any(|n| !matches!(n, 2 | 4 | 8)) {
            return Err(self.error("a move of this kind"));
        }
        match (o.first(), o.get(1)) {
            (Some(Operand::Vector(parts)), Some(from)) => {
                let a = self.source(Some(from), ty)?;
                let bits = ty.bits() / parts.len().max(1) as u32;
                let parts = parts.iter().map(|p| self.target(Some(p))).collect::<Result<_>>()?;
                self.push(Op::Unpack { parts, a, bits });
            }
            (Some(to), Some(Operand::Vector(parts))) => {
                let d = self.target(Some(to))?;
                let bits = ty.bits() / parts.len().max(1) as u32;
                let parts = parts
                    .iter()
                    .map(|p| self.source(Some(p), Type::B32))
                    .collect::<Result<_>>()?;
                self.push(Op::Pack { d, parts, bits });
            }
            _ => {
                let d = self.target(o.first())?;
                let a = self.source(o.get(1), ty)?;
                self.push(Op::Mov { d, a });
            }
        }
        Ok(())
    }

    /// `setp.op{.bool}.type p{|q}, a, b{, c}`: p is the comparison combined with c, q its opposite combined with c.
    fn setp(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let ty = name.ty().ok_or_else(|| self.error("no type"))?;
        let f = self.comparison(name, ty)?;
        let (p, q) = match o.first() {
            Some(Operand::Pair(p, q)) => (self.target(Some(p))?, Some(self.target(Some(q))?)),
            other => (self.target(other)?, None),
        };
        let (a, b) = (self.source(o.get(1), ty)?, self.source(o.get(2), ty)?);
        let combine: Option<(F2, F2)> = match name.first(&["and", "or", "xor"]) {
            Some("and") => Some((|t, c| t & c, |t, c| t & (c ^ 1))),
            Some("or") => Some((|t, c| t | c, |t, c| t | (c ^ 1))),
            Some(_) => Some((|t, c| t ^ c, |t, c| t ^ c ^ 1)),
            None => None,
        };
        if q.is_none() && combine.is_none() {
            self.push(Op::Lane2 { f, d: p, a, b });
            return Ok(());
        }
        let t = self.fresh();
        self.push(Op::Lane2 { f, d: t, a, b });
        let c = match combine {
            Some((plain, negated)) => {
                let (c, inverted) = self.predicate(o.get(3))?;
                Some((if inverted { negated } else { plain }, c))
            }
            None => None,
        };
        // c may be p itself, so q is made before p is written.
        if let Some(q) = q {
            let not = self.fresh();
            self.push(Op::Lane1 {
                f: |t| t ^ 1,
                d: not,
                a: t,
            });
            let keep = self.fresh();
            self.push(match c {
                Some((f, c)) => Op::Lane2 {
                    f,
                    d: keep,
                    a: not,
                    b: c,
                },
                None => Op::Mov { d: keep, a: not },
            });
            self.finish_setp(p, t, c);
            self.push(Op::Mov { d: q, a: keep });
        } else {
            self.finish_setp(p, t, c);
        }
        Ok(())
    }

    fn finish_setp(&mut self, p: Reg, t: Reg, c: Option<(F2, Reg)>) {
        self.push(match c {
            Some((f, c)) => Op::Lane2 { f, d: p, a: t, b: c },
            None => Op::Mov { d: p, a: t },
        });
    }

    fn comparison(&mut self, name: &Name, ty: Type) -> Result<F2> {
        let op = name.parts[1];
        let f = if ty.float() {
            float::compare(op, ty, name.has("ftz"))
        } else {
            int::compare(op, ty)
        };
        match f {
            Some(f) if ty.half().is_none() => Ok(f),
            _ => Err(self.error(format!("comparison {op} of this type"))),
        }
    }

    /// `set.op.dtype.stype d, a, b`: all ones or 1.0 where the comparison holds.
    fn set(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let [to, from] = name.types()[..] else {
            return Err(self.error("set with other than two types"));
        };
        let f = self.comparison(name, from)?;
        let [d, a, b] = self.three(o, from)?;
        let t = self.fresh();
        self.push(Op::Lane2 { f, d: t, a, b });
        let f = match to {
            Type::F32 => |t| if t != 0 { 0x3f80_0000 } else { 0 },
            _ if !to.float() => |t| if t != 0 { u64::MAX } else { 0 },
            _ => return Err(self.error("set to this type")),
        };
        self.push(Op::Lane1 { f, d, a: t });
        Ok(())
    }

    fn cvt(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let [to, from] = name.types()[..] else {
            return Err(self.error("a conversion between other than two known types"));
        };
        let mode = name.first(&["rni", "rzi", "rmi", "rpi", "rna", "rn", "rz", "rm", "rp"]);
        if let Some(which) = name.first(&["rs", "satfinite"]) {
            return Err(self.error(format!(".{which} is not supported")));
        }
        let rounding = match mode.map(|m| &m[..2]) {
            Some("rz") => Rounding::Zero,
            Some("rm") => Rounding::Down,
            Some("rp") => Rounding::Up,
            Some("rn") if mode == Some("rna") => Rounding::Away,
            _ => Rounding::Nearest,
        };
        let how = Convert {
            to,
            from,
            rounding,
            integer: mode.is_some_and(|m| m.ends_with('i')),
            ftz: name.has("ftz"),
            sat: name.has("sat"),
            relu: name.has("relu"),
        };
        let d = self.target(o.first())?;
        let a = self.source(o.get(1), from)?;
        if to.half().is_some() {
            let b = self.source(o.get(2), from)?;
            self.push(Op::Convert {
                how: Box::new(how),
                d,
                a,
                b,
            });
            return Ok(());
        }
        // Between integers, and from bf16 up, a conversion is a mask or a shift.
        if !to.float() && !from.float() && !how.sat {
            let (read, write) = (int::widen(from), int::widen(to));
            let (Some(read), Some(write)) = (read, write) else {
                return Err(self.error("a conversion of this type"));
            };
            let f = if from.bits() < to.bits() { read } else { write };
            self.push(Op::Lane1 { f, d, a });
            return Ok(());
        }
        if (to, from) == (Type::F32, Type::BF16) && !how.sat && !how.relu {
            self.push(Op::Lane1 {
                f: |a| (a & 0xffff) << 16,
                d,
                a,
            });
            return Ok(());
        }
        self.push(Op::Convert {
            how: Box::new(how),
            d,
            a,
            b: a,
        });
        Ok(())
    }

    fn carry(&mut self, name: &Name, ty: Type, o: &[Operand], reads: bool, writes: bool) -> Result<()> {
        let op = match (name.parts[0].trim_end_matches('c'), name.has("hi")) {
            ("add", _) => CarryOp::Add,
            ("sub", _) => CarryOp::Sub,
            (_, true) => CarryOp::MadHi,
            (_, false) => CarryOp::MadLo,
        };
        if ty.signed() && op == CarryOp::MadHi {
            return Err(self.error("the signed upper half with carry is not supported"));
        }
        let [d, a, b] = self.three(o, ty)?;
        let c = if matches!(op, CarryOp::Add | CarryOp::Sub) {
            0
        } else {
            self.source(o.get(3), ty)?
        };
        let flag = match self.carry {
            Some(r) => r,
            None => *self.carry.insert(self.registers),
        };
        self.registers = self.registers.max(flag + 1);
        self.push(Op::Carry {
            op,
            bits: ty.bits(),
            d,
            s: [a, b, c],
            reads,
            writes,
            flag,
        });
        Ok(())
    }
}
