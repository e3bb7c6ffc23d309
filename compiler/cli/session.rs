//! From MODEL on the command line to a loaded engine: compiles on the fly, keeps artefacts in the cache.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use compiler::Target;
use compiler::gpu::tuning::Tuning;
use compiler::pipeline::{self, ModelFacts, Stage, Times};
use compiler::spaces::{self, Space};
use ir::DType;
use model::config::Config;
use runtime::container::Artefact;
use runtime::engine::Engine;
use runtime::weights::Checkpoint;

use crate::cache;
use crate::options::Common;

/// The entry points every artefact has unless the user asks for fewer.
pub const ENTRIES: [&str; 4] = ["prefill", "decode", "logits", "loss"];

/// A model folder, read and checked.
pub struct Source {
    pub folder: PathBuf,
    pub config: Config,
    pub checkpoint: Checkpoint,
    config_text: String,
}

impl Source {
    pub fn open(folder: &Path) -> anyhow::Result<Source> {
        let config = Config::from_folder(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        model::weights::check(&config, &checkpoint)?;
        let path = folder.join("config.json");
        let config_text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Source {
            folder: folder.to_path_buf(),
            config,
            checkpoint,
            config_text,
        })
    }

    /// Compiles for `targets`; the artefact finds the checkpoint again by its folder.
    pub fn compile(&self, request: &Request) -> anyhow::Result<(Artefact, Times)> {
        let start = Instant::now();
        let module = model::graph::build(&self.config, &self.graph_options(request))?;
        let built = start.elapsed();
        let (artefact, mut times) = self.compile_timed(module, request)?;
        times.insert(0, ("graph".to_string(), built));
        Ok((artefact, times))
    }

    /// Any module over this checkpoint's weights; one that was compiled before is in the cache.
    pub fn compile_module(&self, module: ir::Module, request: &Request) -> anyhow::Result<Artefact> {
        let text = module.to_string();
        if !request.emit.is_empty() {
            return Ok(self.compile_timed(module, request)?.0);
        }
        cached(self, request, &text, || Ok(self.compile_timed(module, request)?.0))
    }

    fn compile_timed(&self, module: ir::Module, request: &Request) -> anyhow::Result<(Artefact, Times)> {
        let facts = ModelFacts {
            hash: self.hash(),
            facts: serde_json::json!({
                "folder": std::path::absolute(&self.folder)?,
                "dtype": request.dtype.name(),
                "config": serde_json::from_str::<serde_json::Value>(&self.config_text)?,
            }),
            shapes: self.checkpoint.shapes(),
        };
        Ok(pipeline::compile(module, &facts, &pipeline_options(request))?)
    }

    /// What the request's program would run, by entry.
    pub fn plans(&self, request: &Request) -> anyhow::Result<Vec<ir::plan::Plan>> {
        let module = model::graph::build(&self.config, &self.graph_options(request))?;
        self.plans_of(module, request)
    }

    /// What the request's program would run of any module over this checkpoint's weights.
    pub fn plans_of(&self, module: ir::Module, request: &Request) -> anyhow::Result<Vec<ir::plan::Plan>> {
        Ok(pipeline::plans(module, &pipeline_options(request))?)
    }

    /// The ways that the program's kernels have on a GPU.
    pub fn spaces(&self, request: &Request, wanted: &dyn Fn(&str) -> bool) -> anyhow::Result<Vec<Space>> {
        let module = model::graph::build(&self.config, &self.graph_options(request))?;
        Ok(spaces::spaces(module, &pipeline_options(request), wanted)?)
    }

    pub fn graph_options(&self, request: &Request) -> model::graph::Options {
        model::graph::Options {
            dtype: request.dtype,
            embedding: self
                .checkpoint
                .dtype("model.embed_tokens.weight")
                .map_or(request.dtype, |t| match t {
                    runtime::artefact::DType::BF16 => DType::BF16,
                    runtime::artefact::DType::F16 => DType::F16,
                    _ => DType::F32,
                }),
            max_context: request.max_context,
        }
    }

    /// Configuration, and the weights' names, shapes and types: what the machine code depends on.
    fn hash(&self) -> String {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        hash.update(&self.config_text);
        for (name, shape) in self.checkpoint.shapes() {
            hash.update(format!("{name} {shape:?} {:?};", self.checkpoint.dtype(&name)));
        }
        cache::hex(&hash.finalize())
    }
}

/// What to compile.
pub struct Request {
    pub entries: Vec<String>,
    pub targets: Vec<Target>,
    pub dtype: DType,
    pub max_context: i64,
    pub program: passes::Program,
    pub tuning: Tuning,
    pub emit: Vec<(Stage, PathBuf)>,
}

impl Request {
    /// What `Session::open` runs of a folder.
    pub fn new(common: &Common) -> anyhow::Result<Request> {
        Ok(Request {
            entries: ENTRIES.map(String::from).to_vec(),
            targets: vec![common.target()?],
            dtype: common.dtype(),
            max_context: common.max_context,
            program: common.program(),
            tuning: common.tuning()?,
            emit: vec![],
        })
    }

    /// Bytes of logits that a loss may have at once.
    pub fn logits(&self) -> u64 {
        let on_gpu = self.targets.iter().all(|t| matches!(t, Target::Gpu(_)));
        match (self.program.joins_the_loss(), on_gpu) {
            (true, true) => model::graph::LOGITS_ON_GPU,
            (true, false) => model::graph::LOGITS,
            (false, _) => u64::MAX,
        }
    }
}

fn pipeline_options(request: &Request) -> pipeline::Options {
    pipeline::Options {
        entries: request.entries.clone(),
        targets: request.targets.clone(),
        max_context: request.max_context,
        program: request.program.clone(),
        tuning: request.tuning.clone(),
        emit: request.emit.clone(),
    }
}

/// A model that is ready to run.
pub struct Session {
    pub engine: Engine,
    pub config: Config,
    pub folder: PathBuf,
    pub max_context: usize,
}

impl Session {
    /// `path` is a Hugging Face folder, or an artefact (then `weights` may name the checkpoint's folder if it moved).
    pub fn open(path: &Path, weights: Option<&Path>, common: &Common) -> anyhow::Result<Session> {
        let log = |what: &str, since: Instant| {
            if common.verbose {
                eprintln!("{what}: {:.2} s", since.elapsed().as_secs_f64());
            }
        };
        let start = Instant::now();
        let (artefact, source) = if path.is_dir() {
            let source = Source::open(path)?;
            let request = Request::new(common)?;
            let artefact = cached(&source, &request, "", || Ok(source.compile(&request)?.0))?;
            (artefact, source)
        } else {
            let artefact = Artefact::open(path)?;
            if let Some(file) = &common.tuning {
                bail!(
                    "--tuning {}: {} is compiled already; give it to `loopc compile`",
                    file.display(),
                    path.display()
                );
            }
            if common
                .dtype
                .is_some_and(|t| artefact.header.model["dtype"] != t.dtype().name())
            {
                bail!(
                    "{} was compiled for {}, not for --dtype; compile it again",
                    path.display(),
                    artefact.header.model["dtype"]
                );
            }
            let stored = artefact.header.model["folder"].as_str().map(PathBuf::from);
            let Some(folder) = weights.map(Path::to_path_buf).or(stored) else {
                bail!(
                    "{} does not say where its checkpoint is; give --weights FOLDER",
                    path.display()
                );
            };
            let source =
                Source::open(&folder).context("the artefact's checkpoint; if it moved, give --weights FOLDER")?;
            if source.hash() != artefact.header.model_hash {
                bail!(
                    "{} was compiled for another model than the one in {}; compile it again",
                    path.display(),
                    folder.display()
                );
            }
            (artefact, source)
        };
        log("artefact", start);
        let start = Instant::now();
        let engine = Engine::load(&artefact, &source.checkpoint, common.engine())?;
        log("weights", start);
        let max_context = artefact.header.max_context as usize;
        Ok(Session {
            engine,
            config: source.config,
            folder: source.folder,
            max_context,
        })
    }
}

/// From the cache, or compiled and put there. A cache that cannot be written costs time, not the run. `module` is the graph's text
/// where it does not follow from the rest.
fn cached(
    source: &Source,
    request: &Request,
    module: &str,
    compile: impl FnOnce() -> anyhow::Result<Artefact>,
) -> anyhow::Result<Artefact> {
    let folder = std::path::absolute(&source.folder)?;
    let targets: Vec<&str> = request.targets.iter().map(|t| t.name()).collect();
    let file = cache::file(&[
        &source.hash(),
        &folder.to_string_lossy(),
        &request.entries.join(","),
        &targets.join(","),
        request.dtype.name(),
        &request.max_context.to_string(),
        &request.program.name,
        &request.tuning.to_string(),
        module,
    ]);
    if file.exists() {
        match Artefact::open(&file) {
            Ok(artefact) => return Ok(artefact),
            Err(e) => eprintln!("loopc: the cached artefact is not usable ({e}); compiling again"),
        }
    }
    let artefact = compile()?;
    let written = std::fs::create_dir_all(cache::folder())
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(artefact.write(&file)?));
    if let Err(e) = written {
        eprintln!("loopc: the artefact is not cached: {e:#}");
    }
    Ok(artefact)
}
