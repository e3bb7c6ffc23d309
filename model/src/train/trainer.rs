//! The loop around the compiled step. Says what happened; shows nothing and decides nothing about files.

use runtime::engine::{Engine, Input, Output, State};

use super::data::Windows;
use super::{Recipe, checkpoint};
use crate::gradients::Batch;
use crate::graph::training::PARAM;

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("{tokens} tokens, and a window takes {wanted}; give more text or a smaller context")]
    TooShort { tokens: usize, wanted: usize },
    #[error("token id {id} is out of range; the model has ids 0 to {last}")]
    Id { id: u32, last: i64 },
    #[error("step {step}: {what} is {value}; lower the rate, clip to a smaller norm, or warm up longer")]
    Diverged { step: u64, what: String, value: f64 },
    #[error(transparent)]
    Runtime(#[from] runtime::RuntimeError),
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
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
    /// Where its windows begin in the text, micro-batch after micro-batch.
    pub windows: Vec<usize>,
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

fn finite(step: u64, what: &str, value: f64) -> Result<(), TrainError> {
    if value.is_finite() {
        return Ok(());
    }
    let what = what.to_string();
    Err(TrainError::Diverged { step, what, value })
}

fn check_ids(tokens: &[u32], vocab: i64) -> Result<(), TrainError> {
    match tokens.iter().find(|id| i64::from(**id) >= vocab) {
        Some(&id) => Err(TrainError::Id { id, last: vocab - 1 }),
        None => Ok(()),
    }
}

/// Whole windows, and ids that the model has? Asked before anything is compiled.
pub fn check_text(tokens: &[u32], context: usize, vocab: i64) -> Result<(), TrainError> {
    if tokens.len() <= context {
        return Err(TrainError::TooShort {
            tokens: tokens.len(),
            wanted: context + 1,
        });
    }
    check_ids(tokens, vocab)
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
        check_text(&tokens, recipe.context, vocab)?;
        let windows = Windows::new(tokens, recipe.context, recipe.seed);
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

    /// The windows of the run from the `first` on, as many as a micro-batch has, and where they begin in the text.
    fn batch(&mut self, first: u64) -> (Batch, Vec<usize>) {
        let (rows, context) = (self.recipe.batch, self.recipe.context);
        let weight = 1.0 / (rows * self.recipe.accumulate * context) as f32;
        let mut batch = Batch {
            rows,
            tokens: vec![],
            targets: vec![],
            weights: vec![weight; rows * context],
        };
        let offsets: Vec<usize> = (first..first + rows as u64).map(|n| self.windows.offset(n)).collect();
        for at in &offsets {
            let ids: Vec<i32> = self.windows.at(*at).iter().map(|id| *id as i32).collect();
            batch.tokens.extend(&ids[..context]);
            batch.targets.extend(&ids[1..]);
        }
        (batch, offsets)
    }

    /// Runs a micro-batch; with `hyper` the optimizer too. Gives the loss, and the norm of the gradients that the optimizer had.
    fn call(&mut self, batch: &Batch, hyper: Option<&[f32]>) -> Result<(f64, f64), TrainError> {
        let mut inputs: Vec<(&str, Input)> = batch.inputs().into();
        inputs.extend(hyper.map(|h| ("hyper", Input::F32(h))));
        let entry = if hyper.is_some() { "train_step" } else { "accumulate" };
        let results = self.engine.call(entry, &[], &inputs, Some(&mut self.state))?;
        Ok((first(&results, "loss"), first(&results, "norm")))
    }

    /// One update of the trained tensors.
    pub fn advance(&mut self) -> Result<Step, TrainError> {
        let (rows, parts) = (self.recipe.batch, self.recipe.accumulate);
        let step = self.step + 1;
        let hyper = self.recipe.hyper(step).values();
        let (mut loss, mut norm) = (0.0, f64::NAN);
        let mut windows = vec![];
        for part in 0..parts {
            let (batch, offsets) = self.batch(((step - 1) * parts as u64 + part as u64) * rows as u64);
            let (one, of_all) = self.call(&batch, (part + 1 == parts).then_some(&hyper[..]))?;
            loss += one;
            norm = of_all;
            windows.extend(offsets);
        }
        finite(step, "the loss", loss)?;
        finite(step, "the norm of its gradients", norm)?;
        self.step = step;
        Ok(Step {
            step,
            loss,
            norm,
            part: self.recipe.part(step),
            tokens: rows * parts * self.recipe.context,
            windows,
        })
    }

    /// Is what the last step left worth a checkpoint? A step tells loss and norm before its update: that the update was too large
    /// shows in the masters, or in the loss and the norm that they have next.
    pub fn check(&mut self) -> Result<(), TrainError> {
        for name in self.state.names().filter(|n| n.starts_with(PARAM)) {
            for piece in checkpoint::pieces(&self.state, name) {
                if let Some(x) = piece?.iter().find(|x| !x.is_finite()) {
                    finite(self.step, &name[PARAM.len()..], f64::from(*x))?;
                }
            }
        }
        let next = self.step + 1;
        let (batch, _) = self.batch(self.step * (self.recipe.batch * self.recipe.accumulate) as u64);
        let (loss, norm) = self.call(&batch, Some(&self.recipe.hyper(next).still()))?;
        finite(next, "the loss", loss)?;
        finite(next, "the norm of its gradients", norm)
    }

    /// Mean loss on a text, as `loopc eval` has it: windows of the recipe's context that do not overlap, the last one may be shorter.
    pub fn validate(&mut self, tokens: &[u32]) -> Result<f64, TrainError> {
        let (rows, context) = (self.recipe.batch, self.recipe.context);
        let windows: Vec<&[u32]> = tokens.chunks(context).filter(|w| w.len() > 1).collect();
        let (mut sum, mut count) = (0.0, 0usize);
        for batch in windows.chunks(rows) {
            // The entry is compiled for whole batches: what is missing has no targets.
            let (mut ids, mut targets) = (vec![0; rows * context], vec![-1; rows * context]);
            for (row, window) in batch.iter().enumerate() {
                for (i, id) in window.iter().enumerate() {
                    ids[row * context + i] = *id as i32;
                    if i > 0 {
                        targets[row * context + i - 1] = *id as i32;
                    }
                }
                count += window.len() - 1;
            }
            let inputs = [("tokens", Input::I32(&ids)), ("targets", Input::I32(&targets))];
            let results = self.engine.call("loss", &[], &inputs, Some(&mut self.state))?;
            let nll = results.get("nll").map_or(&[][..], |o| &o.data);
            sum += nll.iter().map(|x| f64::from(*x)).sum::<f64>();
        }
        let loss = sum / count as f64;
        finite(self.step, "the validation loss", loss)?;
        Ok(loss)
    }
}
