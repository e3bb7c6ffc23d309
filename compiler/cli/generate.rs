//! `loopc generate`: continue a prompt, streamed to the terminal.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use model::generate::{self, Request};
use model::sample::Sampling;
use model::tokenizer::Tokenizer;

use crate::options::Common;
use crate::session::Session;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or an artefact
    model: PathBuf,
    /// The text to continue; given several times: a batch
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// Put the prompt into the checkpoint's own chat template, as the user's message
    #[arg(long)]
    chat: bool,
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// 0: always the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Choose among the K likeliest tokens
    #[arg(long)]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long)]
    top_p: Option<f32>,
    /// Same seed, same tokens
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The checkpoint's folder, if an artefact no longer finds it
    #[arg(long)]
    weights: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let session = Session::open(&self.model, self.weights.as_deref(), &self.common)?;
        let tokenizer = Tokenizer::from_folder(&session.folder)?;
        let prompts = self.prompt.iter().map(|text| match self.chat {
            true => tokenizer
                .encode(&model::chat::prompt(&session.folder, text)?, false)
                .map_err(anyhow::Error::from),
            false => tokenizer.encode(text, true).map_err(anyhow::Error::from),
        });
        let prompts: Vec<Vec<u32>> = prompts.collect::<anyhow::Result<_>>()?;
        let request = Request {
            max_new_tokens: self.max_new_tokens,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed,
            },
            stop: session.config.eos.clone(),
        };
        // One sequence streams; a batch is printed when it is done.
        let stream = prompts.len() == 1 && !self.common.json;
        let mut text = tokenizer.stream();
        let mut out = std::io::stdout().lock();
        let mut failed = None;
        if stream && !self.chat {
            write!(out, "{}", self.prompt[0])?;
        }
        let start = Instant::now();
        let mut first = None;
        let done = generate::generate(
            &session.engine,
            &session.config,
            session.max_context,
            &prompts,
            &request,
            &mut |_, token| {
                first.get_or_insert_with(|| start.elapsed());
                if stream && failed.is_none() {
                    let piece = text.push(token);
                    failed = write!(out, "{piece}").and_then(|()| out.flush()).err();
                }
            },
        )?;
        if let Some(e) = failed {
            return Err(e.into());
        }
        let (first, total) = (first.unwrap_or_default().as_secs_f64(), start.elapsed().as_secs_f64());
        let new: usize = done.iter().map(|d| d.tokens.len()).sum();
        let decoded = new.saturating_sub(done.len());
        let rate = if decoded > 0 && total > first {
            decoded as f64 / (total - first)
        } else {
            0.0
        };
        if self.common.json {
            let mut rows = vec![];
            for (prompt, d) in prompts.iter().zip(&done) {
                rows.push(serde_json::json!({
                    "prompt_tokens": prompt, "tokens": d.tokens, "text": tokenizer.decode(&d.tokens)?, "finish": d.finish.name(),
                }));
            }
            let mut report = match rows.len() {
                1 => rows.remove(0),
                _ => serde_json::json!({ "sequences": rows }),
            };
            report["prefill_seconds"] = first.into();
            report["decode_tokens_per_second"] = rate.into();
            writeln!(out, "{report}")?;
            return Ok(());
        }
        if stream {
            writeln!(out, "{}", text.finish())?;
        } else {
            for (prompt, d) in self.prompt.iter().zip(&done) {
                writeln!(
                    out,
                    "{}{}\n",
                    if self.chat { "" } else { prompt },
                    tokenizer.decode(&d.tokens)?
                )?;
            }
        }
        if self.common.verbose {
            eprintln!("first token after {first:.3} s, then {rate:.1} tokens/s");
        }
        Ok(())
    }
}
