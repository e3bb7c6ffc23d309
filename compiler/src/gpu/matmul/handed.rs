//! Rows that one product hands to the next, which would read them from memory again to round and to measure them.
//!
//!     first    x = acc + residual -> memory;  bf16(x) -> rows;  the sum of x * x over the tile's columns -> sums[row][tile]
//!     second   A = rows;  a row's squares = its sums
//!
//! In a layer: o and gate | up, down and the next layer's q | k | v.

use ir::plan::{Access, Arg, Binary, Expr, Kernel, Reduction, Stage};
use ir::{DType, Size};
use runtime::artefact::Variant;

use super::side::Side;
use super::{Rows, Shape, multiplies, takes, way};
use crate::pipeline::size;

/// The stage by which the first kernel stores the f32 rows that the second one multiplies, if it may hand them on. `at`: the argument that
/// they are in the first one.
pub fn hands_on(first: &Kernel, second: &Kernel, at: usize) -> Option<usize> {
    let (c, d) = (first.contraction.as_ref()?, second.contraction.as_ref()?);
    let made = takes(first, c) && Side::left(first, c).is_some() && c.also.is_none();
    let read = takes(second, d) && Side::left(second, d).is_none() && second.args[d.a.arg].dtype == DType::F32;
    let rows = |k: &Kernel| Size::product(&k.outer);
    let same = rows(first) == rows(second) && first.cols == d.k;
    let lies_dense = |a: &Access, outer: &[Size], columns: &Size| {
        a.strides == dense(outer, columns) && a.offset.coef == 0 && a.indirect.is_none()
    };
    // One alone: functions are called by the product that hands on, not by what it hands on.
    let mut stores = (first.stages.iter().enumerate()).filter(|(_, s)| match s {
        Stage::Store { to, .. } => first.args[to.arg].dtype == DType::F32,
        Stage::Reduce { .. } => false,
    });
    let (store, stage) = stores.next().filter(|_| stores.next().is_none())?;
    let whole = match stage {
        Stage::Store { to, when, .. } => to.arg == at && when.is_none() && lies_dense(to, &first.outer, &first.cols),
        Stage::Reduce { .. } => false,
    };
    let fits = made && read && same && whole && lies_dense(&d.a, &second.outer, &d.k);
    (fits && multiplies(&handing(first, store)?, c)).then_some(store)
}

/// Both as one variant: its buffers are the first one's, then the second one's.
pub fn handed(
    [first, second]: [&Kernel; 2],
    store: usize,
    [a, b]: [Shape; 2],
    names: [&str; 2],
) -> Option<(Variant, Vec<(String, String)>)> {
    let (c, d) = (first.contraction.as_ref()?, second.contraction.as_ref()?);
    let handing = handing(first, store)?;
    let tiles = (first.cols.as_const()? + a.columns - 1) / a.columns;
    let (made, mut functions) = way(&handing, c, a, Rows::Own, names[0]);
    let (read, more) = way(second, d, b, Rows::Handed { sums: tiles }, names[1]);
    functions.extend(more);
    let own = |from: usize, n: usize| Some((from as u32..(from + n) as u32).collect());
    let mut steps = made.steps;
    for step in &mut steps {
        step.buffers = own(0, first.args.len());
        // The rows are its last buffer; the second and third are those that a kernel which reduces has for rows of its own.
        step.workspaces = Some(vec![0, 0, 0, 1]);
    }
    for mut step in read.steps {
        step.buffers = own(first.args.len(), second.args.len());
        steps.push(step);
    }
    let rows = Size::product(&first.outer);
    let variant = Variant {
        workspaces: vec![
            size(&(&rows * &(&first.cols * &Size::from(2)))),
            size(&(&rows * &Size::from(4 * tiles))),
        ],
        steps,
        ..Variant::default()
    };
    Some((variant, functions))
}

/// The first kernel with what it hands on: one more argument, and a sum.
fn handing(first: &Kernel, store: usize) -> Option<Kernel> {
    let Stage::Store { value, .. } = first.stages.get(store)? else {
        return None;
    };
    let (value, mut kernel) = (*value, first.clone());
    kernel.args.push(Arg {
        dtype: DType::BF16,
        written: true,
    });
    kernel.exprs.push(Expr::Binary(Binary::Mul, value, value));
    let sum = Stage::Reduce {
        op: Reduction::Sum,
        value: kernel.exprs.len() - 1,
    };
    kernel.stages.insert(0, sum);
    kernel.stages.push(Stage::Store {
        to: Access {
            arg: kernel.args.len() - 1,
            offset: Size::from(0),
            strides: dense(&first.outer, &first.cols),
            indirect: None,
        },
        value,
        when: None,
    });
    Some(kernel)
}

/// Strides of rows that lie one behind the other.
fn dense(outer: &[Size], columns: &Size) -> Vec<Size> {
    let mut stride = columns.clone();
    let mut strides = vec![Size::one()];
    for n in outer.iter().rev() {
        strides.insert(0, stride.clone());
        stride = &stride * n;
    }
    strides
}
