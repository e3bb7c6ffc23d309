//! Times of programs that take turns. What else a machine does comes and goes within seconds, so only times of one round are compared:
//! a ratio is the median of the rounds' ratios.

/// Seconds of one program, round by round.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<f64>);

impl Times {
    pub fn push(&mut self, seconds: f64) {
        self.0.push(seconds);
    }

    pub fn best(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// This time over another's, round by round: the median, the least and the most.
    pub fn over(&self, other: &Times) -> [f64; 3] {
        let ratios: Vec<f64> = self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        [median(ratios), least, most]
    }

    /// The larger of two times in every round: neither limit can be beaten.
    pub fn larger(&self, by: f64, other: &Times, other_by: f64) -> Times {
        let both = self.0.iter().zip(&other.0);
        Times(both.map(|(a, b)| (a * by).max(b * other_by)).collect())
    }
}

/// Of an even number: the mean of the two in the middle.
fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    let n = v.len();
    match n {
        0 => f64::NAN,
        _ => (v[(n - 1) / 2] + v[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_minute_hits_both_sides() {
        let quiet = Times(vec![1.0, 1.0, 10.0]);
        let other = Times(vec![2.0, 2.0, 20.0]);
        assert_eq!(other.over(&quiet), [2.0, 2.0, 2.0]);
        assert_eq!((other.best(), other.median()), (2.0, 2.0));
        assert_eq!(Times(vec![4.0, 1.0]).median(), 2.5);
        assert_eq!(quiet.larger(3.0, &other, 1.0).0, [3.0, 3.0, 30.0]);
    }
}
