//! Rows as halves side by side: a kernel with n columns as one with n / 2, which has each column and the one half a row further.
//!
//!     s = sum over j in 128: x[j] * y[j]     s = sum over j in 64: x[j] * y[j] + x[64 + j] * y[64 + j]
//!     for j in 128: z[j] = x[j] * s          for j in 64: z[j] = x[j] * s
//!                                                         z[64 + j] = x[64 + j] * s
//!
//! A rotation by positions is such a kernel from the start: it turns a column and the one half a row further together. Who hands whole
//! rows to it, or takes them from it, meets it in halves. The halved dimension need not be the columns: who sums over tokens has the
//! rotated columns for points, and has two sums then.

use ir::Size;
use ir::plan::{Access, Binary, Expr, ExprId, Kernel, Reduction, Stage};

use super::body::Exprs;
use super::pair::once;
use super::space;

type At<'a> = (&'a Kernel, &'a Access);

/// What `meet` makes of both kernels and their accesses once one has halves in place of whole rows, where rows of the other are half as
/// long. The access of what is halved is the first half's.
pub fn met<T>(first: At, second: At, meet: impl Fn(At, At) -> Option<T>) -> Option<T> {
    let near = [innermost(first), innermost(second)];
    let columns = [columns(first), columns(second)];
    let ways = [near, columns].into_iter().take(if near == columns { 1 } else { 2 });
    ways.into_iter().find_map(|way| {
        let [(x, n), (y, m)] = [way[0]?, way[1]?];
        if n % (2 * m) == 0 {
            let (kernel, access) = halved_at(first, x, m)?;
            meet((&kernel, &access), second)
        } else if m % (2 * n) == 0 {
            let (kernel, access) = halved_at(second, y, n)?;
            meet(first, (&kernel, &access))
        } else {
            None
        }
    })
}

/// The dimension whose positions are neighbours in memory, and its size.
fn innermost((kernel, access): At) -> Option<(usize, i64)> {
    let near = (0..access.strides.len()).filter(|d| access.strides[*d] == Size::one());
    near.filter_map(|d| real(kernel, d)).next()
}

fn columns((kernel, _): At) -> Option<(usize, i64)> {
    real(kernel, kernel.outer.len())
}

/// A dimension that has positions to tell apart, and how many.
fn real(kernel: &Kernel, dim: usize) -> Option<(usize, i64)> {
    let size = kernel.outer.iter().chain([&kernel.cols]).nth(dim)?;
    Some((dim, size.as_const().filter(|n| *n > 1)?))
}

/// The kernel with halves of so many positions in a dimension. Where rows of several stand one behind the other there, they are a dimension
/// of their own.
fn halved_at((kernel, access): At, dim: usize, half: i64) -> Option<(Kernel, Access)> {
    let row = Size::from(2 * half);
    if real(kernel, dim)?.1 == 2 * half {
        return Some((halved(kernel, dim)?, access.clone()));
    }
    let (kernel, access) = space::split((kernel, access), dim, &row)?;
    Some((halved(&kernel, dim + 1)?, access))
}

/// The kernel over half of a dimension: what it does there, and what it does half the dimension further.
fn halved(kernel: &Kernel, dim: usize) -> Option<Kernel> {
    let is_columns = dim == kernel.outer.len();
    let half = real(kernel, dim).filter(|(_, n)| n % 2 == 0)?.1 / 2;
    let by = i32::try_from(half).ok()?;
    let count = kernel.stages.len();
    let mut exprs = Exprs::default();
    let here = exprs.copy(&kernel.exprs, |_, _| None);
    let mut lost = false;
    let there = exprs.copy(&kernel.exprs, |exprs, e| match e {
        Expr::Load(a) => {
            let a = further(a, dim, half);
            lost |= a.is_none();
            a.map(|a| exprs.add(Expr::Load(a)))
        }
        Expr::Index(d) if *d == dim => {
            let (at, by) = (exprs.add(Expr::Index(dim)), exprs.add(Expr::Int(by)));
            Some(exprs.add(Expr::Binary(Binary::Add, at, by)))
        }
        Expr::Reduced(s) if !is_columns => Some(exprs.add(Expr::Reduced(s + count))),
        _ => None,
    });
    if lost {
        return None;
    }
    let mut stages = vec![];
    for stage in &kernel.stages {
        stages.push(match stage {
            Stage::Reduce { op, value } if is_columns => Stage::Reduce {
                op: *op,
                value: both(&mut exprs, *op, here[*value], there[*value])?,
            },
            other => other.with_operands(&here),
        });
    }
    for stage in &kernel.stages {
        let again = match stage.with_operands(&there) {
            // It is over both halves already.
            Stage::Reduce { .. } if is_columns => continue,
            Stage::Store { to, value, when } => Stage::Store {
                to: further(&to, dim, half)?,
                value,
                when,
            },
            reduce => reduce,
        };
        // What a row has once is stored once.
        if !is_columns || !stages.contains(&again) {
            stages.push(again);
        }
    }
    let mut halved = Kernel {
        exprs: exprs.list,
        stages,
        ..kernel.clone()
    };
    *halved.outer.iter_mut().chain([&mut halved.cols]).nth(dim)? = Size::from(half);
    Some(once(halved))
}

/// What a reduction over half of the columns takes.
fn both(exprs: &mut Exprs, op: Reduction, here: ExprId, there: ExprId) -> Option<ExprId> {
    let op = match op {
        Reduction::Sum => Binary::Add,
        Reduction::Max => Binary::Max,
        Reduction::LogSumExp => return None,
    };
    Some(exprs.add(Expr::Binary(op, here, there)))
}

/// The access so many positions further. `None` where its offset would be a sum of unlike terms.
fn further(a: &Access, dim: usize, positions: i64) -> Option<Access> {
    let by = &a.strides[dim] * &Size::from(positions);
    let offset = match (a.offset.coef, by.coef) {
        (_, 0) => a.offset.clone(),
        (0, _) => by,
        (first, second) => (a.offset.syms == by.syms).then_some(Size {
            coef: first + second,
            syms: by.syms,
        })?,
    };
    Some(Access { offset, ..a.clone() })
}
