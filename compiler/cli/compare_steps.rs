//! `loopc bench --train`: a training step, fused against op by op, by what is trained. The two take turns in one process.
//!
//! Op by op is the graph as it is written, a kernel an op on the same matmul kernels: all logits are stored.

use std::io::{self, Write};
use std::path::Path;

use anyhow::bail;
use ir::Sizes;
use model::train::{Recipe, Trainer, checkpoint};
use passes::Program;

use crate::ceilings::Ceilings;
use crate::kernels::{self, Counted};
use crate::options::Common;
use crate::rounds::Times;
use crate::session::{Request, Source};
use crate::step::Step;
use crate::trace;

#[derive(serde::Serialize)]
pub struct Row {
    pub trainable: String,
    pub program: String,
    /// Of the best step, and of the median.
    pub tokens_per_second: f64,
    pub tokens_per_second_median: f64,
    /// Time over the fused program's, by rounds: the median, the least and the most.
    pub of_fused: [f64; 3],
    /// Weights, states and working memory.
    pub planned_bytes: usize,
}

/// What to measure.
pub struct Steps<'a> {
    /// What is trained, one after the other.
    pub trainables: &'a [String],
    pub batch: usize,
    pub context: usize,
    pub rounds: u32,
    /// The fused program and no other.
    pub alone: bool,
    /// A step of the fused program by kernel.
    pub kernels: bool,
    /// Where every kernel's run in such a step is written.
    pub trace: Option<&'a Path>,
}

#[derive(serde::Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
    /// By what is trained.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<(String, Vec<kernels::Row>)>,
}

impl Steps<'_> {
    pub fn run(&self, model: &Path, common: &Common) -> anyhow::Result<Report> {
        if !model.is_dir() {
            bail!(
                "{}: --train compiles, so it wants a Hugging Face folder",
                model.display()
            );
        }
        if let (Some(path), [_, _, ..]) = (self.trace, self.trainables) {
            bail!("--trace {}: it holds one step; name one thing to train", path.display());
        }
        let source = Source::open(model)?;
        // What the tokens are changes no time.
        let tokens: Vec<u32> = (0..(4 * self.batch * self.context + 1) as i64)
            .map(|i| (i * 7919 % source.config.vocab) as u32)
            .collect();
        let mut report = Report {
            rows: vec![],
            kernels: vec![],
        };
        for trainable in self.trainables {
            let (rows, kernels) = self.one(trainable, &source, &tokens, common)?;
            report.rows.extend(rows);
            report.kernels.extend(kernels.map(|k| (trainable.clone(), k)));
        }
        Ok(report)
    }

    fn one(
        &self,
        trainable: &str,
        source: &Source,
        tokens: &[u32],
        common: &Common,
    ) -> anyhow::Result<(Vec<Row>, Option<Vec<kernels::Row>>)> {
        let recipe = Recipe {
            trainable: trainable.to_string(),
            batch: self.batch,
            context: self.context,
            steps: u64::from(self.rounds) + 3,
            rate: 1e-6,
            ..Recipe::default()
        };
        let parsed = recipe.check()?;
        let wanted = |name: &str| parsed.includes(name);
        let step = |program: Program| Step {
            source,
            recipe: &recipe,
            wanted: &wanted,
            program,
            memory: u64::MAX,
            emit: vec![],
        };
        // While the device has room for it.
        let limits = match self.kernels {
            true => Some(Ceilings::new(source, &Request::new(common)?, common)?.measure()?),
            false => None,
        };
        let programs = [Program::fused(), Program::op_by_op()];
        let mut engines = vec![];
        for program in programs.into_iter().take(if self.alone { 1 } else { 2 }) {
            engines.push((program.name.clone(), step(program).engine(common)?));
        }
        let mut trainers = vec![];
        for (_, engine) in &engines {
            let mut trainer = Trainer::new(engine, recipe.clone(), tokens.to_vec(), source.config.vocab)?;
            checkpoint::begin(&mut trainer.state, &source.checkpoint)?;
            trainers.push((trainer, Times::default()));
        }
        // A device may have no room for op by op, which keeps every product of attention.
        if let Some(Err(e)) = trainers.get_mut(1).map(|(trainer, _)| trainer.advance()) {
            eprintln!("{trainable}, {}: {e:#}; it is left out", engines[1].0);
            trainers.pop();
        }
        for round in 0..=self.rounds {
            for (trainer, times) in &mut trainers {
                let start = std::time::Instant::now();
                trainer.advance()?;
                // The first round warms up.
                if round > 0 {
                    times.push(start.elapsed().as_secs_f64());
                }
            }
        }
        let fused = trainers[0].1.clone();
        let mut rows = vec![];
        for ((program, engine), (trainer, times)) in engines.iter().zip(&trainers) {
            let rate = |seconds: f64| (self.batch * self.context) as f64 / seconds;
            rows.push(Row {
                trainable: trainable.to_string(),
                program: program.clone(),
                tokens_per_second: rate(times.best()),
                tokens_per_second_median: rate(times.median()),
                of_fused: times.over(&fused),
                planned_bytes: engine.planned(&[]).unwrap_or(0) + trainer.state.bytes(),
            });
        }
        let engine = &engines[0].1;
        if !self.kernels && self.trace.is_none() {
            return Ok((rows, None));
        }
        // One more step is taken apart.
        engine.trace(true);
        engine.profile(true);
        trainers[0].0.advance()?;
        let functions = engine.profile(false);
        let spans = engine.trace(false);
        if let Some(path) = self.trace {
            trace::write(path, &engine.machine(), &spans)?;
        }
        let Some(limits) = limits else {
            return Ok((rows, None));
        };
        let plans = step(Program::fused()).plans(common)?;
        let counted = plans.iter().find(|p| p.entry == "train_step").map(|plan| Counted {
            plan,
            sizes: Sizes::new(),
            limits,
        });
        Ok((rows, Some(kernels::rows(&functions, counted.as_ref()))))
    }
}

impl Report {
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "{:14} {:10} {:>12} {:>10} {:>9} {:>16} {:>11}",
            "trainable", "program", "tok/s, best", "median", "x fused", "least to most", "planned MB"
        )?;
        for r in &self.rows {
            let [of_fused, least, most] = r.of_fused;
            writeln!(
                out,
                "{:14} {:10} {:>12.1} {:>10.1} {:>9.2} {:>8.2} to {:>4.2} {:>11.0}",
                r.trainable,
                r.program,
                r.tokens_per_second,
                r.tokens_per_second_median,
                of_fused,
                least,
                most,
                1e-6 * r.planned_bytes as f64
            )?;
        }
        for (trainable, rows) in &self.kernels {
            writeln!(out, "\n{trainable}")?;
            kernels::print(out, rows)?;
        }
        Ok(())
    }
}
