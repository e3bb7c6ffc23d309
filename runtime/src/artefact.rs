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

/// Code of every kernel for one target, in the artefact's payload: an ELF relocatable object for a CPU, PTX text for a GPU (`sm_..`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Code {
    /// `x86-64-v3`, `x86-64-v4`, `x86-64-v4+bf16`, `sm_90a` ...
    pub target: String,
    /// CPU features that must be present, by the names of `is_x86_feature_detected!` (`avx512f`, `avx512bf16`, ...).
    pub features: Vec<String>,
    /// Byte range in the payload.
    pub offset: u64,
    pub len: u64,
    /// How a GPU runs each kernel; empty for a CPU, whose launches say all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<GpuKernel>,
    /// What a GPU runs as one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joins: Vec<Join>,
}

/// Launches `first..first + count` of an entry as one kernel of `Code::kernels`: they do not need each other, the last one begins with the
/// others, or steps of one kernel run them in their order. Its buffers are theirs, one launch after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    pub entry: String,
    pub first: u32,
    pub count: u32,
    pub kernel: String,
}

/// A kernel as a GPU runs it: the first variant that fits the call's sizes. The last one always does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuKernel {
    pub name: String,
    pub variants: Vec<Variant>,
}

/// Functions that run one after the other and together are the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// Only where this size is at most so large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<(Size, i64)>,
    /// Only where each of these sizes is a multiple of its number: rows that the copy instructions can reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub multiples: Vec<(Size, i64)>,
    /// Bytes of memory that the steps hand on to each other, 256-byte aligned, not initialised.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workspaces: Vec<Size>,
    /// So many u32 that are 0 before the first launch, and that every launch leaves at 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub counters: u32,
    pub steps: Vec<Step>,
}

/// One function of the module. Its parameters, in order: a pointer for each of the launch's buffers that it takes, one for each workspace
/// that it takes, one to the counters if there are any, B, T, S and C as i32, then its tensor maps by value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub function: String,
    /// Which of the launch's buffers it takes, where that is not all of them, in this order. Tensor maps count what it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffers: Option<Vec<u32>>,
    /// The same of the variant's workspaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspaces: Option<Vec<u32>>,
    /// Tiles: the product of `ceil(size / block)`, one block of threads each (x alone).
    pub tiles: Vec<(Size, i64)>,
    /// Tiles of joined kernels, behind each other; see `Join`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_tiles: Vec<Vec<(Size, i64)>>,
    /// Above 0: no more blocks than so many for each multiprocessor; a block walks tiles from its own number on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub per_multiprocessor: u32,
    pub threads: u32,
    /// Dynamic shared memory, in bytes.
    pub shared: u32,
    /// Blocks of a cluster; 0 and 1 mean none. The number of blocks is rounded up to it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cluster: u32,
    /// It may begin before the function in front of it has ended: it executes `griddepcontrol.wait` before it touches memory that another
    /// function writes, or writes memory that another one reads (buffers, workspaces and counters; weights and inputs may be read at once).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overlap: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<TensorMap>,
}

/// What a step takes of a launch's buffers or a variant's workspaces; none where it names what is not there.
pub fn taken<T: Copy>(wanted: &Option<Vec<u32>>, all: &[T]) -> Option<Vec<T>> {
    match wanted {
        None => Some(all.to_vec()),
        Some(wanted) => wanted.iter().map(|i| all.get(*i as usize).copied()).collect(),
    }
}

/// A matrix (or up to five dimensions) for the copy engine; what lies outside reads as zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMap {
    pub source: MapSource,
    pub dtype: DType,
    /// First element, in elements.
    pub offset: Size,
    /// Innermost first; the innermost is contiguous.
    pub dims: Vec<Size>,
    /// Of the dimensions but the innermost, in elements; 16-byte multiples.
    pub strides: Vec<Size>,
    /// Elements that one copy brings, by dimension.
    pub r#box: Vec<u32>,
    /// Bytes of the swizzle's row: 0, 32, 64 or 128.
    pub swizzle: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapSource {
    /// Of the launch's buffers.
    Buffer(u32),
    Workspace(u32),
}

fn is_zero(n: &u32) -> bool {
    *n == 0
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
    /// On a GPU it is W as it is, row-major and not padded, in the weight's dtype: that is what the copy engine and `wgmma` read.
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
