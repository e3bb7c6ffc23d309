//! `loopc train`: a recipe's run, from text files to a checkpoint, with its metrics.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use model::config::Mode;
use model::graph::training::Group;
use model::train::{Recipe, Trainer, checkpoint};
use runtime::Device;
use serde::{Deserialize, Serialize};

use crate::options::{self, Common};
use crate::session::Source;
use crate::step::Step;
use crate::tensorboard::Writer;
use crate::tokens;

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

/// A line of metrics.jsonl.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_part: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    validation: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    /// Where the step's windows begin in the text, in tokens: with the recipe, all that a replay of the run needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    windows: Option<Vec<usize>>,
}

/// A run's folder.
struct Run<'a> {
    folder: &'a Path,
    source: &'a Source,
    recipe: &'a Recipe,
    lines: Vec<Line>,
    metrics: fs::File,
    board: Writer,
    /// The step of the checkpoint that is there.
    saved: Option<u64>,
}

/// The run's folder for this process alone, as long as the file is open.
fn claim(folder: &Path) -> anyhow::Result<fs::File> {
    let held = fs::File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
    match held.try_lock() {
        Err(fs::TryLockError::WouldBlock) => bail!("{}: another loopc trains there now", folder.display()),
        // A file system without locks is no reason not to train.
        _ => Ok(held),
    }
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
        for (kernel, count, time) in engine.profile(false).into_iter().take(25) {
            eprintln!("{:9.3} s  {count:6} x  {kernel}", time.as_secs_f64());
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

impl Run<'_> {
    /// Metrics after the step that the run goes on from are dropped: those steps are taken again.
    fn open<'a>(
        folder: &'a Path,
        source: &'a Source,
        recipe: &'a Recipe,
        saved: Option<u64>,
    ) -> anyhow::Result<Run<'a>> {
        let path = folder.join("metrics.jsonl");
        let known = saved.and_then(|_| fs::read_to_string(&path).ok()).unwrap_or_default();
        // What a kill cut short is no line; the others stay to the letter.
        let (mut lines, mut text) = (vec![], String::new());
        for known in known.lines() {
            match serde_json::from_str::<Line>(known) {
                Ok(line) if Some(line.step) <= saved => {
                    text += known;
                    text.push('\n');
                    lines.push(line);
                }
                _ => {}
            }
        }
        runtime::weights::write_whole(&path, &[text.as_bytes()])?;
        let metrics = fs::OpenOptions::new().append(true).open(&path);
        Ok(Run {
            folder,
            source,
            recipe,
            lines,
            metrics: metrics.with_context(|| format!("cannot write {}", path.display()))?,
            board: Writer::create(&folder.join("tensorboard"), saved.unwrap_or(0))?,
            saved,
        })
    }

    fn note(&mut self, line: Line) -> anyhow::Result<()> {
        let text = serde_json::to_string(&line)? + "\n";
        let written = self.metrics.write_all(text.as_bytes());
        written.with_context(|| format!("{}: {}", self.folder.join("metrics.jsonl").display(), self.kept()))?;
        let scalars = [
            ("loss/train", line.loss),
            ("loss/validation", line.validation),
            ("gradient_norm", line.gradient_norm),
            ("rate", line.rate_part.map(|part| part * self.recipe.rate)),
            ("tokens_per_second", line.tokens_per_second),
        ];
        self.board.scalars(line.step, &scalars)?;
        self.lines.push(line);
        Ok(())
    }

    /// What is left when the run fails.
    fn kept(&self) -> String {
        match self.saved {
            Some(step) => format!("the checkpoint of step {step} is kept"),
            None => "there is no checkpoint yet".to_string(),
        }
    }

    /// Until the recipe's last step or Ctrl-C; says whether it was the former.
    fn train(&mut self, trainer: &mut Trainer, held_out: &[u32]) -> anyhow::Result<bool> {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        // A second handler is refused: there is one run per process.
        ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;
        let bar = ProgressBar::new(self.recipe.steps);
        bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left")?);
        bar.set_position(trainer.step);
        bar.reset_eta();
        if trainer.step == 0 {
            self.validate(trainer, held_out)?;
        }
        let due = |every: u64, step: u64| every > 0 && step.is_multiple_of(every);
        while trainer.step < self.recipe.steps && !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            let step = trainer.advance().with_context(|| self.kept())?;
            let rate = step.tokens as f64 / start.elapsed().as_secs_f64();
            self.note(Line {
                step: step.step,
                loss: Some(step.loss),
                gradient_norm: Some(step.norm),
                rate_part: Some(step.part),
                validation: None,
                tokens_per_second: Some(rate),
                windows: Some(step.windows),
            })?;
            bar.set_message(format!("loss {:.4}  {rate:.0} tokens/s", step.loss));
            bar.set_position(step.step);
            if due(self.recipe.validate_every, step.step) && step.step < self.recipe.steps {
                self.validate(trainer, held_out)?;
            }
            if due(self.recipe.checkpoint_every, step.step) && step.step < self.recipe.steps {
                self.save(trainer)?;
            }
        }
        let finished = trainer.step >= self.recipe.steps;
        if finished {
            self.validate(trainer, held_out)?;
        }
        self.save(trainer)?;
        bar.finish_and_clear();
        Ok(finished)
    }

    fn validate(&mut self, trainer: &mut Trainer, held_out: &[u32]) -> anyhow::Result<()> {
        // A run that goes on at its end has been here before.
        let known = self
            .lines
            .iter()
            .any(|l| l.step == trainer.step && l.validation.is_some());
        if held_out.is_empty() || known {
            return Ok(());
        }
        let loss = trainer.validate(held_out).with_context(|| self.kept())?;
        self.note(Line {
            step: trainer.step,
            loss: None,
            gradient_norm: None,
            rate_part: None,
            validation: Some(loss),
            tokens_per_second: None,
            windows: None,
        })
    }

    fn save(&mut self, trainer: &mut Trainer) -> anyhow::Result<()> {
        if self.saved == Some(trainer.step) {
            return Ok(());
        }
        trainer.check().with_context(|| self.kept())?;
        self.metrics.sync_all()?;
        let place = self.folder.join("checkpoint");
        checkpoint::write(
            &place,
            &self.source.checkpoint,
            &trainer.state,
            self.recipe,
            trainer.step,
        )
        .with_context(|| format!("no checkpoint of step {}: {}", trainer.step, self.kept()))?;
        self.saved = Some(trainer.step);
        self.plot().context("loss.svg")
    }

    /// loss.svg: training loss by step, validation as dots.
    fn plot(&self) -> anyhow::Result<()> {
        use plotters::prelude::*;
        let points = |of: &dyn Fn(&Line) -> Option<f64>| -> Vec<(f64, f64)> {
            self.lines
                .iter()
                .filter_map(|l| Some((l.step as f64, of(l)?)))
                .collect()
        };
        let (loss, validation) = (points(&|l| l.loss), points(&|l| l.validation));
        let both = || loss.iter().chain(&validation).map(|p| p.1);
        let (low, high) = (
            both().fold(f64::INFINITY, f64::min),
            both().fold(f64::NEG_INFINITY, f64::max),
        );
        if low > high {
            return Ok(());
        }
        let path = self.folder.join("loss.svg");
        let beside = path.with_extension("svg.part");
        {
            let area = SVGBackend::new(&beside, (900, 450)).into_drawing_area();
            area.fill(&WHITE)?;
            let margin = 0.05 * (high - low).max(1e-3);
            let mut chart = ChartBuilder::on(&area)
                .margin(10)
                .x_label_area_size(35)
                .y_label_area_size(55)
                .build_cartesian_2d(0.0..self.recipe.steps as f64, low - margin..high + margin)?;
            chart.configure_mesh().x_desc("step").y_desc("loss, nats").draw()?;
            let blue = RGBColor(90, 120, 190);
            chart
                .draw_series(LineSeries::new(loss, blue))?
                .label("training")
                .legend(move |(x, y)| Circle::new((x + 8, y), 3, blue.filled()));
            let dots = validation.into_iter().map(|p| Circle::new(p, 4, RED.filled()));
            chart
                .draw_series(dots)?
                .label("validation")
                .legend(|(x, y)| Circle::new((x + 8, y), 4, RED.filled()));
            chart
                .configure_series_labels()
                .border_style(BLACK)
                .background_style(WHITE)
                .draw()?;
            area.present()?;
        }
        fs::rename(&beside, path)?;
        Ok(())
    }
}
