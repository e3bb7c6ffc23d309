//! `rms_norm`: root-mean-square normalisation over the last axis (Zhang and Sennrich, arXiv 1910.07467), and what it falls apart into.
//!
//! `matmul(rms_norm(x, w), W^T) = matmul(x, scale_columns(W, w)^T) * rms_scale(x)`: the weight can be folded when weights are
//! loaded, and a row's scale moves past the product. No graph that a user writes needs the two.

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
    gradient: Some(|c| {
        // y = x s w with s = (mean(x^2) + eps)^(-1/2):  dx = s (w dy - x s^2 mean(x w dy)),  dw = x s dy
        let (x, w) = (c.x(0), c.x(1));
        let eps = c.op.attrs.get("eps").cloned().unwrap_or(Attr::Float(0.0));
        let s = c.f.try_op("rms_scale", &[c.op.operands[0]], attrs([("eps", eps)]))?;
        if c.at == 1 {
            let d = c.f.mul(c.dy, x);
            let d = c.f.mul(d, s);
            return Ok(c.summed(d));
        }
        let shape = c.shape();
        let n = shape.last().and_then(|d| d.size().as_const());
        let n = n.ok_or("the gradient wants a row of a known width")?;
        let wdy = c.f.mul(c.dy, w);
        let product = c.f.mul(wdy, x);
        let dot = c.f.reduce_sum(product, shape.len() as i64 - 1);
        let share = c.scalar(1.0 / n as f64);
        let mean = c.f.mul(dot, share);
        let squared = c.f.mul(s, s);
        let mean = c.f.mul(mean, squared);
        let along = c.f.mul(x, mean);
        let d = c.f.sub(wdy, along);
        Ok(c.f.mul(d, s))
    }),
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

pub static RMS_SCALE: OpDef = OpDef {
    name: "rms_scale",
    usage: "x [.., D]; eps: Float",
    attrs: &["eps"],
    about: "[.., 1] f32: rsqrt(mean(x^2) + eps), the row's scale in rms_norm",
    infer: |s| {
        s.count(1, 1)?;
        let x = s.float(0)?;
        if x.rank() == 0 {
            return Err("a scalar has no last axis".to_string());
        }
        s.number("eps")?;
        let mut shape = x.shape.clone();
        shape[x.rank() - 1] = Dim::Const(1);
        Ok(TensorType {
            shape,
            dtype: DType::F32,
        })
    },
    eval: |c| {
        let (x, eps) = (c.operands[0], c.number("eps"));
        let n = x.shape[x.shape.len() - 1].max(1);
        let scale = |row: &[f64]| 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / n as f64 + eps).sqrt();
        Tensor::new(c.shape, c.dtype, x.data.chunks(n).map(scale).collect())
    },
    gradient: None,
    samples: || {
        let eps = || ("eps", Attr::Float(1e-6));
        vec![
            sample([t("3,16", DType::F32)], [eps()]),
            sample([t("B,T,33", DType::BF16)], [eps()]),
        ]
    },
};

pub static SCALE_COLUMNS: OpDef = OpDef {
    name: "scale_columns",
    usage: "w [N, K], s [K] f32",
    attrs: &[],
    about: "w[n, k] * s[k] in w's type; of weights it is made when they are loaded",
    infer: |s| {
        s.count(2, 2)?;
        s.float(0)?;
        let (w, scale) = (s.rank(0, 2)?, s.is(1, DType::F32)?);
        if scale.rank() != 1 || w.shape[1] != scale.shape[0] {
            return Err(format!("{w} by {scale}"));
        }
        Ok(w.clone())
    },
    eval: |c| c.from_fn(|i| c.operands[0].at(i) * c.operands[1].data[i[1]]),
    gradient: None,
    samples: || {
        vec![
            sample([t("3,16", DType::F32), t("16", DType::F32)], []),
            sample([t("70,5", DType::BF16), t("5", DType::F32)], []),
        ]
    },
};
