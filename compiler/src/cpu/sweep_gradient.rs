//! The backward of attention: flash attention's (Dao, arXiv 2307.08691), for several ranges of keys with their own d, z and lse.
//!
//!     for tile in begin..end                  one batch point: all rows that share its keys
//!       for block of 64 keys                  turned for scores and dp, in pairs for dq; dk and dv start at zero
//!         for range, block of 64 tokens in it, group
//!           for chunk of rows                 p = e^(q k - lse), the matmuls' register tile
//!           for chunk of rows                 dp = d v
//!           for pair of rows                  dx = p (dp + z); p and dx in pairs of rows, dx by rows
//!           for chunk of keys                 dv += p^T d, dk += dx^T q
//!           for chunk of rows                 dq += dx k, in memory
//!
//! Each sum has one order, whatever the number of threads.

use ir::DType;
use ir::plan::{Kernel, Range, Rows, SweepGradient};

use super::Target;
use super::keys::{BLOCK, Matrix, pack_keys, pack_rows};
use super::product::{self, Panel};
use super::vmath;
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, F32, memory};

/// Where things lie in a worker's scratch, in bytes.
struct Scratch {
    /// Columns of panels: whole register tiles of a query's and a value's elements.
    depth: i64,
    width: i64,
    /// k and v turned; k, q and d in pairs of rows.
    turned_k: i64,
    turned_v: i64,
    paired_k: i64,
    paired_q: i64,
    paired_d: i64,
    /// [token, key] f32.
    p: i64,
    dp: i64,
    /// [token / pair, key] units.
    paired_p: i64,
    paired_dx: i64,
    /// [token, key] in the elements' type.
    dx: i64,
    /// [key, ..] f32.
    dk: i64,
    dv: i64,
    end: i64,
}

fn scratch(kernel: &Kernel, g: &SweepGradient) -> Scratch {
    let up = |n: i64| (n + BLOCK - 1) / BLOCK * BLOCK;
    let cols = kernel.cols.as_const().unwrap_or(1);
    let (depth, width) = (up(g.depth), up(cols));
    let mut at = 0;
    let mut take = |units: i64| {
        let here = at;
        at += units * 4;
        here
    };
    Scratch {
        depth,
        width,
        turned_k: take((g.depth + 1) * BLOCK),
        turned_v: take((cols + 1) * BLOCK),
        paired_k: take(BLOCK * depth),
        paired_q: take(BLOCK * depth),
        paired_d: take(BLOCK * width),
        p: take(BLOCK * BLOCK),
        dp: take(BLOCK * BLOCK),
        paired_p: take(BLOCK * BLOCK),
        paired_dx: take(BLOCK * BLOCK),
        dx: take(BLOCK * BLOCK),
        dk: take(BLOCK * depth),
        dv: take(BLOCK * width),
        end: at,
    }
}

/// Scratch of a worker.
pub fn scratch_bytes(kernel: &Kernel, g: &SweepGradient) -> i64 {
    scratch(kernel, g).end
}

pub fn emit(kernel: &Kernel, g: &SweepGradient, target: &Target) -> String {
    let mut e = Emit::default();
    e.kernel(&kernel.name, |e, [buffers, symbols, begin, end, memory]| {
        let body = Body::new(e, kernel, target.lanes, buffers, symbols);
        let (tokens, keys) = (body.size(e, &g.tokens), body.size(e, &g.keys));
        e.for_loop(begin, end, 1, &[], |e, tile, _| {
            let batch = body.unravel(e, tile, &kernel.outer);
            let walk = Walk {
                body: &body,
                g,
                target,
                lay: scratch(kernel, g),
                memory,
                batch,
                tokens,
                keys,
            };
            walk.run(e);
            vec![]
        });
    });
    e.finish()
}

/// All rows and keys of one batch point.
struct Walk<'k> {
    body: &'k Body<'k>,
    g: &'k SweepGradient,
    target: &'k Target,
    lay: Scratch,
    memory: Val,
    batch: Vec<Val>,
    tokens: Val,
    keys: Val,
}

/// Tokens and keys that meet.
struct Meeting<'k> {
    range: &'k Range,
    group: Val,
    /// First token, how many; first key.
    token: Val,
    count: Val,
    key: Val,
}

/// The pointer of a row, by its number.
type RowAt<'a> = &'a dyn Fn(&mut Emit, Val) -> Val;

impl Walk<'_> {
    fn lanes(&self) -> usize {
        self.target.lanes
    }

    fn vector(&self) -> Ty {
        Ty::vector(Elem::F32, self.lanes())
    }

    fn dtype(&self) -> DType {
        self.body.kernel.args[self.g.q.arg].dtype
    }

    fn pair(&self) -> i64 {
        if self.dtype() == DType::BF16 { 2 } else { 1 }
    }

    fn cols(&self) -> i64 {
        self.body.kernel.cols.as_const().unwrap_or(1)
    }

    fn place(&self, e: &mut Emit, bytes: i64) -> Val {
        let at = e.i64(bytes);
        e.at(self.memory, at, Elem::I8)
    }

    /// Element (row, 0) of scratch with rows of `width` elements.
    fn row_of(&self, e: &mut Emit, bytes: i64, row: Val, width: i64, elem: Elem) -> Val {
        let base = self.place(e, bytes);
        let width = e.i64(width);
        let at = e.mul(row, width);
        e.at(base, at, elem)
    }

    fn of_keys(&self, e: &mut Emit, rows: &Rows) -> Matrix {
        Matrix::new(e, self.body, self.body.kernel, rows, &self.batch, self.keys)
    }

    fn of_tokens(&self, e: &mut Emit, rows: &Rows, group: Val) -> Matrix {
        let mut index = self.batch.clone();
        index.push(group);
        Matrix::new(e, self.body, self.body.kernel, rows, &index, self.tokens)
    }

    /// A number per token.
    fn number(&self, e: &mut Emit, rows: &Rows, group: Val, token: Val) -> Val {
        let matrix = self.of_tokens(e, rows, group);
        let p = matrix.row(e, token);
        let x = e.load(p, F32);
        e.broadcast(x, self.lanes())
    }

    fn groups(&self, e: &mut Emit, f: &mut dyn FnMut(&mut Emit, Val)) {
        let (zero, n) = (e.i64(0), e.i64(self.g.groups));
        e.for_loop(zero, n, 1, &[], |e, group, _| {
            f(e, group);
            vec![]
        });
    }

    /// For each vector of `cols` columns: the first, and a mask where the vector ends behind the last.
    fn columns(&self, e: &mut Emit, cols: i64, f: &mut dyn FnMut(&mut Emit, Val, Option<Val>)) {
        for column in (0..cols).step_by(self.lanes()) {
            let mask = (cols - column < self.lanes() as i64).then(|| {
                let left = e.i64(cols - column);
                e.first_lanes(left, self.lanes())
            });
            let column = e.i64(column);
            f(e, column, mask);
        }
    }

    fn clear(&self, e: &mut Emit, bytes: i64, units: i64) {
        let (zero, n) = (e.i64(0), e.i64(units));
        let (base, nothing) = (self.place(e, bytes), e.f32(0.0, self.vector()));
        e.for_loop(zero, n, self.lanes() as i64, &[], |e, at, _| {
            let p = e.at(base, at, Elem::F32);
            e.store(nothing, p);
            vec![]
        });
    }

    fn run(&self, e: &mut Emit) {
        let zero = e.i64(0);
        if let Some(dq) = &self.g.dq {
            self.groups(e, &mut |e, group| {
                let dq = self.of_tokens(e, dq, group);
                e.for_loop(zero, self.tokens, 1, &[], |e, token, _| {
                    let row = dq.row(e, token);
                    let nothing = e.f32(0.0, self.vector());
                    self.columns(e, self.g.depth, &mut |e, column, mask| {
                        store(e, row, column, mask, nothing)
                    });
                    vec![]
                });
            });
        }
        e.for_loop(zero, self.keys, BLOCK, &[], |e, key, _| {
            let (k, v) = (self.of_keys(e, &self.g.k), self.of_keys(e, &self.g.v));
            let panel = self.place(e, self.lay.turned_k);
            pack_keys(e, self.target, &k, self.g.depth, key, panel);
            let panel = self.place(e, self.lay.turned_v);
            pack_keys(e, self.target, &v, self.cols(), key, panel);
            if self.g.dq.is_some() {
                let panel = self.place(e, self.lay.paired_k);
                pack_rows(e, self.target, &k, self.g.depth, self.lay.depth, key, panel);
            }
            self.clear(e, self.lay.dk, BLOCK * self.lay.depth);
            self.clear(e, self.lay.dv, BLOCK * self.lay.width);
            for range in &self.g.ranges {
                self.range(e, range, key);
            }
            let (block, left) = (e.i64(BLOCK), e.sub(self.keys, key));
            let count = e.min(block, left);
            for (to, from, cols, width) in [
                (&self.g.dk, self.lay.dk, self.g.depth, self.lay.depth),
                (&self.g.dv, self.lay.dv, self.cols(), self.lay.width),
            ] {
                let Some(to) = to else { continue };
                let to = self.of_keys(e, to);
                e.for_loop(zero, count, 1, &[], |e, row, _| {
                    let from = self.row_of(e, from, row, width, Elem::F32);
                    let at = e.add(key, row);
                    let to = to.row(e, at);
                    self.columns(e, cols, &mut |e, column, mask| {
                        let p = e.at(from, column, Elem::F32);
                        let x = e.load(p, self.vector());
                        store(e, to, column, mask, x);
                    });
                    vec![]
                });
            }
            vec![]
        });
    }

    /// The tokens that see keys of the block in this range.
    fn range(&self, e: &mut Emit, range: &Range, key: Val) {
        let near = e.i64(range.near);
        let first = e.add(key, near);
        let whole = e.i64(-BLOCK);
        let first = e.and(first, whole);
        let mut last = self.tokens;
        if let Some(far) = range.far.and_then(|far| far.checked_add(BLOCK - 1)) {
            let far = e.i64(far);
            let end = e.add(key, far);
            last = e.min(last, end);
        }
        e.for_loop(first, last, BLOCK, &[], |e, token, _| {
            let (block, left) = (e.i64(BLOCK), e.sub(self.tokens, token));
            let count = e.min(block, left);
            self.groups(e, &mut |e, group| {
                let meeting = Meeting {
                    range,
                    group,
                    token,
                    count,
                    key,
                };
                self.meet(e, &meeting);
            });
            vec![]
        });
    }

    fn meet(&self, e: &mut Emit, m: &Meeting) {
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

    fn firsts(&self, e: &mut Emit, sub: Val) -> Vec<Val> {
        (0..product::vectors(self.target))
            .map(|v| {
                let at = e.i64(v * self.lanes() as i64);
                e.add(sub, at)
            })
            .collect()
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

fn store(e: &mut Emit, row: Val, column: Val, mask: Option<Val>, v: Val) {
    let p = e.at(row, column, Elem::F32);
    match mask {
        None => e.store(v, p),
        Some(mask) => e.masked_store(v, p, mask),
    }
}
