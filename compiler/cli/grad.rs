//! `loopc grad`: the loss of token sequences and its gradients, as a safetensors file.

use std::path::PathBuf;

use anyhow::Context;
use model::trainable::Trainable;
use runtime::engine::Engine;

use crate::options::{self, Common, Tokens};
use crate::session::{Request, Source};

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder
    model: PathBuf,
    /// Token ids; given several times: a batch of equal lengths
    #[arg(long, required = true, value_name = "1,2,3", value_parser = options::tokens)]
    tokens: Vec<Tokens>,
    /// Whose gradients: gates, gates+norms, all, or a regular expression over tensor names
    #[arg(long, default_value = "all")]
    trainable: Trainable,
    /// Bytes of activations to keep for the backward, for example 2G; what has no room is computed again
    #[arg(long, value_parser = options::bytes)]
    memory_limit: Option<u64>,
    /// Where to write `loss` [] (mean next-token cross entropy) and `grad.NAME` for every trainable tensor, f32
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let rows = options::batch(&self.tokens)?;
        let source = Source::open(&self.model)?;
        let request = Request {
            entries: vec!["gradients".to_string()],
            targets: vec![self.common.target()?],
            dtype: self.common.dtype(),
            max_context: self.common.max_context,
            program: self.common.program(),
            tuning: self.common.tuning()?,
            emit: vec![],
        };
        let wanted = |name: &str| self.trainable.includes(name);
        let rewrite = |module| request.program.forward(module).map_err(|e| e.to_string());
        let objective = model::graph::Objective {
            batch: rows.len(),
            context: rows[0].len(),
            wanted: &wanted,
            memory: self.memory_limit.unwrap_or(u64::MAX),
            logits: request.logits(),
            rewrite: &rewrite,
        };
        let module = model::graph::gradients(&source.config, &source.graph_options(&request), &objective)?;
        let artefact = source.compile_module(module, &request)?;
        let engine = Engine::load(&artefact, &source.checkpoint, self.common.engine())?;
        let max_context = artefact.header.max_context as usize;
        let found = model::gradients::gradients(&engine, &source.config, max_context, &rows)?;

        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let mut tensors = vec![("loss".to_string(), vec![], bytes(&[found.loss]))];
        for (name, grad) in &found.tensors {
            let shape = grad.shape.iter().map(|n| *n as usize).collect();
            tensors.push((format!("grad.{name}"), shape, bytes(&grad.data)));
        }
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, shape, data)| (name.as_str(), shape, data))
            .collect();
        runtime::weights::write_safetensors(&self.output, &views)
            .with_context(|| format!("cannot write {}", self.output.display()))?;
        if self.common.json {
            let report =
                serde_json::json!({ "output": self.output, "loss": found.loss, "tensors": found.tensors.len() });
            println!("{report}");
        } else {
            let output = self.output.display();
            println!(
                "{output}: loss {:.6}, gradients of {} tensors",
                found.loss,
                found.tensors.len()
            );
        }
        Ok(())
    }
}
