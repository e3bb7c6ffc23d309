//! Running results of reductions, lane by lane: a sum, a maximum, or the logarithm of a sum of exponentials as (maximum, mass).

use ir::plan::Reduction;

use super::math;
use crate::mlir::emit::{Emit, Ty, Val};

/// Of nothing; `ty` is f32 or a vector of it.
pub fn identity(e: &mut Emit, op: Reduction, ty: Ty) -> Vec<Val> {
    let state: &[f32] = match op {
        Reduction::Sum => &[0.0],
        Reduction::Max => &[f32::NEG_INFINITY],
        // A maximum below every number, and no mass.
        Reduction::LogSumExp => &[-1e30, 0.0],
    };
    state.iter().map(|x| e.f32(*x, ty)).collect()
}

/// One more value.
pub fn add(e: &mut Emit, op: Reduction, state: &[Val], x: Val) -> Vec<Val> {
    let one = e.f32(1.0, x.ty);
    match op {
        Reduction::LogSumExp => merge(e, op, state, &[x, one]),
        _ => merge(e, op, state, &[x]),
    }
}

/// Of these values, vectors of one type, each lane by itself. Against `add`, one by one, a logarithm takes half of the exponentials.
pub fn of(e: &mut Emit, op: Reduction, values: &[Val]) -> Vec<Val> {
    let combine = |e: &mut Emit, f: fn(&mut Emit, Val, Val) -> Val, all: &[Val]| {
        let (first, rest) = all.split_first().expect("there are values");
        rest.iter().fold(*first, |acc, x| f(e, acc, *x))
    };
    match op {
        Reduction::Sum => vec![combine(e, Emit::add, values)],
        Reduction::Max => vec![combine(e, Emit::max, values)],
        Reduction::LogSumExp => {
            let max = combine(e, Emit::max, values);
            let mut masses = vec![];
            for x in values {
                let below = e.sub(*x, max);
                masses.push(math::exp(e, below));
            }
            vec![max, combine(e, Emit::add, &masses)]
        }
    }
}

/// Of two parts.
pub fn merge(e: &mut Emit, op: Reduction, a: &[Val], b: &[Val]) -> Vec<Val> {
    match op {
        Reduction::Sum => vec![e.add(a[0], b[0])],
        Reduction::Max => vec![e.max(a[0], b[0])],
        Reduction::LogSumExp => {
            let max = e.max(a[0], b[0]);
            let mut part = |x: &[Val]| {
                let d = e.sub(x[0], max);
                let f = math::exp(e, d);
                e.mul(x[1], f)
            };
            let (x, y) = (part(a), part(b));
            vec![max, e.add(x, y)]
        }
    }
}

pub fn finish(e: &mut Emit, op: Reduction, state: &[Val]) -> Val {
    match op {
        Reduction::LogSumExp => {
            let log = math::log(e, state[1]);
            e.add(state[0], log)
        }
        _ => state[0],
    }
}
