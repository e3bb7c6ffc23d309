//! The register tile of matmuls and sweeps: a few rows of A times a few vectors of B's columns, in registers over all of k.
//!
//!     for chunk of 6, 4, 2, then 1 rows       as many as fill the registers
//!       for k                                 load the vectors of B, broadcast A of each row, fma (or vdpbf16ps on pairs)

use ir::DType;

use super::Target;
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::scalar::{memory, widen};

/// Rows of a register tile, in the order they are tried. 6 x 64 columns fill 24 of 32 zmm registers.
pub const CHUNKS: [i64; 4] = [6, 4, 2, 1];

/// Columns of a register tile, as vectors.
pub fn vectors(target: &Target) -> i64 {
    if target.lanes == 16 { 4 } else { 2 }
}

/// All rows from `first` to `last`, chunk by chunk: `f` gets a chunk's first row and its height.
pub fn chunks(e: &mut Emit, first: Val, last: Val, f: &mut dyn FnMut(&mut Emit, Val, i64)) {
    let mut from = first;
    for chunk in CHUNKS {
        let left = e.sub(last, from);
        let n = e.i64(chunk);
        let whole = e.div(left, n);
        let whole = e.mul(whole, n);
        let to = e.add(from, whole);
        e.for_loop(from, to, chunk, &[], |e, row, _| {
            f(e, row, chunk);
            vec![]
        });
        from = to;
    }
}

/// B in units of four bytes: an f32, or a pair of bf16 along k. Unit (k / pair, n) stands at `k / pair * stride + n`.
pub struct Panel<'t> {
    pub target: &'t Target,
    pub base: Val,
    pub stride: i64,
    pub pair: i64,
    /// Units from one of A to the next: 1, or a panel's width where A is packed too.
    pub a_stride: i64,
}

impl Panel<'_> {
    /// `init + A * B` over a range of units: rows of A by the vectors that start at columns `firsts`.
    pub fn product(&self, e: &mut Emit, a: &[Val], firsts: &[Val], init: &[Val], [from, to]: [Val; 2]) -> Vec<Val> {
        // Few accumulators: several units an iteration keep the loads coming.
        let unroll = if a.len() == 1 { 4 } else { 1 };
        let n = e.i64(unroll);
        let rounds = e.sub(to, from);
        let rounds = e.div(rounds, n);
        let rounds = e.mul(rounds, n);
        let rounds = e.add(from, rounds);
        let acc = e.for_loop(from, rounds, unroll, init, |e, unit, acc| {
            let mut acc = acc.to_vec();
            for u in 0..unroll {
                let u = e.i64(u);
                let at = e.add(unit, u);
                acc = self.step(e, a, firsts, &acc, at, false);
            }
            acc
        });
        match unroll {
            1 => acc,
            _ => e.for_loop(rounds, to, 1, &acc, |e, unit, acc| {
                self.step(e, a, firsts, acc, unit, false)
            }),
        }
    }

    /// One unit of k; of an odd one A has only the first half.
    pub fn step(&self, e: &mut Emit, a: &[Val], firsts: &[Val], acc: &[Val], unit: Val, odd: bool) -> Vec<Val> {
        let width = e.i64(self.stride);
        let row = e.mul(unit, width);
        let elem = if self.pair == 2 { Elem::I32 } else { Elem::F32 };
        let b: Vec<Val> = firsts
            .iter()
            .map(|f| {
                let at = e.add(row, *f);
                let p = e.at(self.base, at, elem);
                e.load(p, Ty::vector(elem, self.target.lanes))
            })
            .collect();
        let mut out = vec![];
        for (a, acc) in a.iter().zip(acc.chunks(b.len())) {
            out.extend(self.multiply(e, *a, unit, odd, &b, acc));
        }
        out
    }

    /// One row of A, one unit of k: acc + a * b for every vector of B.
    fn multiply(&self, e: &mut Emit, a: Val, unit: Val, odd: bool, b: &[Val], acc: &[Val]) -> Vec<Val> {
        let lanes = self.target.lanes;
        let unit = match self.a_stride {
            1 => unit,
            n => {
                let n = e.i64(n);
                e.mul(unit, n)
            }
        };
        if self.pair == 1 {
            let p = e.at(a, unit, Elem::F32);
            let x = e.load(p, Ty::scalar(Elem::F32));
            let x = e.broadcast(x, lanes);
            return b.iter().zip(acc).map(|(b, acc)| e.fma(x, *b, *acc)).collect();
        }
        let p = e.at(a, unit, Elem::I32);
        let x = if odd {
            let x = e.load(p, Ty::scalar(Elem::I16));
            e.extend_unsigned(x, Elem::I32)
        } else {
            // Two bf16; four bytes that may lie at any even address.
            e.load(p, Ty::scalar(Elem::I32))
        };
        if self.target.bf16_dot {
            let ty = Ty::vector(Elem::BF16, 2 * lanes);
            let x = e.broadcast(x, lanes);
            let x = e.bitcast(x, ty);
            return b
                .iter()
                .zip(acc)
                .map(|(b, acc)| {
                    let b = e.bitcast(*b, ty);
                    e.dot_bf16(*acc, x, b)
                })
                .collect();
        }
        let halves = |e: &mut Emit, x: Val| {
            let even = e.shl(x, 16);
            let high = e.int(-65536, x.ty);
            let odd = e.and(x, high);
            [even, odd].map(|v| e.bitcast(v, x.ty.with(Elem::F32)))
        };
        let x = halves(e, x).map(|v| e.broadcast(v, lanes));
        b.iter()
            .zip(acc)
            .map(|(b, acc)| {
                let b = halves(e, *b);
                let acc = e.fma(x[0], b[0], *acc);
                e.fma(x[1], b[1], acc)
            })
            .collect()
    }
}

/// B's rows as they lie: columns contiguous, one k at a time, in f32.
pub struct Rows {
    pub lanes: usize,
    /// Row 0's pointer of each vector.
    pub starts: Vec<Val>,
    pub masks: Vec<Option<Val>>,
    /// Elements from row to row.
    pub stride: Val,
    pub dtype: DType,
}

impl Rows {
    /// `init + A * B` over a range of k.
    pub fn product(&self, e: &mut Emit, a: &[Val], a_type: DType, init: &[Val], [from, to]: [Val; 2]) -> Vec<Val> {
        let elem = memory(self.dtype);
        e.for_loop(from, to, 1, init, |e, k, acc| {
            let offset = e.mul(k, self.stride);
            let mut b = vec![];
            for (start, mask) in self.starts.iter().zip(&self.masks) {
                let p = e.at(*start, offset, elem);
                let ty = Ty::vector(elem, self.lanes);
                let raw = match mask {
                    None => e.load(p, ty),
                    Some(mask) => e.masked_load(p, *mask, ty),
                };
                b.push(widen(e, raw, self.dtype));
            }
            let mut out = vec![];
            for (a, acc) in a.iter().zip(acc.chunks(b.len())) {
                let p = e.at(*a, k, memory(a_type));
                let x = e.load(p, Ty::scalar(memory(a_type)));
                let x = widen(e, x, a_type);
                let x = e.broadcast(x, self.lanes);
                out.extend(b.iter().zip(acc).map(|(b, acc)| e.fma(x, *b, *acc)));
            }
            out
        })
    }
}
