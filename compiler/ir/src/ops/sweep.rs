//! Attention as the e-graph finds it: `sweep` streams keys under a measure, `mean` divides what was integrated by its mass.
//!
//! A sweep's result is the state of online softmax, one row per query: E columns O = sum_j e_j v_j, then the maximum m of the
//! scores, then l = sum_j e_j, with e_j = exp(score_j - m). States over disjoint keys merge, which is what `continues` does
//! (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). No graph that a user writes needs these ops.

use super::*;
use crate::tensor::Tensor;

/// Operands behind q, k, v.
fn extra(s: &Signature) -> Result<(bool, bool), String> {
    Ok((s.bool("starts")?, s.bool("continues")?))
}

pub static SWEEP: OpDef = OpDef {
    name: "sweep",
    usage: "q [.., M, D], k [.., N, D], v [.., N, E], [start [B] i32], [state [.., M, E+2]]; scale, near, far (optional), starts, continues",
    attrs: &["scale", "near", "far", "starts", "continues"],
    about: "[.., M, E+2] f32: O, m, l of softmax(scale * q k^T) v over the keys j with near <= start + i - j < far, going on from state",
    infer: |s| {
        let (starts, continues) = extra(s)?;
        let count = 3 + usize::from(starts) + usize::from(continues);
        s.count(count, count)?;
        let (q, k, v) = (s.float(0)?, s.float(1)?, s.float(2)?);
        let rank = q.rank();
        if rank < 3 || k.rank() != rank || v.rank() != rank {
            return Err(format!("{q}, {k}, {v}: wants three of one rank, 3 or more"));
        }
        if q.dtype != k.dtype || k.dtype != v.dtype {
            return Err(format!("{q}, {k}, {v}: wants one type of elements"));
        }
        let (d, n) = (&q.shape[rank - 1], &k.shape[rank - 2]);
        if k.shape[rank - 1] != *d || v.shape[rank - 2] != *n {
            return Err(format!("{q}, {k}, {v} do not fit: [.., M, D], [.., N, D], [.., N, E]"));
        }
        if k.shape[..rank - 2] != v.shape[..rank - 2] {
            return Err(format!("{k} and {v} differ in their batch"));
        }
        let batch = broadcast(&q.shape[..rank - 2], &k.shape[..rank - 2])?;
        if batch != q.shape[..rank - 2] {
            return Err(format!("{k} has more batches than {q}"));
        }
        let (Some(_), Some(e)) = (d.size().as_const(), v.shape[rank - 1].size().as_const()) else {
            return Err("head sizes are constants".to_string());
        };
        let (near, far) = (s.int("near")?, s.attrs.get("far").map(|_| s.int("far")).transpose()?);
        if near < 0 || far.is_some_and(|far| far <= near) {
            return Err(format!("sees distances {near} to {far:?}"));
        }
        s.number("scale")?;
        if starts && s.is(3, DType::I32)?.shape != q.shape[..1] {
            return Err(format!("start is {} for {q}", s.operands[3]));
        }
        let mut shape = q.shape.clone();
        shape[rank - 1] = Dim::Const(e.saturating_add(2));
        let ty = TensorType {
            shape,
            dtype: DType::F32,
        };
        if continues && *s.operands[count - 1] != ty {
            return Err(format!("goes on from {}, wants {ty}", s.operands[count - 1]));
        }
        Ok(ty)
    },
    eval: |c| {
        let (q, k, v) = (c.operands[0], c.operands[1], c.operands[2]);
        let rank = c.shape.len();
        let (depth, keys, e) = (q.shape[rank - 1], k.shape[rank - 2], v.shape[rank - 1]);
        let (scale, near) = (c.number("scale"), c.int("near"));
        let far = if c.attrs.contains_key("far") {
            c.int("far")
        } else {
            i64::MAX
        };
        let state = c.bool("continues").then(|| c.operands[c.operands.len() - 1]);
        let mut out = Tensor::from_fn(c.shape, c.dtype, |_| 0.0);
        let mut row = vec![0; rank];
        for r in 0..out.data.len() / (e + 2).max(1) {
            let mut rest = r;
            for d in (0..rank - 1).rev() {
                row[d] = rest % c.shape[d];
                rest /= c.shape[d];
            }
            let start = if c.bool("starts") { c.start(3, row[0]) } else { 0 };
            let read = |t: &Tensor, at: usize, column: usize| {
                let mut index = row.clone();
                (index[rank - 2], index[rank - 1]) = (at, column);
                t.broadcast_at(&index)
            };
            let seen: Vec<usize> = (0..keys)
                .filter(|j| {
                    let distance = start + row[rank - 2] as i64 - *j as i64;
                    (near..far).contains(&distance)
                })
                .collect();
            let score = |j: usize| {
                scale
                    * (0..depth)
                        .map(|d| read(q, row[rank - 2], d) * read(k, j, d))
                        .sum::<f64>()
            };
            let scores: Vec<f64> = seen.iter().map(|j| score(*j)).collect();
            let before = state.map(|s| &s.data[r * (e + 2)..][..e + 2]);
            let mut max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if let Some(before) = before.filter(|b| b[e + 1] > 0.0) {
                max = max.max(before[e]);
            }
            let max = if max == f64::NEG_INFINITY { 0.0 } else { max };
            let result = &mut out.data[r * (e + 2)..][..e + 2];
            if let Some(before) = before {
                let factor = if before[e + 1] > 0.0 {
                    (before[e] - max).exp()
                } else {
                    0.0
                };
                (0..e).for_each(|d| result[d] = before[d] * factor);
                result[e + 1] = before[e + 1] * factor;
            }
            result[e] = max;
            for (j, x) in seen.iter().zip(&scores) {
                let weight = (x - max).exp();
                result[e + 1] += weight;
                (0..e).for_each(|d| result[d] += weight * read(v, *j, d));
            }
        }
        out
    },
    gradient: None,
    samples: || {
        let near = |near| ("near", Attr::Int(near));
        let scale = ("scale", Attr::Float(0.5));
        let (yes, far) = (Attr::Bool(true), ("far", Attr::Int(3)));
        let qkv = |b: &str| {
            let ty = |dims: String| t(&dims, DType::F32);
            vec![
                ty(format!("{b},3,4,8")),
                ty(format!("{b},1,4,8")),
                ty(format!("{b},1,4,6")),
            ]
        };
        let mut all = qkv("B");
        all.extend([t("B", DType::I32), t("B,3,4,8", DType::F32)]);
        vec![
            sample(qkv("2"), [near(0), scale.clone(), far.clone()]),
            sample(qkv("2"), [near(1), scale.clone()]),
            sample(all, [near(3), scale, ("starts", yes.clone()), ("continues", yes)]),
        ]
    },
};

pub static MEAN: OpDef = OpDef {
    name: "mean",
    usage: "state [.., M, E+2] f32",
    attrs: &[],
    about: "[.., M, E]: O / l of a sweep's state; 0 where it saw no key",
    infer: |s| {
        s.count(1, 1)?;
        let x = s.is(0, DType::F32)?;
        let Some(n) = x.shape.last().and_then(|d| d.size().as_const()).filter(|n| *n > 2) else {
            return Err(format!("{x} is no state of a sweep"));
        };
        let mut shape = x.shape.clone();
        *shape.last_mut().expect("it has a last dimension") = Dim::Const(n - 2);
        Ok(TensorType {
            shape,
            dtype: DType::F32,
        })
    },
    eval: |c| {
        let (x, e) = (c.operands[0], c.shape[c.shape.len() - 1]);
        let rows = x.data.chunks(e + 2);
        let mean = rows.flat_map(|r| (0..e).map(|d| if r[e + 1] > 0.0 { r[d] / r[e + 1] } else { 0.0 }));
        Tensor::new(c.shape, c.dtype, mean.collect())
    },
    gradient: None,
    samples: || vec![sample([t("B,2,T,10", DType::F32)], [])],
};

pub static LSE: OpDef = OpDef {
    name: "lse",
    usage: "state [.., M, E+2] f32",
    attrs: &[],
    about: "[.., M, 1] f32: m + log(l) of a sweep's state, the logarithm of its mass; -1e30 where it saw no key",
    infer: |s| {
        s.count(1, 1)?;
        let mut ty = s.is(0, DType::F32)?.clone();
        match ty.shape.last().and_then(|d| d.size().as_const()) {
            Some(n) if n > 2 => *ty.shape.last_mut().expect("it has a last dimension") = Dim::Const(1),
            _ => return Err(format!("{ty} is no state of a sweep")),
        }
        Ok(ty)
    },
    eval: |c| {
        let x = c.operands[0];
        let width = x.shape[x.shape.len() - 1];
        let rows = x.data.chunks(width);
        let lse = rows.map(|r| {
            if r[width - 1] > 0.0 {
                r[width - 2] + r[width - 1].ln()
            } else {
                -1e30
            }
        });
        Tensor::new(c.shape, c.dtype, lse.collect())
    },
    gradient: None,
    samples: || vec![sample([t("B,2,T,10", DType::F32)], [])],
};
