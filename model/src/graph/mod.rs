//! The naive graph of a configuration: the reference's equations, one op each, and nothing clever.
//!
//! Every layer is a `call` of one function, so the graph of 28 layers is as long as that of one. Entry points: `prefill`,
//! `decode`, `logits`, `loss`; and `gates`, `gradients` and the training step, in modules of their own. What may be
//! joined, shared or kept in place is the passes' business.

mod attention;
pub mod gates;
mod layer;
pub mod training;

use ir::{DType, Dim, Function, Module, Param, TensorType, ValueId};

use crate::config::{Config, Mode};

/// What the graph depends on besides the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Type of matrices, caches and matmul operands: F32 or BF16. Norms, gates and the residual stream are f32.
    pub dtype: DType,
    /// Type of the embedding table in the checkpoint, which is read in place.
    pub embedding: DType,
    /// Positions 0..max_context exist.
    pub max_context: i64,
}

/// What a function is for: whether it has caches, and how many new tokens there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// T tokens, no state (`logits`, `loss`).
    Full,
    /// T tokens from position 0; fills the caches.
    Prefill,
    /// One token at position `start`; reads and updates the caches.
    Decode,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Full => "full",
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }

    fn rows(self) -> Dim {
        if self == Phase::Decode {
            Dim::Const(1)
        } else {
            Dim::sym("T")
        }
    }
}

/// Why no graph was built.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum GraphError {
    #[error("--dtype {0}: models run in f32 or bf16")]
    DType(DType),
    #[error("--max-context {found}: it must be from 1 to {max}")]
    Context { found: i64, max: i64 },
    #[error("the forward graph cannot be rewritten: {0}")]
    Rewrite(String),
    #[error("the model has no gates: its attention has one pass (mode base); `loopc retrofit` gives it a second")]
    NoGates,
    #[error("no gradients: {0}")]
    Gradient(#[from] ir::gradient::GradientError),
}

/// Positions a model can have; the RoPE table has a row for each.
const MAX_CONTEXT: i64 = 1 << 24;

/// The module with the entry points `prefill(tokens, last)`, `decode(tokens, start)`, `logits(tokens)`, `loss(tokens, targets)`.
///
/// tokens, targets [B, T] i32 (decode: [B, 1]); last, start [B] i32. Results: `logits` [B, 1, V] f32 (`logits`: [B, T, V]) and in `prefill` and
/// `decode` also `best` [B, 1, 1] f32, the column of the largest one (-1: they are no numbers); `nll` [B, T] f32, 0 where the target is
/// negative.
pub fn build(config: &Config, options: &Options) -> Result<Module, GraphError> {
    check(options)?;
    let mut module = Module::default();
    for phase in [Phase::Prefill, Phase::Decode, Phase::Full] {
        let layers = layer::functions(config, options, phase);
        module.functions.extend(layers.iter().cloned());
        let entries: &[&str] = match phase {
            Phase::Full => &["logits", "loss"],
            Phase::Prefill => &["prefill"],
            Phase::Decode => &["decode"],
        };
        for name in entries {
            module.functions.push(entry(name, config, options, phase, &layers));
        }
    }
    Ok(module)
}

/// How a loss and its gradients are computed.
#[derive(Clone, Copy)]
pub struct Objective<'a> {
    /// Sequences of a batch, B, and their tokens, T: both known, so that matrices can be packed and the loss taken in blocks of rows.
    pub batch: usize,
    pub context: usize,
    /// Whose gradients.
    pub wanted: &'a dyn Fn(&str) -> bool,
    /// Bytes of activations that are kept for the backward; the others are computed again.
    pub memory: u64,
    /// Bytes of logits that exist at once, about: the loss is taken in blocks of rows. `LOGITS`, or all of them where nothing is to be
    /// joined.
    pub logits: u64,
    /// What rewrites the forward graph before it is differentiated.
    pub rewrite: &'a dyn Fn(Module) -> Result<Module, String>,
}

impl Objective<'_> {
    fn sizes(&self) -> ir::Sizes {
        [("B", self.batch), ("T", self.context)]
            .map(|(name, n)| (name.to_string(), n as i64))
            .into()
    }
}

/// The module with the entry point `gradients(tokens, targets, weights)`: `loss` [1, 1] f32 = sum(nll * weights), and `grad.{tensor}`
/// for the tensors that are wanted.
///
/// weights [B, T] f32: 1 / (number of targets) makes the loss their mean.
pub fn gradients(config: &Config, options: &Options, objective: &Objective) -> Result<Module, GraphError> {
    check(options)?;
    let layers = layer::functions(config, options, Phase::Full);
    let mut module = Module {
        functions: layers.clone(),
    };
    module.functions.push(loss_of_rows(config, options, objective, &layers));
    differentiate(module, objective, objective.wanted, options.dtype)
}

/// Adds `gradients` to a module with `objective`.
fn differentiate(
    module: Module,
    objective: &Objective,
    wanted: &dyn Fn(&str) -> bool,
    dtype: DType,
) -> Result<Module, GraphError> {
    let module = ir::bind::bind(module, &objective.sizes());
    let module = (objective.rewrite)(module).map_err(GraphError::Rewrite)?;
    let keeping = ir::gradient::Keeping {
        memory: objective.memory,
        dtype,
    };
    let gradient = ir::gradient::gradient(&module, "objective", "loss", wanted, "gradients", keeping);
    Ok(gradient?)
}

/// Few enough logits to be turned into their gradients while they are near, and rows enough to make up for reading the weight.
pub const LOGITS: u64 = 256 << 20;

/// The same on a GPU: nothing of that size stays near, and every block of rows adds a gradient of the table to the others.
pub const LOGITS_ON_GPU: u64 = 2 << 30;

/// Blocks of more rows than this are multiples of it: tiles of products are whole.
const WHOLE_ROWS: i64 = 128;

/// `objective(tokens, targets, weights)`: `loss` [1, 1] = sum(nll * weights), block of rows by block of rows.
fn loss_of_rows(c: &Config, o: &Options, objective: &Objective, layers: &[Function]) -> Function {
    let mut f = Function::new("objective");
    let shape = || [Dim::sym("B"), Dim::sym("T")];
    let tokens = input(&mut f, "tokens", shape(), DType::I32);
    let targets = input(&mut f, "targets", shape(), DType::I32);
    let weights = input(&mut f, "weights", shape(), DType::F32);
    let x = hidden(&mut f, c, o, layers, tokens, None);
    let (n, head) = normed_and_head(&mut f, c, o, x);
    // Blocks of rows want numbers.
    let mut bound = ir::bind::bind(Module { functions: vec![f] }, &objective.sizes());
    let mut f = bound.functions.remove(0);
    let rows = (objective.batch * objective.context) as i64;
    let flat = |f: &mut Function, v: ValueId, shape: &[i64]| {
        let dtype = f.ty(v).dtype;
        f.reshape(v, TensorType::new(shape.iter().copied(), dtype))
    };
    let n = flat(&mut f, n, &[1, rows, c.hidden]);
    let [targets, weights] = [targets, weights].map(|v| flat(&mut f, v, &[1, rows]));
    let blocks = ((rows * c.vocab * 4) as u64).div_ceil(objective.logits.max(1)) as i64;
    let mut height = (rows + blocks - 1) / blocks.max(1);
    if height > WHOLE_ROWS {
        height = (height + WHOLE_ROWS - 1) / WHOLE_ROWS * WHOLE_ROWS;
    }
    let mut loss = None;
    for begin in (0..rows).step_by(height.max(1) as usize) {
        let count = height.min(rows - begin);
        let part = |f: &mut Function, v: ValueId| {
            let mut ty = f.ty(v).clone();
            ty.shape[1] = count.into();
            f.slice(v, 1, begin, ty)
        };
        let [n, targets, weights] = [n, targets, weights].map(|v| part(&mut f, v));
        let logits = f.matmul(n, head, true, DType::F32);
        let nll = f.cross_entropy(logits, targets);
        let weighed = f.mul(nll, weights);
        let sum = f.reduce_sum(weighed, 1);
        loss = Some(loss.map_or(sum, |l| f.add(l, sum)));
    }
    if let Some(loss) = loss {
        f.returns("loss", loss);
    }
    f
}

fn check(options: &Options) -> Result<(), GraphError> {
    if !matches!(options.dtype, DType::F32 | DType::BF16) {
        return Err(GraphError::DType(options.dtype));
    }
    if !(1..=MAX_CONTEXT).contains(&options.max_context) {
        return Err(GraphError::Context {
            found: options.max_context,
            max: MAX_CONTEXT,
        });
    }
    Ok(())
}

/// One entry point: embedding, all trips through the layers, the head.
fn entry(name: &str, c: &Config, o: &Options, phase: Phase, layers: &[Function]) -> Function {
    let mut f = Function::new(name);
    let tokens = input(&mut f, "tokens", [Dim::sym("B"), phase.rows()], DType::I32);
    let second = match name {
        "prefill" => Some(input(&mut f, "last", ["B"], DType::I32)),
        "decode" => Some(input(&mut f, "start", ["B"], DType::I32)),
        "loss" => Some(input(&mut f, "targets", ["B", "T"], DType::I32)),
        _ => None,
    };
    let start = second.filter(|_| phase == Phase::Decode);

    let mut x = hidden(&mut f, c, o, layers, tokens, start);
    if let Some(last) = second.filter(|_| phase == Phase::Prefill) {
        x = f.take_rows(x, last);
    }
    let (n, head) = normed_and_head(&mut f, c, o, x);
    let logits = f.matmul(n, head, true, DType::F32);
    match second.filter(|_| name == "loss") {
        Some(targets) => {
            let nll = f.cross_entropy(logits, targets);
            f.returns("nll", nll);
        }
        None => {
            f.returns("logits", logits);
            if matches!(phase, Phase::Prefill | Phase::Decode) {
                let best = f.arg_max(logits);
                f.returns("best", best);
            }
        }
    }
    f
}

const TABLE: &str = "model.embed_tokens.weight";

/// The residual stream behind the last layer.
fn hidden(
    f: &mut Function,
    c: &Config,
    o: &Options,
    layers: &[Function],
    tokens: ValueId,
    start: Option<ValueId>,
) -> ValueId {
    let table_type = TensorType::new([c.vocab, c.hidden], o.embedding);
    let embedding = f.param("embed_tokens", table_type, Param::Weight(TABLE.to_string()));
    let embedded = f.embed(embedding, tokens, DType::F32);
    trips(f, c, layers, embedded, start)
}

/// The last norm of x, and the matrix that makes logits of it.
fn normed_and_head(f: &mut Function, c: &Config, o: &Options, x: ValueId) -> (ValueId, ValueId) {
    let norm = f.param(
        "norm",
        TensorType::new([c.hidden], DType::F32),
        Param::Weight("model.norm.weight".to_string()),
    );
    let n = f.rms_norm(x, norm, c.eps, o.dtype);
    let head = if c.tied { TABLE } else { "lm_head.weight" };
    let head = f.param(
        "lm_head",
        TensorType::new([c.vocab, c.hidden], o.dtype),
        Param::Weight(head.to_string()),
    );
    (n, head)
}

/// All layers, as often as the mode says; gives the last trip's residual stream.
fn trips(f: &mut Function, c: &Config, layers: &[Function], embedded: ValueId, start: Option<ValueId>) -> ValueId {
    let with_start = |args: &[ValueId]| -> Vec<ValueId> { args.iter().copied().chain(start).collect() };
    match c.attention.mode {
        Mode::Base | Mode::Layer => (0..c.layers).fold(embedded, |x, i| f.call(&layers[0], i, &with_start(&[x]))[0]),
        Mode::Restart => {
            let mut xs = vec![embedded; c.attention.loops as usize];
            for i in 0..c.layers {
                xs = f.call(&layers[0], i, &with_start(&xs));
            }
            xs[xs.len() - 1]
        }
        Mode::Stack => {
            let (mut x, mut kv) = (embedded, vec![]);
            for i in 0..c.layers {
                let results = f.call(&layers[0], i, &with_start(&[x]));
                x = results[0];
                kv.push((results[1], results[2]));
            }
            for later in &layers[1..] {
                for (i, (k, v)) in kv.iter().enumerate() {
                    x = f.call(later, i as i64, &with_start(&[x, *k, *v]))[0];
                }
            }
            x
        }
    }
}

fn input(f: &mut Function, name: &str, shape: impl IntoIterator<Item = impl Into<Dim>>, dtype: DType) -> ValueId {
    f.param(name, TensorType::new(shape, dtype), Param::Input(name.to_string()))
}
