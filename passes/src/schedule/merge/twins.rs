//! Twin products: of two that multiply the same rows, where the end of the second reads what the first stores, the second right side is
//! multiplied while the rows are there.
//!
//!     g = a * w1'                  h = silu(a * w1') * (a * w2')
//!     h = silu(g) * (a * w2')
//!
//! The rows are read once, and sums of f32 need no memory: both are in registers (`Contraction::also`). The scheduler does so where
//! nothing else reads the parts; here what others read is stored by the one kernel. Of many and known rows only, as `epilogue`.

use ir::plan::{Contraction, DEEP, Expr, Kernel, Rhs};

use super::body::{contracted, finish};
use super::epilogue::{is_fit, takes_epilogue};
use super::is_dead;
use super::join::hand_on;
use super::pair::together;
use super::steps::Steps;

pub fn twin(steps: &mut Steps) {
    hand_on(steps, |steps, first, second| {
        let (a, b) = (first.product.as_ref()?, second.product.as_ref()?);
        let multiplied = &contracted(a) | &contracted(b);
        // What is multiplied is not stored: other tiles may still read it.
        if first.writes.union(&second.writes).any(|b| multiplied.contains(b)) {
            return None;
        }
        let body = together(&doubled(steps, a, b)?, &as_second(b), &steps.buffers)?;
        let body = finish(body, |buffer| is_dead(steps, &[first, second], buffer))?;
        if is_fit(b, &body) { steps.step(body) } else { None }
    });
}

/// The first product with the right side of the second beside its own, where both are over the same rows and columns and lie alike.
fn doubled(steps: &Steps, first: &Kernel, second: &Kernel) -> Option<Kernel> {
    let (x, y) = (first.contraction.as_ref()?, second.contraction.as_ref()?);
    let single = |k: &Kernel, c: &Contraction| takes_epilogue(k) && c.also.is_none() && !k.is_turned();
    // A deep sum is walked in pieces, which two have no room for.
    let shallow = x.k.as_const().is_some_and(|k| k < DEEP);
    let same = (&first.outer, &first.cols, &x.a, &x.k) == (&second.outer, &second.cols, &y.a, &y.k);
    let fits = single(first, x) && single(second, y) && shallow && same && lie_alike(steps, &x.b, &y.b);
    fits.then(|| Kernel {
        contraction: Some(Contraction {
            also: Some(y.b.clone()),
            ..x.clone()
        }),
        ..first.clone()
    })
}

/// Both packed, or both with k contiguous; of one type.
fn lie_alike(steps: &Steps, x: &Rhs, y: &Rhs) -> bool {
    let dtype = |arg: &usize| steps.buffers[*arg].dtype;
    match (x, y) {
        (Rhs::Packed { arg: x }, Rhs::Packed { arg: y }) => dtype(x) == dtype(y),
        (Rhs::KContiguous { arg: x, strides, .. }, Rhs::KContiguous { arg: y, strides: s, .. }) => {
            dtype(x) == dtype(y) && strides == s
        }
        _ => false,
    }
}

/// The second product's stages, on the sums of the second right side.
fn as_second(product: &Kernel) -> Kernel {
    let exprs = product.exprs.iter().map(|e| match e {
        Expr::Acc => Expr::AccAlso,
        other => other.clone(),
    });
    Kernel {
        exprs: exprs.collect(),
        ..product.clone()
    }
}
