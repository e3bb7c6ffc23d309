//! The backward of attention as a plan sees it: one walk over a batch point's keys and queries for all ranges and all gradients.
//!
//! Meaning: the op `sweep_gradient` (`crate::ops`), for q, k and v together. Rows are (group, token): groups share keys.

use serde::{Deserialize, Serialize};

use super::eval::{self, EvalError};
use super::{Kernel, Rows};
use crate::types::{Size, Sizes};

/// Everything a kernel of this kind computes; it has no expressions and no stages. `Kernel::outer` is the batch, `cols` a value's elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SweepGradient {
    pub groups: i64,
    pub tokens: Size,
    pub keys: Size,
    /// Elements of a query and of a key.
    pub depth: i64,
    /// Of the products of queries and keys; f32, by its bits.
    pub scale: u32,
    /// Strides: batch, group, token.
    pub q: Rows,
    /// Strides: batch, key.
    pub k: Rows,
    pub v: Rows,
    pub ranges: Vec<Range>,
    /// What is asked for, f32: as q, k and v.
    pub dq: Option<Rows>,
    pub dk: Option<Rows>,
    pub dv: Option<Rows>,
}

/// Keys j with near <= token - j < far, and what their backward needs: d [.., E], z and lse [.., 1], strides as q's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Range {
    pub near: i64,
    /// Absent: no key is too far.
    pub far: Option<i64>,
    pub d: Rows,
    pub z: Rows,
    pub lse: Rows,
}

impl SweepGradient {
    /// All matrices: (what, rows, is it written).
    pub fn matrices(&self) -> Vec<(&'static str, &Rows, bool)> {
        let mut all = vec![("q", &self.q, false), ("k", &self.k, false), ("v", &self.v, false)];
        for r in &self.ranges {
            all.extend([("d", &r.d, false), ("z", &r.z, false), ("lse", &r.lse, false)]);
        }
        let written = [("dq", &self.dq), ("dk", &self.dk), ("dv", &self.dv)];
        all.extend(
            written
                .into_iter()
                .filter_map(|(what, rows)| Some((what, rows.as_ref()?, true))),
        );
        all
    }
}

/// Runs the kernel on its arguments' memory.
pub(super) fn run(kernel: &Kernel, g: &SweepGradient, sizes: &Sizes, args: &mut [Vec<f64>]) -> Result<(), EvalError> {
    let outer = kernel
        .outer
        .iter()
        .map(|s| eval::eval(s, sizes))
        .collect::<Result<Vec<_>, _>>()?;
    let (tokens, keys, width) = (
        eval::eval(&g.tokens, sizes)?,
        eval::eval(&g.keys, sizes)?,
        eval::eval(&kernel.cols, sizes)?,
    );
    let scale = f64::from(f32::from_bits(g.scale));
    for point in 0..outer.iter().product::<i64>() {
        let mut batch = vec![0; outer.len()];
        let mut rest = point;
        for d in (0..outer.len()).rev() {
            batch[d] = rest % outer[d];
            rest /= outer[d];
        }
        let place = |rows: &Rows, at: &[i64], column: i64| -> Result<(usize, usize), EvalError> {
            let mut index = eval::eval(&rows.offset, sizes)? + column;
            for (stride, i) in rows.strides.iter().zip(batch.iter().chain(at)) {
                index += eval::eval(stride, sizes)? * i;
            }
            Ok((rows.arg, usize::try_from(index).unwrap_or(usize::MAX)))
        };
        for group in 0..g.groups {
            for i in 0..tokens {
                for x in 0..g.depth {
                    if let Some(dq) = &g.dq {
                        let (a, at) = place(dq, &[group, i], x)?;
                        *element(kernel, args, a, at)? = 0.0;
                    }
                }
            }
        }
        for j in 0..keys {
            for (rows, n) in [(&g.dk, g.depth), (&g.dv, width)] {
                for x in 0..if rows.is_some() { n } else { 0 } {
                    let (a, at) = place(rows.as_ref().unwrap_or(&g.k), &[j], x)?;
                    *element(kernel, args, a, at)? = 0.0;
                }
            }
        }
        for r in &g.ranges {
            for group in 0..g.groups {
                for (i, j) in (0..tokens).flat_map(|i| (0..keys).map(move |j| (i, j))) {
                    if i - j < r.near || r.far.is_some_and(|far| i - j >= far) {
                        continue;
                    }
                    let row = |rows: &Rows, at: &[i64], n: i64, args: &mut [Vec<f64>]| -> Result<Vec<f64>, EvalError> {
                        (0..n)
                            .map(|x| {
                                let (a, at) = place(rows, at, x)?;
                                Ok(*element(kernel, args, a, at)?)
                            })
                            .collect()
                    };
                    let (token, key) = ([group, i], [j]);
                    let q = row(&g.q, &token, g.depth, args)?;
                    let k = row(&g.k, &key, g.depth, args)?;
                    let v = row(&g.v, &key, width, args)?;
                    let d = row(&r.d, &token, width, args)?;
                    let (z, lse) = (row(&r.z, &token, 1, args)?[0], row(&r.lse, &token, 1, args)?[0]);
                    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                    let p = (scale * dot(&q, &k) - lse).exp();
                    let dx = scale * p * (dot(&d, &v) + z);
                    for (rows, at, by, values) in [
                        (&g.dq, &token[..], dx, &k),
                        (&g.dk, &key[..], dx, &q),
                        (&g.dv, &key[..], p, &d),
                    ] {
                        let Some(rows) = rows else { continue };
                        for (x, value) in values.iter().enumerate() {
                            let (a, at) = place(rows, at, x as i64)?;
                            *element(kernel, args, a, at)? += by * value;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn element<'a>(kernel: &Kernel, args: &'a mut [Vec<f64>], arg: usize, at: usize) -> Result<&'a mut f64, EvalError> {
    let len = args[arg].len();
    args[arg].get_mut(at).ok_or_else(|| EvalError::OutOfBounds {
        kernel: kernel.name.clone(),
        arg,
        index: i64::try_from(at).unwrap_or(i64::MAX),
        len,
    })
}
