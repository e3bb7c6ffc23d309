//! A side of a product on its way to shared memory: which chunks of 16 bytes a thread brings, and where they go.

use ir::plan::{Contraction, Rhs};

use super::super::epilogue::{Tile, clamped};
use super::super::ptx::{self, I32};
use super::warp::place;
use super::{DEPTH, SIDE, THREADS, TILE, arg};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};

/// Where a thread's chunks of one side come from and go to.
pub struct Side {
    /// Of each chunk.
    args: Vec<usize>,
    /// Of each chunk: its row's first element, i64.
    bases: Vec<Val>,
    /// First element in the row, or for values in the columns, i64; then the place in the stage, in bytes.
    at: Vec<(Val, Val)>,
    /// Where a line is one k of the tile's rows or columns.
    pub by_k: Option<ByK>,
}

/// Then `Side::bases` are places in k, and a line begins so many elements behind the one before.
pub struct ByK {
    /// Element 0 of the first line.
    first: Val,
    stride: Val,
    /// How many rows or columns there are.
    end: Val,
}

/// Chunk i of the thread: (row, chunk) in rows of `chunks`.
fn chunk_of(e: &mut Emit, thread: Val, i: i64, chunks: i64) -> (Val, Val) {
    let n = e.int(chunks, I32);
    let (row, chunk) = (e.div(thread, n), e.rem(thread, n));
    let more = e.int(i * (THREADS / chunks), I32);
    (e.add(row, more), chunk)
}

/// A's rows, or its lines of rows.
pub fn left(e: &mut Emit, t: &Tile, c: &Contraction) -> Side {
    if t.body.kernel.is_turned() {
        let k = t.body.size(e, c.a.strides.last().expect("k has a stride"));
        let first = t.body.size(e, &c.a.offset);
        let lines = ByK {
            first,
            stride: k,
            end: t.rows,
        };
        return by_k(e, t, c.a.arg, t.first, lines);
    }
    let mut side = Side {
        args: vec![],
        bases: vec![],
        at: vec![],
        by_k: None,
    };
    for i in 0..SIDE / 16 / THREADS {
        let (row, chunk) = chunk_of(e, t.thread, i, DEPTH / 8);
        let to = place(e, row, chunk, DEPTH / 8);
        let row = t.offset(e, t.first, row);
        let row = clamped(e, row, t.rows);
        let mut point = t.point(e, row);
        side.args.push(c.a.arg);
        side.bases.push(t.body.base(e, &mut point, &c.a));
        side.at.push((elements(e, chunk), to));
    }
    side
}

/// A side whose lines are k, from row or column `begin` on.
fn by_k(e: &mut Emit, t: &Tile, arg: usize, begin: Val, lines: ByK) -> Side {
    let mut side = Side {
        args: vec![],
        bases: vec![],
        at: vec![],
        by_k: Some(lines),
    };
    for i in 0..SIDE / 16 / THREADS {
        let (line, chunk) = chunk_of(e, t.thread, i, TILE / 8);
        let to = place(e, line, chunk, TILE / 8);
        let first = elements(e, chunk);
        side.args.push(arg);
        side.bases.push(e.extend_signed(line, Elem::I64));
        side.at.push((e.add(begin, first), to));
    }
    side
}

fn elements(e: &mut Emit, chunk: Val) -> Val {
    let first = e.shl(chunk, 3);
    e.extend_signed(first, Elem::I64)
}

/// B's columns as rows of k, or its rows of columns. Where there are two right sides, the second's columns follow the first's.
pub fn right(e: &mut Emit, t: &Tile, c: &Contraction, column: Val) -> Side {
    let k = t.body.size(e, &c.k);
    let place_of = |e: &mut Emit, b: &Rhs| match b {
        Rhs::Packed { .. } => (e.i64(0), k),
        Rhs::KContiguous { offset, strides, .. } | Rhs::NContiguous { offset, strides, .. } => {
            let (last, batch) = strides.split_last().expect("a matrix has a stride for its rows");
            (t.body.linear(e, offset, &t.batch, batch), t.body.size(e, last))
        }
    };
    let places: Vec<(usize, Val, Val)> = (c.rights())
        .map(|b| {
            let (base, stride) = place_of(e, b);
            (arg(b), base, stride)
        })
        .collect();
    if matches!(c.b, Rhs::NContiguous { .. }) {
        let (arg, first, stride) = places[0];
        let lines = ByK {
            first,
            stride,
            end: t.cols,
        };
        return by_k(e, t, arg, column, lines);
    }
    let mut side = Side {
        args: vec![],
        bases: vec![],
        at: vec![],
        by_k: None,
    };
    let chunks = SIDE / 16 / THREADS;
    for i in 0..chunks {
        let (row, chunk) = chunk_of(e, t.thread, i, DEPTH / 8);
        let to = place(e, row, chunk, DEPTH / 8);
        let which = i * places.len() as i64 / chunks;
        let (arg, base, stride) = places[which as usize];
        let before = e.int(which * t.width, I32);
        let row = e.sub(row, before);
        let n = t.offset(e, column, row);
        let n = clamped(e, n, t.cols);
        let at = e.mul(n, stride);
        side.args.push(arg);
        side.bases.push(e.add(base, at));
        side.at.push((elements(e, chunk), to));
    }
    side
}

/// Bytes of a chunk that are there: up to 16 of what lies before `end`.
fn bytes_before(e: &mut Emit, at: Val, end: Val) -> Val {
    let left = e.sub(end, at);
    let (none, most) = (e.i64(0), e.i64(8));
    let left = e.max(left, none);
    let left = e.min(left, most);
    let left = e.shl(left, 1);
    e.truncate_int(left, Elem::I32)
}

/// Brings one side of the step that begins at `k` to shared memory.
pub fn bring(e: &mut Emit, t: &Tile, side: &Side, k: Val, k_end: Val, to: Val) {
    for (i, (at, place)) in side.at.iter().enumerate() {
        let base = t.body.args[side.args[i]];
        let (element, bytes) = match &side.by_k {
            None => {
                let k = e.add(k, *at);
                let bytes = bytes_before(e, k, k_end);
                let k = clamped(e, k, k_end);
                (e.add(side.bases[i], k), bytes)
            }
            Some(lines) => {
                let line = e.add(k, side.bases[i]);
                let is_there = e.cmp(Cmp::Lt, line, k_end);
                let line = clamped(e, line, k_end);
                let bytes = bytes_before(e, *at, lines.end);
                let none = e.int(0, I32);
                let bytes = e.select(is_there, bytes, none);
                let at = clamped(e, *at, lines.end);
                let line = e.mul(line, lines.stride);
                let first = e.add(lines.first, line);
                (e.add(first, at), bytes)
            }
        };
        // Where nothing is there nothing is read, but the address must be aligned all the same.
        let eight = e.i64(-8);
        let element = e.and(element, eight);
        let from = e.at(base, element, Elem::I16);
        let to = e.add(to, *place);
        ptx::copy_async(e, to, from, bytes);
    }
}
