//! `cache_write`: rows of a KV cache replaced, whole or as a ring. `update`: a state replaced, as an optimizer does.

use super::*;

pub static CACHE_WRITE: OpDef = OpDef {
    name: "cache_write",
    usage: "cache [B, KV, C, D], new [B, KV, T, D], [start [B] i32]; ring: Bool",
    attrs: &["ring"],
    about: "the cache with rows start + t replaced; a ring: rows (start + t) % C, and only the last C of the T rows are written",
    infer: |s| {
        s.count(2, 3)?;
        let (cache, new) = (s.rank(0, 4)?, s.rank(1, 4)?);
        let alike = [0, 1, 3].iter().all(|&i| cache.shape[i] == new.shape[i]);
        if !alike || cache.dtype != new.dtype {
            return Err(format!("{new} into {cache}"));
        }
        if s.operands.len() == 3 && (s.is(2, DType::I32)?.rank() != 1 || s.operands[2].shape[0] != cache.shape[0]) {
            return Err(format!("start is {}, wants one position per sequence", s.operands[2]));
        }
        s.bool("ring")?;
        Ok(cache.clone())
    },
    eval: |c| {
        let (cache, new) = (c.operands[0], c.operands[1]);
        let (capacity, rows) = (cache.shape[2], new.shape[2]);
        let mut out = cache.clone();
        let first = if c.bool("ring") {
            rows.saturating_sub(capacity)
        } else {
            0
        };
        for b in 0..new.shape[0] {
            for (h, t, d) in (0..new.shape[1])
                .flat_map(|h| (first..rows).flat_map(move |t| (0..new.shape[3]).map(move |d| (h, t, d))))
            {
                let row = c.start(2, b) as usize + t;
                let row = if c.bool("ring") { row % capacity } else { row };
                let at = out.offset(&[b, h, row, d]);
                out.data[at] = new.at(&[b, h, t, d]);
            }
        }
        out
    },
    gradient: None,
    samples: || {
        let pair = || [t("B,2,C,4", DType::F32), t("B,2,T,4", DType::F32)];
        vec![
            sample(pair(), []),
            sample(pair().into_iter().chain([t("B", DType::I32)]), []),
            sample(
                [t("B,2,3,4", DType::BF16), t("B,2,T,4", DType::BF16)],
                [("ring", Attr::Bool(true))],
            ),
            sample(
                [t("B,1,3,5", DType::BF16), t("B,1,1,5", DType::BF16), t("B", DType::I32)],
                [("ring", Attr::Bool(true))],
            ),
        ]
    },
};

pub static UPDATE: OpDef = OpDef {
    name: "update",
    usage: "state, value of its type",
    attrs: &[],
    about: "the state, which becomes the value",
    infer: |s| {
        s.count(2, 2)?;
        let (state, value) = (s.operands[0], s.operands[1]);
        if state != value {
            return Err(format!("{value} into {state}"));
        }
        Ok(state.clone())
    },
    eval: |c| c.operands[1].clone(),
    gradient: None,
    samples: || {
        vec![
            sample([t("3,17", DType::F32), t("3,17", DType::F32)], []),
            sample([t("5", DType::F32), t("5", DType::F32)], []),
        ]
    },
};
