//! The compiled training step of a model: what `loopc train` runs and `loopc bench --train` compares. Trains nothing.

use std::path::PathBuf;

use compiler::pipeline::Stage;
use ir::DType;
use model::train::Recipe;
use passes::Program;
use runtime::engine::Engine;

use crate::options::Common;
use crate::session::{Request, Source};

pub struct Step<'a> {
    pub source: &'a Source,
    pub recipe: &'a Recipe,
    /// Whose gradients.
    pub wanted: &'a dyn Fn(&str) -> bool,
    pub program: Program,
    /// Bytes of activations that are kept for the backward.
    pub memory: u64,
    pub emit: Vec<(Stage, PathBuf)>,
}

impl Step<'_> {
    /// With the entry points `train_step`, `loss` and, for micro-batches, `accumulate`.
    pub fn engine(&self, common: &Common) -> anyhow::Result<Engine> {
        let (module, request) = self.module(common)?;
        let artefact = self.source.compile_module(module, &request)?;
        trim();
        Ok(Engine::load(&artefact, &self.source.checkpoint, common.engine())?)
    }

    /// What `engine` runs, by entry point.
    pub fn plans(&self, common: &Common) -> anyhow::Result<Vec<ir::plan::Plan>> {
        let (module, request) = self.module(common)?;
        self.source.plans_of(module, &request)
    }

    fn module(&self, common: &Common) -> anyhow::Result<(ir::Module, Request)> {
        let (source, recipe, wanted) = (self.source, self.recipe, self.wanted);
        let mut entries = vec!["train_step".to_string(), "loss".to_string()];
        entries.extend((recipe.accumulate > 1).then(|| "accumulate".to_string()));
        let request = Request {
            entries,
            targets: vec![common.target()?],
            dtype: common.dtype(),
            max_context: recipe.context as i64,
            program: self.program.clone(),
            tuning: common.tuning()?,
            emit: self.emit.clone(),
        };
        let mut options = source.graph_options(&request);
        if wanted("model.embed_tokens.weight") {
            // The trained table is f32, and so is the one of the checkpoint that is written.
            options.embedding = DType::F32;
        }
        let rewrite = |module| request.program.forward(module).map_err(|e| e.to_string());
        let objective = model::graph::Objective {
            batch: recipe.batch,
            context: recipe.context,
            wanted,
            memory: self.memory,
            logits: request.logits(),
            rewrite: &rewrite,
        };
        let module = model::graph::training::training(&source.config, &options, &objective, recipe.accumulate > 1)?;
        Ok((module, request))
    }
}

/// Gives back what tokenising and compiling have freed: the allocator would keep it beside all that the plan counts.
fn trim() {
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
