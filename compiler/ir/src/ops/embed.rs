//! `embed` and `take_rows`: rows chosen by integers.

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
    samples: || {
        vec![
            sample([t("2,5,3", DType::F32), t("2", DType::I32)], []),
            sample([t("B,T,6", DType::BF16), t("B", DType::I32)], []),
        ]
    },
};
