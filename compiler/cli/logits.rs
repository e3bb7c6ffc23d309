//! `loopc logits`: the logits of token sequences, as a safetensors file.

use std::path::PathBuf;

use anyhow::Context;

use crate::options::{self, Common, Tokens};
use crate::session::Session;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or an artefact
    model: PathBuf,
    /// Token ids; given several times: a batch of equal lengths
    #[arg(long, required = true, value_name = "1,2,3", value_parser = options::tokens)]
    tokens: Vec<Tokens>,
    /// Where to write tensor `logits` [B, T, vocab], f32
    #[arg(short, long)]
    output: PathBuf,
    /// The checkpoint's folder, if an artefact no longer finds it
    #[arg(long)]
    weights: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let rows = options::batch(&self.tokens)?;
        let (b, t) = (rows.len(), rows[0].len());
        let session = Session::open(&self.model, self.weights.as_deref(), &self.common)?;
        let logits = model::generate::logits(&session.engine, &session.config, session.max_context, &rows)?;
        let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
        let shape = vec![b, t, session.config.vocab as usize];
        runtime::weights::write_safetensors(&self.output, &[("logits", &shape, &bytes)])
            .with_context(|| format!("cannot write {}", self.output.display()))?;
        if self.common.json {
            println!("{}", serde_json::json!({ "output": self.output, "shape": shape }));
        } else {
            println!("{}: logits {shape:?}", self.output.display());
        }
        Ok(())
    }
}
