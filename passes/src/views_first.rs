//! `views-first`: a transposition of a normed value becomes the norm of a transposition, which is a view and costs nothing.
//!
//! So the norm stands right before what reads it and can join its kernel (q and k norms before RoPE).

use std::collections::HashMap;

use ir::{Function, ValueId};

use crate::attrs::ints;
use crate::{Pass, PassError};

pub const VIEWS_FIRST: Pass = Pass {
    name: "views-first",
    about: "transpose before norms, not after, so that norms join what reads them",
    run: |module| module.functions.iter_mut().try_for_each(swap),
};

fn swap(f: &mut Function) -> Result<(), PassError> {
    let mut readers: HashMap<ValueId, usize> = HashMap::new();
    let read = f.ops.iter().flat_map(|op| op.operands.iter());
    read.chain(f.returns.iter().map(|(_, v)| v))
        .for_each(|v| *readers.entry(*v).or_insert(0) += 1);
    let made_by = crate::order::makers(f);
    for at in 0..f.ops.len() {
        let transpose = f.ops[at].clone();
        if transpose.name != "transpose" {
            continue;
        }
        let perm = ints(&transpose, "perm");
        let x = transpose.operands[0];
        let Some(norm) = made_by.get(&x).map(|i| f.ops[*i].clone()) else {
            continue;
        };
        // The norm's rows stay rows.
        let keeps_rows = perm.last() == Some(&(perm.len() as i64 - 1));
        if norm.name != "rms_norm" || readers[&x] != 1 || !keeps_rows {
            continue;
        }
        // The norm moves to the transposition's place and result; the transposition gets a value of its own.
        let mut ty = f.ty(norm.operands[0]).clone();
        ty.shape = perm.iter().map(|p| ty.shape[*p as usize].clone()).collect();
        let turned = f.new_value(ty, None);
        f.ops[at].operands = vec![norm.operands[0], norm.operands[1]];
        f.ops[at].name = norm.name.clone();
        f.ops[at].attrs = norm.attrs.clone();
        let old = f.ops.iter().position(|op| op.results.first() == Some(&x));
        let old = old.ok_or_else(|| PassError("the norm has gone".into()))?;
        f.ops[old].name = "transpose".to_string();
        f.ops[old].attrs = transpose.attrs.clone();
        f.ops[old].operands = vec![norm.operands[0]];
        f.ops[old].results = vec![turned];
        f.ops[at].operands[0] = turned;
    }
    Ok(())
}
