//! Kernels without a contraction: element-wise chains, norms, softmax, look-ups, cache writes.
//!
//!     for tile in begin..end                  blocks of `map_rows` points
//!       for point in tile                     uniform expressions once
//!         for stage                           neighbouring stores share one loop
//!           for column step lanes             one vector; the last one masked

use ir::plan::{Kernel, Reduction, Stage};

use super::Target;
use crate::mlir::emit::{Elem, Emit, Ty, Val};
use crate::scalar::{Body, Columns, Point};

pub fn emit(kernel: &Kernel, target: &Target) -> String {
    let mut e = Emit::default();
    e.kernel(&kernel.name, |e, [buffers, symbols, begin, end, _scratch]| {
        let body = Body::new(e, kernel, target.lanes, buffers, symbols);
        let rows = e.i64(kernel.map_rows());
        let points = body.size(e, &ir::Size::product(&kernel.outer));
        // A tile of an ordered kernel is all points of its ordered dimensions, which lie one behind the other.
        let ordered = &kernel.outer[kernel.outer.len() - kernel.ordered..];
        let rows = match ordered {
            [] => rows,
            ordered => body.size(e, &ir::Size::product(ordered)),
        };
        let first = e.mul(begin, rows);
        let last = e.mul(end, rows);
        let last = e.min(last, points);
        e.for_loop(first, last, 1, &[], |e, at, _| {
            let index = body.unravel(e, at, &kernel.outer);
            let mut point = body.point(index);
            stages(e, &body, &mut point, &|_, _| {});
            vec![]
        });
    });
    e.finish()
}

/// Gives a vector of columns what the kernel computed before its stages.
pub type Fill<'a> = &'a dyn Fn(&mut Emit, &mut Columns);

/// All stages of the kernel at a point.
pub fn stages(e: &mut Emit, body: &Body, point: &mut Point, fill: Fill) {
    let stages = &body.kernel.stages;
    let mut i = 0;
    while i < stages.len() {
        body.hoist(e, point, &stages[i]);
        match &stages[i] {
            Stage::Reduce { op, value } => {
                let result = reduce(e, body, point, *op, *value, fill);
                point.reduced.insert(i, result);
                i += 1;
            }
            Stage::Store { .. } => {
                let group: Vec<&Stage> = stages[i..]
                    .iter()
                    .take_while(|s| matches!(s, Stage::Store { .. }))
                    .collect();
                i += group.len();
                group.iter().for_each(|s| body.hoist(e, point, s));
                store(e, body, point, &group, fill);
            }
        }
    }
}

/// Gets the first column, the mask of the last vector and what is carried; gives what is carried on.
type ColumnBody<'a> = &'a mut dyn FnMut(&mut Emit, Val, Option<Val>, &[Val]) -> Vec<Val>;

/// Runs `f` for each vector of columns, carrying `init`; the mask covers what is left at the end.
fn columns(e: &mut Emit, body: &Body, init: &[Val], f: ColumnBody) -> Vec<Val> {
    let lanes = body.lanes as i64;
    let zero = e.i64(0);
    let n = body.size(e, &body.kernel.cols);
    let known = body.kernel.cols.as_const();
    let whole = match known {
        Some(n) => e.i64(n - n % lanes),
        None => {
            let mask = e.i64(-lanes);
            e.and(n, mask)
        }
    };
    let carried = match known {
        Some(n) if n < lanes => init.to_vec(),
        _ => e.for_loop(zero, whole, lanes, init, |e, first, carried| f(e, first, None, carried)),
    };
    match known {
        Some(n) if n % lanes == 0 => carried,
        _ => {
            let left = e.sub(n, whole);
            let mask = e.first_lanes(left, body.lanes);
            f(e, whole, Some(mask), &carried)
        }
    }
}

fn reduce(e: &mut Emit, body: &Body, point: &mut Point, op: Reduction, value: usize, fill: Fill) -> Val {
    if body.single_column() {
        return body.scalar(e, point, value);
    }
    let ty = Ty::vector(Elem::F32, body.lanes);
    let identity = match op {
        Reduction::Sum => 0.0,
        Reduction::Max => f32::NEG_INFINITY,
        Reduction::LogSumExp => panic!(
            "kernel {}: only a contraction's columns are reduced so",
            body.kernel.name
        ),
    };
    let init = e.f32(identity, ty);
    let acc = columns(e, body, &[init], &mut |e, first, mask, carried| {
        let mut cols = Columns::new(first, mask, None);
        fill(e, &mut cols);
        let mut v = body.vector(e, point, &mut cols, value);
        if let Some(mask) = mask {
            let identity = e.f32(identity, ty);
            v = e.select(mask, v, identity);
        }
        vec![match op {
            Reduction::Sum => e.add(carried[0], v),
            _ => e.max(v, carried[0]),
        }]
    });
    match op {
        Reduction::Sum => e.reduce_add(acc[0]),
        _ => e.reduce_max(acc[0]),
    }
}

/// Stores of scalars go one by one, those of vectors in one loop over the columns.
fn store(e: &mut Emit, body: &Body, point: &mut Point, group: &[&Stage], fill: Fill) {
    let column = body.kernel.outer.len();
    let mut vectors = vec![];
    for stage in group {
        let Stage::Store { to, value, when } = stage else {
            continue;
        };
        if !body.single_column()
            && (to.strides[column].coef != 0 || to.indirect.as_ref().is_some_and(|(id, _)| body.varies(*id)))
        {
            vectors.push((to, *value, *when));
            continue;
        }
        let value = body.scalar(e, point, *value);
        match when.map(|w| body.scalar(e, point, w)) {
            None => body.store_scalar(e, point, to, value),
            Some(c) => {
                // The pointer's uniform parts are hoisted: nothing new is defined inside but the address.
                e.if_then(c, &[], |e| {
                    body.store_scalar(e, point, to, value);
                    vec![]
                });
            }
        }
    }
    if vectors.is_empty() {
        return;
    }
    columns(e, body, &[], &mut |e, first, mask, _| {
        let mut cols = Columns::new(first, mask, None);
        fill(e, &mut cols);
        let ready: Vec<(Val, Option<Val>)> = vectors
            .iter()
            .map(|(_, value, when)| {
                let when = when.map(|w| body.vector(e, point, &mut cols, w));
                (body.vector(e, point, &mut cols, *value), when)
            })
            .collect();
        for ((to, _, _), (value, when)) in vectors.iter().zip(ready) {
            body.store_vector(e, point, &mut cols, to, value, when);
        }
        vec![]
    });
}
