//! From measurements to choices: arithmetic alone.

use compiler::gpu::tuning::{Choice, joined};

/// A way must be so much faster than the default: less is noise.
const GAIN: f64 = 1.02;

/// A way at a size.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Measured {
    pub way: String,
    /// Microseconds.
    pub us: f64,
    /// How far its results are from the default's, in parts of the largest of those.
    pub off: f32,
}

/// A kernel at a size.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    pub kernel: String,
    pub rows: i64,
    pub default: String,
    pub chosen: String,
    /// The default's time over the chosen one's.
    pub gain: f64,
    pub ways: Vec<Measured>,
    tolerance: f32,
}

impl Row {
    pub const HEAD: &str = "rows  default  chosen    gain  us by way; kernel";

    /// `halves`: are results rounded to 16 bits?
    pub fn new(kernel: &str, rows: i64, ways: Vec<Measured>, default: usize, halves: bool) -> Row {
        // All ways round the same factors: what differs is the order of sums, and then perhaps a step of 16 bits, 2^-8.
        let tolerance = if halves { 1e-2 } else { 1e-4 };
        let mut chosen = default;
        for (i, m) in ways.iter().enumerate() {
            // What is not a number is not within it.
            let agrees = m.off <= tolerance;
            if agrees && m.us * GAIN < ways[default].us && m.us < ways[chosen].us {
                chosen = i;
            }
        }
        Row {
            kernel: kernel.to_string(),
            rows,
            default: ways[default].way.clone(),
            chosen: ways[chosen].way.clone(),
            gain: ways[default].us / ways[chosen].us.max(1e-9),
            ways,
            tolerance,
        }
    }

    /// What is wrong, a line each.
    pub fn faults(&self) -> Vec<String> {
        let wrong = self.ways.iter().filter(|m| m.off.is_nan() || m.off > self.tolerance);
        let told = |m: &Measured| {
            format!(
                "`{}`, {} rows: `{}` is off from `{}` by {:.1e} of the largest result",
                self.kernel, self.rows, m.way, self.default, m.off
            )
        };
        wrong.map(told).collect()
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let way = |m: &Measured| {
            let fault = if m.off <= self.tolerance { "" } else { " FAULT" };
            format!("{} {:.2}{fault}", m.way, m.us)
        };
        let ways: Vec<String> = self.ways.iter().map(way).collect();
        let (rows, ways) = (self.rows, ways.join(", "));
        write!(
            f,
            "{rows:>4}  {:>7}  {:>6}  {:>5.2}x  {ways}; {}",
            self.default, self.chosen, self.gain, self.kernel
        )
    }
}

/// The largest difference, in parts of the largest expected value; infinite where something is no number and should be one.
pub fn off(results: &[f32], expected: &[f32]) -> f32 {
    let largest = expected
        .iter()
        .filter(|x| x.is_finite())
        .fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let pairs = results.iter().zip(expected);
    let differences = pairs.map(|(a, b)| match a.to_bits() == b.to_bits() {
        true => 0.0,
        false if a.is_finite() && b.is_finite() => (a - b).abs() / largest,
        false => f32::INFINITY,
    });
    differences.fold(0.0, f32::max)
}

/// Choices from a kernel's rows: what was measured at a size serves sizes down to the one before it, or to its half where that lies far.
pub fn choices(rows: &[Row]) -> Vec<Choice> {
    let mut all = vec![];
    let mut before = 0;
    // Sizes ascend.
    for row in rows {
        all.push(Choice::new((row.rows / 2).max(before) + 1, row.rows, &row.chosen));
        before = row.rows;
    }
    joined(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rows: i64, ways: &[(&str, f64, f32)], default: usize) -> Row {
        let measured = |(way, us, off): &(&str, f64, f32)| Measured {
            way: way.to_string(),
            us: *us,
            off: *off,
        };
        Row::new("k", rows, ways.iter().map(measured).collect(), default, true)
    }

    #[test]
    fn the_fastest_that_agrees_and_is_clearly_faster() {
        let fastest = row(8, &[("a", 10.0, 0.0), ("b", 5.0, 1e-3), ("c", 4.0, 1e-3)], 0);
        assert_eq!((fastest.chosen.as_str(), fastest.gain), ("c", 2.5));
        assert!(fastest.faults().is_empty());
        assert_eq!(row(8, &[("a", 10.0, 0.0), ("b", 9.9, 0.0)], 0).chosen, "a");
        for wrong in [0.5, f32::NAN, f32::INFINITY] {
            let r = row(8, &[("b", 1.0, wrong), ("a", 10.0, 0.0)], 1);
            assert_eq!((r.chosen.as_str(), r.faults().len()), ("a", 1), "{wrong}");
            assert!(r.faults()[0].contains("`b` is off from `a`"), "{:?}", r.faults());
            assert!(r.to_string().contains("FAULT"), "{r}");
        }
    }

    #[test]
    fn differences_in_parts_of_the_largest() {
        assert_eq!(off(&[1.0, 2.0], &[1.0, 4.0]), 0.5);
        assert_eq!(off(&[f32::NAN, 1.0], &[f32::NAN, 1.0]), 0.0);
        assert_eq!(off(&[f32::NAN], &[1.0]), f32::INFINITY);
        assert_eq!(off(&[f32::INFINITY], &[1.0]), f32::INFINITY);
        assert_eq!(off(&[0.0], &[0.0]), 0.0);
    }

    #[test]
    fn ranges_reach_no_further_than_half() {
        let one = |rows, way| row(rows, &[(way, 1.0, 0.0)], 0);
        let rows = [one(1, "a"), one(2, "a"), one(3, "b"), one(100, "b"), one(130, "c")];
        let expected = [
            Choice::new(1, 2, "a"),
            Choice::new(3, 3, "b"),
            Choice::new(51, 100, "b"),
            Choice::new(101, 130, "c"),
        ];
        assert_eq!(choices(&rows), expected);
    }
}
