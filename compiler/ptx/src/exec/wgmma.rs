//! wgmma: products of a warpgroup with operands in shared memory (PTX ISA 9.7.15).
//!
//! Each warp computes its own 16 of the 64 rows when it comes to the instruction; that all four come to the same ones is checked apart. The
//! layouts of matrices in shared memory are the canonical ones of the ISA's matrix descriptors (9.7.15.5.1), for both majors and all swizzles.

use super::matrix::{a_fragment, value};
use super::*;
use crate::op::{Op, Reg, WarpOp, Wgmma, WgmmaA};
use crate::tensor::Swizzle;
use crate::types::Type;

/// Which wgmma a warpgroup's warps have executed, in order.
#[derive(Clone, Debug, Default)]
pub struct Group {
    order: Vec<u32>,
    at: [usize; 4],
    ended: [bool; 4],
}

/// Accumulators that a warp may not touch yet.
#[derive(Clone, Debug, Default)]
pub struct Flight {
    /// Per register, the group it belongs to plus one; zero is none.
    owner: Vec<u32>,
    busy: Vec<Reg>,
    committed: u32,
}

impl Flight {
    pub fn is_empty(&self) -> bool {
        self.busy.is_empty()
    }

    pub fn fence(&mut self) {}

    pub fn commit(&mut self) {
        self.committed += 1;
    }

    /// All but the newest `pending` groups are done.
    pub fn wait(&mut self, pending: u32) {
        let done = self.committed.saturating_sub(pending);
        let owner = &mut self.owner;
        self.busy.retain(|&r| {
            let stays = owner[r as usize] > done;
            if !stays {
                owner[r as usize] = 0;
            }
            stays
        });
    }

    fn begin(&mut self, d: &[Reg]) {
        for &r in d {
            self.mark(r, self.committed + 1);
        }
    }

    fn mark(&mut self, r: Reg, group: u32) {
        if self.owner.len() <= r as usize {
            self.owner.resize(r as usize + 1, 0);
        }
        if self.owner[r as usize] == 0 {
            self.busy.push(r);
        }
        self.owner[r as usize] = group;
    }

    fn owner(&self, r: Reg) -> u32 {
        self.owner.get(r as usize).copied().unwrap_or(0)
    }

    fn clear(&mut self, r: Reg) {
        if self.owner(r) != 0 {
            self.owner[r as usize] = 0;
            self.busy.retain(|&b| b != r);
        }
    }

    /// Nothing but copies and further wgmma may read an accumulator in flight. Copies are how LLVM ties operands of inline assembly, and
    /// vanish in registers; the copy is in flight like what it copies.
    pub fn check(&mut self, op: &Op) -> Step<()> {
        if let Op::Mov { d, a } = op {
            match self.owner(*a) {
                0 => self.clear(*d),
                group => self.mark(*d, group),
            }
            return Ok(());
        }
        if matches!(op, Op::Warp { op, .. } if matches!(**op, WarpOp::Wgmma(_))) {
            return Ok(());
        }
        let mut early = None;
        op.reads(&mut |r| {
            if self.owner(r) != 0 {
                early = Some(r);
            }
        });
        match early {
            None => Ok(()),
            Some(_) => {
                let what = "an accumulator is read before a wgmma.wait_group that covers it".to_owned();
                Err(FaultKind::Wgmma(what).into())
            }
        }
    }
}

/// A matrix descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
}

impl Descriptor {
    fn decode(bits: u64) -> Result<Descriptor, String> {
        // Bits 14, 15, 30, 31, 46 to 48 and 52 to 61 belong to no field.
        const UNUSED: u64 = 3 << 14 | 3 << 30 | 7 << 46 | 0x3ff << 52;
        if bits & UNUSED != 0 {
            return Err(format!("descriptor {bits:#018x} has bits outside its fields"));
        }
        if bits >> 49 & 7 != 0 {
            return Err(format!(
                "descriptor {bits:#018x} has a base offset, which is not supported here"
            ));
        }
        let field = |at: u32| (bits >> at & 0x3fff) as u32 * 16;
        Ok(Descriptor {
            start: field(0),
            leading: field(16),
            stride: field(32),
            swizzle: [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(bits >> 62) as usize],
        })
    }

    /// Address of the 16-byte chunk with element (`outer`, `k`), which must be its first; `outer` counts rows of A or columns of B.
    /// A chunk runs along k where the matrix is K-major, else along `outer`.
    fn chunk(&self, outer: u32, k: u32, bytes: u32, transposed: bool) -> u32 {
        let span = self.swizzle.span();
        let per = 16 / bytes;
        let offset = match (transposed, self.swizzle) {
            // Core matrices of 8 rows of 16 bytes each, 128 bytes in one piece.
            (false, Swizzle::None) => outer % 8 * 16 + outer / 8 * self.stride + k / per * self.leading,
            // Rows of the swizzle's span; one instruction's k lies within the span.
            (false, _) => outer % 8 * span + outer / 8 * self.stride + k * bytes,
            (true, Swizzle::None) => outer / per * self.stride + k % 8 * 16 + k / 8 * self.leading,
            (true, _) => {
                let across = span / bytes;
                outer % across * bytes + outer / across * self.leading + k % 8 * span + k / 8 * self.stride
            }
        };
        self.swizzle.apply(self.start + offset)
    }
}

impl Machinery<'_> {
    /// `outer` x `depth` elements from `first` on; `put(outer, k, value)`.
    fn operand(
        &self,
        rank: usize,
        bits: u64,
        (first, outer, depth): (u32, u32, u32),
        (ty, transposed): (Type, bool),
        mut put: impl FnMut(usize, usize, f32),
    ) -> Step<()> {
        let descriptor = Descriptor::decode(bits).map_err(FaultKind::Wgmma)?;
        let bytes = if ty == Type::TF32 { 4 } else { 2 };
        let per = 16 / bytes;
        let shared = &self.blocks[rank].shared;
        let (outer_step, k_step) = if transposed { (per, 1) } else { (1, per) };
        for o in (0..outer).step_by(outer_step as usize) {
            for k in (0..depth).step_by(k_step as usize) {
                let chunk = shared.read(descriptor.chunk(first + o, k, bytes, transposed), 16)?;
                for (i, element) in chunk.chunks_exact(bytes as usize).enumerate() {
                    let bits = element.iter().rev().fold(0u64, |x, b| x << 8 | *b as u64);
                    let (o, k) = if transposed {
                        (o as usize + i, k as usize)
                    } else {
                        (o as usize, k as usize + i)
                    };
                    put(o, k, value(ty, bits));
                }
            }
        }
        Ok(())
    }

    pub fn wgmma(&mut self, warp: &mut Warp, op: &Wgmma) -> Step<()> {
        self.in_step(warp)?;
        let uniform = |r: Reg| {
            let all = &warp.registers[r as usize];
            match all.iter().all(|v| *v == all[0]) {
                true => Ok(all[0]),
                false => Err(FaultKind::Wgmma(
                    "lanes have different descriptors or scale-d".to_owned(),
                )),
            }
        };
        let depth = if op.ty == Type::TF32 { 8 } else { 16 };
        let n = op.n as usize;
        let row0 = 16 * (warp.index % 4);
        let keeps = uniform(op.scale_d)? & 1 != 0;
        let mut a = match &op.a {
            WgmmaA::Registers(r) => a_fragment(warp, op.ty, r),
            WgmmaA::Descriptor(r) => {
                let mut tile = [[0.0; 16]; 16];
                let which = (op.ty, op.transpose_a);
                self.operand(warp.rank, uniform(*r)?, (row0, 16, depth), which, |o, k, v| {
                    tile[o][k] = v
                })?;
                tile
            }
        };
        if op.negate_a != op.negate_b {
            a.iter_mut().flatten().for_each(|x| *x = -*x);
        }
        let mut b = vec![0f32; 16 * n];
        let which = (op.ty, op.transpose_b);
        self.operand(warp.rank, uniform(op.b)?, (0, op.n, depth), which, |o, k, v| {
            b[k * n + o] = v
        })?;
        let mut sums = vec![0f32; 16 * n];
        if keeps {
            each_of(op, |lane, r, row, column| {
                sums[row * n + column] = f32::from_bits(warp.registers[r as usize][lane] as u32);
            });
        }
        for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
            for k in 0..depth as usize {
                let x = a[row][k];
                sums.iter_mut().zip(&b[k * n..]).for_each(|(s, y)| *s += x * y);
            }
        }
        each_of(op, |lane, r, row, column| {
            warp.registers[r as usize][lane] = sums[row * n + column].to_bits() as u64;
        });
        warp.wgmma.begin(&op.d);
        Ok(())
    }

    /// All four warps of a warpgroup execute the same wgmma in the same order.
    fn in_step(&mut self, warp: &Warp) -> Step<()> {
        let pc = warp.pc[0];
        let (group, warp_in_group) = (warp.index as usize / 4, warp.index as usize % 4);
        let warps = self.blocks[warp.rank].groups[group].at;
        let g = &mut self.blocks[warp.rank].groups[group];
        let at = g.at[warp_in_group];
        g.at[warp_in_group] += 1;
        match g.order.get(at) {
            None => g.order.push(pc),
            Some(&other) if other != pc => {
                let what = format!("another warp of the warpgroup is at `{}` instead", self.text(other));
                return Err(FaultKind::Wgmma(what).into());
            }
            Some(_) => {}
        }
        if (0..4).any(|w| g.ended[w] && warps[w] <= at) {
            return Err(FaultKind::Wgmma("another warp of the warpgroup has ended".to_owned()).into());
        }
        Ok(())
    }

    pub fn end_of_warp(&mut self, warp: &Warp) -> Step<()> {
        let g = &mut self.blocks[warp.rank].groups[warp.index as usize / 4];
        let w = warp.index as usize % 4;
        g.ended[w] = true;
        if (0..4).any(|other| g.at[other] > g.at[w]) {
            return Err(FaultKind::Wgmma(
                "the warp ends before a wgmma that others of its warpgroup executed".to_owned(),
            )
            .into());
        }
        Ok(())
    }
}

/// Where each accumulator is: `f(lane, register, row of the warp's 16, column)`.
fn each_of(op: &Wgmma, mut f: impl FnMut(usize, Reg, usize, usize)) {
    for (i, &r) in op.d.iter().enumerate() {
        for lane in 0..32 {
            let row = lane / 4 + 8 * (i / 2 % 2);
            f(lane, r, row, 8 * (i / 4) + 2 * (lane % 4) + i % 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_refuse_bits_outside_their_fields() {
        assert!(Descriptor::decode(1 << 14).is_err());
        assert!(Descriptor::decode(1 << 48).is_err());
        assert!(Descriptor::decode(1 << 49).is_err());
        let d = Descriptor::decode(0x40 | 8 << 16 | 64 << 32 | 1 << 62).unwrap();
        assert_eq!(
            (d.start, d.leading, d.stride, d.swizzle),
            (1024, 128, 1024, Swizzle::B128)
        );
    }
}
