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

mod meeting;

use ir::DType;
use ir::plan::{Kernel, Range, Rows, SweepGradient};

use super::Target;
use super::keys::{BLOCK, Matrix, pack_keys, pack_rows};
use super::product;
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::scalar::{Body, F32};

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

    fn firsts(&self, e: &mut Emit, sub: Val) -> Vec<Val> {
        (0..product::vectors(self.target))
            .map(|v| {
                let at = e.i64(v * self.lanes() as i64);
                e.add(sub, at)
            })
            .collect()
    }
}

fn store(e: &mut Emit, row: Val, column: Val, mask: Option<Val>, v: Val) {
    let p = e.at(row, column, Elem::F32);
    match mask {
        None => e.store(v, p),
        Some(mask) => e.masked_store(v, p, mask),
    }
}
