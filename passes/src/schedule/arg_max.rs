//! `arg_max`: which column is the largest. Long rows in parts, or one group of threads would walk 150,000 logits while the others wait.
//!
//!     for part of the row: the largest, and the first column that has it; of a broken part infinity
//!     for row: the same over its parts

use ir::plan::{Binary, ExprId, Reduction, Unary};
use ir::{DType, Size};

use super::Scheduler;
use super::build::KernelBuilder;
use super::rows::store_once;
use super::view::View;

/// Columns of a part, at least and at most.
const PART: (i64, i64) = (32, 512);

impl Scheduler<'_> {
    /// The last kernel of it; where there are parts, theirs is launched.
    pub(super) fn arg_max(&mut self, x: &View, to: &View) -> KernelBuilder {
        let Some(parts) = in_parts(x) else {
            let mut k = KernelBuilder::keeping_columns("arg_max", &x.shape);
            let column = k.index(x.shape.len() - 1);
            let x = k.load_broadcast(x);
            let (most, first) = first_largest(&mut k, x, column);
            store(&mut k, to, most, first);
            return k;
        };
        let rank = parts.shape.len();
        let mut each = parts.shape.clone();
        each[rank - 1] = Size::one();
        let [largest, firsts] = [(); 2].map(|_| self.temporary_of(DType::F32, each.clone()));
        let mut k = KernelBuilder::keeping_all("arg_max", &parts.shape);
        let (number, column) = (k.index(rank - 2), k.index(rank - 1));
        let width = k.int(parts.shape[rank - 1].coef as i32);
        let begin = k.binary(Binary::Mul, number, width);
        let column = k.binary(Binary::Add, begin, column);
        let x = k.load_broadcast(&parts);
        let (most, first) = first_largest(&mut k, x, column);
        store_once(&mut k, &largest, most);
        store_once(&mut k, &firsts, first);
        self.launch(k.finish());

        each.pop();
        let [largest, firsts] = [largest, firsts].map(|v| v.reshaped(&each).expect("a dimension of 1 less"));
        let mut k = KernelBuilder::keeping_columns("arg_max", &each);
        let (values, columns) = (k.load_broadcast(&largest), k.load_broadcast(&firsts));
        let most = k.reduce(Reduction::Max, values);
        let first = first_with(&mut k, values, most, columns);
        store(&mut k, to, most, first);
        k
    }
}

/// The row's columns as parts of equally many, if there are two or more.
fn in_parts(x: &View) -> Option<View> {
    let (columns, rows) = x.shape.split_last()?;
    let n = columns.as_const()?;
    let width = (PART.0..=PART.1.min(n / 2)).rev().find(|width| n % width == 0)?;
    let mut shape = rows.to_vec();
    shape.extend([n / width, width].map(Size::from));
    x.reshaped(&shape)
}

/// The largest of the row, infinite if a value is NaN, and the first column that has it. The first two reductions are one walk.
fn first_largest(k: &mut KernelBuilder, x: ExprId, column: ExprId) -> (ExprId, ExprId) {
    let [zero, one, highest] = [0.0, 1.0, f64::INFINITY].map(|n| k.float(n));
    let is_number = k.binary(Binary::Eq, x, x);
    let broken = k.select(is_number, zero, one);
    let (most, broken) = (k.reduce(Reduction::Max, x), k.reduce(Reduction::Max, broken));
    let column = k.unary(Unary::ToFloat, column);
    let first = first_with(k, x, most, column);
    let is_broken = k.binary(Binary::Lt, zero, broken);
    (k.select(is_broken, highest, most), first)
}

/// The least of the columns whose value is `wanted`.
fn first_with(k: &mut KernelBuilder, x: ExprId, wanted: ExprId, column: ExprId) -> ExprId {
    let lowest = k.float(f64::NEG_INFINITY);
    let before = k.unary(Unary::Neg, column);
    let is_it = k.binary(Binary::Eq, x, wanted);
    let before = k.select(is_it, before, lowest);
    let before = k.reduce(Reduction::Max, before);
    k.unary(Unary::Neg, before)
}

/// The column, or -1 where the largest is infinite.
fn store(k: &mut KernelBuilder, to: &View, most: ExprId, first: ExprId) {
    let [none, lowest, highest] = [-1.0, f64::NEG_INFINITY, f64::INFINITY].map(|n| k.float(n));
    let below = k.binary(Binary::Lt, most, highest);
    let above = k.binary(Binary::Lt, lowest, most);
    let is_sound = k.binary(Binary::And, below, above);
    let value = k.select(is_sound, first, none);
    store_once(k, to, value);
}
