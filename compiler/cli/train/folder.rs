//! A run's folder: metrics, TensorBoard events, the plot and the checkpoint, and the loop that fills it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use model::train::{Recipe, Trainer, checkpoint};
use serde::{Deserialize, Serialize};

use crate::session::Source;
use crate::tensorboard::Writer;

/// A line of metrics.jsonl.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_part: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    /// Where the step's windows begin in the text, in tokens: with the recipe, all that a replay of the run needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    windows: Option<Vec<usize>>,
}

/// A run's folder.
pub struct Run<'a> {
    folder: &'a Path,
    source: &'a Source,
    pub recipe: &'a Recipe,
    pub lines: Vec<Line>,
    metrics: fs::File,
    board: Writer,
    /// The step of the checkpoint that is there.
    saved: Option<u64>,
}

/// The run's folder for this process alone, as long as the file is open.
pub fn claim(folder: &Path) -> anyhow::Result<fs::File> {
    let held = fs::File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
    match held.try_lock() {
        Err(fs::TryLockError::WouldBlock) => bail!("{}: another loopc trains there now", folder.display()),
        // A file system without locks is no reason not to train.
        _ => Ok(held),
    }
}

impl Run<'_> {
    /// Metrics after the step that the run goes on from are dropped: those steps are taken again.
    pub fn open<'a>(
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
    pub fn train(&mut self, trainer: &mut Trainer, held_out: &[u32]) -> anyhow::Result<bool> {
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
