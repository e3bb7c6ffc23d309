//! `loopc logits`: the logits of token sequences, as a safetensors file.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::options::{self, Common};
use crate::session::Session;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or an artefact
    model: PathBuf,
    /// Token ids; given several times: a batch of equal lengths
    #[arg(long, required = true, value_name = "1,2,3", value_parser = parse)]
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

#[derive(Clone)]
struct Tokens(Vec<i32>);

fn parse(text: &str) -> Result<Tokens, String> {
    options::tokens(text).map(Tokens)
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let (b, t) = (self.tokens.len(), self.tokens[0].0.len());
        if self.tokens.iter().any(|row| row.0.len() != t) {
            bail!("--tokens: sequences of unequal lengths have no common logits tensor; run them one by one");
        }
        let session = Session::open(&self.model, self.weights.as_deref(), &self.common)?;
        let rows: Vec<Vec<u32>> = self
            .tokens
            .iter()
            .map(|row| row.0.iter().map(|&t| t as u32).collect())
            .collect();
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
