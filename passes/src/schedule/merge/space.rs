//! Two kernels over one iteration space: the dimensions of each are matched by the strides of an access that both have, split where one
//! has two dimensions for the other's one, and put in one order.

use ir::Size;
use ir::plan::{Access, Binary, Expr, ExprId, Kernel, Stage};

use super::super::slots::typical;
use super::body::{Exprs, accesses, stores};

/// A dimension of the common space.
struct Dim {
    size: Size,
    /// For each kernel: its dimension that this is a part of, and how much one step here is there.
    of: [Option<(usize, Size)>; 2],
}

/// A dimension of one kernel as an access walks it.
#[derive(Clone)]
struct Walk {
    dim: usize,
    size: Size,
    stride: Size,
    step: Size,
}

/// `first` and `second` over one space in which their accesses are one, each stage where it was once for each point. One of them may have
/// a point for each row of the other.
pub fn joined(first: (&Kernel, &Access), second: (&Kernel, &Access)) -> Option<(Kernel, Kernel)> {
    let (a, b) = (first.0, second.0);
    if first.1.strides == second.1.strides && a.outer == b.outer && a.cols == b.cols {
        return Some((a.clone(), b.clone()));
    }
    let (mut dims, [left_a, left_b]) = matched(first, second)?;
    let column = |k: &Kernel, left: &[Walk]| matches!(left, [w] if w.dim == k.outer.len());
    match (&left_a[..], &left_b[..]) {
        ([], []) => {}
        ([x], [y]) if column(a, &left_a) && column(b, &left_b) && x.size == y.size => dims.push(Dim {
            size: x.size.clone(),
            of: [Some((x.dim, Size::one())), Some((y.dim, Size::one()))],
        }),
        ([x], []) if column(a, &left_a) && !b.reduces() => dims.push(Dim {
            size: x.size.clone(),
            of: [Some((x.dim, Size::one())), None],
        }),
        ([], [y]) if column(b, &left_b) && !a.reduces() => dims.push(Dim {
            size: y.size.clone(),
            of: [None, Some((y.dim, Size::one()))],
        }),
        _ => return None,
    }
    // Who reduces keeps its columns, and so does who has more of them.
    let second_leads = !a.reduces() && (b.reduces() || (left_a.is_empty() && !left_b.is_empty()));
    let dims = ordered([a, b], dims, usize::from(second_leads))?;
    Some((over(a, &dims, 0), over(b, &dims, 1)))
}

/// The producer of what `reader` loads, in the reader's space, and the reader with its dimensions split as the producer's are. The
/// reader may have many points for one of the producer's.
pub fn within(producer: (&Kernel, &Access), reader: (&Kernel, &Access)) -> Option<(Kernel, Kernel)> {
    let (mut dims, [left, more]) = matched(producer, reader)?;
    if !left.is_empty() {
        return None;
    }
    dims.extend(more.into_iter().map(|w| Dim {
        size: w.size,
        of: [None, Some((w.dim, w.step))],
    }));
    let dims = ordered([producer.0, reader.0], dims, 1)?;
    Some((over(producer.0, &dims, 0), over(reader.0, &dims, 1)))
}

/// `map` over the dimensions of `leader`, which has a point and a column for each of its own. `None` where what lies in one dimension of
/// the leader has no one stride in the other.
pub fn onto(leader: (&Kernel, &Access), map: (&Kernel, &Access)) -> Option<Kernel> {
    let (dims, [left, more]) = matched(leader, map)?;
    if !left.is_empty() || !more.is_empty() {
        return None;
    }
    let dims = ordered([leader.0, map.0], dims, 0)?;
    let mut kernel = over(map.0, &dims, 1);
    for a in accesses(&mut kernel) {
        let whole = (0..=leader.0.outer.len()).map(|dim| whole(&a.strides, &dims, dim));
        a.strides = whole.collect::<Option<_>>()?;
    }
    kernel.outer = leader.0.outer.clone();
    kernel.cols = leader.0.cols.clone();
    Some(kernel)
}

/// The kernel and its access with a dimension as two, the inner one of so many positions. `None` where it needs its columns as they are.
pub fn split((kernel, access): (&Kernel, &Access), dim: usize, inner: &Size) -> Option<(Kernel, Access)> {
    let mut dims = vec![];
    for (d, size) in kernel.outer.iter().chain([&kernel.cols]).enumerate() {
        let mut part = |size: Size, step: Size| {
            dims.push(Dim {
                size,
                of: [Some((d, step)), None],
            });
        };
        if d == dim {
            part(quotient(size, inner)?, inner.clone());
            part(inner.clone(), Size::one());
        } else {
            part(size.clone(), Size::one());
        }
    }
    let loses_columns = dim == kernel.outer.len() && needs_columns(kernel);
    (!loses_columns).then(|| (over(kernel, &dims, 0), access_over(access, &dims, 0)))
}

/// The stride along a dimension of the first kernel, from those along its parts.
fn whole(strides: &[Size], dims: &[Dim], dim: usize) -> Option<Size> {
    let parts = dims.iter().zip(strides);
    let mut parts = parts
        .filter(|(d, _)| matches!(&d.of[0], Some((of, _)) if *of == dim))
        .rev();
    let Some((inner, stride)) = parts.next() else {
        return Some(Size::from(0));
    };
    let mut next = stride * &inner.size;
    for (part, stride) in parts {
        if *stride != next {
            return None;
        }
        next = stride * &part.size;
    }
    Some(stride.clone())
}

/// The dimensions that both accesses walk alike, and those of each kernel that its access does not walk.
fn matched(first: (&Kernel, &Access), second: (&Kernel, &Access)) -> Option<(Vec<Dim>, [Vec<Walk>; 2])> {
    let (a, b) = (first.1, second.1);
    if a.offset != b.offset || a.indirect.is_some() || b.indirect.is_some() {
        return None;
    }
    let (mut x, left_x) = walks(first.0, a);
    let (mut y, left_y) = walks(second.0, b);
    let mut dims = vec![];
    // From the innermost in memory; what is split off stays for the next round.
    while let [Some(p), Some(q)] = [x.last().cloned(), y.last().cloned()] {
        x.pop();
        y.pop();
        if p.stride != q.stride {
            return None;
        }
        let size = match (quotient(&p.size, &q.size), quotient(&q.size, &p.size)) {
            (Some(_), Some(_)) => p.size.clone(),
            (Some(more), None) => {
                x.push(p.beyond(&q.size, more));
                q.size.clone()
            }
            (None, Some(more)) => {
                y.push(q.beyond(&p.size, more));
                p.size.clone()
            }
            (None, None) => return None,
        };
        dims.push(Dim {
            size,
            of: [Some((p.dim, p.step)), Some((q.dim, q.step))],
        });
    }
    (x.is_empty() && y.is_empty()).then_some((dims, [left_x, left_y]))
}

impl Walk {
    /// What is left of a dimension behind its inner part of `inner` positions.
    fn beyond(&self, inner: &Size, more: Size) -> Walk {
        Walk {
            dim: self.dim,
            size: more,
            stride: &self.stride * inner,
            step: &self.step * inner,
        }
    }
}

/// The kernel's dimensions that the access walks, the innermost in memory last, and the others. Dimensions of one position are neither.
fn walks(kernel: &Kernel, access: &Access) -> (Vec<Walk>, Vec<Walk>) {
    let sizes = kernel.outer.iter().chain([&kernel.cols]).zip(&access.strides);
    let all = sizes.enumerate().map(|(dim, (size, stride))| Walk {
        dim,
        size: size.clone(),
        stride: stride.clone(),
        step: Size::one(),
    });
    let real = all.filter(|w| w.size.as_const() != Some(1));
    let (mut walked, others): (Vec<Walk>, Vec<Walk>) = real.partition(|w| w.stride.coef != 0);
    let typical = typical();
    walked.sort_by_key(|w| std::cmp::Reverse(w.stride.eval(&typical).unwrap_or(i64::MAX)));
    (walked, others)
}

/// The dimensions in the order in which one kernel has them. `None` where a kernel would lose columns that it needs.
fn ordered(kernels: [&Kernel; 2], mut dims: Vec<Dim>, leader: usize) -> Option<Vec<Dim>> {
    let typical = typical();
    if kernels[leader].cols.as_const() == Some(1) {
        // One column stays a column: what is beside it would take its place.
        let column = |k: &Kernel| (k.cols.as_const() == Some(1)).then(|| (k.outer.len(), Size::one()));
        dims.push(Dim {
            size: Size::one(),
            of: kernels.map(column),
        });
    }
    dims.sort_by_key(|d| {
        let (dim, step) = d.of[leader].clone().unwrap_or((usize::MAX, Size::one()));
        (dim, std::cmp::Reverse(step.eval(&typical).unwrap_or(i64::MAX)))
    });
    let keeps_columns = |(side, kernel): (usize, &Kernel)| {
        let columns = |d: &Dim| matches!(&d.of[side], Some((dim, _)) if *dim == kernel.outer.len());
        let last = dims.last().is_some_and(|d| columns(d) && d.size == kernel.cols);
        !needs_columns(kernel) || last
    };
    let fits = kernels.into_iter().enumerate().all(keeps_columns);
    fits.then_some(dims)
}

/// Does it do something once for all columns, or look up where to store?
fn needs_columns(kernel: &Kernel) -> bool {
    let many = kernel.cols.as_const() != Some(1);
    let once = |to: &Access| many && to.strides[kernel.outer.len()].coef == 0;
    kernel.reduces() || stores(kernel).any(|(to, ..)| to.indirect.is_some() || once(to))
}

/// The kernel over these dimensions.
fn over(kernel: &Kernel, dims: &[Dim], side: usize) -> Kernel {
    let mut exprs = Exprs::default();
    let now = exprs.copy(&kernel.exprs, |exprs, e| match e {
        Expr::Load(a) => Some(exprs.add(Expr::Load(access_over(a, dims, side)))),
        Expr::Index(d) => Some(index_over(exprs, *d, dims, side)),
        _ => None,
    });
    let stages = kernel.stages.iter().map(|s| match s.with_operands(&now) {
        Stage::Store { to, value, when } => Stage::Store {
            to: access_over(&to, dims, side),
            value,
            when,
        },
        reduce => reduce,
    });
    let stages = stages.collect();
    let mut outer: Vec<Size> = dims.iter().map(|d| d.size.clone()).collect();
    let cols = outer.pop().unwrap_or_else(Size::one);
    Kernel {
        outer,
        cols,
        stages,
        exprs: exprs.list,
        ..kernel.clone()
    }
}

fn access_over(a: &Access, dims: &[Dim], side: usize) -> Access {
    let stride = |d: &Dim| match &d.of[side] {
        Some((dim, step)) if d.size.as_const() != Some(1) => &a.strides[*dim] * step,
        _ => Size::from(0),
    };
    let strides = match dims {
        [] => vec![Size::from(0)],
        dims => dims.iter().map(stride).collect(),
    };
    Access { strides, ..a.clone() }
}

/// The position in the kernel's dimension: the sum of its parts' positions.
fn index_over(exprs: &mut Exprs, dim: usize, dims: &[Dim], side: usize) -> ExprId {
    let mut sum = None;
    for (at, d) in dims.iter().enumerate() {
        let here = d.of[side].as_ref().filter(|(of, _)| *of == dim);
        let Some((_, step)) = here.filter(|_| d.size.as_const() != Some(1)) else {
            continue;
        };
        let mut part = exprs.add(Expr::Index(at));
        if *step != Size::one() {
            let step = exprs.add(Expr::SizeOf(step.clone()));
            part = exprs.add(Expr::Binary(Binary::Mul, part, step));
        }
        sum = Some(sum.map_or(part, |s| exprs.add(Expr::Binary(Binary::Add, s, part))));
    }
    sum.unwrap_or_else(|| exprs.add(Expr::Int(0)))
}

/// Do two accesses of one space touch unlike elements, whatever the symbols' values? So do columns of a matrix beside each other: modulo
/// the length of its rows, each access stays in a range of its own.
pub fn are_apart(kernel: &Kernel, a: &Access, b: &Access) -> bool {
    let direct = a.indirect.is_none() && b.indirect.is_none();
    let (Some(from), Some(to), true) = (a.offset.as_const(), b.offset.as_const(), direct) else {
        return false;
    };
    // How many elements from its first an access reaches, modulo the rows.
    let reach = |access: &Access, row: i64| -> Option<i64> {
        let sizes = kernel.outer.iter().chain([&kernel.cols]).zip(&access.strides);
        let mut inside = sizes.filter(|(_, stride)| stride.coef % row != 0);
        inside.try_fold(1, |sum, (n, stride)| {
            Some(sum + (n.as_const()? - 1) * stride.as_const()?)
        })
    };
    let rows = a.strides.iter().filter_map(Size::as_const).filter(|s| *s > 1);
    rows.into_iter().any(|row| {
        let between = (to - from).rem_euclid(row);
        let reaches = reach(a, row).zip(reach(b, row));
        reaches.is_some_and(|(x, y)| x <= between && between + y <= row)
    })
}

/// `a / b` where it is a whole number whatever the symbols' values.
fn quotient(a: &Size, b: &Size) -> Option<Size> {
    let mut syms = a.syms.clone();
    for s in &b.syms {
        syms.remove(syms.iter().position(|r| r == s)?);
    }
    (b.coef != 0 && a.coef % b.coef == 0).then(|| Size {
        coef: a.coef / b.coef,
        syms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::build::KernelBuilder;

    fn access(offset: i64, strides: &[i64]) -> Access {
        Access {
            arg: 0,
            offset: Size::from(offset),
            strides: strides.iter().map(|s| Size::from(*s)).collect(),
            indirect: None,
        }
    }

    #[test]
    fn parts_of_rows_are_apart() {
        let sizes = [4i64, 6].map(Size::from);
        let (kernel, _) = KernelBuilder::new("rows", &sizes).finish();
        let apart = |from: i64, to: i64, row: i64| are_apart(&kernel, &access(from, &[row, 1]), &access(to, &[row, 1]));
        // Six columns and six are rows of twelve, not of ten.
        assert!(apart(0, 6, 12) && apart(6, 0, 12) && apart(3, 9, 12) && apart(0, 18, 12));
        assert!(!apart(0, 6, 10) && !apart(0, 5, 12) && !apart(0, 0, 12) && !apart(0, 12, 12));
    }
}
