//! Attention as a plan sees it: measures over ranges of keys, streamed once, the values integrated under them.
//!
//! With e_p(j) = exp(scale_p * q . k_p[j] - m_p), segment p's result at column d is
//! `sum_j e_p(j) v_p[j, d] / sum_j e_p(j)` over the keys it and the segments it continues have seen; 0 where that is no key at all.
//! m_p is the running maximum, which no result depends on (Milakov and Gimelshein, arXiv 1805.02867). A segment that continues
//! another goes on with a copy of its accumulator, so that a window's result is a prefix of the global one.

use serde::{Deserialize, Serialize};

use super::{Access, ExprId, Kernel, Scalar, eval};
use crate::plan::eval::EvalError;
use crate::types::Size;

/// What a kernel streams; `Expr::Swept(p)` is segment p's result at (outer.., col).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sweep {
    /// The first `batch` dimensions of `Kernel::outer` pick keys and values; the others are rows that share them.
    pub batch: usize,
    /// Queries: strides for each outer dimension, then 1.
    pub q: Access,
    /// Elements of a query and of a key; a value has `Kernel::cols`.
    pub depth: i64,
    /// Is the last outer dimension the tokens'? Then row t stands at position start + t, else all rows stand at start.
    pub tokens: bool,
    /// An i32 expression over the batch dimensions; absent: 0.
    pub start: Option<ExprId>,
    /// In the order they are swept.
    pub segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    pub k: Rows,
    pub v: Rows,
    /// Of the products of queries and keys; f32, by its bits.
    pub scale: u32,
    /// How many keys there are.
    pub keys: Size,
    /// Key j is seen from position p iff near <= p - j < far.
    pub near: i64,
    /// Absent: no key is too far.
    pub far: Option<i64>,
    /// The earlier segment whose accumulator this one continues.
    pub after: Option<usize>,
}

/// A matrix per batch point: row j at `offset + batch strides + j * strides.last()`, its elements contiguous.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rows {
    pub arg: usize,
    pub offset: Size,
    /// One per batch dimension, then the rows'.
    pub strides: Vec<Size>,
}

impl Sweep {
    /// Tokens of a tile: with all the rows that share its keys about 128 rows, so that packing keys is worth it.
    pub fn tile_tokens(&self, outer: &[Size]) -> i64 {
        let groups = self.groups(outer);
        (SWEEP_ROWS / groups.max(1)).clamp(8, SWEEP_ROWS)
    }

    /// Rows for each token: heads that share keys. Known when compiling.
    pub fn groups(&self, outer: &[Size]) -> i64 {
        let rows = &outer[self.batch..];
        let groups = if self.tokens { &rows[..rows.len() - 1] } else { rows };
        Size::product(groups).as_const().unwrap_or(1)
    }

    /// The tile grid of a kernel with these outer dimensions: (batch point, block of tokens).
    pub fn tiles(&self, outer: &[Size]) -> Vec<(Size, i64)> {
        let batch = Size::product(&outer[..self.batch]);
        match outer.last() {
            Some(tokens) if self.tokens => vec![(batch, 1), (tokens.clone(), self.tile_tokens(outer))],
            _ => vec![(batch, 1)],
        }
    }
}

/// Rows of a tile, if the heads that share keys divide it.
pub const SWEEP_ROWS: i64 = 128;

/// Segment `p`'s result at the scalar's position.
pub(super) fn swept(s: &mut Scalar, p: usize) -> Result<f64, EvalError> {
    let (scores, values) = seen(s, p, true)?;
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut weighted) = (0.0, 0.0);
    for (x, v) in scores.iter().zip(&values) {
        let e = (x - max).exp();
        sum += e;
        weighted += e * v;
    }
    Ok(if sum == 0.0 { 0.0 } else { weighted / sum })
}

/// The logarithm of segment `p`'s mass.
pub(super) fn lse(s: &mut Scalar, p: usize) -> Result<f64, EvalError> {
    let (scores, _) = seen(s, p, false)?;
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
    Ok(if sum == 0.0 { -1e30 } else { max + sum.ln() })
}

/// Scores of the keys that segment `p` and those before it have seen, and the values at the scalar's column if they are asked for.
fn seen(s: &mut Scalar, p: usize, values_too: bool) -> Result<(Vec<f64>, Vec<f64>), EvalError> {
    let kernel: &Kernel = s.kernel;
    let Some(sweep) = &kernel.sweep else {
        return Ok((vec![], vec![]));
    };
    // The chain that ends in p: disjoint ranges of one stream, or p alone.
    let mut chain = vec![p];
    while let Some(before) = sweep.segments[chain[chain.len() - 1]].after {
        chain.push(before);
    }
    let column = s.at[s.at.len() - 1];
    // Where all outer axes are of size 1 there may be none.
    let mut position = if sweep.tokens { s.at[s.at.len() - 2] } else { 0 };
    if let Some(start) = sweep.start {
        position += s.get(start)? as i64;
    }
    let (mut scores, mut values) = (vec![], vec![]);
    for segment in chain.iter().map(|i| &sweep.segments[*i]) {
        for j in 0..eval::eval(&segment.keys, s.sizes)? {
            let distance = position - j;
            if distance < segment.near || segment.far.is_some_and(|far| distance >= far) {
                continue;
            }
            let k = row(s, sweep, &segment.k, j)?;
            let mut at = s.at.to_vec();
            let mut dot = 0.0;
            for d in 0..sweep.depth {
                *at.last_mut().expect("the column is always there") = d;
                let q = s.index(&sweep.q, &at)?;
                let k = s.checked(segment.k.arg, k + d)?;
                dot += s.args[sweep.q.arg][q] * s.args[segment.k.arg][k];
            }
            scores.push(dot * f64::from(f32::from_bits(segment.scale)));
            if values_too {
                let v = row(s, sweep, &segment.v, j)? + column;
                let v = s.checked(segment.v.arg, v)?;
                values.push(s.args[segment.v.arg][v]);
            }
        }
    }
    Ok((scores, values))
}

fn row(s: &Scalar, sweep: &Sweep, rows: &Rows, j: i64) -> Result<i64, EvalError> {
    let mut index = eval::eval(&rows.offset, s.sizes)?;
    for (stride, at) in rows.strides.iter().zip(s.at[..sweep.batch].iter().chain([&j])) {
        index += eval::eval(stride, s.sizes)? * at;
    }
    Ok(index)
}
