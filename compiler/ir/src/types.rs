//! Element types, sizes with named symbols, and tensor types. No values live here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    BF16,
    F16,
    I32,
    /// A truth value; one byte in memory.
    I1,
}

impl DType {
    /// Bytes an element takes in memory.
    pub fn bytes(self) -> i64 {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::I1 => 1,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F16)
    }

    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::I1 => "i1",
        }
    }

    pub fn from_name(name: &str) -> Option<DType> {
        [DType::F32, DType::BF16, DType::F16, DType::I32, DType::I1]
            .into_iter()
            .find(|t| t.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The values of the symbols for one call: `{"B": 2, "T": 17}`.
pub type Sizes = BTreeMap<String, i64>;

/// A size known at compile time up to named symbols: `coef * sym * sym ...` (a monomial).
///
/// Monomials are closed under what shapes, strides, element counts and tile counts need (products), and
/// two of them are equal exactly when they are equal for all sizes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Size {
    pub coef: i64,
    /// Sorted; a symbol stands as often as its power.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub syms: Vec<String>,
}

impl Size {
    pub fn one() -> Size {
        Size { coef: 1, syms: vec![] }
    }

    pub fn sym(name: &str) -> Size {
        Size {
            coef: 1,
            syms: vec![name.to_string()],
        }
    }

    /// The value if no symbol is left.
    pub fn as_const(&self) -> Option<i64> {
        self.syms.is_empty().then_some(self.coef)
    }

    /// `None` if a symbol has no value or the product overflows.
    pub fn eval(&self, sizes: &Sizes) -> Option<i64> {
        self.syms
            .iter()
            .try_fold(self.coef, |acc, s| acc.checked_mul(*sizes.get(s)?))
    }

    pub fn product<'a>(sizes: impl IntoIterator<Item = &'a Size>) -> Size {
        sizes.into_iter().fold(Size::one(), |acc, s| &acc * s)
    }
}

impl From<i64> for Size {
    fn from(coef: i64) -> Size {
        Size { coef, syms: vec![] }
    }
}

impl std::ops::Mul for &Size {
    type Output = Size;
    fn mul(self, rhs: &Size) -> Size {
        // Saturates: a text may declare any sizes, and no memory holds such a tensor anyway.
        let coef = self.coef.saturating_mul(rhs.coef);
        if coef == 0 {
            return Size { coef: 0, syms: vec![] };
        }
        let mut syms: Vec<String> = self.syms.iter().chain(&rhs.syms).cloned().collect();
        syms.sort();
        Size { coef, syms }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.coef != 1 || self.syms.is_empty() {
            write!(f, "{}", self.coef)?;
            if !self.syms.is_empty() {
                f.write_str("*")?;
            }
        }
        f.write_str(&self.syms.join("*"))
    }
}

/// One dimension of a tensor: a constant or one named symbol (`?` in MLIR text, named in the type's encoding).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Dim {
    Const(i64),
    Sym(String),
}

impl Dim {
    pub fn sym(name: &str) -> Dim {
        Dim::Sym(name.to_string())
    }

    pub fn size(&self) -> Size {
        match self {
            Dim::Const(n) => Size::from(*n),
            Dim::Sym(s) => Size::sym(s),
        }
    }
}

impl From<i64> for Dim {
    fn from(n: i64) -> Dim {
        Dim::Const(n)
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Const(n as i64)
    }
}

impl From<&str> for Dim {
    fn from(s: &str) -> Dim {
        Dim::sym(s)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Const(n) => write!(f, "{n}"),
            Dim::Sym(s) => f.write_str(s),
        }
    }
}

/// Shape and element type. Printed as MLIR: `tensor<?x?x64xbf16, ["B", "T"]>`, one name for each `?` in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    pub shape: Vec<Dim>,
    pub dtype: DType,
}

impl TensorType {
    pub fn new(shape: impl IntoIterator<Item = impl Into<Dim>>, dtype: DType) -> TensorType {
        TensorType {
            shape: shape.into_iter().map(Into::into).collect(),
            dtype,
        }
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    pub fn elements(&self) -> Size {
        self.shape.iter().fold(Size::one(), |acc, d| &acc * &d.size())
    }

    /// The concrete shape for one call's sizes.
    pub fn resolve(&self, sizes: &Sizes) -> Option<Vec<i64>> {
        self.shape.iter().map(|d| d.size().eval(sizes)).collect()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor<")?;
        let mut names = vec![];
        for d in &self.shape {
            match d {
                Dim::Const(n) => write!(f, "{n}x")?,
                Dim::Sym(s) => {
                    names.push(format!("{s:?}"));
                    f.write_str("?x")?;
                }
            }
        }
        f.write_str(self.dtype.name())?;
        if !names.is_empty() {
            write!(f, ", [{}]", names.join(", "))?;
        }
        f.write_str(">")
    }
}
