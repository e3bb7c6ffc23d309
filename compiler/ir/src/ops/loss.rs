//! `cross_entropy`: the negative log-likelihood of each target.

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
    samples: || {
        vec![
            sample([t("2,3,11", DType::F32), t("2,3", DType::I32)], []),
            sample([t("B,T,40", DType::F32), t("B,T", DType::I32)], []),
        ]
    },
};
