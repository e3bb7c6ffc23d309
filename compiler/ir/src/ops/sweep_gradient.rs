//! The backward of `sweep`, for all ranges of keys that one walk over a sequence's keys and queries can serve.
//!
//! See `crate::gradient::measure` for what d, z and lse are. A range r gives p_ij = e^(x_ij - lse_r,i) for the keys in it,
//! dx_ij = p_ij (d_r,i . v_j + z_r,i), and the ranges' gradients are added (Dao, arXiv 2307.08691, is the case of one range).

use super::*;
use crate::tensor::Tensor;

/// Operands before the ranges' own: q, k, v.
const SHARED: usize = 3;

fn ints(attrs: &Attrs, name: &str) -> Vec<i64> {
    match attrs.get(name) {
        Some(Attr::Ints(list)) => list.clone(),
        _ => vec![],
    }
}

fn of(attrs: &Attrs) -> Option<usize> {
    match attrs.get("of") {
        Some(Attr::Str(of)) => ["q", "k", "v"].iter().position(|n| n == of),
        _ => None,
    }
}

pub static SWEEP_GRADIENT: OpDef = OpDef {
    name: "sweep_gradient",
    usage: "q [.., M, D], k [.., N, D], v [.., N, E], then of each range d [.., M, E], z [.., M, 1], lse [.., M, 1]; of (q, k, v), scale, near: Ints, far: Ints",
    attrs: &["of", "scale", "near", "far"],
    about: "f32 in the shape of q, k or v: what sweeps over near <= i - j < far with these shares of the loss give it",
    infer: |s| {
        let (near, far) = (ints(s.attrs, "near"), ints(s.attrs, "far"));
        if near.is_empty() || near.len() != far.len() || near.iter().zip(&far).any(|(n, f)| *n < 0 || f <= n) {
            return Err(format!("sees distances {near:?} to {far:?}"));
        }
        s.count(SHARED + 3 * near.len(), SHARED + 3 * near.len())?;
        s.number("scale")?;
        let (q, k, v) = (s.float(0)?, s.float(1)?, s.float(2)?);
        let rank = q.rank();
        if rank < 3 || k.rank() != rank || v.rank() != rank || q.dtype != k.dtype || k.dtype != v.dtype {
            return Err(format!(
                "{q}, {k}, {v}: wants three of one rank, 3 or more, and one type"
            ));
        }
        let (d, n) = (&q.shape[rank - 1], &k.shape[rank - 2]);
        if k.shape[rank - 1] != *d || v.shape[rank - 2] != *n || k.shape[..rank - 2] != v.shape[..rank - 2] {
            return Err(format!("{q}, {k}, {v} do not fit: [.., M, D], [.., N, D], [.., N, E]"));
        }
        if broadcast(&q.shape[..rank - 2], &k.shape[..rank - 2])? != q.shape[..rank - 2] {
            return Err(format!("{k} has more batches than {q}"));
        }
        let rows = |last: &Dim| -> Vec<Dim> { q.shape[..rank - 1].iter().chain([last]).cloned().collect() };
        for r in 0..near.len() {
            let at = SHARED + 3 * r;
            for (i, wanted, dtype) in [
                (at, rows(&v.shape[rank - 1]), q.dtype),
                (at + 1, rows(&Dim::Const(1)), DType::F32),
                (at + 2, rows(&Dim::Const(1)), DType::F32),
            ] {
                let wanted = TensorType { shape: wanted, dtype };
                if *s.operands[i] != wanted {
                    return Err(format!("operand {i} is {}, wants {wanted}", s.operands[i]));
                }
            }
        }
        let of = of(s.attrs).ok_or("of is q, k or v")?;
        Ok(TensorType {
            shape: s.operands[of].shape.clone(),
            dtype: DType::F32,
        })
    },
    eval: |c| {
        let (q, k, v) = (c.operands[0], c.operands[1], c.operands[2]);
        let rank = c.shape.len();
        let (depth, keys, e) = (q.shape[rank - 1], k.shape[rank - 2], v.shape[rank - 1]);
        let scale = c.number("scale");
        let of = of(c.attrs).unwrap_or(0);
        let mut out = Tensor::from_fn(c.shape, c.dtype, |_| 0.0);
        let rows: usize = q.shape[..rank - 1].iter().product();
        // Where an element of q's batch lies in the result, whose batch may be smaller.
        let place = |shape: &[usize], index: &[usize]| {
            let own = shape
                .iter()
                .zip(index)
                .map(|(n, i)| if *n == 1 { (1, 0) } else { (*n, *i) });
            own.fold(0, |at, (n, i)| at * n + i)
        };
        for r in 0..rows {
            let mut row = vec![0; rank];
            let mut rest = r;
            for d in (0..rank - 1).rev() {
                row[d] = rest % q.shape[d];
                rest /= q.shape[d];
            }
            let at = |i: usize, column: usize| {
                let mut index = row.clone();
                (index[rank - 2], index[rank - 1]) = (i, column);
                index
            };
            let i = row[rank - 2];
            for (n, (near, far)) in ints(c.attrs, "near").into_iter().zip(ints(c.attrs, "far")).enumerate() {
                let [d, z, lse] = std::array::from_fn(|o| c.operands[SHARED + 3 * n + o]);
                for j in (0..keys).filter(|j| (near..far).contains(&(i as i64 - *j as i64))) {
                    let dot = |a: &Tensor, ai: usize, b: &Tensor, n: usize| -> f64 {
                        (0..n)
                            .map(|x| a.broadcast_at(&at(ai, x)) * b.broadcast_at(&at(j, x)))
                            .sum()
                    };
                    let p = (scale * dot(q, i, k, depth) - lse.at(&at(i, 0))).exp();
                    let dx = p * (dot(d, i, v, e) + z.at(&at(i, 0)));
                    let (to, columns) = match of {
                        0 => (i, depth),
                        1 => (j, depth),
                        _ => (j, e),
                    };
                    for x in 0..columns {
                        let more = match of {
                            0 => dx * scale * k.broadcast_at(&at(j, x)),
                            1 => dx * scale * q.at(&at(i, x)),
                            _ => p * d.at(&at(i, x)),
                        };
                        let place = place(&out.shape, &at(to, x));
                        out.data[place] += more;
                    }
                }
            }
        }
        out
    },
    gradient: None,
    samples: || {
        let ty = |dims: &str| t(dims, DType::F32);
        let range = || [ty("2,3,4,6"), ty("2,3,4,1"), ty("2,3,4,1")];
        let mut one = vec![ty("2,3,4,8"), ty("2,1,4,8"), ty("2,1,4,6")];
        one.extend(range());
        let mut two = one.clone();
        two.extend(range());
        let list = |of: &str, near: &[i64], far: &[i64]| {
            [
                ("of", Attr::Str(of.into())),
                ("scale", Attr::Float(0.5)),
                ("near", Attr::Ints(near.to_vec())),
                ("far", Attr::Ints(far.to_vec())),
            ]
        };
        vec![
            sample(one, list("k", &[0], &[i64::MAX])),
            sample(two.clone(), list("q", &[2, 0], &[i64::MAX, 2])),
            sample(two, list("v", &[2, 0], &[i64::MAX, 2])),
        ]
    },
};
