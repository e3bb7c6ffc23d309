//! A product whose kernel reduces over its columns: first the sums, then the stages on them.

use ir::plan::{Access, Arg, Expr, Kernel, Stage};
use ir::{DType, Size};
use runtime::artefact::{MapSource, Variant};

use super::super::{Target, map};
use super::{SHAPES, takes, way};
use crate::pipeline::size;

/// A kernel that reduces over its columns, in two: the sums to memory, and the stages on them. Where a stage stores the sums as they are,
/// that is their place, else a workspace. In the parts' arguments the workspaces follow the kernel's own: the sums, if they have one, then
/// A's rows in bf16 and their squares, where the product needs them.
pub struct Apart {
    pub product: Kernel,
    pub rest: Kernel,
    /// Do the sums need a workspace?
    pub parks: bool,
}

pub fn apart(kernel: &Kernel) -> Apart {
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
    let is_own = |s: &Stage| match s {
        Stage::Store { to, value, when: None } => {
            let plain = kernel.args[to.arg].dtype == DType::F32 && kernel.exprs[*value] == Expr::Acc;
            plain && *to == place(to.arg, &kernel.cols, 1)
        }
        _ => false,
    };
    let own = kernel.stages.iter().position(is_own);
    let mut args = kernel.args.clone();
    let mut workspace = |dtype: DType| {
        args.push(Arg { dtype, written: true });
        args.len() - 1
    };
    let sums = match own.map(|s| &kernel.stages[s]) {
        Some(Stage::Store { to, .. }) => to.clone(),
        _ => place(workspace(DType::F32), &kernel.cols, 1),
    };
    workspace(DType::BF16);
    let squares = workspace(DType::F32);
    let product = Kernel {
        args: args[..squares - 1].to_vec(),
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
    // Behind all reductions, whose places stages are known by.
    own.map(|s| rest.stages.remove(s));
    for e in &mut rest.exprs {
        match e {
            Expr::Acc => *e = Expr::Load(sums.clone()),
            Expr::RowSquares => *e = Expr::Load(place(squares, &Size::one(), 0)),
            _ => {}
        }
    }
    Apart {
        product,
        rest,
        parks: own.is_none(),
    }
}

/// The way of a kernel that reduces over its columns: `apart`'s two, one after the other.
pub fn reduced(kernel: &Kernel, name: &str, target: &Target) -> Option<(Variant, Vec<(String, String)>)> {
    let Apart { product, rest, parks } = apart(kernel);
    let c = product.contraction.as_ref()?;
    if !takes(&product, c) {
        return None;
    }
    let (mut variant, mut functions) = way(&product, c, SHAPES[0], name, true);
    if parks {
        // In front of the others, and a buffer to the product.
        for map in variant.steps.iter_mut().flat_map(|s| &mut s.maps) {
            if let MapSource::Workspace(i) = &mut map.source {
                *i += 1;
            }
        }
        let elements = &Size::product(&kernel.outer) * &kernel.cols;
        variant.workspaces.insert(0, size(&(&elements * &Size::from(4))));
    }
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
