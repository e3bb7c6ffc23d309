//! The backward of attention, the plain way: any types, sizes and strides; right before it is fast.
//!
//!     dq:       warp = row           for range, for key it sees:    dq += dx k
//!     dk, dv:   warp = key           for range, group, token that sees it:   dv += p d, dk += dx q
//!         p = e^(scale q . k - lse), dx = scale p (d . v + z): lanes share the elements, sums by shuffles
//!
//! Each result has one owner and one order. No tensor cores.

use ir::Size;
use ir::plan::{Kernel, Range, Rows, SweepGradient};
use runtime::artefact::{GpuKernel, Step, Variant};

use crate::gpu::ptx::{self, F32, I32, Params, Signature};
use crate::gpu::{Emitted, Target, math, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, Math, memory, widen};

const THREADS: i64 = 128;
const WARPS: i64 = THREADS / 32;

pub fn emit(kernel: &Kernel, g: &SweepGradient, target: &Target) -> Emitted {
    let batch = Size::product(&kernel.outer);
    let rows = &(&batch * &Size::from(g.groups)) * &g.tokens;
    let keys = &batch * &g.keys;
    let mut steps = vec![];
    let mut functions = vec![];
    for (name, size, is_asked, by_row) in [
        (format!("{}_q", kernel.name), rows, g.dq.is_some(), true),
        (
            format!("{}_kv", kernel.name),
            keys,
            g.dk.is_some() || g.dv.is_some(),
            false,
        ),
    ] {
        if !is_asked {
            continue;
        }
        let signature = Signature {
            buffers: kernel.args.len(),
            threads: THREADS as u32,
            overlap: target.hopper,
            ..Signature::default()
        };
        let text = ptx::function(&name, signature, |e, params| block(e, kernel, g, by_row, params));
        functions.push((name.clone(), text));
        steps.push(Step {
            function: name,
            tiles: tiles(&[(size, WARPS)]),
            threads: THREADS as u32,
            overlap: target.hopper,
            ..Step::default()
        });
    }
    Emitted {
        kernel: GpuKernel {
            name: kernel.name.clone(),
            variants: vec![Variant {
                steps,
                ..Variant::default()
            }],
        },
        functions,
    }
}

/// A warp's row or key.
struct Warp<'b, 'k> {
    body: &'b Body<'k>,
    g: &'k SweepGradient,
    lane: Val,
    batch: Vec<Val>,
    tokens: Val,
    keys: Val,
    cols: i64,
}

fn block(e: &mut Emit, kernel: &Kernel, g: &SweepGradient, by_row: bool, params: Params) {
    let body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
    let (block, thread) = (ptx::block(e), ptx::thread(e));
    let mask = e.int(31, I32);
    let (warp, lane) = (e.shr(thread, 5), e.and(thread, mask));
    let warps = e.int(WARPS, I32);
    let at = e.mul(block, warps);
    let at = e.add(at, warp);
    let at = e.extend_signed(at, Elem::I64);
    let (tokens, keys) = (body.size(e, &g.tokens), body.size(e, &g.keys));
    let groups = e.i64(g.groups);
    let inner = if by_row { e.mul(groups, tokens) } else { keys };
    let points = body.size(e, &Size::product(&kernel.outer));
    let count = e.mul(points, inner);
    let is_there = e.cmp(Cmp::Lt, at, count);
    e.if_then(is_there, &[], |e| {
        let (point, rest) = (e.div(at, inner), e.rem(at, inner));
        let w = Warp {
            batch: body.unravel(e, point, &kernel.outer),
            body: &body,
            g,
            lane,
            tokens,
            keys,
            cols: kernel.cols.as_const().unwrap_or(1),
        };
        if by_row {
            let (group, token) = (e.div(rest, tokens), e.rem(rest, tokens));
            w.row(e, group, token);
        } else {
            w.key(e, rest);
        }
        vec![]
    });
}

impl Warp<'_, '_> {
    /// Where a matrix' row begins: pointer and type.
    fn place(&self, e: &mut Emit, rows: &Rows, at: &[Val]) -> Val {
        let index: Vec<Val> = self.batch.iter().chain(at).copied().collect();
        self.body.linear(e, &rows.offset, &index, &rows.strides)
    }

    /// The lane's element i of a row, and whether it is there; behind the last one it is the last one again.
    fn element(&self, e: &mut Emit, i: i64, width: i64) -> (Val, Option<Val>) {
        let first = e.int(32 * i, I32);
        let at = e.add(self.lane, first);
        let (end, last) = (e.int(width, I32), e.int(width - 1, I32));
        let is_there = (32 * (i + 1) > width).then(|| e.cmp(Cmp::Lt, at, end));
        let at = e.min(at, last);
        (e.extend_signed(at, Elem::I64), is_there)
    }

    /// The lane's elements of a row, in f32; 0 behind the last one.
    fn load(&self, e: &mut Emit, rows: &Rows, at: &[Val], width: i64) -> Vec<Val> {
        let base = self.place(e, rows, at);
        let dtype = self.body.kernel.args[rows.arg].dtype;
        (0..(width + 31) / 32)
            .map(|i| {
                let (at, is_there) = self.element(e, i, width);
                let at = e.add(base, at);
                let ptr = e.at(self.body.args[rows.arg], at, memory(dtype));
                let raw = e.load(ptr, Ty::scalar(memory(dtype)));
                let x = widen(e, raw, dtype);
                let nothing = e.f32(0.0, F32);
                is_there.map_or(x, |there| e.select(there, x, nothing))
            })
            .collect()
    }

    fn scalar(&self, e: &mut Emit, rows: &Rows, at: &[Val]) -> Val {
        let base = self.place(e, rows, at);
        let dtype = self.body.kernel.args[rows.arg].dtype;
        let ptr = e.at(self.body.args[rows.arg], base, memory(dtype));
        let raw = e.load(ptr, Ty::scalar(memory(dtype)));
        widen(e, raw, dtype)
    }

    fn store(&self, e: &mut Emit, rows: &Rows, at: &[Val], width: i64, values: &[Val]) {
        let base = self.place(e, rows, at);
        let dtype = self.body.kernel.args[rows.arg].dtype;
        for (i, x) in values.iter().enumerate() {
            let (at, is_there) = self.element(e, i as i64, width);
            let raw = crate::scalar::narrow(e, Math::Gpu, *x, dtype);
            let at = e.add(base, at);
            let ptr = e.at(self.body.args[rows.arg], at, memory(dtype));
            match is_there {
                None => e.store(raw, ptr),
                Some(there) => {
                    e.if_then(there, &[], |e| {
                        e.store(raw, ptr);
                        vec![]
                    });
                }
            }
        }
    }

    fn dot(&self, e: &mut Emit, a: &[Val], b: &[Val]) -> Val {
        let mut sum = e.f32(0.0, F32);
        for (x, y) in a.iter().zip(b) {
            sum = e.fma(*x, *y, sum);
        }
        for bits in [16, 8, 4, 2, 1] {
            let other = ptx::shuffle_xor(e, sum, bits);
            sum = e.add(sum, other);
        }
        sum
    }

    /// p and dx of a row and a key.
    fn pair(&self, e: &mut Emit, [q, k, d, v]: [&[Val]; 4], z: Val, lse: Val) -> (Val, Val) {
        let scale = e.f32(f32::from_bits(self.g.scale), F32);
        let x = self.dot(e, q, k);
        let x = e.mul(x, scale);
        let x = e.sub(x, lse);
        let p = math::exp(e, x);
        let dp = self.dot(e, d, v);
        let dp = e.add(dp, z);
        let dx = e.mul(p, dp);
        (p, e.mul(dx, scale))
    }

    fn nothing(&self, e: &mut Emit, width: i64) -> Vec<Val> {
        let nothing = e.f32(0.0, F32);
        vec![nothing; ((width + 31) / 32) as usize]
    }

    /// dq of a row.
    fn row(&self, e: &mut Emit, group: Val, token: Val) {
        let at = [group, token];
        let depth = self.g.depth;
        let q = self.load(e, &self.g.q, &at, depth);
        let mut dq = self.nothing(e, depth);
        for r in &self.g.ranges {
            let (d, z, lse) = self.cotangents(e, r, &at);
            // token - far < key <= token - near
            let (zero, past) = (e.i64(0), e.i64(1 - r.near));
            let end = e.add(token, past);
            let end = e.min(end, self.keys);
            let begin = r.far.map_or(zero, |far| {
                let reach = e.i64(far - 1);
                let begin = e.sub(token, reach);
                e.max(begin, zero)
            });
            dq = e.for_loop(begin, end, 1, &dq, |e, key, dq| {
                let k = self.load(e, &self.g.k, &[key], depth);
                let v = self.load(e, &self.g.v, &[key], self.cols);
                let (_, dx) = self.pair(e, [&q, &k, &d, &v], z, lse);
                dq.iter().zip(&k).map(|(dq, k)| e.fma(dx, *k, *dq)).collect()
            });
        }
        if let Some(to) = &self.g.dq {
            self.store(e, to, &at, depth, &dq);
        }
    }

    fn cotangents(&self, e: &mut Emit, r: &Range, at: &[Val]) -> (Vec<Val>, Val, Val) {
        let d = self.load(e, &r.d, at, self.cols);
        (d, self.scalar(e, &r.z, at), self.scalar(e, &r.lse, at))
    }

    /// dk and dv of a key.
    fn key(&self, e: &mut Emit, key: Val) {
        let depth = self.g.depth;
        let k = self.load(e, &self.g.k, &[key], depth);
        let v = self.load(e, &self.g.v, &[key], self.cols);
        let mut sums = self.nothing(e, depth);
        sums.extend(self.nothing(e, self.cols));
        let (zero, groups) = (e.i64(0), e.i64(self.g.groups));
        for r in &self.g.ranges {
            // key + near <= token < key + far
            let near = e.i64(r.near);
            let begin = e.add(key, near);
            let end = r.far.map_or(self.tokens, |far| {
                let far = e.i64(far);
                let end = e.add(key, far);
                e.min(end, self.tokens)
            });
            sums = e.for_loop(zero, groups, 1, &sums, |e, group, sums| {
                e.for_loop(begin, end, 1, sums, |e, token, sums| {
                    let at = [group, token];
                    let q = self.load(e, &self.g.q, &at, depth);
                    let (d, z, lse) = self.cotangents(e, r, &at);
                    let (p, dx) = self.pair(e, [&q, &k, &d, &v], z, lse);
                    let factors = q.iter().map(|q| (dx, *q)).chain(d.iter().map(|d| (p, *d)));
                    sums.iter()
                        .zip(factors)
                        .map(|(sum, (by, x))| e.fma(by, x, *sum))
                        .collect()
                })
            });
        }
        let (dk, dv) = sums.split_at(k.len());
        if let Some(to) = &self.g.dk {
            self.store(e, to, &[key], depth, dk);
        }
        if let Some(to) = &self.g.dv {
            self.store(e, to, &[key], self.cols, dv);
        }
    }
}
