//! The entry points of a model behind one trait, and the compiled code as one implementation.
//!
//! Knows the entries' names and sizes (B, T, S); the loop around them is in `generate`.

use runtime::{Engine, Input, State};

use crate::Config;

pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What a runner can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub vocab: i64,
    /// Positions 0..max_context exist.
    pub max_context: i64,
    /// Slots of the local rings, if there are any: prompts that go round the ring must be prefilled without padding.
    pub ring: Option<i64>,
}

impl Limits {
    /// Of a model compiled for `max_context` positions.
    pub fn new(config: &Config, max_context: i64) -> Limits {
        let ring = config
            .attention
            .mode
            .trips()
            .then(|| config.attention.window.min(max_context));
        Limits {
            vocab: config.vocab,
            max_context,
            ring,
        }
    }
}

/// The entry points of a model. Matrices are row-major; `tokens` [batch, rows], results f32.
pub trait Runner {
    fn limits(&self) -> Limits;
    /// Forgets everything; from now on there are `batch` sequences of at most `capacity` tokens.
    fn begin(&mut self, batch: usize, capacity: usize) -> Result<(), Cause>;
    /// logits [batch, vocab] of row `last[b]` of each sequence, from position 0.
    fn prefill(&mut self, tokens: &[i32], last: &[i32]) -> Result<Vec<f32>, Cause>;
    /// As `prefill`, but only the token with the largest of each sequence's logits; see `best`.
    fn prefill_best(&mut self, _tokens: &[i32], _last: &[i32]) -> Result<Option<Vec<i32>>, Cause> {
        Ok(None)
    }
    /// logits [batch, vocab] after one more token per sequence, at position `start[b]`.
    fn decode(&mut self, tokens: &[i32], start: &[i32]) -> Result<Vec<f32>, Cause>;
    /// As `decode`, but only the token with the largest of each sequence's logits, -1 where they are no numbers. `None`: nobody but the
    /// caller can tell.
    fn best(&mut self, _tokens: &[i32], _start: &[i32]) -> Result<Option<Vec<i32>>, Cause> {
        Ok(None)
    }
    /// logits [batch, rows, vocab].
    fn logits(&mut self, batch: usize, tokens: &[i32]) -> Result<Vec<f32>, Cause>;
    /// Negative log likelihood [batch, rows] of the targets; 0 where the target is negative.
    fn loss(&mut self, batch: usize, tokens: &[i32], targets: &[i32]) -> Result<Vec<f32>, Cause>;
}

/// Compiled code with the caches of the current batch.
pub struct EngineRunner<'a> {
    engine: &'a Engine,
    limits: Limits,
    state: Option<State>,
}

impl<'a> EngineRunner<'a> {
    /// `max_context` is the one the code was compiled for.
    pub fn new(engine: &'a Engine, config: &Config, max_context: usize) -> EngineRunner<'a> {
        let limits = Limits::new(config, i64::try_from(max_context).unwrap_or(i64::MAX));
        EngineRunner {
            engine,
            limits,
            state: None,
        }
    }

    fn prefilled(&mut self, tokens: &[i32], last: &[i32], result: &str) -> Result<Vec<f32>, Cause> {
        let (batch, rows) = shape(last.len(), tokens);
        let sizes = [("B", batch), ("T", rows)];
        self.call("prefill", &sizes, &[("tokens", tokens), ("last", last)], result)
    }

    fn decoded(&mut self, tokens: &[i32], start: &[i32], result: &str) -> Result<Vec<f32>, Cause> {
        let keys = i64::from(start.iter().copied().max().unwrap_or(0)) + 1;
        // S only bounds the keys that are looked at: what a token sees goes by its position, so keys behind it change nothing.
        let capacity = self.state.as_ref().map_or(keys, |s| s.capacity);
        let keys = self.engine.keys(keys, capacity);
        let sizes = [("B", start.len() as i64), ("T", 1), ("S", keys)];
        self.call("decode", &sizes, &[("tokens", tokens), ("start", start)], result)
    }

    /// One call, for one of the entry's results.
    fn call(
        &mut self,
        entry: &str,
        sizes: &[(&str, i64)],
        inputs: &[(&str, &[i32])],
        result: &str,
    ) -> Result<Vec<f32>, Cause> {
        let inputs: Vec<(&str, Input)> = inputs.iter().map(|(name, ids)| (*name, Input::I32(ids))).collect();
        // Entries without caches do not care about them, but a batch that differs from the caches' would be refused.
        let state = self.state.as_mut().filter(|_| matches!(entry, "prefill" | "decode"));
        let mut outputs = self.engine.call_for(&[result], entry, sizes, &inputs, state)?;
        let output = outputs
            .remove(result)
            .ok_or_else(|| format!("entry {entry} has no result `{result}`; compile it again"))?;
        Ok(output.data)
    }
}

impl Runner for EngineRunner<'_> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn begin(&mut self, batch: usize, capacity: usize) -> Result<(), Cause> {
        // The old caches go first: never both.
        self.state = None;
        self.state = Some(self.engine.new_state(batch as i64, capacity as i64)?);
        Ok(())
    }

    fn prefill(&mut self, tokens: &[i32], last: &[i32]) -> Result<Vec<f32>, Cause> {
        self.prefilled(tokens, last, "logits")
    }

    fn prefill_best(&mut self, tokens: &[i32], last: &[i32]) -> Result<Option<Vec<i32>>, Cause> {
        // An artefact may be older than this result.
        if !self.engine.gives("prefill", "best") {
            return Ok(None);
        }
        let best = self.prefilled(tokens, last, "best")?;
        Ok(Some(best.into_iter().map(|x| x as i32).collect()))
    }

    fn decode(&mut self, tokens: &[i32], start: &[i32]) -> Result<Vec<f32>, Cause> {
        self.decoded(tokens, start, "logits")
    }

    fn best(&mut self, tokens: &[i32], start: &[i32]) -> Result<Option<Vec<i32>>, Cause> {
        let best = self.decoded(tokens, start, "best")?;
        Ok(Some(best.into_iter().map(|x| x as i32).collect()))
    }

    fn logits(&mut self, batch: usize, tokens: &[i32]) -> Result<Vec<f32>, Cause> {
        let (batch, rows) = shape(batch, tokens);
        self.call("logits", &[("B", batch), ("T", rows)], &[("tokens", tokens)], "logits")
    }

    fn loss(&mut self, batch: usize, tokens: &[i32], targets: &[i32]) -> Result<Vec<f32>, Cause> {
        let (batch, rows) = shape(batch, tokens);
        self.call(
            "loss",
            &[("B", batch), ("T", rows)],
            &[("tokens", tokens), ("targets", targets)],
            "nll",
        )
    }
}

/// B and T of a [batch, rows] matrix.
fn shape(batch: usize, tokens: &[i32]) -> (i64, i64) {
    (batch as i64, (tokens.len() / batch.max(1)) as i64)
}
