//! A tile of sums in shared memory, and the kernel's stages on it: what every matmul that parks its accumulators there ends with.
//!
//!     for row of the tile                              neighbouring threads take neighbouring columns
//!       the kernel's stores on (row, column)

use ir::plan::{Kernel, Stage};

use super::ptx::{F32, I32};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};
use crate::scalar::{Body, Columns, Point};

pub struct Tile<'b, 'k> {
    pub body: &'b Body<'k>,
    pub thread: Val,
    pub threads: i64,
    pub batch: Vec<Val>,
    /// First row, and how many rows and columns there are, i64.
    pub first: Val,
    pub rows: Val,
    pub cols: Val,
    pub height: i64,
    pub width: i64,
    /// In shared memory: f32, rows `pitch` elements apart; the sums of each product.
    pub sums: Vec<Val>,
    pub pitch: i64,
    /// The squares of each row, if the kernel asks for them.
    pub squares: Option<Val>,
}

/// `at`, or the last of n.
pub fn clamped(e: &mut Emit, at: Val, n: Val) -> Val {
    let one = e.i64(1);
    let last = e.sub(n, one);
    e.min(at, last)
}

pub fn is_per_column(stage: &Stage) -> bool {
    matches!(stage, Stage::Store { to, .. } if to.strides.last().is_some_and(|s| s.coef != 0))
}

impl Tile<'_, '_> {
    fn kernel(&self) -> &Kernel {
        self.body.kernel
    }

    /// `base + part`, i64.
    pub fn offset(&self, e: &mut Emit, base: Val, part: Val) -> Val {
        let part = e.extend_signed(part, Elem::I64);
        e.add(base, part)
    }

    /// A row's point.
    pub fn point(&self, e: &mut Emit, row: Val) -> Point {
        let mut index = self.batch.clone();
        index.extend(self.body.unravel(e, row, &self.kernel().outer[self.batch.len()..]));
        self.body.point(index)
    }

    pub fn sum_at(&self, e: &mut Emit, product: usize, row: Val, column: Val) -> Val {
        let pitch = e.int(self.pitch, I32);
        let at = e.mul(row, pitch);
        let at = e.add(at, column);
        e.at(self.sums[product], at, Elem::F32)
    }

    /// Column `at` of the tile, which is the kernel's `column`, with its sums.
    pub fn columns(&self, e: &mut Emit, column: Val, row: Val, at: Val) -> Columns {
        let mut sums = vec![];
        for p in 0..self.sums.len() {
            let place = self.sum_at(e, p, row, at);
            let x = e.load(place, F32);
            sums.push(e.vector(&[x]));
        }
        let mut cols = Columns::new(column, None, Some(sums[0]));
        cols.also = sums.get(1).copied();
        cols
    }

    /// Row `at` of the tile as a point, with its squares; behind the last row it is the last one again. And: is it there?
    pub fn row(&self, e: &mut Emit, at: Val) -> (Point, Val) {
        let row = self.offset(e, self.first, at);
        let is_there = e.cmp(Cmp::Lt, row, self.rows);
        let row = clamped(e, row, self.rows);
        let mut point = self.point(e, row);
        if let Some(squares) = self.squares {
            let at = e.at(squares, at, Elem::F32);
            point.squares = Some(e.load(at, F32));
        }
        (point, is_there)
    }

    /// The kernel's stages on the tile whose first column is `column`: stores alone.
    pub fn stores(&self, e: &mut Emit, column: Val) {
        let width = e.int(self.width, I32);
        let (at, part) = (e.rem(self.thread, width), e.div(self.thread, width));
        let wanted = self.offset(e, column, at);
        let inside = e.cmp(Cmp::Lt, wanted, self.cols);
        let wanted = clamped(e, wanted, self.cols);
        let end = e.int(self.height, I32);
        e.for_loop(part, end, self.threads / self.width, &[], |e, row, _| {
            let (mut point, is_there) = self.row(e, row);
            self.kernel()
                .stages
                .iter()
                .for_each(|s| self.body.hoist(e, &mut point, s));
            let mut cols = self.columns(e, wanted, row, at);
            let here = e.and(inside, is_there);
            for stage in &self.kernel().stages {
                self.store(e, &mut point, &mut cols, stage, here);
            }
            vec![]
        });
    }

    /// One column's store, where it is inside.
    pub fn store(&self, e: &mut Emit, point: &mut Point, cols: &mut Columns, stage: &Stage, here: Val) {
        let Stage::Store { to, value, when } = stage else {
            return;
        };
        let value = self.body.vector(e, point, cols, *value);
        let here = match when {
            None => here,
            Some(when) => {
                let when = self.body.vector(e, point, cols, *when);
                let when = e.extract(when, 0);
                e.and(here, when)
            }
        };
        if let Some((id, _)) = to.indirect.as_ref().filter(|(id, _)| self.body.varies(*id)) {
            self.body.vector(e, point, cols, *id);
        }
        e.if_then(here, &[], |e| {
            self.body.store_vector(e, point, cols, to, value, None);
            vec![]
        });
    }
}
