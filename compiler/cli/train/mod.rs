//! `loopc train`: a recipe's run, from text files to a checkpoint, with its metrics.

mod folder;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use model::config::Mode;
use model::graph::training::Group;
use model::train::{Recipe, Trainer, checkpoint};
use runtime::Device;

use crate::options::{self, Common};
use crate::session::Source;
use crate::step::Step;
use crate::tokens;
use folder::{Line, Run, claim};

#[derive(clap::Args)]
pub struct Args {
    /// The Hugging Face folder to start from
    model: PathBuf,
    /// Text files: .jsonl has an object per line, Parquet a column; anything else is plain UTF-8
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Held-out text files
    #[arg(long, num_args = 1..)]
    validation: Vec<PathBuf>,
    /// The run's folder: checkpoint/ (a Hugging Face folder), metrics.jsonl, tensorboard/, loss.svg
    #[arg(short, long)]
    output: PathBuf,
    /// What to do, as TOML; the options below replace its values
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Go on from the run's checkpoint, bit for bit
    #[arg(long)]
    resume: bool,
    /// gates, gates+norms, all, or a regular expression over tensor names
    #[arg(long)]
    trainable: Option<String>,
    /// Tokens of a window
    #[arg(long)]
    context: Option<usize>,
    /// Windows of a micro-batch
    #[arg(long)]
    batch: Option<usize>,
    /// Micro-batches of a step
    #[arg(long)]
    accumulate: Option<usize>,
    #[arg(long)]
    steps: Option<u64>,
    /// Learning rate of all groups that have none of their own
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long)]
    seed: Option<u64>,
    /// Bytes of activations to keep for the backward, for example 2G; what has no room is computed again
    #[arg(long, value_parser = options::bytes)]
    memory_limit: Option<u64>,
    /// Write a stage's files, as `loopc compile` does: STAGE=DIR
    #[arg(long, value_name = "STAGE=DIR")]
    emit: Vec<String>,
    /// The string of a .jsonl line, or the column of a Parquet file, that is the text
    #[arg(long, default_value = "text")]
    field: String,
    #[command(flatten)]
    common: Common,
}

impl Args {
    fn recipe(&self) -> anyhow::Result<Recipe> {
        let kept = self.output.join("checkpoint").join(checkpoint::RECIPE_FILE);
        let mut recipe = match &self.recipe {
            Some(path) => Recipe::from_file(path)?,
            None if self.resume => Recipe::from_file(&kept)?,
            None => Recipe::default(),
        };
        if let Some(trainable) = &self.trainable {
            recipe.trainable = trainable.clone();
        }
        recipe.context = self.context.unwrap_or(recipe.context);
        recipe.batch = self.batch.unwrap_or(recipe.batch);
        recipe.accumulate = self.accumulate.unwrap_or(recipe.accumulate);
        recipe.steps = self.steps.unwrap_or(recipe.steps);
        recipe.rate = self.rate.unwrap_or(recipe.rate);
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        Ok(recipe)
    }

    pub fn run(self) -> anyhow::Result<()> {
        let place = self.output.join("checkpoint");
        let held = self.output.exists().then(|| claim(&self.output)).transpose()?;
        match (checkpoint::find(&place)?, self.resume) {
            (true, false) => {
                bail!(
                    "{} holds a run; go on with --resume, or choose another --output",
                    self.output.display()
                )
            }
            (false, true) => bail!(
                "{}: no checkpoint to resume; begin the run without --resume",
                place.display()
            ),
            _ => {}
        }
        let recipe = self.recipe()?;
        let trainable = recipe.check()?;
        let source = Source::open(&self.model)?;
        let wanted = |name: &str| trainable.includes(name);
        let tensors = model::weights::expected(&source.config);
        let trained: Vec<&String> = tensors.keys().filter(|name| wanted(name)).collect();
        if trained.is_empty() {
            bail!(
                "trainable = {trainable}: {} has no such tensor; choose gates, gates+norms, all, or a regular expression",
                self.model.display()
            );
        }
        // In `layer` both passes see the same keys then; the other modes' passes have keys of their own.
        let attention = &source.config.attention;
        if attention.mode == Mode::Layer && recipe.context as i64 <= attention.window {
            let gates = |name: &&String| Group::of(name) == Group::Gates;
            let reason = format!(
                "context = {}: the model's window of {} covers it, so that both passes see the same and gates learn nothing; take a \
                 longer context, or retrofit with a smaller window",
                recipe.context, attention.window
            );
            match trained.iter().all(gates) {
                true => bail!(reason),
                false if trained.iter().any(gates) => eprintln!("loopc: {reason}"),
                false => {}
            }
        }
        let end = source.config.eos.first().copied();
        let of = |files: &[PathBuf]| tokens::of_files(files, &self.field, &source.folder, end);
        let train = of(&self.data)?;
        let checked = |tokens: &[u32], files: &[PathBuf], what: &str| {
            let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
            let checked = model::train::check_text(tokens, recipe.context, source.config.vocab);
            checked.with_context(|| format!("{what} {}", names.join(" ")))
        };
        checked(&train, &self.data, "--data")?;
        let mut held_out = of(&self.validation)?;
        // As `loopc eval` reads a text: nothing is predicted behind its end.
        held_out.pop_if(|last| end == Some(*last));
        held_out.truncate(recipe.validate_tokens);
        if !self.validation.is_empty() {
            checked(&held_out, &self.validation, "--validation")?;
        }

        let mut emit = vec![];
        for text in &self.emit {
            emit.extend(options::emit(text)?);
        }
        let step = Step {
            source: &source,
            recipe: &recipe,
            wanted: &wanted,
            program: self.common.program(),
            memory: self.memory_limit.unwrap_or(u64::MAX),
            emit,
        };
        let engine = step.engine(&self.common)?;
        let mut trainer = Trainer::new(&engine, recipe.clone(), train, source.config.vocab)?;
        if self.resume {
            trainer.step = checkpoint::resume(&mut trainer.state, &source.checkpoint, &place)?;
            if trainer.step > recipe.steps {
                bail!(
                    "{}: it is of step {}, and steps = {}",
                    place.display(),
                    trainer.step,
                    recipe.steps
                );
            }
        } else {
            checkpoint::begin(&mut trainer.state, &source.checkpoint)?;
            fs::create_dir_all(&self.output).with_context(|| format!("cannot make {}", self.output.display()))?;
        }
        let _held = held.map_or_else(|| claim(&self.output), Ok)?;
        let mut run = Run::open(&self.output, &source, &recipe, self.resume.then_some(trainer.step))?;
        engine.profile(self.common.verbose);
        let finished = run.train(&mut trainer, &held_out)?;
        for r in engine.profile(false).into_iter().take(25) {
            eprintln!(
                "{:9.3} s  {:6} x  {}, {}",
                r.time.as_secs_f64(),
                r.count,
                r.entry,
                r.ran.function
            );
        }
        let planned = engine.planned(&[]).map(|n| n + trainer.state.bytes());
        let peak = match self.common.device {
            Device::Cpu => peak_resident(),
            // Nothing of a GPU's is given back before the end.
            Device::Cuda(_) => Some(engine.usage().weights + engine.usage().arena + trainer.state.bytes()),
        };
        self.report(&run, &trainer, finished, [planned, peak])
    }

    /// `memory`: bytes of weights, states and working memory as they were planned, and the most that was held.
    fn report(&self, run: &Run, trainer: &Trainer, finished: bool, memory: [Option<usize>; 2]) -> anyhow::Result<()> {
        let [planned, peak] = memory;
        let last = |of: &dyn Fn(&Line) -> Option<f64>| run.lines.iter().rev().find_map(of);
        let (loss, validation) = (last(&|l| l.loss), last(&|l| l.validation));
        let first = run.lines.iter().find_map(|l| l.validation);
        let checkpoint = self.output.join("checkpoint");
        if self.common.json {
            let report = serde_json::json!({
                "checkpoint": checkpoint, "step": trainer.step, "finished": finished, "loss": loss,
                "validation_before": first, "validation": validation, "planned_bytes": planned, "peak_bytes": peak,
            });
            println!("{report}");
            return Ok(());
        }
        let shown = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.4}"));
        println!(
            "{}: step {} of {}, loss {}, validation {} (before: {})",
            checkpoint.display(),
            trainer.step,
            run.recipe.steps,
            shown(loss),
            shown(validation),
            shown(first),
        );
        if let (Some(planned), Some(peak)) = (planned, peak) {
            let gib = |n: usize| n as f64 / (1u64 << 30) as f64;
            println!("memory: {:.2} GiB planned, {:.2} GiB at most", gib(planned), gib(peak));
        }
        if !finished {
            println!("stopped; go on with --resume");
        }
        Ok(())
    }
}

/// The process's largest resident set so far, as Linux tells it.
fn peak_resident() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}
