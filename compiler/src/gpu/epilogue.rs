//! A tile of sums in shared memory, and the kernel's stages on it: what every matmul that parks its accumulators there ends with.
//!
//!     for row of the tile                              neighbouring threads take neighbouring columns
//!       the kernel's stores on (row, column)

use ir::plan::{Expr, Kernel, Stage};

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
    /// Sums are so many parts, so many elements apart, to be added; a row's squares too, `height` apart.
    pub parts: (i64, i64),
}

/// A thread's element of a tile.
pub struct Element {
    point: Point,
    columns: Columns,
    /// Row and column in the tile, i32.
    row: Val,
    column: Val,
    /// Is it in the matrix?
    is_there: Val,
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
        let mut cols = Columns::new(column, None, None);
        self.sum(e, &mut cols, row, at);
        cols
    }

    fn sum(&self, e: &mut Emit, cols: &mut Columns, row: Val, at: Val) {
        let mut sums = vec![];
        for p in 0..self.sums.len() {
            let place = self.sum_at(e, p, row, at);
            let x = self.all_parts(e, place, self.parts.1);
            sums.push(e.vector(&[x]));
        }
        cols.acc = Some(sums[0]);
        cols.also = sums.get(1).copied();
    }

    /// In the parts' order.
    fn all_parts(&self, e: &mut Emit, first: Val, apart: i64) -> Val {
        let mut sum = e.load(first, F32);
        for part in 1..self.parts.0 {
            let more = e.int(part * apart, I32);
            let from = e.at(first, more, Elem::F32);
            let x = e.load(from, F32);
            sum = e.add(sum, x);
        }
        sum
    }

    /// Row `at` of the tile as a point, with its squares; behind the last row it is the last one again. And: is it there?
    pub fn row(&self, e: &mut Emit, at: Val) -> (Point, Val) {
        let row = self.offset(e, self.first, at);
        let is_there = e.cmp(Cmp::Lt, row, self.rows);
        let row = clamped(e, row, self.rows);
        let mut point = self.point(e, row);
        self.measure(e, &mut point, at);
        (point, is_there)
    }

    fn measure(&self, e: &mut Emit, point: &mut Point, row: Val) {
        if let Some(squares) = self.squares {
            let at = e.at(squares, row, Elem::F32);
            point.squares = Some(self.all_parts(e, at, self.height));
        }
    }

    /// Row and column of the tile whose first column is `first`; nothing of its sums is read.
    fn element(&self, e: &mut Emit, first: Val, row: Val, column: Val) -> Element {
        let wanted = self.offset(e, first, column);
        let inside = e.cmp(Cmp::Lt, wanted, self.cols);
        let wanted = clamped(e, wanted, self.cols);
        let at = self.offset(e, self.first, row);
        let is_there = e.cmp(Cmp::Lt, at, self.rows);
        let at = clamped(e, at, self.rows);
        Element {
            point: self.point(e, at),
            columns: Columns::new(wanted, None, None),
            row,
            column,
            is_there: e.and(inside, is_there),
        }
    }

    /// The thread's element, if no thread has two, with all that its stores load under way: to be asked for before the sums are made, so that
    /// memory answers meanwhile.
    pub fn ahead(&self, e: &mut Emit, first: Val) -> Option<Element> {
        if self.height * self.width > self.threads {
            return None;
        }
        let (row, column) = self.place(e);
        let height = e.int(self.height, I32);
        let is_mine = e.cmp(Cmp::Lt, row, height);
        // Threads that have none read another one's, and store nothing.
        let last = e.int(self.height - 1, I32);
        let row = e.min(row, last);
        let mut element = self.element(e, first, row, column);
        element.is_there = e.and(element.is_there, is_mine);
        for (id, expr) in self.kernel().exprs.iter().enumerate() {
            if matches!(expr, Expr::Load(access) if access.indirect.is_none()) {
                self.body.vector(e, &mut element.point, &mut element.columns, id);
            }
        }
        Some(element)
    }

    /// The thread's first row, and its column, i32.
    fn place(&self, e: &mut Emit) -> (Val, Val) {
        let width = e.int(self.width, I32);
        (e.div(self.thread, width), e.rem(self.thread, width))
    }

    /// The kernel's stages on the tile whose first column is `first`: stores alone.
    pub fn stores(&self, e: &mut Emit, first: Val) {
        let (part, column) = self.place(e);
        let end = e.int(self.height, I32);
        e.for_loop(part, end, self.threads / self.width, &[], |e, row, _| {
            let element = self.element(e, first, row, column);
            self.store_element(e, element);
            vec![]
        });
    }

    /// The kernel's stages on an element: stores alone.
    pub fn store_element(&self, e: &mut Emit, element: Element) {
        let Element {
            mut point,
            mut columns,
            row,
            column,
            is_there,
        } = element;
        self.measure(e, &mut point, row);
        let stages = &self.kernel().stages;
        stages.iter().for_each(|s| self.body.hoist(e, &mut point, s));
        self.sum(e, &mut columns, row, column);
        for stage in stages {
            self.store(e, &mut point, &mut columns, stage, is_there);
        }
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
