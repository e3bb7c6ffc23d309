//! `loopc init`: a fresh checkpoint, with a tokenizer made from texts.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::value_parser;
use model::init::{Options, Vocabulary};
use model::weights;
use serde_json::{Map, Value, json};

use crate::documents;

#[derive(clap::Args)]
pub struct Args {
    /// The folder to write; it must not exist
    out: PathBuf,
    /// Texts to make a tokenizer from: .jsonl has an object per line, anything else is plain UTF-8
    #[arg(long, num_args = 1.., required_unless_present = "tokenizer", conflicts_with = "tokenizer")]
    text: Vec<PathBuf>,
    /// A tokenizer.json to take instead
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Entries of the tokenizer that is made
    #[arg(long, default_value_t = 2048, value_parser = value_parser!(u32).range(257..=1 << 20))]
    vocab: u32,
    /// The string of a .jsonl line that is the text
    #[arg(long, default_value = "text")]
    field: String,
    /// Of the weights: same seed, same bytes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A config.json to start from, of which the options below replace values
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
}

/// The defaults are those of a model that two cores train in minutes.
#[derive(clap::Args)]
#[command(next_help_heading = "Shape")]
struct Shape {
    /// Numbers of a token between layers [default: 192]
    #[arg(long)]
    hidden: Option<i64>,
    /// [default: 6]
    #[arg(long)]
    layers: Option<i64>,
    /// Query heads [default: 6]
    #[arg(long)]
    heads: Option<i64>,
    /// Heads of keys and values [default: 2]
    #[arg(long)]
    kv_heads: Option<i64>,
    /// [default: 32]
    #[arg(long)]
    head_dim: Option<i64>,
    /// Width of the MLP [default: 512]
    #[arg(long)]
    intermediate: Option<i64>,
    /// The longest text the model is made for [default: 1024]
    #[arg(long)]
    context: Option<i64>,
    /// base: plain; layer, restart, stack: with a second pass [default: base]
    #[arg(long, value_parser = ["base", "layer", "restart", "stack"])]
    mode: Option<String>,
    /// Keys that the local pass sees, the token itself included
    #[arg(long, default_value_t = 64, requires = "mode")]
    window: i64,
    /// Trips through the stack, for restart and stack
    #[arg(long, default_value_t = 2, requires = "mode")]
    loops: i64,
    /// The gates' first bias: sigmoid(bias) is the weight of the global pass
    #[arg(long, default_value_t = 4.0, allow_negative_numbers = true)]
    gate_bias: f32,
}

impl Shape {
    /// The values given, in place of those in `json`.
    fn apply(&self, json: &mut Map<String, Value>) {
        for (key, value) in [
            ("hidden_size", self.hidden),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate),
            ("max_position_embeddings", self.context),
        ] {
            if let Some(value) = value {
                json.insert(key.to_string(), value.into());
            }
        }
        if let Some(mode) = &self.mode {
            let value = json!({ "mode": mode, "window": self.window, "loops": self.loops });
            json.insert("loop_attention".to_string(), value);
        }
    }
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let (mut json, named) = match &self.config {
            Some(file) => (object(file)?, file.clone()),
            None => (model::init::small(), self.out.join("config.json")),
        };
        self.shape.apply(&mut json);
        let vocabulary = match self.tokenizer {
            Some(file) => Vocabulary::File(file),
            None => Vocabulary::Texts {
                texts: texts(&self.text, &self.field)?,
                entries: self.vocab as usize,
            },
        };
        let options = Options {
            seed: self.seed,
            gate_bias: self.shape.gate_bias,
        };
        let config = model::init::init(&self.out, json, &named, &vocabulary, &options)?;
        let parameters: i64 = weights::expected(&config)
            .values()
            .map(|s| s.iter().product::<i64>())
            .sum();
        println!(
            "{}: {parameters} parameters, vocabulary of {}",
            self.out.display(),
            config.vocab
        );
        Ok(())
    }
}

/// A JSON object; what is in it is checked later.
fn object(file: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => bail!("{} must be a JSON object", file.display()),
    }
}

/// The documents of all files, each file with some text.
fn texts(files: &[PathBuf], field: &str) -> anyhow::Result<Vec<String>> {
    let mut texts = vec![];
    for file in files {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let documents = documents::of(file, bytes, field)?;
        if documents.iter().all(|d| d.trim().is_empty()) {
            bail!(
                "{}: it has no text to make a tokenizer from; leave it out",
                file.display()
            );
        }
        texts.extend(documents);
    }
    Ok(texts)
}
