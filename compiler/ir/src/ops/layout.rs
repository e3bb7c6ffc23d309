//! Ops that move or rename elements and compute nothing: `reshape`, `transpose`, `slice`, `concat`.

use super::gradient::f32s;
use super::*;

pub static RESHAPE: OpDef = OpDef {
    name: "reshape",
    usage: "x; type: Type",
    attrs: &["type"],
    about: "the same elements in row-major order under another shape",
    infer: |s| {
        s.count(1, 1)?;
        let (x, ty) = (s.operands[0], s.ty()?);
        if x.elements() != ty.elements() || x.dtype != ty.dtype {
            return Err(format!("{x} as {ty}: other elements"));
        }
        Ok(ty)
    },
    eval: |c| Tensor::new(c.shape, c.dtype, c.operands[0].data.clone()),
    gradient: Some(|c| Ok(c.f.reshape(c.dy, f32s(c.shape())))),
    samples: || {
        vec![
            sample([t("2,6", DType::F32)], [("type", Attr::Type(t("3,4", DType::F32)))]),
            sample(
                [t("B,T,8", DType::BF16)],
                [("type", Attr::Type(t("B,T,2,4", DType::BF16)))],
            ),
        ]
    },
};

pub static TRANSPOSE: OpDef = OpDef {
    name: "transpose",
    usage: "x; perm: Ints",
    attrs: &["perm"],
    about: "axis i of the result is axis perm[i] of x",
    infer: |s| {
        s.count(1, 1)?;
        let x = s.operands[0];
        let Some(Attr::Ints(perm)) = s.attrs.get("perm") else {
            return Err("perm is missing".to_string());
        };
        let mut sorted = perm.clone();
        sorted.sort();
        if sorted != (0..x.rank() as i64).collect::<Vec<_>>() {
            return Err(format!("perm {perm:?} is no permutation of the axes of {x}"));
        }
        Ok(TensorType {
            shape: perm.iter().map(|p| x.shape[*p as usize].clone()).collect(),
            dtype: x.dtype,
        })
    },
    eval: |c| {
        let perm = c.ints("perm");
        let mut index = vec![0; perm.len()];
        c.from_fn(|i| {
            perm.iter().zip(i).for_each(|(p, i)| index[*p as usize] = *i);
            c.operands[0].at(&index)
        })
    },
    gradient: Some(|c| {
        let Some(Attr::Ints(perm)) = c.op.attrs.get("perm") else {
            return Err("perm is missing".to_string());
        };
        let place = |axis: i64| perm.iter().position(|p| *p == axis).unwrap_or(0) as i64;
        let back: Vec<i64> = (0..perm.len() as i64).map(place).collect();
        Ok(c.f.transpose(c.dy, &back))
    }),
    samples: || {
        vec![
            sample([t("2,3", DType::F32)], [("perm", Attr::Ints(vec![1, 0]))]),
            sample([t("B,T,3,4", DType::BF16)], [("perm", Attr::Ints(vec![0, 2, 1, 3]))]),
        ]
    },
};

pub static SLICE: OpDef = OpDef {
    name: "slice",
    usage: "x; axis: Int, begin: Int, type: Type",
    attrs: &["axis", "begin", "type"],
    about: "the elements begin, begin + 1, .. along the axis, as many as the type says",
    infer: |s| {
        s.count(1, 1)?;
        let (x, ty, axis, begin) = (s.operands[0], s.ty()?, s.axis()?, s.int("begin")?);
        let others = x
            .shape
            .iter()
            .zip(&ty.shape)
            .enumerate()
            .any(|(i, (a, b))| i != axis && a != b);
        if x.rank() != ty.rank() || x.dtype != ty.dtype || others || begin < 0 {
            return Err(format!("{ty} is no slice of {x} along axis {axis}"));
        }
        if let (Some(have), Some(want)) = (x.shape[axis].size().as_const(), ty.shape[axis].size().as_const())
            && begin > have - want
        {
            return Err(format!("{begin} and {want} more exceed {have}"));
        }
        Ok(ty)
    },
    eval: |c| {
        c.from_fn(|i| {
            let mut index = i.to_vec();
            index[c.int("axis") as usize] += c.int("begin") as usize;
            c.operands[0].at(&index)
        })
    },
    gradient: Some(|c| {
        // Zeros before and behind.
        let (axis, begin) = match (c.op.attrs.get("axis"), c.op.attrs.get("begin")) {
            (Some(Attr::Int(axis)), Some(Attr::Int(begin))) => (*axis as usize, *begin),
            _ => return Err("axis or begin is missing".to_string()),
        };
        let (whole, part) = (c.shape(), c.f.ty(c.dy).shape.clone());
        if whole == part {
            return Ok(c.dy);
        }
        let (Some(n), Some(taken)) = (whole[axis].size().as_const(), part[axis].size().as_const()) else {
            return Err("the gradient of a slice wants a known axis".to_string());
        };
        let mut parts = vec![];
        for (count, last) in [(begin, false), (n - begin - taken, true)] {
            if last {
                parts.push(c.dy);
            }
            if count > 0 {
                let mut shape = whole.clone();
                shape[axis] = Dim::Const(count);
                parts.push(c.zeros(shape));
            }
        }
        Ok(c.f.concat(&parts, axis as i64))
    }),
    samples: || {
        vec![
            sample(
                [t("3,7", DType::F32)],
                [
                    ("axis", Attr::Int(1)),
                    ("begin", Attr::Int(2)),
                    ("type", Attr::Type(t("3,4", DType::F32))),
                ],
            ),
            sample(
                [t("B,2,C,4", DType::BF16)],
                [
                    ("axis", Attr::Int(2)),
                    ("begin", Attr::Int(0)),
                    ("type", Attr::Type(t("B,2,S,4", DType::BF16))),
                ],
            ),
        ]
    },
};

pub static CONCAT: OpDef = OpDef {
    name: "concat",
    usage: "a, b, ...; axis: Int",
    attrs: &["axis"],
    about: "the operands one after the other along the axis, which must be constant",
    infer: |s| {
        s.count(1, usize::MAX)?;
        let (axis, mut ty) = (s.axis()?, s.operands[0].clone());
        let mut sum = 0;
        for x in s.operands {
            let others = x.rank() != ty.rank()
                || x.shape
                    .iter()
                    .zip(&ty.shape)
                    .enumerate()
                    .any(|(i, (a, b))| i != axis && a != b);
            match x.shape.get(axis).and_then(|d| d.size().as_const()) {
                Some(n) if !others && x.dtype == ty.dtype => sum = n.saturating_add(sum),
                _ => return Err(format!("{x} does not go behind {} along axis {axis}", s.operands[0])),
            }
        }
        ty.shape[axis] = Dim::Const(sum);
        Ok(ty)
    },
    eval: |c| {
        let axis = c.int("axis") as usize;
        c.from_fn(|i| {
            let mut index = i.to_vec();
            let mut part = 0;
            while index[axis] >= c.operands[part].shape[axis] {
                index[axis] -= c.operands[part].shape[axis];
                part += 1;
            }
            c.operands[part].at(&index)
        })
    },
    gradient: Some(|c| {
        let Some(Attr::Int(axis)) = c.op.attrs.get("axis") else {
            return Err("axis is missing".to_string());
        };
        let extent = |v: &ValueId| c.f.ty(*v).shape[*axis as usize].size().coef;
        let begin: i64 = c.op.operands[..c.at].iter().map(extent).sum();
        Ok(c.f.slice(c.dy, *axis, begin, f32s(c.shape())))
    }),
    samples: || {
        vec![
            sample([t("2,3", DType::F32), t("2,5", DType::F32)], [("axis", Attr::Int(1))]),
            sample(
                [t("2,T", DType::BF16), t("1,T", DType::BF16), t("3,T", DType::BF16)],
                [("axis", Attr::Int(0))],
            ),
        ]
    },
};
