//! Matrix instructions of one warp: ldmatrix, stmatrix, movmatrix and mma.sync (PTX ISA 9.7.14.5).
//!
//! Of a tile of 8 x 8 elements of 16 bits, lane l holds elements 2 (l % 4) and the next of row l / 4.

use half::f16;

use super::access::At;
use super::*;
use crate::op::{Address, MmaKind, Reg, Space};
use crate::types::Type;

impl Machinery<'_> {
    /// The address of each row; matrix m's rows are named by lanes 8 m to 8 m + 7.
    fn row(&self, warp: &Warp, at: Address, space: Space, lane: usize) -> Step<u32> {
        let address = warp.address(at, lane);
        let address = if space == Space::Shared {
            address as u32
        } else {
            self.to_shared(address)?
        };
        if address % 16 != 0 {
            return Err(FaultKind::Misaligned {
                address: At::Shared(address).place(),
                bytes: 16,
                align: 16,
            }
            .into());
        }
        Ok(address)
    }

    pub fn ldmatrix(&mut self, warp: &mut Warp, d: &[Reg], at: Address, transposed: bool, space: Space) -> Step<()> {
        for (m, &d) in d.iter().enumerate() {
            let mut tile = [[0u16; 8]; 8];
            for (r, row) in tile.iter_mut().enumerate() {
                let lane = 8 * m + r;
                let address = at_lane(self.row(warp, at, space, lane), lane)?;
                let result = self.shared(address).and_then(|s| s.read(address & 0xff_ffff, 16));
                let bytes = at_lane(result, lane)?;
                for (x, pair) in row.iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = u16::from_le_bytes([pair[0], pair[1]]);
                }
            }
            for lane in 0..32 {
                let (g, t) = (lane / 4, 2 * (lane % 4));
                let pair = if transposed {
                    [tile[t][g], tile[t + 1][g]]
                } else {
                    [tile[g][t], tile[g][t + 1]]
                };
                warp.set(d, lane, pair[0] as u64 | (pair[1] as u64) << 16);
            }
        }
        Ok(())
    }

    pub fn stmatrix(&mut self, warp: &mut Warp, a: &[Reg], at: Address, transposed: bool, space: Space) -> Step<()> {
        self.changes += 1;
        for (m, &a) in a.iter().enumerate() {
            let mut tile = [[0u16; 8]; 8];
            for lane in 0..32 {
                let (g, t, value) = (lane / 4, 2 * (lane % 4), warp.get(a, lane));
                for (i, x) in [value as u16, (value >> 16) as u16].into_iter().enumerate() {
                    if transposed {
                        tile[t + i][g] = x;
                    } else {
                        tile[g][t + i] = x;
                    }
                }
            }
            for (r, row) in tile.iter().enumerate() {
                let lane = 8 * m + r;
                let address = at_lane(self.row(warp, at, space, lane), lane)?;
                let result = self.shared(address).and_then(|s| s.write(address & 0xff_ffff, 16));
                let bytes = at_lane(result, lane)?;
                for (pair, x) in bytes.chunks_exact_mut(2).zip(row) {
                    pair.copy_from_slice(&x.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

pub fn movmatrix(warp: &mut Warp, d: Reg, a: Reg) {
    let values = warp.registers[a as usize];
    let element = |row: usize, column: usize| values[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    for lane in 0..32 {
        let (g, t) = (lane / 4, 2 * (lane % 4));
        warp.set(d, lane, element(t, g) | element(t + 1, g) << 16);
    }
}

/// An element of a fragment as a number.
pub fn value(ty: Type, bits: u64) -> f32 {
    match ty {
        Type::BF16 => f32::from_bits((bits as u32) << 16),
        Type::F16 => f16::from_bits(bits as u16).to_f32(),
        // The machine reads only the upper 19 bits of a tf32.
        _ => f32::from_bits(bits as u32 & !0x1fff),
    }
}

/// 16 rows of A from registers: rows g and g + 8, columns in pairs of 16 bits, or single ones of tf32.
pub fn a_fragment(warp: &Warp, ty: Type, a: &[Reg]) -> [[f32; 16]; 16] {
    let mut tile = [[0.0; 16]; 16];
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for (i, &r) in a.iter().enumerate() {
            let (row, bits) = (g + 8 * (i % 2), warp.get(r, lane));
            if ty == Type::TF32 {
                tile[row][t + 4 * (i / 2)] = value(ty, bits);
            } else {
                tile[row][2 * t + 8 * (i / 2)] = value(ty, bits);
                tile[row][2 * t + 1 + 8 * (i / 2)] = value(ty, bits >> 16);
            }
        }
    }
    tile
}

pub fn mma(warp: &mut Warp, kind: MmaKind, d: &[Reg], a: &[Reg], b: &[Reg], c: &[Reg]) {
    let (MmaKind::M16N8K16(ty) | MmaKind::M16N8K8(ty)) = kind;
    let depth = if matches!(kind, MmaKind::M16N8K16(_)) { 16 } else { 8 };
    let left = a_fragment(warp, ty, a);
    let mut right = [[0.0; 8]; 16];
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for (i, &r) in b.iter().enumerate() {
            let bits = warp.get(r, lane);
            if ty == Type::TF32 {
                right[t + 4 * i][g] = value(ty, bits);
            } else {
                right[2 * t + 8 * i][g] = value(ty, bits);
                right[2 * t + 1 + 8 * i][g] = value(ty, bits >> 16);
            }
        }
    }
    let c: Vec<[u64; 32]> = c.iter().map(|r| warp.registers[*r as usize]).collect();
    for lane in 0..32 {
        let (g, t) = (lane / 4, 2 * (lane % 4));
        for i in 0..4 {
            let (row, column) = (g + 8 * (i / 2), t + i % 2);
            let start = f32::from_bits(c[i][lane] as u32);
            let sum = (0..depth).fold(start, |s, k| s + left[row][k] * right[k][column]);
            warp.set(d[i], lane, sum.to_bits() as u64);
        }
    }
}
