//! From a row of logits to the next token: greedy, or drawn after temperature, top-k and top-p. Knows no model.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SampleError {
    #[error("temperature {0}: it must be a finite number, 0 (greedy) or above")]
    Temperature(f32),
    #[error("top-p {0}: it must be above 0 and at most 1")]
    TopP(f32),
    #[error("top-k 0: at least one token must be left (leave the option out to keep all)")]
    TopK,
    #[error(
        "the logit of token {token} is {value}: the weights or the computation are broken (NaN or infinity in the checkpoint?)"
    )]
    NotANumber { token: usize, value: f32 },
    #[error("no logits to sample from")]
    Empty,
}

/// How to choose. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0: greedy, whatever the other fields say.
    pub temperature: f32,
    /// Only the k most likely tokens.
    pub top_k: Option<usize>,
    /// Only the most likely tokens that together reach this probability.
    pub top_p: Option<f32>,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            seed: 0,
        }
    }
}

/// Draws tokens for one sequence. The same `Sampling` and logits give the same tokens on every machine.
pub struct Sampler {
    how: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// `stream` separates the sequences of a batch, so that each draws its own numbers from the one seed.
    pub fn new(how: Sampling, stream: u64) -> Result<Sampler, SampleError> {
        if !(how.temperature.is_finite() && how.temperature >= 0.0) {
            return Err(SampleError::Temperature(how.temperature));
        }
        if let Some(p) = how.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(SampleError::TopP(p));
        }
        if how.top_k == Some(0) {
            return Err(SampleError::TopK);
        }
        let mut random = ChaCha8Rng::seed_from_u64(how.seed);
        random.set_stream(stream);
        Ok(Sampler { how, random })
    }

    /// The next token for one row of logits [vocab]. Of equal logits the lowest id counts as the larger.
    ///
    /// NaN and +infinity are refused; -infinity is a token that never comes (but one finite logit there must be).
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        if let Some((token, &value)) = logits
            .iter()
            .enumerate()
            .find(|(_, x)| x.is_nan() || **x == f32::INFINITY)
        {
            return Err(SampleError::NotANumber { token, value });
        }
        let best = argmax(logits).ok_or(SampleError::Empty)?;
        if logits[best] == f32::NEG_INFINITY {
            return Err(SampleError::NotANumber {
                token: best,
                value: logits[best],
            });
        }
        if self.how.temperature == 0.0 {
            return Ok(best as u32);
        }
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let keep = self.how.top_k.unwrap_or(usize::MAX).min(ids.len());
        if keep < ids.len() {
            ids.select_nth_unstable_by(keep - 1, order);
            ids.truncate(keep);
        }
        ids.sort_unstable_by(order);
        // In f64 and relative to the best, so that no temperature overflows.
        let top = f64::from(logits[best]);
        let weight = |id: u32| ((f64::from(logits[id as usize]) - top) / f64::from(self.how.temperature)).exp();
        let mut weights: Vec<f64> = ids.iter().map(|&id| weight(id)).collect();
        if let Some(p) = self.how.top_p {
            let wanted = f64::from(p) * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let full = weights.iter().position(|w| {
                sum += w;
                sum >= wanted
            });
            weights.truncate(full.map_or(weights.len(), |i| i + 1));
        }
        let mut rest = self.random.random::<f64>() * weights.iter().sum::<f64>();
        for (id, w) in ids.iter().zip(&weights) {
            if rest < *w {
                return Ok(*id);
            }
            rest -= w;
        }
        // Only rounding leads here: the last token with any weight.
        let last = weights.iter().rposition(|w| *w > 0.0).unwrap_or(0);
        Ok(ids[last])
    }
}

/// The first index of the largest value (NaN never wins).
fn argmax(values: &[f32]) -> Option<usize> {
    let mut best = None;
    for (i, x) in values.iter().enumerate() {
        if best.is_none_or(|b: usize| *x > values[b]) {
            best = Some(i);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(how: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(how, 0).unwrap();
        (0..n).map(|_| sampler.next(logits).unwrap()).collect()
    }

    fn hot(temperature: f32) -> Sampling {
        Sampling {
            temperature,
            seed: 7,
            ..Sampling::default()
        }
    }

    #[test]
    fn greedy_takes_the_largest_and_of_equals_the_lowest() {
        assert_eq!(draw(Sampling::default(), &[0.0, 3.0, -1.0, 3.0], 2), [1, 1]);
        assert_eq!(draw(Sampling::default(), &[f32::NEG_INFINITY, -5.0], 1), [1]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let n = 20_000;
        let drawn = draw(hot(1.0), &logits, n);
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        for (id, logit) in logits.iter().enumerate() {
            let seen = drawn.iter().filter(|t| **t as usize == id).count() as f64 / n as f64;
            let wanted = f64::from(*logit).exp() / total;
            assert!((seen - wanted).abs() < 0.015, "token {id}: {seen} instead of {wanted}");
        }
    }

    #[test]
    fn a_seed_fixes_the_tokens_and_another_changes_them() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.1).collect();
        let a = draw(hot(1.0), &logits, 40);
        assert_eq!(a, draw(hot(1.0), &logits, 40));
        assert_ne!(a, draw(Sampling { seed: 8, ..hot(1.0) }, &logits, 40));
        let mut other = Sampler::new(hot(1.0), 1).unwrap();
        assert_ne!(
            a,
            (0..40).map(|_| other.next(&logits).unwrap()).collect::<Vec<_>>(),
            "streams are independent"
        );
    }

    #[test]
    fn top_k_and_top_p_keep_only_the_likely_ones() {
        let logits = [1.0f32, 3.0, 2.0, 3.0, -9.0];
        let seen = |how| {
            draw(how, &logits, 400)
                .into_iter()
                .collect::<std::collections::BTreeSet<_>>()
        };
        let set = |ids: &[u32]| ids.iter().copied().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(
            seen(Sampling {
                top_k: Some(1),
                ..hot(5.0)
            }),
            set(&[1]),
            "of equals the lowest id"
        );
        assert_eq!(
            seen(Sampling {
                top_k: Some(2),
                ..hot(5.0)
            }),
            set(&[1, 3])
        );
        assert_eq!(
            seen(Sampling {
                top_k: Some(99),
                ..hot(50.0)
            }),
            set(&[0, 1, 2, 3, 4])
        );
        // Probabilities at temperature 1: 0.40 0.40 0.15 0.05 0.
        assert_eq!(
            seen(Sampling {
                top_p: Some(0.3),
                ..hot(1.0)
            }),
            set(&[1])
        );
        assert_eq!(
            seen(Sampling {
                top_p: Some(0.7),
                ..hot(1.0)
            }),
            set(&[1, 3])
        );
        assert_eq!(
            seen(Sampling {
                top_p: Some(0.9),
                ..hot(1.0)
            }),
            set(&[1, 2, 3])
        );
    }

    #[test]
    fn a_tiny_temperature_is_greedy_and_does_not_overflow() {
        assert_eq!(draw(hot(1e-40), &[1.0, 80.0, 79.9], 20), [1; 20]);
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for (logits, token) in [
            (vec![0.0, f32::NAN], 1),
            (vec![f32::INFINITY, 0.0], 0),
            (vec![f32::NEG_INFINITY; 2], 0),
        ] {
            let error = Sampler::new(Sampling::default(), 0).unwrap().next(&logits).unwrap_err();
            assert!(
                matches!(error, SampleError::NotANumber { token: t, .. } if t == token),
                "{logits:?}: {error}"
            );
        }
        assert_eq!(Sampler::new(hot(1.0), 0).unwrap().next(&[]), Err(SampleError::Empty));
        for how in [
            hot(-1.0),
            hot(f32::NAN),
            Sampling {
                top_p: Some(0.0),
                ..hot(1.0)
            },
            Sampling {
                top_p: Some(1.1),
                ..hot(1.0)
            },
        ] {
            assert!(Sampler::new(how, 0).is_err(), "{how:?}");
        }
        assert_eq!(
            Sampler::new(
                Sampling {
                    top_k: Some(0),
                    ..hot(1.0)
                },
                0
            )
            .err(),
            Some(SampleError::TopK)
        );
    }
}
