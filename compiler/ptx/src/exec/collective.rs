//! What the lanes of a warp do together: shuffles, votes, reductions (PTX ISA 9.7.9, 9.7.13).

use super::*;
use crate::op::{ShuffleMode, VoteMode, WarpOp};
use crate::types::Type;

impl Machinery<'_> {
    /// Executes an instruction for all of its lanes at once.
    pub fn together(&mut self, warp: &mut Warp, op: &WarpOp, mask: u32) -> Step<()> {
        match op {
            WarpOp::Sync => {}
            WarpOp::Shuffle { mode, d, p, a, b, c } => {
                let values = warp.registers[*a as usize];
                for lane in lanes(mask) {
                    let (from, inside) =
                        source(*mode, lane as u32, warp.get(*b, lane) as u32, warp.get(*c, lane) as u32);
                    // Out of range a lane keeps its own value.
                    let from = if inside { from as usize } else { lane };
                    if mask >> from & 1 == 0 {
                        let kind = FaultKind::Partial {
                            arrived: mask,
                            wanted: mask | 1 << from,
                            why: format!("lane {from} is read and is not in the mask"),
                        };
                        return at_lane(Err(kind.into()), lane);
                    }
                    warp.set(*d, lane, values[from] & 0xffff_ffff);
                    if let Some(p) = p {
                        warp.set(*p, lane, inside as u64);
                    }
                }
            }
            WarpOp::Vote { mode, d, a, negated } => {
                let ballot = lanes(mask)
                    .filter(|&l| (warp.get(*a, l) != 0) != *negated)
                    .fold(0u32, |m, l| m | 1 << l);
                let value = match mode {
                    VoteMode::All => (ballot == mask) as u64,
                    VoteMode::Any => (ballot != 0) as u64,
                    VoteMode::Uni => (ballot == mask || ballot == 0) as u64,
                    VoteMode::Ballot => ballot as u64,
                };
                lanes(mask).for_each(|l| warp.set(*d, l, value));
            }
            WarpOp::Match { all, d, p, a, bits } => {
                let keep = if *bits == 64 { u64::MAX } else { 0xffff_ffff };
                let values = warp.registers[*a as usize].map(|v| v & keep);
                for lane in lanes(mask) {
                    let same = lanes(mask)
                        .filter(|&l| values[l] == values[lane])
                        .fold(0u32, |m, l| m | 1 << l);
                    let value = if *all && same != mask { 0 } else { same };
                    warp.set(*d, lane, value as u64);
                    if let Some(p) = p {
                        warp.set(*p, lane, (value != 0) as u64);
                    }
                }
            }
            WarpOp::Redux { op, ty, d, a } => {
                let ty = if *ty == Type::B32 { Type::U32 } else { *ty };
                let mut all = lanes(mask).map(|l| warp.get(*a, l));
                let first = all.next().unwrap_or(0);
                let value = all.try_fold(first, |x, y| access::combine(*op, ty, x, y, 0))?;
                lanes(mask).for_each(|l| warp.set(*d, l, value));
            }
            WarpOp::Elect { d, p } => {
                let leader = mask.trailing_zeros();
                for lane in lanes(mask) {
                    warp.set(*d, lane, leader as u64);
                    warp.set(*p, lane, (lane as u32 == leader) as u64);
                }
            }
            WarpOp::Ldmatrix {
                d,
                at,
                transposed,
                space,
            } => self.ldmatrix(warp, d, *at, *transposed, *space)?,
            WarpOp::Stmatrix {
                a,
                at,
                transposed,
                space,
            } => self.stmatrix(warp, a, *at, *transposed, *space)?,
            WarpOp::Movmatrix { d, a } => matrix::movmatrix(warp, *d, *a),
            WarpOp::Mma { kind, d, a, b, c } => matrix::mma(warp, *kind, d, a, b, c),
            WarpOp::Wgmma(op) => self.wgmma(warp, op)?,
        }
        Ok(())
    }
}

/// The lane a shuffle reads, and whether it is in range (PTX ISA 9.7.9.6). `c` holds a clamp and a mask of segments.
fn source(mode: ShuffleMode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let highest = (lane & segment) | (clamp & !segment);
    let lowest = lane & segment;
    match mode {
        ShuffleMode::Up => {
            let from = lane as i32 - b as i32;
            (from as u32, from >= highest as i32)
        }
        ShuffleMode::Down => (lane + b, lane + b <= highest),
        ShuffleMode::Bfly => (lane ^ b, lane ^ b <= highest),
        ShuffleMode::Idx => {
            let from = lowest | (b & !segment);
            (from, from <= highest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_stay_in_their_segments() {
        // Segments of 8 lanes: mask 0x18, clamp 31 within them (0x1f).
        let c = 0x18 << 8 | 0x1f;
        assert_eq!(source(ShuffleMode::Down, 5, 2, c), (7, true));
        assert!(!source(ShuffleMode::Down, 7, 2, c).1);
        assert_eq!(source(ShuffleMode::Idx, 13, 2, c), (10, true));
        assert_eq!(source(ShuffleMode::Bfly, 13, 4, c), (9, true));
        // Up: clamp 0.
        let c = 0x18 << 8;
        assert_eq!(source(ShuffleMode::Up, 13, 4, c), (9, true));
        assert!(!source(ShuffleMode::Up, 9, 4, c).1);
    }
}
