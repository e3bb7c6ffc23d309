//! Element-wise ops: two operands, one operand, `cast`, `where`. Operands broadcast as in numpy.

use super::*;

/// An op of two operands of one float type.
const fn binary(
    name: &'static str,
    about: &'static str,
    eval: fn(&Call) -> Tensor,
    gradient: Option<Gradient>,
) -> OpDef {
    OpDef {
        name,
        usage: "a, b of one float type",
        attrs: &[],
        about,
        infer: |s| {
            s.count(2, 2)?;
            let (a, b) = (s.float(0)?, s.float(1)?);
            if a.dtype != b.dtype {
                return Err(format!("{a} with {b}: cast one of them"));
            }
            Ok(TensorType {
                shape: broadcast(&a.shape, &b.shape)?,
                dtype: a.dtype,
            })
        },
        eval,
        gradient,
        samples: || {
            vec![
                sample([t("2,3", DType::F32), t("2,3", DType::F32)], []),
                sample([t("B,1,5", DType::BF16), t("T,1", DType::BF16)], []),
                sample([t("B,T,17", DType::F32), t("", DType::F32)], []),
            ]
        },
    }
}

fn pairwise(c: &Call, f: fn(f64, f64) -> f64) -> Tensor {
    c.from_fn(|i| f(c.operands[0].broadcast_at(i), c.operands[1].broadcast_at(i)))
}

pub static ADD: OpDef = binary(
    "add",
    "a + b",
    |c| pairwise(c, |a, b| a + b),
    Some(|c| Ok(c.summed(c.dy))),
);
pub static SUB: OpDef = binary(
    "sub",
    "a - b",
    |c| pairwise(c, |a, b| a - b),
    Some(|c| {
        let dy = c.summed(c.dy);
        Ok(if c.at == 0 { dy } else { c.f.unary("neg", dy) })
    }),
);
pub static MUL: OpDef = binary(
    "mul",
    "a * b",
    |c| pairwise(c, |a, b| a * b),
    Some(|c| {
        let other = c.x(1 - c.at);
        let d = c.f.mul(c.dy, other);
        Ok(c.summed(d))
    }),
);
pub static DIV: OpDef = binary(
    "div",
    "a / b",
    |c| pairwise(c, |a, b| a / b),
    Some(|c| {
        let b = c.x(1);
        let by = c.f.div(c.dy, b);
        if c.at == 0 {
            return Ok(c.summed(by));
        }
        // d(a / b) / db = -(a / b) / b
        let y = c.y();
        let d = c.f.mul(by, y);
        let d = c.f.unary("neg", d);
        Ok(c.summed(d))
    }),
);
/// No gradient: only `fuse` writes it.
pub static MAX: OpDef = binary("max", "the larger", |c| pairwise(c, f64::max), None);

/// An op of one float operand.
const fn unary(
    name: &'static str,
    about: &'static str,
    eval: fn(&Call) -> Tensor,
    gradient: Option<Gradient>,
) -> OpDef {
    OpDef {
        name,
        usage: "x",
        attrs: &[],
        about,
        infer: |s| {
            s.count(1, 1)?;
            s.float(0).cloned()
        },
        eval,
        gradient,
        samples: || {
            vec![
                sample([t("3,19", DType::F32)], []),
                sample([t("B,T,4", DType::BF16)], []),
            ]
        },
    }
}

fn each(c: &Call, f: fn(f64) -> f64) -> Tensor {
    Tensor::new(c.shape, c.dtype, c.operands[0].data.iter().map(|x| f(*x)).collect())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub static NEG: OpDef = unary("neg", "-x", |c| each(c, |x| -x), Some(|c| Ok(c.f.unary("neg", c.dy))));
pub static EXP: OpDef = unary(
    "exp",
    "e^x",
    |c| each(c, f64::exp),
    Some(|c| {
        let x = c.x(0);
        let y = c.f.unary("exp", x);
        Ok(c.f.mul(c.dy, y))
    }),
);
pub static LOG: OpDef = unary(
    "log",
    "the natural logarithm",
    |c| each(c, f64::ln),
    Some(|c| {
        let x = c.x(0);
        Ok(c.f.div(c.dy, x))
    }),
);
pub static RSQRT: OpDef = unary(
    "rsqrt",
    "1 / sqrt(x)",
    |c| each(c, |x| 1.0 / x.sqrt()),
    Some(|c| {
        // -1/2 x^(-3/2)
        let x = c.x(0);
        let y = c.f.unary("rsqrt", x);
        let half = c.scalar(-0.5);
        let d = c.f.mul(c.dy, half);
        let d = c.f.mul(d, y);
        let d = c.f.mul(d, y);
        Ok(c.f.mul(d, y))
    }),
);
pub static SIGMOID: OpDef = unary(
    "sigmoid",
    "1 / (1 + e^-x)",
    |c| each(c, sigmoid),
    Some(|c| {
        // s (1 - s)
        let x = c.x(0);
        let s = c.f.unary("sigmoid", x);
        let one = c.scalar(1.0);
        let rest = c.f.sub(one, s);
        let d = c.f.mul(c.dy, s);
        Ok(c.f.mul(d, rest))
    }),
);
pub static SILU: OpDef = unary(
    "silu",
    "x * sigmoid(x)",
    |c| each(c, |x| x * sigmoid(x)),
    Some(|c| {
        // s (1 + x (1 - s))
        let x = c.x(0);
        let s = c.f.unary("sigmoid", x);
        let one = c.scalar(1.0);
        let rest = c.f.sub(one, s);
        let d = c.f.mul(x, rest);
        let d = c.f.add(d, one);
        let d = c.f.mul(d, s);
        Ok(c.f.mul(c.dy, d))
    }),
);

pub static CAST: OpDef = OpDef {
    name: "cast",
    usage: "x; dtype",
    attrs: &["dtype"],
    about: "x in another float type, rounded to nearest even",
    infer: |s| {
        s.count(1, 1)?;
        let x = s.float(0)?;
        Ok(TensorType {
            shape: x.shape.clone(),
            dtype: s.dtype(x.dtype)?,
        })
    },
    eval: |c| each(c, |x| x),
    gradient: Some(|c| Ok(c.dy)),
    samples: || {
        vec![
            sample([t("3,5", DType::F32)], [("dtype", Attr::Str("bf16".into()))]),
            sample([t("B,T,3", DType::BF16)], [("dtype", Attr::Str("f32".into()))]),
        ]
    },
};

pub static WHERE: OpDef = OpDef {
    name: "where",
    usage: "cond i1, a, b",
    attrs: &[],
    about: "a where cond holds, else b",
    infer: |s| {
        s.count(3, 3)?;
        let (c, a, b) = (s.is(0, DType::I1)?, s.float(1)?, s.float(2)?);
        if a.dtype != b.dtype {
            return Err(format!("{a} or {b}: cast one of them"));
        }
        let shape = broadcast(&c.shape, &broadcast(&a.shape, &b.shape)?)?;
        Ok(TensorType { shape, dtype: a.dtype })
    },
    eval: |c| {
        let [cond, a, b] = [0, 1, 2].map(|i| c.operands[i]);
        c.from_fn(|i| {
            if cond.broadcast_at(i) != 0.0 {
                a.broadcast_at(i)
            } else {
                b.broadcast_at(i)
            }
        })
    },
    gradient: Some(|c| {
        let (cond, zero) = (c.op.operands[0], c.scalar(0.0));
        let d = match c.at {
            1 => c.f.select(cond, c.dy, zero),
            _ => c.f.select(cond, zero, c.dy),
        };
        Ok(c.summed(d))
    }),
    samples: || {
        vec![
            sample([t("3,4", DType::I1), t("2,3,4", DType::F32), t("", DType::F32)], []),
            sample(
                [t("B,1,T,S", DType::I1), t("B,2,T,S", DType::F32), t("1", DType::F32)],
                [],
            ),
        ]
    },
};
