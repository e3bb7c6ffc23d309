//! The loss of token sequences and its gradients, through the entry point `gradients`. Does not change a weight.

use std::collections::BTreeMap;

use runtime::engine::{Engine, Input, Output};

use crate::Config;
use crate::generate::{GenerateError, check_equal};
use crate::runner::Limits;

/// A loss and where it comes from.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Mean next-token cross entropy in nats.
    pub loss: f32,
    /// d loss / d tensor, by the tensor's name in the checkpoint.
    pub tensors: BTreeMap<String, Output>,
}

/// Inputs of an entry that computes a mean loss: tokens, targets and weights [B, T].
pub struct Batch {
    pub rows: usize,
    pub tokens: Vec<i32>,
    pub targets: Vec<i32>,
    pub weights: Vec<f32>,
}

impl Batch {
    /// Every token but a sequence's first is predicted; all predictions weigh the same. Sequences are equally long and not empty.
    pub fn next_token(sequences: &[Vec<u32>]) -> Batch {
        let t = sequences.first().map_or(0, Vec::len);
        let weight = 1.0 / (sequences.len() * (t - 1).max(1)) as f32;
        let ids = |s: &[u32]| s.iter().map(|id| *id as i32).collect::<Vec<_>>();
        let ahead = |s: &Vec<u32>| [ids(&s[1..]), vec![-1]].concat();
        Batch {
            rows: sequences.len(),
            tokens: sequences.iter().flat_map(|s| ids(s)).collect(),
            targets: sequences.iter().flat_map(ahead).collect(),
            weights: vec![weight; sequences.len() * t],
        }
    }

    pub fn inputs(&self) -> [(&'static str, Input<'_>); 3] {
        [
            ("tokens", Input::I32(&self.tokens)),
            ("targets", Input::I32(&self.targets)),
            ("weights", Input::F32(&self.weights)),
        ]
    }
}

/// Of equally long sequences of at least 2 tokens: as many and as long as the entry was compiled for.
pub fn gradients(
    engine: &Engine,
    config: &Config,
    max_context: usize,
    sequences: &[Vec<u32>],
) -> Result<Gradients, GenerateError> {
    let limits = Limits::new(config, i64::try_from(max_context).unwrap_or(i64::MAX));
    check_equal(sequences, &limits)?;
    if sequences[0].len() < 2 {
        return Err(GenerateError::NothingToPredict(sequences[0].len()));
    }
    let batch = Batch::next_token(sequences);
    let results = engine
        .call("gradients", &[], &batch.inputs(), None)
        .map_err(|e| GenerateError::Run(Box::new(e)))?;
    let mut tensors = BTreeMap::new();
    let mut loss = f32::NAN;
    for (name, output) in results {
        match name.strip_prefix(ir::gradient::GRAD) {
            Some(tensor) => drop(tensors.insert(tensor.to_string(), output)),
            None => loss = output.data[0],
        }
    }
    if !loss.is_finite() {
        return Err(GenerateError::Loss { at: 0, value: loss });
    }
    Ok(Gradients { loss, tensors })
}
