//! The kernels' level: buffers, kernels as loop nests over strided memory, launches. Printed and verified like the graph.
//!
//! A kernel is an iteration space (`outer` dimensions and one innermost, vectorised dimension of `cols` columns), a small DAG of
//! scalar expressions, and stages that reduce or store them. Matmul and element-wise kernels share all of that: a matmul only
//! adds the accumulator as one more expression, so an epilogue is nothing special. Views (reshape, transpose, slice) are
//! strides here; they cost no launch.

pub mod count;
pub mod eval;
mod lanes;
mod operands;
mod print;
mod prologue;
mod sweep;
mod sweep_gradient;
pub mod verify;

use serde::{Deserialize, Serialize};

use crate::types::{DType, Size};
use eval::Scalar;
pub use sweep::{Rows, SWEEP_ROWS, Segment, Sweep};
pub use sweep_gradient::{Range, SweepGradient};

/// One entry point, scheduled.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub entry: String,
    pub buffers: Vec<Buffer>,
    /// Distinct kernels; equal bodies appear once.
    pub kernels: Vec<Kernel>,
    pub launches: Vec<Launch>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    pub name: String,
    pub dtype: DType,
    /// Logical shape as first made; views give their own strides. Row-major and dense.
    pub shape: Vec<Size>,
    pub kind: BufferKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum BufferKind {
    /// Lives from its first to its last launch, in this slot of the arena.
    Temp {
        slot: u32,
    },
    Input(String),
    Output(String),
    /// A KV cache or other state, by its name with the layer filled in.
    State(String),
    Weight(WeightRecipe),
}

/// How a weight buffer is made from the checkpoint's tensors (see the runtime's artefact, which has the same recipe).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WeightRecipe {
    /// Tensors stacked along axis 0; `packed` in panels for a matmul, else as they are. dtype is the buffer's.
    /// With `scale`: columns times that vector (a norm's weight).
    Tensors {
        names: Vec<String>,
        packed: bool,
        scale: Option<String>,
    },
    RopeTable {
        rows: i64,
        dim: i64,
        theta_bits: u64,
        sin: bool,
    },
}

/// One kernel over `tiles` tiles with buffers bound to its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Index into `Plan::kernels`.
    pub kernel: usize,
    /// Index into `Plan::buffers`, one per `Kernel::args`.
    pub args: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Arg {
    pub dtype: DType,
    pub written: bool,
}

/// What a kernel computes. Two equal kernels are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Kernel {
    /// Readable and unique in the plan: `matmul_1024x2048`, `softmax`, `add_rms_norm`.
    pub name: String,
    pub args: Vec<Arg>,
    /// Sizes of the parallel dimensions, outermost first. `Expr::Index(d)` is the position in dimension d.
    pub outer: Vec<Size>,
    /// So many of the last outer dimensions are not parallel but walked in order by one tile, which may go on from what it stored.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ordered: usize,
    /// The one store fills panels: what a contraction reads as packed. Its access gives the logical place in `[n, k]`, row-major;
    /// where n is the columns, k is the points of `outer`, and the other way round. Both are known when compiling. Columns whose
    /// stride is 1 are k, also where k is 1.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub panels: bool,
    /// Size of the innermost dimension; `Expr::Index(outer.len())`.
    pub cols: Size,
    /// Present: `Expr::Acc` is its value at (outer.., col).
    pub contraction: Option<Contraction>,
    /// Present: `Expr::Swept` are its segments' results. Never beside a contraction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Sweep>,
    /// Present: this is all that the kernel does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep_gradient: Option<SweepGradient>,
    /// A DAG in topological order: an expression refers to earlier ones only.
    pub exprs: Vec<Expr>,
    /// Run in order for each point of `outer`.
    pub stages: Vec<Stage>,
}

pub type ExprId = usize;

/// A scalar per (outer.., col), or per (outer..) if it depends on no column. Floats compute in f32 whatever is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Expr {
    /// The element there, floats widened to f32, I32 as i32, I1 as a truth value.
    Load(Access),
    /// f32 constant by its bits.
    Float(u32),
    Int(i32),
    /// The position in dimension d as i32.
    Index(usize),
    /// The value of a symbol (`S`, `C`) or product as i32.
    SizeOf(Size),
    /// The result of `stages[i]`, which must be an earlier `Reduce`.
    Reduced(usize),
    /// The contraction's value.
    Acc,
    /// The contraction's value with its second right side.
    AccAlso,
    /// The sum over k of the squares of the contraction's row of a, before a is rounded: what a norm that moved past the product needs.
    RowSquares,
    /// The result of the sweep's segment.
    Swept(usize),
    /// The logarithm of the segment's mass, lse, once per row; -1e30 where it saw no key.
    Lse(usize),
    Unary(Unary, ExprId),
    Binary(Binary, ExprId, ExprId),
    /// `if c { a } else { b }`, c a truth value.
    Select(ExprId, ExprId, ExprId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unary {
    Neg,
    Exp,
    Log,
    Rsqrt,
    Sigmoid,
    /// x * sigmoid(x)
    Silu,
    /// i32 to f32.
    ToFloat,
    /// Rounded to bf16 and widened again (what a store and a load would do).
    RoundBf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    /// i32 remainder of a non-negative number.
    Rem,
    /// Comparisons of two i32 (or two f32): a truth value.
    Lt,
    Le,
    Eq,
    And,
}

/// Memory at `offset + sum(position[d] * strides[d]) + indirect.0 * indirect.1`, in elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Access {
    /// Index into `Kernel::args`.
    pub arg: usize,
    pub offset: Size,
    /// One per outer dimension, then the column's (0: the same for all columns, 1: contiguous).
    pub strides: Vec<Size>,
    /// An i32 expression times a stride, for table look-ups (token ids, positions).
    pub indirect: Option<(ExprId, Size)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Over all columns, in f32; `Expr::Reduced` reads it in later stages. Beside a contraction all reductions come first, none
    /// needs another's result, and no column's store does: the columns are walked once.
    Reduce { op: Reduction, value: ExprId },
    /// Per column if the access has a column stride, else once per point of `outer`. Rounded to the argument's type.
    /// With a condition: only where it holds.
    Store {
        to: Access,
        value: ExprId,
        when: Option<ExprId>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    Sum,
    Max,
    /// log(sum(e^value)), relative to a running maximum.
    LogSumExp,
}

/// `acc[batch.., row.., n] = sum_k a[batch.., row.., k] * b[batch.., n, k]`, in f32. Dimensions: the first `batch` of `Kernel::outer`
/// are batch, the others rows, `cols` is n.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contraction {
    pub batch: usize,
    pub k: Size,
    /// Strides for each outer dimension, then k's. k is contiguous, or, in a matrix that is multiplied turned, the rows are (one outer
    /// dimension, b not packed): that is for GPUs. f32 beside a bf16 weight is rounded as it is read.
    pub a: Access,
    /// a is in panels, its rows as a panel's columns; its access gives the logical place in `[m, k]`. Only beside a packed b.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packed_a: bool,
    pub b: Rhs,
    /// A second right side of the same shape, multiplied by the same rows while they are there; `Expr::AccAlso`. Packed, as b is then, or
    /// both with k contiguous: that is for GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also: Option<Rhs>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Rhs {
    /// A weight in panels (`Layout::Panels` of the artefact); no batch.
    Packed { arg: usize },
    /// `[batch.., n, k]` with k contiguous (keys): strides per batch dimension, then n's.
    KContiguous {
        arg: usize,
        offset: Size,
        strides: Vec<Size>,
    },
    /// `[batch.., k, n]` with n contiguous (values): strides per batch dimension, then k's.
    NContiguous {
        arg: usize,
        offset: Size,
        strides: Vec<Size>,
    },
}

impl Contraction {
    /// One right side, or two.
    pub fn rights(&self) -> impl Iterator<Item = &Rhs> {
        std::iter::once(&self.b).chain(&self.also)
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Kernel {
    /// The tile grid: (size, block) pairs whose `ceil(size / block)` multiply to the number of tiles; the tile index is row-major
    /// over them. Without contraction a tile is a block of points of the flattened `outer` space; with one it is
    /// (batch point, block of rows, block of columns), see `MATMUL_ROWS` and `MATMUL_COLS`; with a sweep see `Sweep::tiles`.
    pub fn tiles(&self) -> Vec<(Size, i64)> {
        match (&self.contraction, &self.sweep) {
            (_, Some(sweep)) => sweep.tiles(&self.outer),
            _ if self.sweep_gradient.is_some() => vec![(Size::product(&self.outer), 1)],
            (None, None) if self.panels => vec![(Size::product(&self.outer), PANEL_ROWS)],
            (None, None) => {
                let parallel = &self.outer[..self.outer.len() - self.ordered];
                vec![(Size::product(parallel), self.map_rows())]
            }
            (Some(c), None) => {
                let (batch, rows) = self.outer.split_at(c.batch);
                let mut tiles = vec![(Size::product(batch), 1), (Size::product(rows), MATMUL_ROWS)];
                // What reduces over the columns walks all of them in one tile, and so does what reads a deep left side piece by piece.
                if !self.reduces() && !self.is_deep() {
                    tiles.push((self.cols.clone(), MATMUL_COLS));
                }
                tiles
            }
        }
    }

    /// Is the sum so long that a panel leaves the cache before the next rows want it? Then k is walked in pieces, all columns at a time.
    pub fn is_deep(&self) -> bool {
        let Some(c) = &self.contraction else { return false };
        let known = |s: &Size, least: i64| s.as_const().is_some_and(|n| n >= least);
        let rows = Size::product(&self.outer[c.batch..]);
        let Rhs::Packed { arg } = c.b else { return false };
        // Rows that are rounded or measured have no place beside the parked sums.
        let as_they_lie = self.args[arg].dtype == self.args[c.a.arg].dtype && !self.exprs.contains(&Expr::RowSquares);
        let plain = as_they_lie && c.also.is_none() && !c.packed_a && !self.reduces();
        let even = c.k.as_const().is_some_and(|k| k % 2 == 0);
        plain && even && known(&c.k, DEEP) && known(&rows, 64) && known(&self.cols, 1)
    }

    pub fn reduces(&self) -> bool {
        self.stages.iter().any(|s| matches!(s, Stage::Reduce { .. }))
    }

    /// Does the contraction multiply a matrix turned, whose rows are contiguous and not its k?
    pub fn is_turned(&self) -> bool {
        let strides = self.contraction.as_ref().and_then(|c| c.a.strides.last());
        strides.is_some_and(|k| k.as_const() != Some(1))
    }

    /// Points of `outer` in one tile of a kernel without contraction: short rows go together.
    pub fn map_rows(&self) -> i64 {
        match self.cols.as_const() {
            _ if self.ordered > 0 => 1,
            Some(n) => (4096 / n.max(1)).clamp(1, 64),
            None => 1,
        }
    }
}

/// Rows of a matmul tile: the loop over them reuses one panel of B from the cache.
pub const MATMUL_ROWS: i64 = 384;
/// Columns of a matmul tile: one panel.
pub const MATMUL_COLS: i64 = 64;
/// Points of a tile that fills panels: pairs of rows, or as many as a vector has lanes.
pub const PANEL_ROWS: i64 = 16;
/// A sum this long is deep.
pub const DEEP: i64 = 8192;
