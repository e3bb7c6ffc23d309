//! Stacks: n values of one type side by side along a new dimension in front of the last.
//!
//! So a token's rows lie beside each other and each begins at a number, however many sequences and tokens there are: a stack along the
//! first dimension would begin its second row at `B * T` rows, which no view that also cuts columns can say (`Size` is a product).

use std::collections::HashMap;

use ir::{Attr, Attrs, Dim, Function, Op, TensorType, ValueId};

use super::failed;
use crate::PassError;
use crate::attrs::int;
use crate::order::makers;

/// The new dimension of a stack of values of this type.
fn axis(part: &TensorType) -> usize {
    part.rank() - 1
}

/// The type of a stack of so many values.
pub fn stack_type(part: &TensorType, rows: usize) -> TensorType {
    let mut ty = part.clone();
    ty.shape.insert(axis(part), Dim::Const(rows as i64));
    ty
}

/// The values side by side; the stack that is there already if there is one.
pub fn stack(f: &mut Function, parts: &[ValueId]) -> Result<ValueId, PassError> {
    let made_by = makers(f);
    for op in &f.ops {
        if parts_of(f, &made_by, op).is_some_and(|known| known == parts) {
            return Ok(op.results[0]);
        }
    }
    let mut rows = vec![];
    for v in parts {
        let ty = stack_type(f.ty(*v), 1);
        rows.push(f.reshape(*v, ty));
    }
    let axis = Attr::Int(axis(f.ty(parts[0])) as i64);
    f.try_op("concat", &rows, Attrs::from([("axis".to_string(), axis)]))
        .map_err(failed)
}

/// What an op stacks, if that is what it does.
pub fn parts_of(f: &Function, made_by: &HashMap<ValueId, usize>, op: &Op) -> Option<Vec<ValueId>> {
    if op.name != "concat" {
        return None;
    }
    let part = |v: &ValueId| -> Option<ValueId> {
        let reshape = &f.ops[*made_by.get(v)?];
        let part = *reshape.operands.first()?;
        let is_row = reshape.name == "reshape" && f.ty(part).rank() > 0 && stack_type(f.ty(part), 1) == *f.ty(*v);
        (is_row && int(op, "axis") == axis(f.ty(part)) as i64).then_some(part)
    };
    op.operands.iter().map(part).collect()
}

/// Puts row i of `all` in the place of a value that has lost its maker.
pub fn row(f: &mut Function, all: ValueId, i: usize, result: ValueId) {
    let part: TensorType = f.ty(result).clone();
    let row = f.slice(all, axis(&part) as i64, i as i64, stack_type(&part, 1));
    f.ops.push(Op {
        name: "reshape".to_string(),
        operands: vec![row],
        attrs: Attrs::from([("type".to_string(), Attr::Type(part))]),
        results: vec![result],
    });
}

/// Which row of which stack a value is.
pub fn row_of(f: &Function, made_by: &HashMap<ValueId, usize>, v: ValueId) -> Option<(ValueId, i64)> {
    let part = f.ty(v);
    let reshape = &f.ops[*made_by.get(&v)?];
    let slice = &f.ops[*made_by.get(reshape.operands.first()?)?];
    let all = *slice.operands.first()?;
    let is_row = reshape.name == "reshape"
        && slice.name == "slice"
        && part.rank() > 0
        && *f.ty(slice.results[0]) == stack_type(part, 1)
        && int(slice, "axis") == axis(part) as i64
        && is_stack_of(f.ty(all), part);
    is_row.then(|| (all, int(slice, "begin")))
}

/// Could values of the type `part` be the rows of a value of the type `all`?
fn is_stack_of(all: &TensorType, part: &TensorType) -> bool {
    let mut shape = all.shape.clone();
    all.rank() == part.rank() + 1 && {
        shape.remove(axis(part));
        shape == part.shape
    }
}

/// Rows of a stack whose rows are of the type `part`, if that number is known.
pub fn height(f: &Function, all: ValueId, part: &TensorType) -> Option<i64> {
    f.ty(all).shape.get(axis(part))?.size().as_const()
}

/// What all rows share beside a stack: as it is, or with a dimension for them.
pub fn shared(f: &mut Function, v: ValueId) -> ValueId {
    match f.ty(v).rank() {
        0 | 1 => v,
        _ => {
            let ty = stack_type(f.ty(v), 1);
            f.reshape(v, ty)
        }
    }
}
