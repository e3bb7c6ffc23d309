//! Matrices one below the other without a copy: stacked when weights are loaded, or written into the stack by what makes them.

use ir::{Attr, Attrs, Function, Op, Param, TensorType, ValueId};

use crate::attrs::int;

/// Where the parts of a stack come from; those of one stack come from one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Weights,
    /// Weights that are trained, as the matmul reads them.
    Casts,
    /// Rows of a stack that is there already.
    Rows(ValueId),
}

/// What a matrix that a matmul reads comes from, if it may be part of a stack, and its place among others: stacks of the same matrices
/// are then the same, forward and backward.
pub fn source(f: &Function, v: ValueId) -> Option<(Source, usize)> {
    if f.ty(v).rank() != 2 {
        return None;
    }
    let param = |v: ValueId| {
        f.params
            .iter()
            .position(|(p, kind)| *p == v && !matches!(kind, Param::Input(_)))
    };
    if let Some(at) = param(v) {
        let is_weight = matches!(f.params[at].1, Param::Weight(_));
        return is_weight.then_some((Source::Weights, at));
    }
    let maker = f.ops.iter().find(|op| op.results.first() == Some(&v))?;
    let from = *maker.operands.first()?;
    match maker.name.as_str() {
        "cast" if f.returns.iter().all(|(_, r)| *r != v) => Some((Source::Casts, param(from)?)),
        "slice" if int(maker, "axis") == 0 && is_stack(f, from) => {
            Some((Source::Rows(from), usize::try_from(int(maker, "begin")).ok()?))
        }
        _ => None,
    }
}

fn is_stack(f: &Function, v: ValueId) -> bool {
    let maker = f.ops.iter().find(|op| op.results.first() == Some(&v));
    maker.is_some_and(|op| op.name == "concat" && int(op, "axis") == 0)
}

/// Is there no copy where parts of one source, in the order of their places, are stacked? Rows must be all that their stack has.
pub fn is_free(f: &Function, parts: &[ValueId]) -> bool {
    let rows = |v: ValueId| f.ty(v).shape[0].size().as_const();
    match parts.first().and_then(|v| source(f, *v)) {
        Some((Source::Rows(all), _)) => {
            let total: Option<i64> = parts.iter().map(|v| rows(*v)).sum();
            let begins = parts.iter().map(|v| source(f, *v).map(|(_, at)| at as i64));
            let mut next = 0;
            let in_order = begins.zip(parts).all(|(begin, v)| {
                let fits = begin == Some(next);
                next += rows(*v).unwrap_or_default();
                fits
            });
            in_order && total == rows(all)
        }
        Some(_) => true,
        None => false,
    }
}

/// Parts side by side; rows of a stack that is there are that stack.
pub fn concat(f: &mut Function, parts: &[ValueId], axis: usize) -> Result<ValueId, String> {
    if let Some((Source::Rows(all), _)) = parts.first().and_then(|v| source(f, *v)) {
        return Ok(all);
    }
    f.try_op(
        "concat",
        parts,
        Attrs::from([("axis".to_string(), Attr::Int(axis as i64))]),
    )
}

/// Casts lie in their stack now: whoever else reads one reads rows of the stack.
pub fn read_rows(f: &mut Function, stacked: ValueId, parts: &[ValueId]) {
    for (i, v) in parts.iter().enumerate() {
        let others = |op: &Op| op.results != [stacked] && op.operands.contains(v);
        if !matches!(source(f, *v), Some((Source::Casts, _))) || !f.ops.iter().any(others) {
            continue;
        }
        let rows = |v: &ValueId| f.ty(*v).shape[0].size().coef;
        let begin = parts[..i].iter().map(rows).sum();
        let row = f.slice(stacked, 0, begin, f.ty(*v).clone());
        let is_other = |op: &&mut Op| op.results != [stacked];
        for op in f.ops.iter_mut().filter(is_other) {
            op.operands.iter_mut().filter(|o| *o == v).for_each(|o| *o = row);
        }
    }
}

/// The parts of `all` along an axis, under the names of the values whose place they take.
pub fn slices(f: &mut Function, all: ValueId, axis: usize, parts: &[ValueId]) {
    let mut begin = 0;
    for v in parts {
        let ty: TensorType = f.ty(*v).clone();
        let n = ty.shape[axis].size().coef;
        f.ops.push(Op {
            name: "slice".to_string(),
            operands: vec![all],
            attrs: Attrs::from([
                ("axis".to_string(), Attr::Int(axis as i64)),
                ("begin".to_string(), Attr::Int(begin)),
                ("type".to_string(), Attr::Type(ty)),
            ]),
            results: vec![*v],
        });
        begin += n;
    }
}
