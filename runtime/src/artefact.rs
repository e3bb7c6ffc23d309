//! The artefact's types: what a compiled model is. One definition, shared by the compiler that writes it and the runtime.
//!
//! All sizes that change per call are `Size`s over the symbols of the call: B sequences, T new tokens a sequence,
//! S keys a sequence that decoding sees, C capacity of the KV cache.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Rows of W in a panel of `Layout::Panels`, for every target.
pub const PANEL: i64 = 64;

/// The order in which kernels receive the symbols' values.
pub const SYMBOLS: [&str; 4] = ["B", "T", "S", "C"];

/// Element type in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    BF16,
    F16,
    I32,
    I1,
}

/// `coef * sym * sym ...`
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    pub coef: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub syms: Vec<String>,
}

pub type Sizes = BTreeMap<String, i64>;

/// Everything but the machine code; serialised as JSON in the artefact's header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// What made it: compiler version, options (for people).
    pub producer: String,
    /// sha256 of config.json and of the weights' names, shapes and types: a folder with other values is refused.
    pub model_hash: String,
    /// Free-form facts that `model` needs to run the artefact (config.json verbatim, mode, dtype, max context).
    pub model: serde_json::Value,
    pub max_context: i64,
    pub weights: Vec<Weight>,
    pub states: Vec<State>,
    pub entries: Vec<Entry>,
    /// One per target the artefact was compiled for; the runtime takes the best one the machine can run.
    pub codes: Vec<Code>,
}

/// Machine code of every kernel for one target: an ELF relocatable object in the artefact's payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Code {
    /// `x86-64-v3`, `x86-64-v4`, `x86-64-v4+bf16`, `sm_90a` ...
    pub target: String,
    /// CPU features that must be present, by the names of `is_x86_feature_detected!` (`avx512f`, `avx512bf16`, ...).
    pub features: Vec<String>,
    /// Byte range in the payload.
    pub offset: u64,
    pub len: u64,
}

/// One weight buffer: how to make it from the checkpoint's tensors. Nothing of the checkpoint is in the artefact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weight {
    /// Matrices [N_i, K] stacked along their first axis (joined projections), or one tensor of any shape.
    pub source: Source,
    pub dtype: DType,
    pub layout: Layout,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Checkpoint tensors of these names and shapes, stacked along axis 0; each optionally scaled along its last axis by a
    /// vector (a folded norm weight).
    Tensors(Vec<TensorRef>),
    /// `[rows, dim / 2]`: cos or sin of `row * theta^(-2 i / dim)`, computed in f64.
    RopeTable {
        rows: i64,
        dim: i64,
        theta: f64Bits,
        sin: bool,
    },
}

/// An f64 by its bits, so that recipes can be hashed and compared.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct f64Bits(pub u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorRef {
    pub name: String,
    pub shape: Vec<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// As in the checkpoint. With the checkpoint's own dtype and one tensor it is used in place, from the mapped file.
    RowMajor,
    /// A matrix W [N, K] for `x W^T`: panels of P = `PANEL` rows of W, each panel K-major and `pair` consecutive k
    /// side by side: element (n, k) at `((n / P) * ceil(K / pair) + k / pair) * P * pair + (n % P) * pair + k % pair`.
    /// N is padded to a multiple of P and K to a multiple of `pair` with zeros. pair = 2 for bf16, 1 for f32.
    Panels { pair: i64 },
}

/// Memory that outlives a call, one buffer of the shape per name; zero at first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub name: String,
    pub dtype: DType,
    /// Over B and C alone.
    pub shape: Vec<Size>,
}

/// One compiled function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// Sizes in bytes of the arena's slots: a slot is as large as the largest of its sizes, and slots lie one after the other.
    pub slots: Vec<Vec<Size>>,
    pub buffers: Vec<Buffer>,
    pub launches: Vec<Launch>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<Size>,
    /// Index into `Entry::buffers`.
    pub buffer: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Buffer {
    /// In the arena; two buffers whose lives do not overlap share a slot.
    Slot(u32),
    Weight(u32),
    State(u32),
    /// Fed by the caller; `Port`s name it. Outputs live in memory the caller gets.
    Input(u32),
    Output(u32),
}

/// One kernel over `tiles` independent tiles: `kernel(buffers, symbols, begin, end, scratch)` for any split of 0..tiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    pub kernel: String,
    pub buffers: Vec<u32>,
    /// The number of tiles is the product of `ceil(size / block)`.
    pub tiles: Vec<(Size, i64)>,
    /// Scratch bytes a worker needs (64-byte aligned).
    pub scratch: Size,
}

/// `extern "C" fn(buffers, symbols, begin, end, scratch)`; see `Launch`.
pub type KernelFn = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8);
