//! Token windows in a shuffled order: which windows a step reads follows from the seed and the step's number alone.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// A tokenised text, cut into windows of `context` + 1 tokens that overlap by one, so that every token but the first is predicted once.
pub struct Windows {
    tokens: Vec<u32>,
    context: usize,
    seed: u64,
    /// Of the epoch that was asked for last.
    order: Option<(u64, Vec<u32>)>,
}

impl Windows {
    /// `None` if there is not one whole window.
    pub fn new(tokens: Vec<u32>, context: usize, seed: u64) -> Option<Windows> {
        let windows = Windows {
            tokens,
            context,
            seed,
            order: None,
        };
        (windows.count() > 0).then_some(windows)
    }

    /// Windows of an epoch; what is left at the end of the text is not used.
    pub fn count(&self) -> usize {
        self.tokens.len().saturating_sub(1) / self.context
    }

    /// The `n`-th window of the run, epoch after epoch, each in an order of its own.
    pub fn window(&mut self, n: u64) -> &[u32] {
        let count = self.count();
        let (epoch, place) = (n / count as u64, (n % count as u64) as usize);
        if self.order.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let mut order: Vec<u32> = (0..count as u32).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch);
            order.shuffle(&mut rng);
            self.order = Some((epoch, order));
        }
        let at = self.order.as_ref().map_or(0, |(_, order)| order[place] as usize) * self.context;
        &self.tokens[at..at + self.context + 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_predicted_once_an_epoch() {
        let mut windows = Windows::new((0..103).collect(), 10, 7).unwrap();
        assert_eq!(windows.count(), 10);
        let epoch =
            |w: &mut Windows, e: u64| -> Vec<Vec<u32>> { (0..10).map(|i| w.window(e * 10 + i).to_vec()).collect() };
        let (first, second) = (epoch(&mut windows, 0), epoch(&mut windows, 1));
        assert_ne!(first, second);
        for windows in [&first, &second] {
            let mut targets: Vec<u32> = windows.iter().flat_map(|w| w[1..].to_vec()).collect();
            targets.sort();
            assert_eq!(targets, (1..=100).collect::<Vec<u32>>());
        }
        // Out of order gives the same: a run that goes on needs no history.
        assert_eq!(windows.window(3).to_vec(), first[3]);
        let mut other = Windows::new((0..103).collect(), 10, 8).unwrap();
        assert_ne!(epoch(&mut other, 0), first);
        assert!(Windows::new((0..10).collect(), 10, 7).is_none());
    }
}
