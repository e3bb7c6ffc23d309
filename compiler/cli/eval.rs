//! `loopc eval`: next-token loss and perplexity on a text; where in a window the loss falls, and where the gates look.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use model::generate::Loss;
use model::tokenizer::Tokenizer;
use runtime::engine::Engine;

use crate::metrics::Watch;
use crate::options::Common;
use crate::session::{Request, Session, Source};
use crate::{documents, tokens};

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or an artefact
    model: PathBuf,
    /// A text file in UTF-8, JSON lines (.jsonl) or Parquet
    #[arg(long)]
    text: PathBuf,
    /// The string of a .jsonl line, or the column of a Parquet file, that is the text
    #[arg(long, default_value = "text")]
    field: String,
    /// Tokens of a window; each window is read on its own, its first token is not predicted
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    context: u32,
    /// Stop after this many tokens of the text
    #[arg(long)]
    max_tokens: Option<usize>,
    /// Loss by how many tokens of the window a prediction has seen
    #[arg(long)]
    positions: bool,
    /// Mean gate by layer and head: 1 looks at everything, 0 at the window. Compiles MODEL, which must be a folder
    #[arg(long)]
    gates: bool,
    /// Draw the gates as a heat map
    #[arg(long, value_name = "FILE.svg", requires = "gates")]
    plot: Option<PathBuf>,
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
        if let Some(plot) = self.plot.as_ref().filter(|p| p.extension().is_none_or(|e| e != "svg")) {
            bail!("--plot {}: the picture is an SVG; end its name in .svg", plot.display());
        }
        let bytes = std::fs::read(&self.text).with_context(|| format!("cannot read {}", self.text.display()))?;
        let text = documents::of(&self.text, bytes, &self.field)?;
        let session = if self.gates {
            self.gated()?
        } else {
            Session::open(&self.model, self.weights.as_deref(), &self.common)?
        };
        let mut tokens = tokens::of_documents(&Tokenizer::from_folder(&session.folder)?, &text, None)?;
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
        let mut watch = Watch::new(&session.engine, &session.config, session.max_context);
        let result = model::generate::eval_loss_on(&mut watch, &tokens, context, &mut |n| bar.set_position(n as u64))?;
        bar.finish_and_clear();
        let rate = tokens.len() as f64 / start.elapsed().as_secs_f64();
        if let (Some(path), Some(gates)) = (&self.plot, &watch.gates) {
            let name = self.model.file_name().unwrap_or_default().to_string_lossy();
            gates
                .plot(path, &name)
                .with_context(|| format!("cannot draw {}", path.display()))?;
        }
        if self.common.json {
            println!("{}", self.json(&result, &watch, tokens.len(), rate));
            return Ok(());
        }
        println!(
            "loss {:.6}  perplexity {:.4}  {} predictions in windows of {context}  {rate:.0} tokens/s",
            result.loss, result.perplexity, result.predictions
        );
        if self.positions {
            print!("{}", watch.positions.table());
        }
        if let Some(gates) = &watch.gates {
            print!("{}", gates.table(session.config.attention.window));
        }
        Ok(())
    }

    fn json(&self, result: &Loss, watch: &Watch, tokens: usize, rate: f64) -> serde_json::Value {
        let mut report = serde_json::json!({
            "loss": result.loss, "perplexity": result.perplexity, "tokens": tokens, "predictions": result.predictions,
            "context": self.context, "tokens_per_second": rate,
        });
        if self.positions {
            report["positions"] = watch.positions.json();
        }
        if let Some(gates) = &watch.gates {
            report["gates"] = gates.json();
        }
        report
    }

    /// Code that tells the gates; it has no other entry point, and no artefact holds it.
    fn gated(&self) -> anyhow::Result<Session> {
        if !self.model.is_dir() {
            bail!(
                "{}: --gates compiles, so it wants a Hugging Face folder",
                self.model.display()
            );
        }
        let source = Source::open(&self.model)?;
        let request = Request {
            entries: vec!["gates".to_string()],
            targets: vec![self.common.target()?],
            dtype: self.common.dtype(),
            max_context: self.common.max_context,
            program: self.common.program(),
            tuning: self.common.tuning()?,
            emit: vec![],
        };
        let module = model::graph::gates::gates(&source.config, &source.graph_options(&request))
            .with_context(|| self.model.display().to_string())?;
        let artefact = source.compile_module(module, &request)?;
        let engine = Engine::load(&artefact, &source.checkpoint, self.common.engine())?;
        Ok(Session {
            engine,
            max_context: artefact.header.max_context as usize,
            config: source.config,
            folder: source.folder,
        })
    }
}
