//! The compiler read top to bottom: graph, passes, plan, kernels, object code, artefact. Each stage can be written to files.
//!
//! What a stage does lives elsewhere (`passes`, `mlir`, `cpu`); here is only the order, and the bookkeeping that
//! lets entry points share weights and kernels.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ir::plan::{BufferKind, Kernel, Plan, WeightRecipe};
use ir::{DType, Module, Size};
use passes::Program;
use runtime::artefact::{
    self, Buffer, Code, Entry, Header, Launch, Layout, Port, Source, State, TensorRef, Weight, f64Bits,
};
use runtime::container::Artefact;

use crate::gpu::tuning::Tuning;
use crate::{Target, cpu, gpu};

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("{stage}: the graph is not valid (a bug in loopc): {errors}")]
    Invalid { stage: String, errors: String },
    #[error("pass {pass}: {reason}")]
    Pass { pass: String, reason: String },
    #[error("entry `{entry}`: {reason}")]
    Schedule { entry: String, reason: String },
    #[error("target {target}: {reason}")]
    Code { target: String, reason: String },
    #[error("cannot write {path}: {source}", path = path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// What to compile and for whom.
pub struct Options {
    pub entries: Vec<String>,
    pub targets: Vec<Target>,
    pub max_context: i64,
    /// Which passes run and what kernels may hold.
    pub program: Program,
    /// Which ways GPU kernels run.
    pub tuning: Tuning,
    /// Where the text of each stage goes.
    pub emit: Vec<(Stage, PathBuf)>,
}

/// The levels that `--emit` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Graph,
    Plan,
    Mlir,
    Llvm,
}

impl Stage {
    pub const ALL: [(&'static str, Stage); 4] = [
        ("graph", Stage::Graph),
        ("plan", Stage::Plan),
        ("mlir", Stage::Mlir),
        ("llvm", Stage::Llvm),
    ];
}

/// How long each stage took, in order.
pub type Times = Vec<(String, Duration)>;

/// Facts about the model that travel in the artefact.
pub struct ModelFacts {
    pub hash: String,
    /// What the `model` crate needs to run the artefact (config, dtype).
    pub facts: serde_json::Value,
    /// Shape of every checkpoint tensor, by name.
    pub shapes: BTreeMap<String, Vec<i64>>,
}

/// Compiles `module`, made by the `model` crate, to an artefact.
pub fn compile(mut module: Module, model: &ModelFacts, options: &Options) -> Result<(Artefact, Times), CompileError> {
    let emit = Emit { wanted: &options.emit };
    let mut times = Times::new();
    let mut clock = Instant::now();
    let mut lap = |times: &mut Times, name: &str| {
        times.push((name.to_string(), clock.elapsed()));
        clock = Instant::now();
    };

    rewrite(&mut module, &options.program, &emit)?;
    lap(&mut times, "graph passes");
    let plans = schedule(&module, options, &emit)?;
    let (kernels, names) = share_kernels(&plans);
    lap(&mut times, "plan");

    let mut codes = vec![];
    let mut payload = vec![];
    for target in &options.targets {
        let texts = emit.wants(Stage::Mlir) || emit.wants(Stage::Llvm);
        let failed = |e: cpu::CodeError| CompileError::Code {
            target: target.name().to_string(),
            reason: e.to_string(),
        };
        let (compiled, features, how, joins) = match target {
            Target::Cpu(cpu) => {
                let compiled = cpu::compile_kernels(&kernels, cpu, texts).map_err(failed)?;
                (compiled, cpu.required_features(), vec![], vec![])
            }
            Target::Gpu(gpu) => {
                let named: Vec<(&Plan, &[String])> = plans.iter().zip(names.iter().map(Vec::as_slice)).collect();
                let module = gpu::compile_plans(&kernels, &named, gpu, &options.tuning, texts).map_err(failed)?;
                (module.compiled, vec![], module.kernels, module.joins)
            }
        };
        for (stage, ending, files) in [
            (Stage::Mlir, "mlir", &compiled.mlir),
            (Stage::Llvm, "ll", &compiled.llvm),
        ] {
            for (name, text) in files {
                emit.file(stage, &format!("{}/{name}.{ending}", target.name()), || text.clone())?;
            }
        }
        codes.push(Code {
            target: target.name().to_string(),
            features,
            offset: payload.len() as u64,
            len: compiled.code.len() as u64,
            kernels: how,
            joins,
        });
        payload.extend(compiled.code);
        lap(&mut times, &format!("{} kernels for {}", kernels.len(), target.name()));
    }

    let mut header = Header {
        producer: format!("loopc {}", env!("CARGO_PKG_VERSION")),
        model_hash: model.hash.clone(),
        model: model.facts.clone(),
        max_context: options.max_context,
        weights: vec![],
        states: vec![],
        entries: vec![],
        codes,
    };
    let mut tables = Tables::default();
    for (plan, names) in plans.iter().zip(&names) {
        let entry = tables.entry(plan, names, model, &mut header)?;
        header.entries.push(entry);
    }
    Ok((Artefact { header, payload }, times))
}

/// The plans alone: what a program would run, for counting.
pub fn plans(mut module: Module, options: &Options) -> Result<Vec<Plan>, CompileError> {
    let emit = Emit { wanted: &options.emit };
    rewrite(&mut module, &options.program, &emit)?;
    schedule(&module, options, &emit)
}

/// The program's passes, the graph verified after each.
fn rewrite(module: &mut Module, program: &Program, emit: &Emit) -> Result<(), CompileError> {
    verify(module, "naive graph")?;
    emit.file(Stage::Graph, "00-naive.mlir", || module.to_string())?;
    let failed = |pass: &str, e: passes::PassError| CompileError::Pass {
        pass: pass.to_string(),
        reason: e.to_string(),
    };
    let steps = program.steps().map_err(|e| failed("list", e))?;
    for (i, pass) in steps.iter().enumerate() {
        (pass.run)(module).map_err(|e| failed(pass.name, e))?;
        verify(module, pass.name)?;
        emit.file(Stage::Graph, &format!("{:02}-{}.mlir", i + 1, pass.name), || {
            module.to_string()
        })?;
    }
    Ok(())
}

fn schedule(module: &Module, options: &Options, emit: &Emit) -> Result<Vec<Plan>, CompileError> {
    let mut scheduling = options.program.scheduling;
    scheduling.panels &= options.targets.iter().any(|t| matches!(t, Target::Cpu(_)));
    let mut plans = vec![];
    for entry in &options.entries {
        let plan = passes::schedule(module, entry, &scheduling).map_err(|e| CompileError::Schedule {
            entry: entry.clone(),
            reason: e.to_string(),
        })?;
        emit.file(Stage::Plan, &format!("{entry}.plan"), || plan.to_string())?;
        plans.push(plan);
    }
    Ok(plans)
}

fn verify(module: &Module, stage: &str) -> Result<(), CompileError> {
    let errors = ir::verify::verify(module);
    if errors.is_empty() {
        return Ok(());
    }
    let errors = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Err(CompileError::Invalid {
        stage: stage.to_string(),
        errors,
    })
}

/// All plans' kernels, equal ones once, with unique symbol names; and each plan's kernels by those names.
pub(crate) fn share_kernels(plans: &[Plan]) -> (Vec<Kernel>, Vec<Vec<String>>) {
    let mut kernels: Vec<Kernel> = vec![];
    let mut by_body: HashMap<Kernel, String> = HashMap::new();
    let mut taken: HashMap<String, usize> = HashMap::new();
    let mut names = vec![];
    for plan in plans {
        let mut of_plan = vec![];
        for kernel in &plan.kernels {
            let body = Kernel {
                name: String::new(),
                ..kernel.clone()
            };
            let name = by_body.entry(body).or_insert_with(|| {
                // A plan numbers its own; here all plans' are numbered together.
                let base = kernel.name.split('.').next().unwrap_or_default();
                let count = taken.entry(base.to_string()).or_insert(0);
                *count += 1;
                let name = if *count == 1 {
                    base.to_string()
                } else {
                    format!("{base}.{count}")
                };
                kernels.push(Kernel {
                    name: name.clone(),
                    ..kernel.clone()
                });
                name
            });
            of_plan.push(name.clone());
        }
        names.push(of_plan);
    }
    (kernels, names)
}

/// Weights and states of all entries, each once.
#[derive(Default)]
struct Tables {
    weights: HashMap<String, u32>,
    states: HashMap<String, u32>,
}

impl Tables {
    fn entry(
        &mut self,
        plan: &Plan,
        names: &[String],
        model: &ModelFacts,
        header: &mut Header,
    ) -> Result<Entry, CompileError> {
        let mut entry = Entry {
            name: plan.entry.clone(),
            inputs: vec![],
            outputs: vec![],
            slots: vec![],
            buffers: vec![],
            launches: vec![],
        };
        for (i, b) in plan.buffers.iter().enumerate() {
            let shape: Vec<artefact::Size> = b.shape.iter().map(size).collect();
            let port = |name: &String| Port {
                name: name.clone(),
                dtype: dtype(b.dtype),
                shape: shape.clone(),
                buffer: i as u32,
            };
            entry.buffers.push(match &b.kind {
                BufferKind::Temp { slot } => {
                    let at = *slot as usize;
                    if entry.slots.len() <= at {
                        entry.slots.resize(at + 1, vec![]);
                    }
                    let bytes = size(&(&Size::product(&b.shape) * &Size::from(b.dtype.bytes())));
                    if !entry.slots[at].contains(&bytes) {
                        entry.slots[at].push(bytes);
                    }
                    Buffer::Slot(*slot)
                }
                BufferKind::Input(name) => {
                    entry.inputs.push(port(name));
                    Buffer::Input(entry.inputs.len() as u32 - 1)
                }
                BufferKind::Output(name) => {
                    entry.outputs.push(port(name));
                    Buffer::Output(entry.outputs.len() as u32 - 1)
                }
                BufferKind::State(name) => {
                    let id = *self.states.entry(name.clone()).or_insert_with(|| {
                        header.states.push(State {
                            name: name.clone(),
                            dtype: dtype(b.dtype),
                            shape,
                        });
                        header.states.len() as u32 - 1
                    });
                    Buffer::State(id)
                }
                BufferKind::Weight(recipe) => {
                    let weight = weight(recipe, b.dtype, model, &plan.entry)?;
                    let id = *self.weights.entry(format!("{weight:?}")).or_insert_with(|| {
                        header.weights.push(weight);
                        header.weights.len() as u32 - 1
                    });
                    Buffer::Weight(id)
                }
            });
        }
        for launch in &plan.launches {
            let kernel = &plan.kernels[launch.kernel];
            entry.launches.push(Launch {
                kernel: names[launch.kernel].clone(),
                buffers: launch.args.iter().map(|&a| a as u32).collect(),
                tiles: kernel.tiles().iter().map(|(s, block)| (size(s), *block)).collect(),
                scratch: artefact::Size {
                    coef: cpu::scratch_bytes(kernel),
                    syms: vec![],
                },
            });
        }
        Ok(entry)
    }
}

fn weight(recipe: &WeightRecipe, ty: DType, model: &ModelFacts, entry: &str) -> Result<Weight, CompileError> {
    Ok(match recipe {
        WeightRecipe::Tensors { names, packed, scale } => {
            let tensors = names.iter().map(|name| {
                let shape = model.shapes.get(name).ok_or_else(|| CompileError::Schedule {
                    entry: entry.to_string(),
                    reason: format!("the checkpoint has no tensor {name}"),
                })?;
                Ok(TensorRef {
                    name: name.clone(),
                    shape: shape.clone(),
                    scale: scale.clone(),
                })
            });
            let pair = if ty == DType::BF16 { 2 } else { 1 };
            Weight {
                source: Source::Tensors(tensors.collect::<Result<_, _>>()?),
                dtype: dtype(ty),
                layout: if *packed {
                    Layout::Panels { pair }
                } else {
                    Layout::RowMajor
                },
            }
        }
        &WeightRecipe::RopeTable {
            rows,
            dim,
            theta_bits,
            sin,
        } => Weight {
            source: Source::RopeTable {
                rows,
                dim,
                theta: f64Bits(theta_bits),
                sin,
            },
            dtype: dtype(ty),
            layout: Layout::RowMajor,
        },
    })
}

pub(crate) fn dtype(t: DType) -> artefact::DType {
    match t {
        DType::F32 => artefact::DType::F32,
        DType::BF16 => artefact::DType::BF16,
        DType::F16 => artefact::DType::F16,
        DType::I32 => artefact::DType::I32,
        DType::I1 => artefact::DType::I1,
    }
}

pub(crate) fn size(s: &Size) -> artefact::Size {
    artefact::Size {
        coef: s.coef,
        syms: s.syms.clone(),
    }
}

/// Writes a stage's files where the user asked for them.
struct Emit<'a> {
    wanted: &'a [(Stage, PathBuf)],
}

impl Emit<'_> {
    fn wants(&self, stage: Stage) -> bool {
        self.wanted.iter().any(|(s, _)| *s == stage)
    }

    fn file(&self, stage: Stage, name: &str, text: impl Fn() -> String) -> Result<(), CompileError> {
        for (_, dir) in self.wanted.iter().filter(|(s, _)| *s == stage) {
            let path = dir.join(name);
            let write = || {
                std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
                std::fs::write(&path, text())
            };
            write().map_err(|source| CompileError::Write {
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}
