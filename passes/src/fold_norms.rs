//! `fold-norms`: a norm before matmuls falls apart. Its weight is folded into theirs, and its row scale moves past the product.
//!
//!     matmul(rms_norm(x, w), W^T)  =  matmul(x, scale_columns(W, w)^T) * rms_scale(x)
//!
//! Folding happens when weights are loaded; the scale is one more factor in the matmul's epilogue, and the kernel that reads x
//! sums its squares on the way. Norms whose results are read by anything else stay as they are.

use ir::{Attr, Attrs, DType, Function, Param, ValueId};

use crate::attrs::flag;
use crate::{Pass, PassError};

pub const FOLD_NORMS: Pass = Pass {
    name: "fold-norms",
    about: "fold a norm's weight into the matmuls behind it, and scale rows after the product",
    run: |module| module.functions.iter_mut().try_for_each(fold),
};

fn fold(f: &mut Function) -> Result<(), PassError> {
    while let Some((at, readers)) = (0..f.ops.len()).find_map(|at| Some((at, foldable(f, at)?))) {
        replace(f, at, &readers).map_err(|e| PassError(format!("@{}: {e}", f.name)))?;
    }
    Ok(())
}

/// The places of the matmuls that read the norm at `at`, if nothing else does.
fn foldable(f: &Function, at: usize) -> Option<Vec<usize>> {
    let norm = &f.ops[at];
    let by_weight =
        norm.name == "rms_norm" && is_weight(f, norm.operands[1]) && f.ty(norm.operands[0]).dtype == DType::F32;
    let n = *norm.results.first()?;
    if !by_weight || f.returns.iter().any(|(_, v)| *v == n) {
        return None;
    }
    let readers: Vec<usize> = (0..f.ops.len()).filter(|i| f.ops[*i].operands.contains(&n)).collect();
    let folds = |i: &usize| {
        let op = &f.ops[*i];
        op.name == "matmul" && op.operands[0] == n && flag(op, "transpose_b") && made_at_load(f, op.operands[1])
    };
    (!readers.is_empty() && readers.iter().all(folds)).then_some(readers)
}

fn is_weight(f: &Function, v: ValueId) -> bool {
    let weight = |(p, kind): &(ValueId, Param)| *p == v && matches!(kind, Param::Weight(_));
    f.params.iter().any(weight)
}

/// A matrix of weights alone, which the runtime makes when it loads them.
pub(crate) fn made_at_load(f: &Function, v: ValueId) -> bool {
    if is_weight(f, v) {
        return f.ty(v).rank() == 2;
    }
    let maker = f.ops.iter().find(|op| op.results.first() == Some(&v));
    maker.is_some_and(|op| match op.name.as_str() {
        "concat" => op.operands.iter().all(|v| is_weight(f, *v) && f.ty(*v).rank() == 2),
        "scale_columns" => made_at_load(f, op.operands[0]) && is_weight(f, op.operands[1]),
        _ => false,
    })
}

fn replace(f: &mut Function, at: usize, readers: &[usize]) -> Result<(), String> {
    let norm = f.ops[at].clone();
    let (x, w, dtype) = (norm.operands[0], norm.operands[1], f.ty(norm.results[0]).dtype);
    let eps = norm.attrs.get("eps").cloned().unwrap_or(Attr::Float(0.0));
    let olds = std::mem::take(&mut f.ops);
    let mut apart = None;
    for (i, op) in olds.into_iter().enumerate() {
        if i == at {
            let scale = f.try_op("rms_scale", &[x], Attrs::from([("eps".to_string(), eps.clone())]))?;
            apart = Some((scale, f.cast(x, dtype)));
            continue;
        }
        let (true, Some((scale, rounded))) = (readers.contains(&i), apart) else {
            f.ops.push(op);
            continue;
        };
        let folded = f.try_op("scale_columns", &[op.operands[1], w], Attrs::new())?;
        let product = f.matmul(rounded, folded, true, DType::F32);
        let y = f.mul(product, scale);
        let y = f.cast(y, f.ty(op.results[0]).dtype);
        // The last op makes the matmul's value, under its name.
        let last = f.ops.last_mut().ok_or("nothing was made")?;
        debug_assert_eq!(last.results, [y]);
        last.results = op.results;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::{Module, TensorType};

    fn layer() -> Function {
        let mut f = Function::new("layer");
        let x = f.param(
            "x",
            TensorType::new(vec![2i64, 3, 8], DType::F32),
            Param::Input("x".into()),
        );
        let weight = |f: &mut Function, name: &str, shape: Vec<i64>, dtype| {
            f.param(name, TensorType::new(shape, dtype), Param::Weight(name.into()))
        };
        let w = weight(&mut f, "norm", vec![8], DType::F32);
        let up = weight(&mut f, "up", vec![5, 8], DType::BF16);
        let n = f.rms_norm(x, w, 1e-6, DType::BF16);
        let y = f.matmul(n, up, true, DType::BF16);
        f.returns("y", y);
        f
    }

    #[test]
    fn norms_before_matmuls_by_weights_fold() {
        let mut module = Module {
            functions: vec![layer()],
        };
        (FOLD_NORMS.run)(&mut module).unwrap();
        assert_eq!(ir::verify::verify(&module), [], "{module}");
        let names: Vec<&str> = module.functions[0].ops.iter().map(|op| op.name.as_str()).collect();
        assert_eq!(names, ["rms_scale", "cast", "scale_columns", "matmul", "mul", "cast"]);
    }

    #[test]
    fn a_norm_that_is_read_elsewhere_stays() {
        let mut f = layer();
        let n = f.ops[0].results[0];
        f.returns("n", n);
        let mut module = Module { functions: vec![f] };
        let before = module.to_string();
        (FOLD_NORMS.run)(&mut module).unwrap();
        assert_eq!(module.to_string(), before);
    }
}
