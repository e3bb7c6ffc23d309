//! `reduce_sum`, `reduce_max`: one axis becomes 1. `arg_max`: which column is the largest.

use super::*;

const fn reduction(
    name: &'static str,
    about: &'static str,
    eval: fn(&Call) -> Tensor,
    gradient: Option<Gradient>,
) -> OpDef {
    OpDef {
        name,
        usage: "x; axis: Int",
        attrs: &["axis"],
        about,
        infer: |s| {
            s.count(1, 1)?;
            let mut ty = s.float(0)?.clone();
            ty.shape[s.axis()?] = Dim::Const(1);
            Ok(ty)
        },
        eval,
        gradient,
        samples: || {
            let axis = |a| [("axis", Attr::Int(a))];
            vec![
                sample([t("3,18", DType::F32)], axis(1)),
                sample([t("B,T,5", DType::BF16)], axis(2)),
                sample([t("4,T,5", DType::F32)], axis(1)),
            ]
        },
    }
}

fn fold(c: &Call, start: f64, f: fn(f64, f64) -> f64) -> Tensor {
    let (x, axis) = (c.operands[0], c.int("axis") as usize);
    c.from_fn(|i| {
        let mut index = i.to_vec();
        (0..x.shape[axis]).fold(start, |acc, j| {
            index[axis] = j;
            f(acc, x.at(&index))
        })
    })
}

pub static REDUCE_SUM: OpDef = reduction(
    "reduce_sum",
    "the sum along the axis, which becomes 1",
    |c| fold(c, 0.0, |a, b| a + b),
    Some(|c| Ok(c.expanded(c.dy))),
);
/// No gradient: only `fuse` writes it.
pub static REDUCE_MAX: OpDef = reduction(
    "reduce_max",
    "the largest along the axis, which becomes 1",
    |c| fold(c, f64::NEG_INFINITY, f64::max),
    None,
);
/// What greedy decoding asks of logits. -1 says that they are no logits, so that nobody need look at them to know.
pub static ARG_MAX: OpDef = OpDef {
    name: "arg_max",
    usage: "x [.., N] f32",
    attrs: &[],
    about: "[.., 1] f32: the first column with the row's largest value; -1 where a value is NaN or the largest is infinite",
    infer: |s| s.by_row(),
    eval: |c| {
        let x = c.operands[0];
        let n = x.shape[x.shape.len() - 1].max(1);
        let column = |row: &[f64]| {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sound = max.is_finite() && !row.iter().any(|x| x.is_nan());
            let first = row.iter().position(|x| *x == max).filter(|_| sound);
            first.map_or(-1.0, |at| at as f64)
        };
        Tensor::new(c.shape, c.dtype, x.data.chunks(n).map(column).collect())
    },
    gradient: None,
    samples: || {
        vec![
            sample([t("2,3,11", DType::F32)], []),
            sample([t("B,1,40", DType::F32)], []),
            sample([t("B,2,192", DType::F32)], []),
        ]
    },
};
