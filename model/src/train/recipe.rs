//! What a training run does, as a TOML file says it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::graph::training::{Group, Hyper};
use crate::trainable::Trainable;

/// A training run. Every key has a default; `recipes/*.toml` in the project are examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// `gates`, `gates+norms`, `all`, or a regular expression over tensor names.
    pub trainable: String,
    /// Tokens of a window; each predicts the next one.
    pub context: usize,
    /// Windows of a micro-batch, which go through the model at once.
    pub batch: usize,
    /// Micro-batches of a step.
    pub accumulate: usize,
    pub steps: u64,
    /// Of the order of windows. Same seed, same bits.
    pub seed: u64,
    pub rate: f64,
    pub decay: f64,
    pub gates: GroupRecipe,
    pub norms: GroupRecipe,
    pub rest: GroupRecipe,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Gradients are scaled to at most this global norm.
    pub clip: f64,
    pub schedule: Schedule,
    /// Steps in which the rate rises from 0.
    pub warmup: u64,
    /// The schedule ends at this part of the rate.
    pub floor: f64,
    /// Steps between validations; 0: only at the end.
    pub validate_every: u64,
    /// Tokens of the validation text that are used at most.
    pub validate_tokens: usize,
    /// Steps between checkpoints; 0: only at the end.
    pub checkpoint_every: u64,
}

/// What a group of tensors has of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupRecipe {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay: Option<f64>,
}

/// How the learning rate goes from its top to its floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    Linear,
    Cosine,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            trainable: "gates".to_string(),
            context: 512,
            batch: 1,
            accumulate: 1,
            steps: 1000,
            seed: 0,
            rate: 1e-3,
            decay: 0.0,
            gates: GroupRecipe::default(),
            norms: GroupRecipe::default(),
            rest: GroupRecipe::default(),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip: 1.0,
            schedule: Schedule::Cosine,
            warmup: 0,
            floor: 0.1,
            validate_every: 100,
            validate_tokens: 100_000,
            checkpoint_every: 100,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}", path = path.display())]
    Toml { path: PathBuf, reason: String },
    #[error("{key} = {value}: {wanted}")]
    Value {
        key: &'static str,
        value: String,
        wanted: &'static str,
    },
}

impl Recipe {
    pub fn from_file(path: &Path) -> Result<Recipe, RecipeError> {
        let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        toml::from_str(&text).map_err(|e| RecipeError::Toml {
            path: path.to_path_buf(),
            reason: e.to_string().trim_end().to_string(),
        })
    }

    /// Says which value makes no sense.
    pub fn check(&self) -> Result<Trainable, RecipeError> {
        let wrong = |key, value: String, wanted| Err(RecipeError::Value { key, value, wanted });
        for (key, n, least) in [
            ("context", self.context as u64, 2),
            ("batch", self.batch as u64, 1),
            ("accumulate", self.accumulate as u64, 1),
            ("steps", self.steps, 1),
        ] {
            if n < least {
                return wrong(key, n.to_string(), "it must be larger");
            }
        }
        let groups = [("gates", self.gates), ("norms", self.norms), ("rest", self.rest)];
        let own = groups.iter().flat_map(|(key, g)| [(*key, g.rate), (*key, g.decay)]);
        let own = own.filter_map(|(key, x)| Some((key, x?)));
        let numbers = [
            ("rate", self.rate),
            ("decay", self.decay),
            ("eps", self.eps),
            ("clip", self.clip),
            ("floor", self.floor),
        ];
        for (key, x) in numbers.into_iter().chain(own) {
            if x.is_nan() || x < 0.0 {
                return wrong(key, x.to_string(), "it must not be negative");
            }
        }
        for (key, x) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&x) {
                return wrong(key, x.to_string(), "it must be from 0 to below 1");
            }
        }
        match self.trainable.parse() {
            Ok(trainable) => Ok(trainable),
            Err(_) => wrong(
                "trainable",
                self.trainable.clone(),
                "it must be gates, gates+norms, all, or a regular expression over tensor names",
            ),
        }
    }

    /// The part of the rate that step `step` (from 1) takes.
    pub fn part(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let rest = self.steps.saturating_sub(self.warmup).max(1);
        let done = ((step - self.warmup) as f64 / rest as f64).min(1.0);
        let left = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 + 0.5 * (std::f64::consts::PI * done).cos(),
        };
        if self.schedule == Schedule::Constant {
            1.0
        } else {
            self.floor + (1.0 - self.floor) * left
        }
    }

    /// What the compiled step is told at step `step` (from 1).
    pub fn hyper(&self, step: u64) -> Hyper {
        let part = self.part(step);
        let own = |g: Group| match g {
            Group::Gates => self.gates,
            Group::Norms => self.norms,
            Group::Rest => self.rest,
        };
        // Norms and gates are not shrunk unless the recipe says so.
        let decay = |g: Group| own(g).decay.unwrap_or(if g == Group::Rest { self.decay } else { 0.0 });
        Hyper {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            clip: self.clip,
            step,
            rate: Group::ALL.map(|g| own(g).rate.unwrap_or(self.rate) * part),
            decay: Group::ALL.map(decay),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        let recipe = |schedule| Recipe {
            schedule,
            steps: 110,
            warmup: 10,
            floor: 0.1,
            ..Recipe::default()
        };
        for (schedule, middle, end) in [
            (Schedule::Constant, 1.0, 1.0),
            (Schedule::Linear, 0.55, 0.1),
            (Schedule::Cosine, 0.55, 0.1),
        ] {
            let r = recipe(schedule);
            let near = |step, wanted: f64| assert!((r.part(step) - wanted).abs() < 1e-12, "{schedule:?} at {step}");
            near(1, 0.1);
            near(10, 1.0);
            near(60, middle);
            near(110, end);
            near(200, end);
        }
    }

    #[test]
    fn groups_have_their_own_rates() {
        let recipe: Recipe =
            toml::from_str("rate = 0.5\ndecay = 0.2\nschedule = \"constant\"\n[gates]\nrate = 2.0").unwrap();
        let hyper = recipe.hyper(1);
        assert_eq!(hyper.rate, [2.0, 0.5, 0.5]);
        assert_eq!(hyper.decay, [0.0, 0.0, 0.2]);
        assert_eq!(
            toml::from_str::<Recipe>(&toml::to_string(&recipe).unwrap()).unwrap(),
            recipe
        );
    }

    #[test]
    fn nonsense_is_told() {
        assert!(
            toml::from_str::<Recipe>("ratte = 1")
                .unwrap_err()
                .to_string()
                .contains("ratte")
        );
        for (text, key) in [
            ("context = 1", "context"),
            ("beta2 = 1.0", "beta2"),
            ("rate = -1.0", "rate"),
            ("trainable = \"(\"", "trainable"),
        ] {
            let recipe: Recipe = toml::from_str(text).unwrap();
            assert!(recipe.check().unwrap_err().to_string().starts_with(key), "{text}");
        }
    }
}
