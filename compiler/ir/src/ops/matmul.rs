//! `matmul`: the product over the last axis of a, batched and broadcast, accumulated in f32.

use super::*;
use crate::graph::{Function, ValueId};
use crate::types::Size;

/// Rows of all batches together, if they are known.
fn flat_rows(f: &Function, a: ValueId) -> Option<i64> {
    let shape = &f.ty(a).shape;
    let rows = Size::product(
        shape[..shape.len() - 1]
            .iter()
            .map(Dim::size)
            .collect::<Vec<_>>()
            .iter(),
    );
    rows.as_const().filter(|_| shape.len() > 2)
}

/// `v` as one matrix of so many rows.
fn flat(f: &mut Function, v: ValueId, rows: i64) -> ValueId {
    let ty = f.ty(v).clone();
    let columns = ty.shape[ty.rank() - 1].clone();
    f.reshape(v, TensorType::new([rows.into(), columns], ty.dtype))
}

pub static MATMUL: OpDef = OpDef {
    name: "matmul",
    usage: "a [.., M, K], b [.., K, N] (or [.., N, K]); transpose_b: Bool, dtype",
    attrs: &["transpose_b", "dtype"],
    about: "[.., M, N]; leading dimensions broadcast; f32 accumulation",
    infer: |s| {
        s.count(2, 2)?;
        let (a, b) = (s.float(0)?, s.float(1)?);
        if a.rank() < 2 || b.rank() < 2 {
            return Err(format!("{a} times {b}: both want rank 2 at least"));
        }
        let (ra, rb) = (a.rank(), b.rank());
        let (mut n, mut k) = (&b.shape[rb - 1], &b.shape[rb - 2]);
        if s.bool("transpose_b")? {
            std::mem::swap(&mut n, &mut k);
        }
        if a.shape[ra - 1] != *k {
            return Err(format!("{a} times {b}: {} against {k} in the sum", a.shape[ra - 1]));
        }
        let mut shape = broadcast(&a.shape[..ra - 2], &b.shape[..rb - 2])?;
        shape.extend([a.shape[ra - 2].clone(), n.clone()]);
        Ok(TensorType {
            shape,
            dtype: s.dtype(a.dtype)?,
        })
    },
    eval: |c| {
        let (a, b) = (c.operands[0], c.operands[1]);
        let (k, transposed) = (a.shape[a.shape.len() - 1], c.bool("transpose_b"));
        // Where the batch of the result finds its batch in an operand.
        let base = |x: &Tensor, batch: &[usize]| {
            let own = x.shape.len() - 2;
            let skip = batch.len() - own;
            x.shape[..own]
                .iter()
                .zip(&batch[skip..])
                .fold(0, |acc, (n, i)| acc * n + if *n == 1 { 0 } else { *i })
        };
        c.from_fn(|i| {
            let (batch, row, col) = (&i[..i.len() - 2], i[i.len() - 2], i[i.len() - 1]);
            let (rows, cols) = (
                a.shape[a.shape.len() - 2],
                b.shape[b.shape.len() - 2] * b.shape[b.shape.len() - 1],
            );
            let x = &a.data[(base(a, batch) * rows + row) * k..][..k];
            let y = &b.data[base(b, batch) * cols..][..cols];
            let n = cols / k.max(1);
            (0..k)
                .map(|j| x[j] * if transposed { y[col * k + j] } else { y[j * n + col] })
                .sum()
        })
    },
    gradient: Some(|c| {
        // y = a b:  da = dy b^T,  db = a^T dy.  What is multiplied is rounded to the other factor's type; sums are f32.
        let (a, b) = (c.op.operands[0], c.op.operands[1]);
        let transposed = c.op.attrs.get("transpose_b") == Some(&Attr::Bool(true));
        let (f, other) = (&mut *c.f, if c.at == 0 { b } else { a });
        let dy = f.cast(c.dy, f.ty(other).dtype);
        let turned = |f: &mut Function, v: ValueId| {
            let rank = f.ty(v).rank() as i64;
            let perm: Vec<i64> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
            f.transpose(v, &perm)
        };
        // A matrix that all rows share: its gradient is one product over all of them.
        let (a, dy) = match (c.at, flat_rows(f, a), f.ty(b).rank()) {
            (1, Some(rows), 2) => [a, dy].map(|v| flat(f, v, rows)).into(),
            _ => (a, dy),
        };
        let d = match (c.at, transposed) {
            (0, _) => f.matmul(dy, b, !transposed, DType::F32),
            (_, true) => {
                let dy = turned(f, dy);
                f.matmul(dy, a, false, DType::F32)
            }
            _ => {
                let a = turned(f, a);
                f.matmul(a, dy, false, DType::F32)
            }
        };
        Ok(c.summed(d))
    }),
    samples: || {
        let yes = || ("transpose_b", Attr::Bool(true));
        vec![
            sample([t("2,3", DType::F32), t("3,5", DType::F32)], []),
            sample(
                [t("B,T,6", DType::BF16), t("4,6", DType::BF16)],
                [yes(), ("dtype", Attr::Str("f32".into()))],
            ),
            sample([t("B,2,3,T,8", DType::F32), t("B,2,1,S,8", DType::F32)], [yes()]),
            sample([t("B,2,3,T,S", DType::BF16), t("B,2,1,S,5", DType::BF16)], []),
            sample([t("1,1", DType::F32), t("1,1", DType::F32)], [yes()]),
        ]
    },
};
