//! `rms_norm`: root-mean-square normalisation over the last axis (Zhang and Sennrich, 2019).

use super::*;

pub static RMS_NORM: OpDef = OpDef {
    name: "rms_norm",
    usage: "x [.., D], w [D] f32; eps: Float, dtype",
    attrs: &["eps", "dtype"],
    about: "x * rsqrt(mean(x^2) + eps) * w",
    infer: |s| {
        s.count(2, 2)?;
        let (x, w) = (s.float(0)?, s.is(1, DType::F32)?);
        if x.rank() == 0 || w.rank() != 1 || x.shape.last() != w.shape.last() {
            return Err(format!("{x} with weights {w}"));
        }
        s.number("eps")?;
        Ok(TensorType {
            shape: x.shape.clone(),
            dtype: s.dtype(x.dtype)?,
        })
    },
    eval: |c| {
        let (x, w, eps) = (c.operands[0], c.operands[1], c.number("eps"));
        let n = w.data.len().max(1);
        let mut out = vec![];
        for row in x.data.chunks(n) {
            let scale = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / n as f64 + eps).sqrt();
            out.extend(row.iter().zip(&w.data).map(|(x, w)| x * scale * w));
        }
        Tensor::new(c.shape, c.dtype, out)
    },
    samples: || {
        let eps = || ("eps", Attr::Float(1e-6));
        vec![
            sample([t("3,16", DType::F32), t("16", DType::F32)], [eps()]),
            sample(
                [t("B,T,2,33", DType::BF16), t("33", DType::F32)],
                [eps(), ("dtype", Attr::Str("f32".into()))],
            ),
        ]
    },
};
