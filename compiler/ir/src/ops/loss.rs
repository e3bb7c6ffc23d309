//! `cross_entropy`: the negative log-likelihood of each target; and what its gradient is made of, `one_hot` and `is_target`.

use super::*;

pub static CROSS_ENTROPY: OpDef = OpDef {
    name: "cross_entropy",
    usage: "logits [B, T, V] f32, targets [B, T] i32",
    attrs: &[],
    about: "[B, T] f32: log(sum(e^logits)) - logits[target]; 0 where target < 0",
    infer: |s| {
        s.count(2, 2)?;
        let (logits, targets) = (s.rank(0, 3)?, s.rank(1, 2)?);
        s.is(0, DType::F32)?;
        s.is(1, DType::I32)?;
        if logits.shape[..2] != targets.shape[..] {
            return Err(format!("{logits} against targets {targets}"));
        }
        Ok(TensorType {
            shape: targets.shape.clone(),
            dtype: DType::F32,
        })
    },
    eval: |c| {
        let (logits, targets) = (c.operands[0], c.operands[1]);
        let vocab = logits.shape[2];
        let nll = logits
            .data
            .chunks(vocab.max(1))
            .zip(&targets.data)
            .map(|(row, target)| {
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
                if *target < 0.0 {
                    0.0
                } else {
                    sum.ln() + max - row[*target as usize]
                }
            });
        Tensor::new(c.shape, c.dtype, nll.collect())
    },
    gradient: Some(|c| {
        // softmax(logits) - one_hot(target), nothing where there is no target.
        let (shape, targets) = (c.shape(), c.op.operands[1]);
        let column: Vec<Dim> = shape[..2].iter().cloned().chain([Dim::Const(1)]).collect();
        let dy = c.f.reshape(c.dy, gradient::f32s(column));
        let seen = c.f.try_op("is_target", &[targets], Attrs::new())?;
        let dy = c.f.mul(dy, seen);
        let logits = c.op.operands[0];
        let total = c.f.try_op("log_sum_exp", &[logits], Attrs::new())?;
        let p = c.f.sub(logits, total);
        let p = c.f.unary("exp", p);
        let ty = Attr::Type(gradient::f32s(shape));
        let wanted = c.f.try_op("one_hot", &[targets], attrs([("type", ty)]))?;
        let d = c.f.sub(p, wanted);
        Ok(c.f.mul(d, dy))
    }),
    samples: || {
        vec![
            sample([t("2,3,11", DType::F32), t("2,3", DType::I32)], []),
            sample([t("B,T,40", DType::F32), t("B,T", DType::I32)], []),
        ]
    },
};

pub static LOG_SUM_EXP: OpDef = OpDef {
    name: "log_sum_exp",
    usage: "x [.., N] f32",
    attrs: &[],
    about: "[.., 1] f32: log(sum(e^x)) over the last axis",
    infer: |s| s.by_row(),
    eval: |c| {
        let x = c.operands[0];
        let n = x.shape[x.shape.len() - 1].max(1);
        let rows = x.data.chunks(n).map(|row| {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
        });
        Tensor::new(c.shape, c.dtype, rows.collect())
    },
    gradient: None,
    samples: || {
        vec![
            sample([t("2,3,11", DType::F32)], []),
            sample([t("B,T,40", DType::F32)], []),
        ]
    },
};

pub static ONE_HOT: OpDef = OpDef {
    name: "one_hot",
    usage: "targets [B, T] i32; type: Type f32 [B, T, V]",
    attrs: &["type"],
    about: "1 at column targets[b, t], else 0; all 0 where the target is negative",
    infer: |s| {
        s.count(1, 1)?;
        let (targets, ty) = (s.rank(0, 2)?, s.ty()?);
        s.is(0, DType::I32)?;
        if ty.rank() != 3 || ty.shape[..2] != targets.shape[..] || ty.dtype != DType::F32 {
            return Err(format!("{targets} as {ty}"));
        }
        Ok(ty)
    },
    eval: |c| c.from_fn(|i| f64::from(c.operands[0].at(&i[..2]) == i[2] as f64)),
    gradient: None,
    samples: || {
        let ty = |dims| [("type", Attr::Type(t(dims, DType::F32)))];
        vec![
            sample([t("2,3", DType::I32)], ty("2,3,7")),
            sample([t("B,T", DType::I32)], ty("B,T,40")),
        ]
    },
};

pub static IS_TARGET: OpDef = OpDef {
    name: "is_target",
    usage: "targets [B, T] i32",
    attrs: &[],
    about: "[B, T, 1] f32: 1 where the target counts, 0 where it is negative",
    infer: |s| {
        s.count(1, 1)?;
        let mut ty = s.rank(0, 2)?.clone();
        s.is(0, DType::I32)?;
        ty.shape.push(Dim::Const(1));
        ty.dtype = DType::F32;
        Ok(ty)
    },
    eval: |c| c.from_fn(|i| f64::from(c.operands[0].at(&i[..2]) >= 0.0)),
    gradient: None,
    samples: || vec![sample([t("2,3", DType::I32)], []), sample([t("B,T", DType::I32)], [])],
};
