//! `constant`: a tensor filled with one number.

use super::*;

pub static CONSTANT: OpDef = OpDef {
    name: "constant",
    usage: "value: Float, type: Type",
    attrs: &["value", "type"],
    about: "the type, filled with the value",
    infer: |s| {
        s.count(0, 0)?;
        s.number("value")?;
        s.ty()
    },
    eval: |c| c.from_fn(|_| c.number("value")),
    gradient: None,
    samples: || {
        [t("", DType::F32), t("2,3", DType::BF16), t("B,3", DType::F32)]
            .map(|ty| sample([], [("type", Attr::Type(ty)), ("value", Attr::Float(0.1))]))
            .into()
    },
};
