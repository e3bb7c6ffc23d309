//! Where a block of tokens of one range and group meets a block of keys: weights, what becomes of them, and the sums they make.

use super::super::keys::{BLOCK, Matrix, pack_rows};
use super::super::product::{self, Panel};
use super::super::vmath;
use super::{Meeting, RowAt, Walk, store};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::memory;

impl Walk<'_> {
    pub(super) fn meet(&self, e: &mut Emit, m: &Meeting) {
        let (q, d) = (
            self.of_tokens(e, &self.g.q, m.group),
            self.of_tokens(e, &m.range.d, m.group),
        );
        self.by_keys(e, m, &q, self.lay.turned_k, self.g.depth, self.lay.p);
        self.by_keys(e, m, &d, self.lay.turned_v, self.cols(), self.lay.dp);
        self.weigh(e, m);
        let (zero, keys, pair) = (e.i64(0), e.i64(BLOCK), self.pair());
        let less = e.i64(pair - 1);
        let units = e.add(m.count, less);
        let by = e.i64(pair);
        let units = e.div(units, by);
        for (asked, rows, left, right, cols, width, to) in [
            (
                self.g.dv.is_some(),
                &d,
                self.lay.paired_p,
                self.lay.paired_d,
                self.cols(),
                self.lay.width,
                self.lay.dv,
            ),
            (
                self.g.dk.is_some(),
                &q,
                self.lay.paired_dx,
                self.lay.paired_q,
                self.g.depth,
                self.lay.depth,
                self.lay.dk,
            ),
        ] {
            if !asked {
                continue;
            }
            let base = self.place(e, right);
            pack_rows(e, self.target, rows, cols, width, m.token, base);
            let panel = Panel {
                target: self.target,
                base,
                stride: width,
                pair,
                a_stride: BLOCK,
            };
            let left = self.place(e, left);
            let a = |e: &mut Emit, key: Val| e.at(left, key, Elem::I32);
            let to = |e: &mut Emit, key: Val| self.row_of(e, to, key, width, Elem::F32);
            self.accumulate(e, [zero, keys], &a, &panel, [zero, units], &to, cols, true);
        }
        if let Some(dq) = &self.g.dq {
            let dq = self.of_tokens(e, dq, m.group);
            let panel = Panel {
                target: self.target,
                base: self.place(e, self.lay.paired_k),
                stride: self.lay.depth,
                pair,
                a_stride: 1,
            };
            let a = |e: &mut Emit, row: Val| self.row_of(e, self.lay.dx, row, BLOCK, memory(self.dtype()));
            let to = |e: &mut Emit, row: Val| {
                let token = e.add(m.token, row);
                dq.row(e, token)
            };
            let units = e.i64(BLOCK / pair);
            self.accumulate(e, [zero, m.count], &a, &panel, [zero, units], &to, self.g.depth, false);
        }
    }

    /// Rows of tokens by the turned block: [token, key] f32.
    fn by_keys(&self, e: &mut Emit, m: &Meeting, rows: &Matrix, turned: i64, depth: i64, to: i64) {
        let pair = self.pair();
        let panel = Panel {
            target: self.target,
            base: self.place(e, turned),
            stride: BLOCK,
            pair,
            a_stride: 1,
        };
        let (zero, all, units) = (e.i64(0), e.i64(BLOCK), e.i64(depth / pair));
        let step = product::vectors(self.target) * self.lanes() as i64;
        product::chunks(e, zero, m.count, &mut |e, row, chunk| {
            let (mut a, mut places) = (vec![], vec![]);
            for i in 0..chunk {
                let i = e.i64(i);
                let row = e.add(row, i);
                let token = e.add(m.token, row);
                a.push(rows.row(e, token));
                places.push(self.row_of(e, to, row, BLOCK, Elem::F32));
            }
            e.for_loop(zero, all, step, &[], |e, sub, _| {
                let firsts = self.firsts(e, sub);
                let init = vec![e.f32(0.0, self.vector()); a.len() * firsts.len()];
                let mut acc = panel.product(e, &a, &firsts, &init, [zero, units]);
                if depth % pair != 0 {
                    acc = panel.step(e, &a, &firsts, &acc, units, true);
                }
                for (to, acc) in places.iter().zip(acc.chunks(firsts.len())) {
                    for (first, v) in firsts.iter().zip(acc) {
                        store(e, *to, *first, None, *v);
                    }
                }
                vec![]
            });
        });
    }

    /// p and dx of the meeting, for the products behind: both in units of rows, dx by rows too.
    fn weigh(&self, e: &mut Emit, m: &Meeting) {
        let (zero, pair) = (e.i64(0), self.pair());
        e.for_loop(zero, m.count, pair, &[], |e, row, _| {
            let mut rows = vec![];
            for i in 0..pair {
                let i = e.i64(i);
                let row = e.add(row, i);
                // Behind the last row stands nothing: its unit's second half is zero.
                let there = e.cmp(Cmp::Lt, row, m.count);
                let token = e.add(m.token, row);
                let one = e.i64(1);
                let last = e.sub(self.tokens, one);
                let at = e.min(token, last);
                let lse = self.number(e, &m.range.lse, m.group, at);
                let z = self.number(e, &m.range.z, m.group, at);
                rows.push((row, token, there, lse, z));
            }
            let unit = match pair {
                1 => row,
                _ => {
                    let two = e.i64(2);
                    e.div(row, two)
                }
            };
            for column in (0..BLOCK).step_by(self.lanes()) {
                let column = e.i64(column);
                let both: Vec<(Val, Val)> = rows
                    .iter()
                    .map(|(row, token, there, lse, z)| self.weights(e, m, (*row, *token, *there), column, *lse, *z))
                    .collect();
                for ((row, ..), (_, dx)) in rows.iter().zip(&both) {
                    let to = self.row_of(e, self.lay.dx, *row, BLOCK, memory(self.dtype()));
                    let to = e.at(to, column, memory(self.dtype()));
                    let dx = if pair == 2 { self.round(e, *dx) } else { *dx };
                    e.store(dx, to);
                }
                let p: Vec<Val> = both.iter().map(|b| b.0).collect();
                let dx: Vec<Val> = both.iter().map(|b| b.1).collect();
                for (values, bytes) in [(p, self.lay.paired_p), (dx, self.lay.paired_dx)] {
                    let to = self.row_of(e, bytes, unit, BLOCK, Elem::F32);
                    let v = match values[..] {
                        [x] => x,
                        _ => {
                            let [low, high] = [values[0], values[1]].map(|x| {
                                let bits = self.round(e, x);
                                let bits = e.bitcast(bits, Ty::vector(Elem::I16, self.lanes()));
                                e.extend_unsigned(bits, Elem::I32)
                            });
                            let high = e.shl(high, 16);
                            let both = e.or(low, high);
                            e.bitcast(both, self.vector())
                        }
                    };
                    store(e, to, column, None, v);
                }
            }
            vec![]
        });
    }

    /// p and dx of a row and a vector of keys; 0 where the row does not see the key.
    fn weights(&self, e: &mut Emit, m: &Meeting, row: (Val, Val, Val), column: Val, lse: Val, z: Val) -> (Val, Val) {
        let (row, token, there) = row;
        let load = |e: &mut Emit, bytes: i64| {
            let from = self.row_of(e, bytes, row, BLOCK, Elem::F32);
            let p = e.at(from, column, Elem::F32);
            e.load(p, self.vector())
        };
        let scale = f32::from_bits(self.g.scale);
        let (x, dp) = (load(e, self.lay.p), load(e, self.lay.dp));
        // In units of log2; no score is above its mass.
        let by = e.f32(scale * std::f32::consts::LOG2_E, self.vector());
        let unit = e.f32(-std::f32::consts::LOG2_E, self.vector());
        let mass = e.mul(lse, unit);
        let x = e.fma(x, by, mass);
        let nothing = e.f32(0.0, self.vector());
        let x = e.min(x, nothing);
        let p = vmath::exp2_negative(e, x);
        let seen = self.seen(e, m, token, there, column);
        let p = e.select(seen, p, nothing);
        let sum = e.add(dp, z);
        let dx = e.mul(p, sum);
        let scale = e.f32(scale, self.vector());
        let dx = e.mul(dx, scale);
        // What stands where nothing was computed may be no number.
        (p, e.select(seen, dx, nothing))
    }

    fn seen(&self, e: &mut Emit, m: &Meeting, token: Val, there: Val, column: Val) -> Val {
        let lanes = self.lanes();
        let ty = Ty::vector(Elem::I32, lanes);
        let key = e.add(m.key, column);
        let left = e.sub(self.keys, key);
        let nothing = e.i64(0);
        let left = e.select(there, left, nothing);
        let mut seen = e.first_lanes(left, lanes);
        let distance = e.sub(token, key);
        let distance = e.truncate_int(distance, Elem::I32);
        let distance = e.broadcast(distance, lanes);
        let lane = e.iota(Elem::I32, lanes);
        let distance = e.sub(distance, lane);
        let near = e.int(m.range.near, ty);
        let behind = e.cmp(Cmp::Le, near, distance);
        seen = e.and(seen, behind);
        if let Some(far) = m.range.far.and_then(|far| i32::try_from(far).ok()) {
            let far = e.int(i64::from(far), ty);
            let close = e.cmp(Cmp::Lt, distance, far);
            seen = e.and(seen, close);
        }
        seen
    }

    /// bf16 bits.
    fn round(&self, e: &mut Emit, x: Val) -> Val {
        if self.target.bf16_dot && self.target.lanes == 16 {
            e.round_bf16(x)
        } else {
            vmath::bf16_bits(e, x)
        }
    }

    /// `to += a * panel` for rows of the range, chunk by chunk. `padded`: `to` has whole register tiles of columns.
    #[allow(clippy::too_many_arguments)]
    fn accumulate(
        &self,
        e: &mut Emit,
        [from, last]: [Val; 2],
        a: RowAt,
        panel: &Panel,
        units: [Val; 2],
        to: RowAt,
        cols: i64,
        padded: bool,
    ) {
        let lanes = self.lanes() as i64;
        let step = product::vectors(self.target) * lanes;
        let (zero, all) = (e.i64(0), e.i64((cols + step - 1) / step * step));
        product::chunks(e, from, last, &mut |e, row, chunk| {
            let (mut left, mut places) = (vec![], vec![]);
            for i in 0..chunk {
                let i = e.i64(i);
                let row = e.add(row, i);
                left.push(a(e, row));
                places.push(to(e, row));
            }
            e.for_loop(zero, all, step, &[], |e, sub, _| {
                let firsts = self.firsts(e, sub);
                let masks: Vec<Option<Val>> = firsts
                    .iter()
                    .map(|f| {
                        (!padded && cols % step != 0).then(|| {
                            let n = e.i64(cols);
                            let left = e.sub(n, *f);
                            e.first_lanes(left, self.lanes())
                        })
                    })
                    .collect();
                let mut init = vec![];
                for to in &places {
                    for (first, mask) in firsts.iter().zip(&masks) {
                        let p = e.at(*to, *first, Elem::F32);
                        init.push(match mask {
                            None => e.load(p, self.vector()),
                            Some(mask) => e.masked_load(p, *mask, self.vector()),
                        });
                    }
                }
                let acc = panel.product(e, &left, &firsts, &init, units);
                for (to, acc) in places.iter().zip(acc.chunks(firsts.len())) {
                    for ((first, mask), v) in firsts.iter().zip(&masks).zip(acc) {
                        store(e, *to, *first, *mask, *v);
                    }
                }
                vec![]
            });
        });
    }
}
