//! `loopc bench --train`: a training step, fused against op by op, by what is trained. The two take turns in one process.
//!
//! Op by op is the graph as it is written, a kernel an op on the same matmul kernels: all logits are stored.

use std::path::Path;

use anyhow::bail;
use model::train::{Recipe, Trainer, checkpoint};
use passes::Program;

use crate::options::Common;
use crate::rounds::Times;
use crate::session::Source;
use crate::step::Step;

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

pub fn run(
    model: &Path,
    trainables: &[String],
    (batch, context): (usize, usize),
    (rounds, alone): (u32, bool),
    common: &Common,
) -> anyhow::Result<Vec<Row>> {
    if !model.is_dir() {
        bail!(
            "{}: --train compiles, so it wants a Hugging Face folder",
            model.display()
        );
    }
    let source = Source::open(model)?;
    // What the tokens are changes no time.
    let tokens: Vec<u32> = (0..(4 * batch * context + 1) as i64)
        .map(|i| (i * 7919 % source.config.vocab) as u32)
        .collect();
    let mut rows = vec![];
    for trainable in trainables {
        let recipe = Recipe {
            trainable: trainable.clone(),
            batch,
            context,
            steps: u64::from(rounds) + 2,
            rate: 1e-6,
            ..Recipe::default()
        };
        let parsed = recipe.check()?;
        let mut engines = vec![];
        let programs = [Program::fused(), Program::op_by_op()];
        for program in programs.into_iter().take(if alone { 1 } else { 2 }) {
            let step = Step {
                source: &source,
                recipe: &recipe,
                wanted: &|name| parsed.includes(name),
                program: program.clone(),
                memory: u64::MAX,
                emit: vec![],
            };
            engines.push((program.name, step.engine(common)?));
        }
        let mut trainers = vec![];
        for (_, engine) in &engines {
            let mut trainer = Trainer::new(engine, recipe.clone(), tokens.clone(), source.config.vocab)?;
            checkpoint::begin(&mut trainer.state, &source.checkpoint)?;
            trainers.push((trainer, Times::default()));
        }
        // A device may have no room for op by op, which keeps every product of attention.
        if let Some(Err(e)) = trainers.get_mut(1).map(|(trainer, _)| trainer.advance()) {
            eprintln!("{trainable}, {}: {e:#}; it is left out", engines[1].0);
            trainers.pop();
        }
        for round in 0..=rounds {
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
        for ((program, engine), (trainer, times)) in engines.iter().zip(&trainers) {
            let rate = |seconds: f64| (batch * context) as f64 / seconds;
            rows.push(Row {
                trainable: trainable.clone(),
                program: program.clone(),
                tokens_per_second: rate(times.best()),
                tokens_per_second_median: rate(times.median()),
                of_fused: times.over(&fused),
                planned_bytes: engine.planned(&[]).unwrap_or(0) + trainer.state.bytes(),
            });
        }
    }
    Ok(rows)
}

pub fn print(rows: &[Row]) {
    println!(
        "{:14} {:10} {:>12} {:>10} {:>9} {:>16} {:>11}",
        "trainable", "program", "tok/s, best", "median", "x fused", "least to most", "planned MB"
    );
    for r in rows {
        let [of_fused, least, most] = r.of_fused;
        println!(
            "{:14} {:10} {:>12.1} {:>10.1} {:>9.2} {:>8.2} to {:>4.2} {:>11.0}",
            r.trainable,
            r.program,
            r.tokens_per_second,
            r.tokens_per_second_median,
            of_fused,
            least,
            most,
            1e-6 * r.planned_bytes as f64
        );
    }
}
