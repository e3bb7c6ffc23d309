//! A product whose kernel reduces over its columns: first the sums, then the stages on them.

use ir::plan::{Access, Arg, Expr, Kernel, Stage};
use ir::{DType, Size};
use runtime::artefact::{MapSource, Variant};

use super::super::{Target, map};
use super::{SHAPES, takes, way};
use crate::pipeline::size;

/// A kernel that reduces over its columns, in two: the sums to a workspace, and the stages on them. In the parts' arguments the workspaces
/// follow the kernel's own: the sums, then A's rows in bf16 and their squares, where the product needs them.
pub fn apart(kernel: &Kernel) -> (Kernel, Kernel) {
    let first = kernel.args.len();
    let mut args = kernel.args.clone();
    for dtype in [DType::F32, DType::BF16, DType::F32] {
        args.push(Arg { dtype, written: true });
    }
    // Dense in the order of the outer dimensions, then columns or not.
    let place = |arg: usize, columns: &Size, of_column: i64| {
        let mut stride = columns.clone();
        let mut strides = vec![Size::from(of_column)];
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
    };
    let sums = place(first, &kernel.cols, 1);
    let product = Kernel {
        args: args[..=first].to_vec(),
        exprs: if kernel.exprs.contains(&Expr::RowSquares) {
            vec![Expr::Acc, Expr::RowSquares]
        } else {
            vec![Expr::Acc]
        },
        stages: vec![Stage::Store {
            to: sums.clone(),
            value: 0,
            when: None,
        }],
        ..kernel.clone()
    };
    let mut rest = kernel.clone();
    rest.args = args;
    rest.contraction = None;
    for e in &mut rest.exprs {
        match e {
            Expr::Acc => *e = Expr::Load(sums.clone()),
            Expr::RowSquares => *e = Expr::Load(place(first + 2, &Size::one(), 0)),
            _ => {}
        }
    }
    (product, rest)
}

/// The way of a kernel that reduces over its columns: `apart`'s two, one after the other.
pub fn reduced(kernel: &Kernel, name: &str, target: &Target) -> Option<(Variant, Vec<(String, String)>)> {
    let (product, rest) = apart(kernel);
    let c = product.contraction.as_ref()?;
    if !takes(&product, c) {
        return None;
    }
    let (mut variant, mut functions) = way(&product, c, SHAPES[0], name, true);
    // Behind the sums, which are a buffer to the product.
    for map in variant.steps.iter_mut().flat_map(|s| &mut s.maps) {
        if let MapSource::Workspace(i) = &mut map.source {
            *i += 1;
        }
    }
    let elements = &Size::product(&kernel.outer) * &kernel.cols;
    variant.workspaces.insert(0, size(&(&elements * &Size::from(4))));
    let stages = Kernel {
        name: format!("{name}_stages"),
        ..rest
    };
    let emitted = map::emit(&stages, target);
    variant
        .steps
        .extend(emitted.kernel.variants.into_iter().flat_map(|v| v.steps));
    functions.extend(emitted.functions);
    Some((variant, functions))
}
