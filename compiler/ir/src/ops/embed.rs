//! `embed`, `take_rows`: rows chosen by integers; and `scatter_rows`, the way back.

use super::*;

pub static EMBED: OpDef = OpDef {
    name: "embed",
    usage: "table [V, H], tokens [B, T] i32; dtype",
    attrs: &["dtype"],
    about: "[B, T, H]: row `tokens[b, t]` of the table",
    infer: |s| {
        s.count(2, 2)?;
        let (table, tokens) = (s.rank(0, 2)?, s.rank(1, 2)?);
        s.float(0)?;
        s.is(1, DType::I32)?;
        let shape = tokens.shape.iter().cloned().chain([table.shape[1].clone()]);
        Ok(TensorType {
            shape: shape.collect(),
            dtype: s.dtype(table.dtype)?,
        })
    },
    eval: |c| {
        let (table, tokens) = (c.operands[0], c.operands[1]);
        c.from_fn(|i| table.at(&[tokens.at(&i[..2]) as usize, i[2]]))
    },
    gradient: Some(|c| {
        let ty = gradient::f32s(c.shape());
        c.f.try_op(
            "scatter_rows",
            &[c.dy, c.op.operands[1]],
            attrs([("type", Attr::Type(ty))]),
        )
    }),
    samples: || {
        vec![
            sample([t("5,4", DType::F32), t("2,3", DType::I32)], []),
            sample(
                [t("7,3", DType::F16), t("B,T", DType::I32)],
                [("dtype", Attr::Str("f32".into()))],
            ),
        ]
    },
};

pub static TAKE_ROWS: OpDef = OpDef {
    name: "take_rows",
    usage: "x [B, T, H], last [B] i32",
    attrs: &[],
    about: "[B, 1, H]: row `last[b]` of sequence b",
    infer: |s| {
        s.count(2, 2)?;
        let (x, last) = (s.rank(0, 3)?, s.rank(1, 1)?);
        s.is(1, DType::I32)?;
        if last.shape[0] != x.shape[0] {
            return Err(format!("{} rows are asked of {} sequences", last.shape[0], x.shape[0]));
        }
        Ok(TensorType {
            shape: vec![x.shape[0].clone(), 1i64.into(), x.shape[2].clone()],
            dtype: x.dtype,
        })
    },
    eval: |c| c.from_fn(|i| c.operands[0].at(&[i[0], c.operands[1].data[i[0]] as usize, i[2]])),
    gradient: None,
    samples: || {
        vec![
            sample([t("2,5,3", DType::F32), t("2", DType::I32)], []),
            sample([t("B,T,6", DType::BF16), t("B", DType::I32)], []),
        ]
    },
};

pub static SCATTER_ROWS: OpDef = OpDef {
    name: "scatter_rows",
    usage: "x [B, T, H] f32, rows [B, T] i32; type: Type f32 [V, H]",
    attrs: &["type"],
    about: "row r is the sum of all x[b, t] with rows[b, t] = r: what `embed` asks of its table",
    infer: |s| {
        s.count(2, 2)?;
        let (x, rows, ty) = (s.rank(0, 3)?, s.rank(1, 2)?, s.ty()?);
        s.is(0, DType::F32)?;
        s.is(1, DType::I32)?;
        if x.shape[..2] != rows.shape[..] || ty.rank() != 2 || ty.shape[1] != x.shape[2] || ty.dtype != DType::F32 {
            return Err(format!("{x} at {rows} in {ty}"));
        }
        Ok(ty)
    },
    eval: |c| {
        let (x, rows) = (c.operands[0], c.operands[1]);
        let mut out = Tensor::new(c.shape, c.dtype, vec![0.0; c.shape.iter().product()]);
        let width = c.shape[1];
        for (i, row) in rows.data.iter().enumerate() {
            for j in 0..width {
                out.data[*row as usize * width + j] += x.data[i * width + j];
            }
        }
        out
    },
    gradient: None,
    samples: || {
        let into = |dims| [("type", Attr::Type(t(dims, DType::F32)))];
        vec![
            sample([t("2,3,4", DType::F32), t("2,3", DType::I32)], into("5,4")),
            sample([t("B,T,70", DType::F32), t("B,T", DType::I32)], into("6,70")),
        ]
    },
};
