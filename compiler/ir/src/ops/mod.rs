//! What each op means: one file per op or close family, one table of them all. `build` makes them, `eval` runs them.
//!
//! An op's definition is its result type, its reference meaning (naive, independent of any lowering), its gradient and samples that
//! tests walk.

mod attention;
mod build;
mod elementwise;
mod embed;
mod gradient;
mod layout;
mod loss;
mod matmul;
mod norm;
mod reduce;
mod source;
mod state;
mod sweep;
mod sweep_gradient;

pub use gradient::Chain;

use crate::graph::{Attr, Attrs, ValueId};
use crate::tensor::Tensor;
use crate::types::{DType, Dim, TensorType};

/// The types of an op's operands and its attributes: what its result type follows from.
pub struct Signature<'a> {
    pub operands: &'a [&'a TensorType],
    pub attrs: &'a Attrs,
}

/// The values of an op's operands, and the shape of its result for this call.
pub struct Call<'a> {
    pub operands: &'a [&'a Tensor],
    pub attrs: &'a Attrs,
    pub shape: &'a [usize],
    pub dtype: DType,
}

/// One op of the dialect `loop`.
pub struct OpDef {
    pub name: &'static str,
    /// Operands and attributes, as the docs show them.
    pub usage: &'static str,
    /// The names of its attributes; any other is refused, so that a slip of the hand is no default.
    pub attrs: &'static [&'static str],
    pub about: &'static str,
    pub infer: fn(&Signature) -> Result<TensorType, String>,
    pub eval: fn(&Call) -> Tensor,
    /// The loss by an operand, as more ops; `None`: nothing that is trained goes through this op.
    pub gradient: Option<Gradient>,
    pub samples: fn() -> Vec<Sample>,
}

/// Continues the chain rule from an op's result to one of its float operands: f32, in the operand's shape.
pub type Gradient = fn(&mut Chain) -> Result<ValueId, String>;

/// Operand types and attributes that make a valid op, for the tests that walk all ops.
pub struct Sample {
    pub operands: Vec<TensorType>,
    pub attrs: Attrs,
}

/// All ops but `call`, which is no function of its operands alone.
pub static OPS: &[&OpDef] = &[
    &source::CONSTANT,
    &embed::EMBED,
    &embed::TAKE_ROWS,
    &embed::SCATTER_ROWS,
    &matmul::MATMUL,
    &elementwise::ADD,
    &elementwise::SUB,
    &elementwise::MUL,
    &elementwise::DIV,
    &elementwise::MAX,
    &elementwise::NEG,
    &elementwise::EXP,
    &elementwise::LOG,
    &elementwise::RSQRT,
    &elementwise::SIGMOID,
    &elementwise::SILU,
    &elementwise::CAST,
    &elementwise::WHERE,
    &attention::MASK,
    &attention::ROPE,
    &attention::SOFTMAX,
    &sweep::SWEEP,
    &sweep::MEAN,
    &sweep::LSE,
    &sweep_gradient::SWEEP_GRADIENT,
    &norm::RMS_NORM,
    &norm::RMS_SCALE,
    &norm::SCALE_COLUMNS,
    &reduce::REDUCE_SUM,
    &reduce::REDUCE_MAX,
    &reduce::ARG_MAX,
    &layout::RESHAPE,
    &layout::TRANSPOSE,
    &layout::SLICE,
    &layout::CONCAT,
    &state::CACHE_WRITE,
    &state::UPDATE,
    &loss::CROSS_ENTROPY,
    &loss::LOG_SUM_EXP,
    &loss::ONE_HOT,
    &loss::IS_TARGET,
];

pub fn op(name: &str) -> Option<&'static OpDef> {
    OPS.iter().copied().find(|o| o.name == name)
}

/// The ops as the docs show them.
pub fn table_markdown() -> String {
    let mut text =
        String::from("# Ops of the dialect `loop`\n\nGenerated from `ir::ops::OPS`; a test keeps it true.\n\n");
    text += "| op | operands and attributes | result | gradient |\n|---|---|---|---|\n";
    for o in OPS {
        let gradient = if o.gradient.is_some() { "yes" } else { "" };
        text += &format!("| `{}` | {} | {} | {gradient} |\n", o.name, o.usage, o.about);
    }
    text += "| `call` | the callee's inputs; callee: Str, layer: Int | the callee's returns; `{i}` in its weights and states is the layer | yes |\n";
    text
}

impl<'a> Signature<'a> {
    /// Of the only operand, f32 [.., N]: [.., 1], a number for each row.
    fn by_row(&self) -> Result<TensorType, String> {
        self.count(1, 1)?;
        let mut ty = self.is(0, DType::F32)?.clone();
        match ty.shape.last_mut() {
            Some(last) => *last = Dim::Const(1),
            None => return Err(format!("{ty} has no axis")),
        }
        Ok(ty)
    }

    /// Between `min` and `max` operands.
    pub fn count(&self, min: usize, max: usize) -> Result<(), String> {
        let n = self.operands.len();
        let wanted = match max {
            _ if (min..=max).contains(&n) => return Ok(()),
            usize::MAX => format!("{min} or more"),
            _ if max > min => format!("{min} to {max}"),
            _ => format!("{min}"),
        };
        Err(format!("has {n} operands, wants {wanted}"))
    }

    pub fn rank(&self, operand: usize, rank: usize) -> Result<&'a TensorType, String> {
        let ty = self.operands[operand];
        if ty.rank() == rank {
            Ok(ty)
        } else {
            Err(format!("operand {operand} is {ty}, wants rank {rank}"))
        }
    }

    pub fn float(&self, operand: usize) -> Result<&'a TensorType, String> {
        let ty = self.operands[operand];
        if ty.dtype.is_float() {
            Ok(ty)
        } else {
            Err(format!("operand {operand} is {ty}, wants floats"))
        }
    }

    pub fn is(&self, operand: usize, dtype: DType) -> Result<&'a TensorType, String> {
        let ty = self.operands[operand];
        if ty.dtype == dtype {
            Ok(ty)
        } else {
            Err(format!("operand {operand} is {ty}, wants {dtype}"))
        }
    }

    /// The attribute `dtype`, or `default`.
    pub fn dtype(&self, default: DType) -> Result<DType, String> {
        match self.attrs.get("dtype") {
            None => Ok(default),
            Some(Attr::Str(s)) => DType::from_name(s)
                .filter(|t| t.is_float())
                .ok_or(format!("dtype {s:?} is no float type")),
            Some(other) => Err(format!("dtype is {other:?}, wants a string")),
        }
    }

    pub fn int(&self, name: &str) -> Result<i64, String> {
        match self.attrs.get(name) {
            Some(Attr::Int(i)) => Ok(*i),
            other => Err(format!("{name} is {}, wants an integer", shown(other))),
        }
    }

    pub fn number(&self, name: &str) -> Result<f64, String> {
        match self.attrs.get(name) {
            Some(Attr::Float(x)) => Ok(*x),
            other => Err(format!("{name} is {}, wants a float", shown(other))),
        }
    }

    pub fn bool(&self, name: &str) -> Result<bool, String> {
        match self.attrs.get(name) {
            Some(Attr::Bool(b)) => Ok(*b),
            None => Ok(false),
            other => Err(format!("{name} is {}, wants true or false", shown(other))),
        }
    }

    pub fn ty(&self) -> Result<TensorType, String> {
        match self.attrs.get("type") {
            Some(Attr::Type(t)) => Ok(t.clone()),
            other => Err(format!("type is {}, wants a tensor type", shown(other))),
        }
    }

    /// An axis of operand 0.
    pub fn axis(&self) -> Result<usize, String> {
        let (axis, rank) = (self.int("axis")?, self.operands[0].rank());
        usize::try_from(axis)
            .ok()
            .filter(|a| *a < rank)
            .ok_or(format!("axis {axis} of a rank-{rank} operand"))
    }
}

fn shown(attr: Option<&Attr>) -> String {
    attr.map_or("missing".to_string(), |a| format!("{a:?}"))
}

impl Call<'_> {
    pub fn int(&self, name: &str) -> i64 {
        match self.attrs.get(name) {
            Some(Attr::Int(i)) => *i,
            _ => 0,
        }
    }

    pub fn number(&self, name: &str) -> f64 {
        match self.attrs.get(name) {
            Some(Attr::Float(x)) => *x,
            _ => 0.0,
        }
    }

    pub fn bool(&self, name: &str) -> bool {
        self.attrs.get(name) == Some(&Attr::Bool(true))
    }

    pub fn ints(&self, name: &str) -> &[i64] {
        match self.attrs.get(name) {
            Some(Attr::Ints(v)) => v,
            _ => &[],
        }
    }

    /// The first position of sequence b: operand `at` if it is there, else 0.
    pub fn start(&self, at: usize, b: usize) -> i64 {
        self.operands.get(at).map_or(0, |s| s.data[b] as i64)
    }

    pub fn from_fn(&self, f: impl FnMut(&[usize]) -> f64) -> Tensor {
        Tensor::from_fn(self.shape, self.dtype, f)
    }
}

/// Numpy's rule: aligned at the end, equal or one of them 1.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| {
        if i + s.len() >= rank {
            s[i + s.len() - rank].clone()
        } else {
            Dim::Const(1)
        }
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (Dim::Const(1), x) | (x, Dim::Const(1)) => Ok(x),
            (x, y) => Err(format!("dimension {x} does not broadcast with {y}")),
        })
        .collect()
}

/// `[("axis", Attr::Int(1))]` as attributes.
pub fn attrs<const N: usize>(list: [(&str, Attr); N]) -> Attrs {
    list.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
}

fn sample<const N: usize>(operands: impl IntoIterator<Item = TensorType>, list: [(&str, Attr); N]) -> Sample {
    Sample {
        operands: operands.into_iter().collect(),
        attrs: attrs(list),
    }
}

/// `t("B,3", F32)`: a type from its dimensions, for samples.
fn t(dims: &str, dtype: DType) -> TensorType {
    let dims = dims
        .split(',')
        .filter(|d| !d.is_empty())
        .map(|d| d.parse::<i64>().map_or_else(|_| Dim::sym(d), Dim::Const));
    TensorType {
        shape: dims.collect(),
        dtype,
    }
}
