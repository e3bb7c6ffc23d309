//! A product whose kernel reduces over its columns, in two: each tile's rows to one number, and those numbers to one.
//!
//!     product    sums; what is stored by column; of each reduction the tile's result -> parts[reduction][row][tile]
//!     stages     each reduction over its parts, of which there are few; what is stored once for each row
//!
//! A sum of sums, the largest of the largest, the logarithm of a sum of exponentials of such logarithms. Logits that only their loss wants
//! are never in memory.

use ir::plan::{Access, Arg, Expr, ExprId, Kernel, Stage};
use ir::{DType, Size};
use runtime::artefact::Variant;

use super::super::{Target, map};
use super::{Rows, Shape, multiplies, way};
use crate::pipeline::size;

pub struct Apart {
    pub product: Kernel,
    /// Over the tiles of a row. Its arguments are the kernel's, then the workspaces: A's rows in bf16 and their squares, which are there even
    /// where nothing is rounded, and the parts.
    pub rest: Kernel,
}

/// `None` where a column's store needs a reduction. `columns`: of a tile.
pub fn apart(kernel: &Kernel, columns: i64) -> Option<Apart> {
    let tiles = (kernel.cols.as_const()? + columns - 1) / columns;
    let is_reduction = |s: &&Stage| matches!(s, Stage::Reduce { .. });
    let by_column = |s: &&Stage| match s {
        Stage::Store { to, .. } => to.strides[kernel.outer.len()].coef != 0,
        Stage::Reduce { .. } => false,
    };
    let reductions: Vec<&Stage> = kernel.stages.iter().filter(is_reduction).collect();
    let stores: Vec<&Stage> = kernel.stages.iter().filter(by_column).collect();
    let waits = |s: &Stage| {
        needed(kernel, &s.operands())
            .iter()
            .any(|e| matches!(kernel.exprs[*e], Expr::Reduced(_)))
    };
    if reductions.iter().chain(&stores).any(|s| waits(s)) {
        return None;
    }
    let product = Kernel {
        stages: reductions.iter().chain(&stores).map(|s| (*s).clone()).collect(),
        ..kernel.clone()
    };
    let mut args = kernel.args.clone();
    let [_, squares, parts] = [DType::BF16, DType::F32, DType::F32].map(|dtype| {
        args.push(Arg { dtype, written: true });
        args.len() - 1
    });
    let mut rest = Kernel {
        args,
        cols: Size::from(tiles),
        contraction: None,
        exprs: vec![],
        stages: vec![],
        ..kernel.clone()
    };
    let rows = Size::product(&kernel.outer);
    for (i, stage) in reductions.iter().enumerate() {
        let Stage::Reduce { op, .. } = stage else { continue };
        let all = &rows * &Size::from(tiles);
        rest.exprs.push(Expr::Load(Access {
            offset: &all * &Size::from(i as i64),
            ..place(kernel, parts, tiles)
        }));
        rest.stages.push(Stage::Reduce { op: *op, value: i });
    }
    // What is stored once for each row, with the expressions that it needs.
    let numbers: Vec<usize> = (0..kernel.stages.len())
        .filter(|s| is_reduction(&&kernel.stages[*s]))
        .collect();
    let once = kernel.stages.iter().filter(|s| !is_reduction(s) && !by_column(s));
    let once: Vec<&Stage> = once.collect();
    let operands: Vec<ExprId> = once.iter().flat_map(|s| s.operands()).collect();
    let mut now = vec![ExprId::MAX; kernel.exprs.len()];
    for id in needed(kernel, &operands) {
        let expr = match &kernel.exprs[id] {
            Expr::Acc | Expr::AccAlso => return None,
            Expr::Reduced(stage) => Expr::Reduced(numbers.iter().position(|s| s == stage)?),
            Expr::RowSquares => Expr::Load(place(kernel, squares, 0)),
            other => other.with_operands(&now),
        };
        rest.exprs.push(expr);
        now[id] = rest.exprs.len() - 1;
    }
    rest.stages.extend(once.into_iter().map(|s| s.with_operands(&now)));
    Some(Apart { product, rest })
}

/// Rows of so many columns one behind the other; 0: a number for each row.
fn place(kernel: &Kernel, arg: usize, columns: i64) -> Access {
    let mut stride = Size::from(columns.max(1));
    let mut strides = vec![Size::from(columns.min(1))];
    for n in kernel.outer.iter().rev() {
        strides.insert(0, stride.clone());
        stride = &stride * n;
    }
    Access {
        arg,
        offset: Size::from(0),
        strides,
        indirect: None,
    }
}

/// The expressions that these need, themselves included, in the kernel's order.
fn needed(kernel: &Kernel, of: &[ExprId]) -> Vec<ExprId> {
    let mut is_needed = vec![false; kernel.exprs.len()];
    of.iter().for_each(|e| is_needed[*e] = true);
    for id in (0..kernel.exprs.len()).rev() {
        if is_needed[id] {
            kernel.exprs[id]
                .operands()
                .into_iter()
                .for_each(|e| is_needed[e] = true);
        }
    }
    (0..kernel.exprs.len()).filter(|e| is_needed[*e]).collect()
}

/// The way of a kernel that reduces over its columns: `apart`'s two, one after the other.
pub fn reduced(kernel: &Kernel, name: &str, shape: Shape, target: &Target) -> Option<(Variant, Vec<(String, String)>)> {
    let c = kernel.contraction.as_ref()?;
    if c.also.is_some() || !multiplies(kernel, c) {
        return None;
    }
    let Apart { product, rest } = apart(kernel, shape.columns)?;
    let (mut variant, mut functions) = way(&product, c, shape, Rows::Own, name);
    let reductions = product
        .stages
        .iter()
        .filter(|s| matches!(s, Stage::Reduce { .. }))
        .count();
    let numbers = &Size::product(&kernel.outer) * &rest.cols;
    let parts = &numbers * &Size::from(4 * reductions as i64);
    variant.workspaces.push(size(&parts));
    let stages = Kernel {
        name: format!("{name}_stages"),
        ..rest
    };
    let emitted = map::emit(&stages, target);
    let more = emitted.kernel.variants.into_iter().flat_map(|v| v.steps);
    variant.steps.extend(more);
    functions.extend(emitted.functions);
    Some((variant, functions))
}
