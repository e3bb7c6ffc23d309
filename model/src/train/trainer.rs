//! The loop around the compiled step. Says what happened; shows nothing and decides nothing about files.

use runtime::engine::{Engine, Input, Output, State};

use super::Recipe;
use super::data::Windows;
use crate::gradients::Batch;

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("the text has {tokens} tokens, a window takes {wanted}; give more text or a smaller context")]
    TooShort { tokens: usize, wanted: usize },
    #[error("token id {id} is out of range; the model has ids 0 to {last}")]
    Id { id: u32, last: i64 },
    #[error("step {step}: the loss is {loss}; lower the rate, or clip")]
    Diverged { step: u64, loss: f64 },
    #[error(transparent)]
    Runtime(#[from] runtime::RuntimeError),
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// From 1.
    pub step: u64,
    /// Mean next-token cross entropy of the step's windows, before the update.
    pub loss: f64,
    /// Of the gradients, before clipping.
    pub norm: f64,
    /// The schedule's part of the rates.
    pub part: f64,
    pub tokens: usize,
}

/// A run on its way: the compiled step, the trained tensors, and where in the data it is.
pub struct Trainer<'a> {
    engine: &'a Engine,
    recipe: Recipe,
    pub state: State,
    windows: Windows,
    /// Steps taken.
    pub step: u64,
}

fn check_ids(tokens: &[u32], vocab: i64) -> Result<(), TrainError> {
    match tokens.iter().find(|id| i64::from(**id) >= vocab) {
        Some(&id) => Err(TrainError::Id { id, last: vocab - 1 }),
        None => Ok(()),
    }
}

fn first(results: &std::collections::HashMap<String, Output>, name: &str) -> f64 {
    results
        .get(name)
        .and_then(|o| o.data.first())
        .map_or(f64::NAN, |x| f64::from(*x))
}

impl<'a> Trainer<'a> {
    /// States are zeros: `checkpoint::begin` or `checkpoint::resume` fills them.
    pub fn new(engine: &'a Engine, recipe: Recipe, tokens: Vec<u32>, vocab: i64) -> Result<Trainer<'a>, TrainError> {
        check_ids(&tokens, vocab)?;
        let found = tokens.len();
        let windows = Windows::new(tokens, recipe.context, recipe.seed);
        let windows = windows.ok_or(TrainError::TooShort {
            tokens: found,
            wanted: recipe.context + 1,
        })?;
        Ok(Trainer {
            engine,
            state: engine.new_state(recipe.batch as i64, 1)?,
            recipe,
            windows,
            step: 0,
        })
    }

    /// Windows of an epoch.
    pub fn windows(&self) -> usize {
        self.windows.count()
    }

    /// One update of the trained tensors.
    pub fn advance(&mut self) -> Result<Step, TrainError> {
        let (rows, parts) = (self.recipe.batch, self.recipe.accumulate);
        let step = self.step + 1;
        let weight = 1.0 / (rows * parts * self.recipe.context) as f32;
        let hyper = self.recipe.hyper(step).values();
        let (mut loss, mut norm) = (0.0, f64::NAN);
        for part in 0..parts {
            let mut batch = Batch {
                rows,
                tokens: vec![],
                targets: vec![],
                weights: vec![weight; rows * self.recipe.context],
            };
            for row in 0..rows {
                let n = ((step - 1) * parts as u64 + part as u64) * rows as u64 + row as u64;
                let ids: Vec<i32> = self.windows.window(n).iter().map(|id| *id as i32).collect();
                batch.tokens.extend(&ids[..ids.len() - 1]);
                batch.targets.extend(&ids[1..]);
            }
            let mut inputs: Vec<(&str, Input)> = batch.inputs().into();
            let last = part + 1 == parts;
            if last {
                inputs.push(("hyper", Input::F32(&hyper)));
            }
            let entry = if last { "train_step" } else { "accumulate" };
            let results = self.engine.call(entry, &[], &inputs, Some(&mut self.state))?;
            loss += first(&results, "loss");
            norm = first(&results, "norm");
        }
        if !(loss.is_finite() && norm.is_finite()) {
            return Err(TrainError::Diverged { step, loss });
        }
        self.step = step;
        Ok(Step {
            step,
            loss,
            norm,
            part: self.recipe.part(step),
            tokens: rows * parts * self.recipe.context,
        })
    }

    /// Mean loss on a text, in windows of the recipe's context.
    pub fn validate(&mut self, tokens: &[u32]) -> Result<f64, TrainError> {
        let (rows, context) = (self.recipe.batch, self.recipe.context);
        let windows: Vec<&[u32]> = tokens.windows(context + 1).step_by(context).collect();
        let (mut sum, mut count) = (0.0, 0usize);
        for batch in windows.chunks(rows) {
            // The step is compiled for whole batches: what is missing has no targets.
            let mut tokens: Vec<i32> = batch.iter().flat_map(|w| &w[..context]).map(|id| *id as i32).collect();
            let mut targets: Vec<i32> = batch.iter().flat_map(|w| &w[1..]).map(|id| *id as i32).collect();
            tokens.resize(rows * context, 0);
            targets.resize(rows * context, -1);
            let inputs = [("tokens", Input::I32(&tokens)), ("targets", Input::I32(&targets))];
            let results = self.engine.call("loss", &[], &inputs, Some(&mut self.state))?;
            let nll = results.get("nll").map_or(&[][..], |o| &o.data);
            sum += nll.iter().map(|x| f64::from(*x)).sum::<f64>();
            count += batch.len() * context;
        }
        Ok(sum / count as f64)
    }
}
