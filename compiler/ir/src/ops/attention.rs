//! What attention is written with: `mask`, `rope`, `softmax`. There is no op for attention itself.

use super::*;

/// `start [B]`, if it is the last operand.
fn check_start(s: &Signature, at: usize, b: &Dim) -> Result<(), String> {
    if s.operands.len() > at {
        s.is(at, DType::I32)?;
        let start = s.rank(at, 1)?;
        if start.shape[0] != *b {
            return Err(format!("start is {start} for {b} sequences"));
        }
    }
    Ok(())
}

pub static MASK: OpDef = OpDef {
    name: "mask",
    usage: "[start [B] i32]; window: Int (optional), type: Type i1",
    attrs: &["window", "type"],
    about: "[T, S], or with start [B, 1.., T, S]: key j of row t is seen iff p = start + t (start = 0 without), j <= p, and j > p - window",
    infer: |s| {
        s.count(0, 1)?;
        let ty = s.ty()?;
        if s.attrs.contains_key("window") && s.int("window")? < 1 {
            return Err(format!("window {} sees nothing", s.int("window")?));
        }
        let rank = ty.rank();
        let middle_is_one = rank > 3 && ty.shape[1..rank - 2].iter().any(|d| *d != Dim::Const(1));
        if ty.dtype != DType::I1
            || rank < 2
            || (s.operands.is_empty() && rank != 2)
            || (!s.operands.is_empty() && (rank < 3 || middle_is_one))
        {
            return Err(format!(
                "type {ty} is no mask: i1, [T, S] without start, [B, 1.., T, S] with it"
            ));
        }
        check_start(s, 0, &ty.shape[0])?;
        Ok(ty)
    },
    eval: |c| {
        c.from_fn(|i| {
            let (t, j) = (i[i.len() - 2] as i64, i[i.len() - 1] as i64);
            let p = t + if c.operands.is_empty() { 0 } else { c.start(0, i[0]) };
            let window = if c.attrs.contains_key("window") {
                c.int("window")
            } else {
                i64::MAX
            };
            f64::from(j <= p && p - j < window)
        })
    },
    gradient: None,
    samples: || {
        let ty = |dims| ("type", Attr::Type(t(dims, DType::I1)));
        vec![
            sample([], [ty("4,4")]),
            sample([], [ty("T,T"), ("window", Attr::Int(2))]),
            sample([t("B", DType::I32)], [ty("B,1,1,1,S"), ("window", Attr::Int(3))]),
        ]
    },
};

pub static ROPE: OpDef = OpDef {
    name: "rope",
    usage: "x [B, .., T, D], [start [B] i32]; theta: Float, max: Int, inverse: Bool, dtype",
    attrs: &["theta", "max", "inverse", "dtype"],
    about: "pairs (i, i + D/2) turned by (start + t) * theta^(-2i/D), or back; positions stay below max",
    infer: |s| {
        s.count(1, 2)?;
        let x = s.float(0)?;
        let even = x
            .shape
            .last()
            .and_then(|d| d.size().as_const())
            .is_some_and(|d| d > 0 && d % 2 == 0);
        if x.rank() < 3 || !even {
            return Err(format!("{x}: wants [B, .., T, D] with D even"));
        }
        if s.number("theta")? <= 0.0 || s.int("max")? < 1 {
            return Err("theta and max must be positive".to_string());
        }
        s.bool("inverse")?;
        check_start(s, 1, &x.shape[0])?;
        Ok(TensorType {
            shape: x.shape.clone(),
            dtype: s.dtype(x.dtype)?,
        })
    },
    eval: |c| {
        let (x, theta) = (c.operands[0], c.number("theta"));
        c.from_fn(|i| {
            let (rank, d) = (i.len(), c.shape[c.shape.len() - 1]);
            let half = d / 2;
            let p = c.start(1, i[0]) as f64 + i[rank - 2] as f64;
            let angle = p * theta.powf(-2.0 * (i[rank - 1] % half) as f64 / d as f64);
            let mut other = i.to_vec();
            other[rank - 1] = (i[rank - 1] + half) % d;
            let sign = if (i[rank - 1] < half) != c.bool("inverse") {
                -1.0
            } else {
                1.0
            };
            x.at(i) * angle.cos() + sign * x.at(&other) * angle.sin()
        })
    },
    gradient: Some(|c| {
        // A rotation's transpose turns back.
        let operands: Vec<ValueId> = [c.dy].into_iter().chain(c.op.operands.get(1).copied()).collect();
        let back = c.op.attrs.get("inverse") != Some(&Attr::Bool(true));
        c.again(
            &operands,
            [("inverse", Attr::Bool(back)), ("dtype", Attr::Str("f32".into()))],
        )
    }),
    samples: || {
        let shared = || [("theta", Attr::Float(1e4)), ("max", Attr::Int(64))];
        vec![
            sample([t("2,3,5,8", DType::F32)], shared()),
            sample([t("B,2,T,6", DType::BF16), t("B", DType::I32)], shared()),
            Sample {
                operands: vec![t("B,2,T,6", DType::F32)],
                attrs: attrs([
                    ("theta", Attr::Float(1e4)),
                    ("max", Attr::Int(64)),
                    ("inverse", Attr::Bool(true)),
                ]),
            },
        ]
    },
};

pub static SOFTMAX: OpDef = OpDef {
    name: "softmax",
    usage: "x; dtype",
    attrs: &["dtype"],
    about: "e^x over its sum, along the last axis; zeros where all of a row is -inf",
    infer: |s| {
        s.count(1, 1)?;
        let x = s.float(0)?;
        if x.rank() == 0 {
            return Err("a scalar has no last axis".to_string());
        }
        Ok(TensorType {
            shape: x.shape.clone(),
            dtype: s.dtype(x.dtype)?,
        })
    },
    eval: |c| {
        let n = c.shape[c.shape.len() - 1].max(1);
        let mut out = vec![];
        for row in c.operands[0].data.chunks(n) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let max = if max == f64::NEG_INFINITY { 0.0 } else { max };
            let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
            out.extend(row.iter().map(|x| if sum == 0.0 { 0.0 } else { (x - max).exp() / sum }));
        }
        Tensor::new(c.shape, c.dtype, out)
    },
    gradient: Some(|c| {
        // y (dy - sum(dy y))
        let y = c.y();
        let axis = c.shape().len() as i64 - 1;
        let product = c.f.mul(c.dy, y);
        let delta = c.f.reduce_sum(product, axis);
        let d = c.f.sub(c.dy, delta);
        Ok(c.f.mul(y, d))
    }),
    samples: || {
        vec![
            sample([t("2,7", DType::F32)], []),
            sample([t("B,2,T,S", DType::F32)], [("dtype", Attr::Str("bf16".into()))]),
        ]
    },
};
