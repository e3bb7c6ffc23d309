//! mbarriers and copies that finish later.

use super::instruction::Name;
use super::*;
use crate::op::{Address, Bulk, CopyAsync, Mbarrier, Space};
use crate::types::Type;

impl<'t> Decoder<'t> {
    pub(super) fn asynchronous(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        if name.parts[0] == "mbarrier" {
            return self.mbarrier(name, o);
        }
        match name.parts.get(1..3) {
            Some(["async", "bulk"]) => self.bulk(name, o),
            Some(["reduce", "async"]) => self.bulk(name, o),
            Some(["async", "mbarrier"]) => {
                let at = self.address(o.first())?;
                let op = Mbarrier::CopyArrive {
                    noinc: name.has("noinc"),
                };
                self.push(Op::Mbarrier {
                    op: Box::new(op),
                    at,
                    space: Self::space(name),
                });
                Ok(())
            }
            _ => self.copy_async(name, o),
        }
    }

    fn mbarrier(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let optional = |d: &mut Self, operand: Option<&Operand>| match operand {
            Some(x) => d.source(Some(x), Type::U32).map(Some),
            None => Ok(None),
        };
        let mut place = o.first();
        let op = match name.parts[1] {
            "init" => Mbarrier::Init {
                count: self.source(o.get(1), Type::U32)?,
            },
            "inval" => Mbarrier::Inval,
            "arrive" | "arrive_drop" => {
                // With `_` or a state's register first; without one (remote barriers) the address comes first.
                let state = !matches!(o.first(), Some(Operand::Address { .. }));
                let d = if state { Some(self.target(o.first())?) } else { None };
                let rest = &o[state as usize..];
                place = rest.first();
                let value = optional(self, rest.get(1))?;
                let expects = name.has("expect_tx");
                Mbarrier::Arrive {
                    d,
                    count: if expects { None } else { value },
                    expect: if expects { value } else { None },
                    drop: name.parts[1] == "arrive_drop",
                }
            }
            "expect_tx" => Mbarrier::ExpectTx {
                bytes: self.source(o.get(1), Type::U32)?,
            },
            "complete_tx" => Mbarrier::CompleteTx {
                bytes: self.source(o.get(1), Type::U32)?,
            },
            "try_wait" | "test_wait" => {
                place = o.get(1);
                Mbarrier::Wait {
                    p: self.target(o.first())?,
                    phase: self.source(o.get(2), Type::U64)?,
                    parity: name.has("parity"),
                    blocks: name.parts[1] == "try_wait",
                }
            }
            "pending_count" => {
                let (d, state) = (self.target(o.first())?, self.source(o.get(1), Type::U64)?);
                self.push(Op::Mbarrier {
                    op: Box::new(Mbarrier::PendingCount { d, state }),
                    at: Address { base: 0, offset: 0 },
                    space: Space::Shared,
                });
                return Ok(());
            }
            _ => return Err(self.error("an instruction that is not known")),
        };
        let at = self.address(place)?;
        self.push(Op::Mbarrier {
            op: Box::new(op),
            at,
            space: Self::space(name),
        });
        Ok(())
    }

    /// `[map, {x, y}]`
    fn tensor(&mut self, operand: Option<&Operand>) -> Result<(Address, Box<[Reg]>)> {
        match operand {
            Some(Operand::Address { base, offset, rest }) if rest.len() == 1 => {
                let base = self.source(Some(base), Type::U64)?;
                let coordinates = self.sources(rest.first(), Type::S32)?;
                Ok((Address { base, offset: *offset }, coordinates))
            }
            _ => Err(self.error("an operand that is no [map, {coordinates}]")),
        }
    }

    fn bulk(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        if name.has("im2col") || name.has("gather4") || name.has("scatter4") {
            return Err(self.error("this mode of tensor copies is not supported"));
        }
        // Operands after the mask are hints: a cache policy.
        let multicast = |d: &mut Self, at: usize| match name.has("multicast::cluster") {
            true => d.source(o.get(at), Type::U16).map(Some),
            false => Ok(None),
        };
        let reduce = name.parts[1] == "reduce";
        let parts = &name.parts[if reduce { 4 } else { 3 }..];
        // The first space it names is where it copies to.
        let to_global = parts.iter().find(|p| **p == "global" || p.starts_with("shared")) == Some(&"global");
        let op = match parts.first() {
            Some(&"commit_group") => Bulk::Commit,
            Some(&"wait_group") => match o.first() {
                Some(Operand::Int(n)) => Bulk::Wait { pending: *n as u32 },
                _ => return Err(self.error("a count that is no number")),
            },
            Some(&"prefetch") => Bulk::Wait { pending: u32::MAX },
            Some(&"tensor") => {
                let rank: usize = parts
                    .get(1)
                    .and_then(|p| p.strip_suffix('d')?.parse().ok())
                    .unwrap_or(0);
                let op = match to_global {
                    true => {
                        let (map, coordinates) = self.tensor(o.first())?;
                        let from = self.address(o.get(1))?;
                        let reduce = if reduce { Self::atomic_op(name) } else { None };
                        Bulk::TensorStore {
                            map,
                            coordinates,
                            from,
                            reduce,
                        }
                    }
                    false => {
                        let to = self.address(o.first())?;
                        let (map, coordinates) = self.tensor(o.get(1))?;
                        let mbarrier = self.address(o.get(2))?;
                        Bulk::TensorLoad {
                            to,
                            map,
                            coordinates,
                            mbarrier,
                            multicast: multicast(self, 3)?,
                        }
                    }
                };
                let (Bulk::TensorLoad { coordinates, .. } | Bulk::TensorStore { coordinates, .. }) = &op else {
                    unreachable!("made just above")
                };
                if coordinates.len() != rank {
                    return Err(self.error(format!("{} coordinates of a tensor of rank {rank}", coordinates.len())));
                }
                op
            }
            Some(&"global") => Bulk::Store {
                to: self.address(o.first())?,
                from: self.address(o.get(1))?,
                bytes: self.source(o.get(2), Type::U32)?,
                reduce: if reduce {
                    Self::atomic_op(name).zip(name.ty())
                } else {
                    None
                },
            },
            Some(_) if !reduce => Bulk::Load {
                to: self.address(o.first())?,
                from: self.address(o.get(1))?,
                bytes: self.source(o.get(2), Type::U32)?,
                mbarrier: self.address(o.get(3))?,
                multicast: multicast(self, 4)?,
                shared: parts.get(1) == Some(&"shared::cta"),
            },
            _ => return Err(self.error("an instruction that is not known")),
        };
        self.push(Op::Bulk(Box::new(op)));
        Ok(())
    }

    fn copy_async(&mut self, name: &Name, o: &[Operand]) -> Result<()> {
        let op = if name.has("commit_group") {
            CopyAsync::Commit
        } else if name.has("wait_all") {
            CopyAsync::Wait { pending: None }
        } else if name.has("wait_group") {
            match o.first() {
                Some(Operand::Int(n)) => CopyAsync::Wait {
                    pending: Some(*n as u32),
                },
                _ => return Err(self.error("a count that is no number")),
            }
        } else if name.has("ca") || name.has("cg") {
            let Some(Operand::Int(bytes @ (4 | 8 | 16))) = o.get(2) else {
                return Err(self.error("a size other than 4, 8 or 16"));
            };
            if name.has("cg") && *bytes != 16 {
                return Err(self.error("cp.async.cg copies 16 bytes"));
            }
            let to = self.address(o.first())?;
            let from = self.address(o.get(1))?;
            // The fourth operand is a size, or a predicate that turns the copy into zeros, or a cache policy.
            let (mut source, mut ignore) = (None, None);
            match o.get(3) {
                _ if name.has("L2::cache_hint") && o.len() == 4 => {}
                None => {}
                Some(Operand::Name(n)) if self.is_predicate(n) => ignore = Some(self.source(o.get(3), Type::Pred)?),
                other => source = Some(self.source(other, Type::U32)?),
            }
            CopyAsync::Copy {
                to,
                from,
                bytes: *bytes as u8,
                source,
                ignore,
            }
        } else {
            return Err(self.error("an instruction that is not known"));
        };
        self.push(Op::CopyAsync(Box::new(op)));
        Ok(())
    }

    fn is_predicate(&self, name: &str) -> bool {
        self.find(|s| s.registers.get(name).copied())
            .is_some_and(|r| self.predicates.contains(&r))
    }
}
