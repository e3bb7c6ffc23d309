//! `loopc eval`: next-token loss and perplexity on a text.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use model::tokenizer::Tokenizer;

use crate::options::Common;
use crate::session::Session;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or an artefact
    model: PathBuf,
    /// A text file in UTF-8
    #[arg(long)]
    text: PathBuf,
    /// Tokens of a window; each window is read on its own, its first token is not predicted
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    context: u32,
    /// Stop after this many tokens of the text
    #[arg(long)]
    max_tokens: Option<usize>,
    /// The checkpoint's folder, if an artefact no longer finds it
    #[arg(long)]
    weights: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub fn run(mut self) -> anyhow::Result<()> {
        let context = self.context as usize;
        self.common.max_context = self.common.max_context.max(context as i64);
        let text =
            std::fs::read_to_string(&self.text).with_context(|| format!("cannot read {}", self.text.display()))?;
        let session = Session::open(&self.model, self.weights.as_deref(), &self.common)?;
        let mut tokens = Tokenizer::from_folder(&session.folder)?.encode(&text, false)?;
        tokens.truncate(self.max_tokens.unwrap_or(usize::MAX));
        if tokens.len() < 2 {
            bail!(
                "{}: a loss needs at least 2 tokens, the text has {}",
                self.text.display(),
                tokens.len()
            );
        }
        let bar = ProgressBar::new(tokens.len() as u64);
        bar.set_style(ProgressStyle::with_template(
            "{bar:40} {pos}/{len} tokens, {per_sec}, {eta} left",
        )?);
        let start = Instant::now();
        let result = model::generate::eval_loss(
            &session.engine,
            &session.config,
            session.max_context,
            &tokens,
            context,
            &mut |n| bar.set_position(n as u64),
        )?;
        bar.finish_and_clear();
        let rate = tokens.len() as f64 / start.elapsed().as_secs_f64();
        if self.common.json {
            let report = serde_json::json!({
                "loss": result.loss, "perplexity": result.loss.exp(), "tokens": tokens.len(), "predictions": result.predictions,
                "context": context, "tokens_per_second": rate,
            });
            println!("{report}");
        } else {
            println!(
                "loss {:.6}  perplexity {:.4}  {} predictions in windows of {context}  {rate:.0} tokens/s",
                result.loss,
                result.loss.exp(),
                result.predictions
            );
        }
        Ok(())
    }
}
