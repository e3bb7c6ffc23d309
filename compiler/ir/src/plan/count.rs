//! What a plan must do at least: operations and bytes, counted from its kernels for one call's sizes.
//!
//! Bytes are compulsory traffic: every element that a kernel touches, once per launch. Caches may spare some of it between
//! launches; nothing spares the operations.

use super::{Access, Binary, Expr, Kernel, Plan, Rhs, Stage, Unary};
use crate::types::{Size, Sizes};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Multiplications and additions of contractions and sweeps: what the matrix units do.
    pub products: f64,
    /// All others, an exponential and its family as eight.
    pub scalars: f64,
    pub bytes: f64,
    pub launches: f64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.products += other.products;
        self.scalars += other.scalars;
        self.bytes += other.bytes;
        self.launches += other.launches;
    }
}

impl Work {
    /// Of so many launches.
    pub fn times(self, launches: f64) -> Work {
        Work {
            products: self.products * launches,
            scalars: self.scalars * launches,
            bytes: self.bytes * launches,
            launches: self.launches * launches,
        }
    }
}

impl Plan {
    /// `None` where a symbol has no value.
    pub fn work(&self, sizes: &Sizes) -> Option<Work> {
        let kernels: Option<Vec<Work>> = self.kernels.iter().map(|k| k.work(sizes)).collect();
        let kernels = kernels?;
        let mut sum = Work::default();
        for launch in &self.launches {
            sum += kernels[launch.kernel];
        }
        Some(sum)
    }
}

impl Kernel {
    /// Of one launch.
    pub fn work(&self, sizes: &Sizes) -> Option<Work> {
        let of = |s: &Size| s.eval(sizes).map(|n| n as f64);
        let outer: Vec<f64> = self.outer.iter().map(of).collect::<Option<_>>()?;
        let cols = of(&self.cols)?;
        let rows: f64 = outer.iter().product();
        let depends = self.column_dependent();
        let mut work = Work {
            launches: 1.0,
            ..Work::default()
        };
        let bytes = |arg: usize| self.args[arg].dtype.bytes() as f64;
        // The points that an access tells apart.
        let elements = |a: &Access, cols: f64| -> f64 {
            let dims = a.strides.iter().zip(outer.iter().copied().chain([cols]));
            let own: f64 = dims.filter(|(s, _)| s.coef != 0).map(|(_, n)| n).product();
            // A look-up reads a row for each point that chooses one.
            if a.indirect.is_some() && !a.strides.iter().take(outer.len()).any(|s| s.coef != 0) {
                own * rows
            } else {
                own
            }
        };
        for (i, e) in self.exprs.iter().enumerate() {
            let points = if depends[i] { rows * cols } else { rows };
            match e {
                Expr::Load(a) => work.bytes += elements(a, cols) * bytes(a.arg),
                Expr::Unary(op, _) => {
                    let dear = !matches!(op, Unary::Neg | Unary::ToFloat | Unary::RoundBf16);
                    work.scalars += points * if dear { 8.0 } else { 1.0 };
                }
                Expr::Binary(op, ..) => work.scalars += points * if *op == Binary::Div { 4.0 } else { 1.0 },
                Expr::Select(..) => work.scalars += points,
                Expr::RowSquares => {
                    let k = self.contraction.as_ref().map_or(Some(0.0), |c| of(&c.k))?;
                    work.scalars += 2.0 * rows * k;
                }
                _ => {}
            }
        }
        for s in &self.stages {
            match s {
                Stage::Reduce { .. } => work.scalars += rows * cols,
                Stage::Store { to, .. } => work.bytes += elements(to, cols) * bytes(to.arg),
            }
        }
        if let Some(c) = &self.contraction {
            let k = of(&c.k)?;
            let batch: f64 = outer[..c.batch].iter().product();
            work.bytes += elements(&c.a, k) * bytes(c.a.arg);
            for b in c.rights() {
                work.products += 2.0 * rows * cols * k;
                work.bytes += match b {
                    Rhs::Packed { arg } => cols * k * bytes(*arg),
                    Rhs::KContiguous { arg, .. } | Rhs::NContiguous { arg, .. } => batch * cols * k * bytes(*arg),
                };
            }
        }
        if let Some(s) = &self.sweep {
            let batch: f64 = outer[..s.batch].iter().product();
            let tokens = if s.tokens { outer.last().copied() } else { None };
            work.bytes += elements(&s.q, s.depth as f64) * bytes(s.q.arg);
            // One key or value matrix is read once, as far back as any segment sees.
            let mut read: Vec<(usize, &Size, f64)> = vec![];
            for segment in &s.segments {
                let keys = of(&segment.keys)?;
                let seen = rows * seen(keys, tokens, segment.near as f64, segment.far.map(|f| f as f64));
                work.products += 2.0 * seen * (s.depth as f64 + cols);
                work.scalars += 10.0 * seen;
                let back = segment.far.map_or(keys, |f| keys.min(f as f64 + tokens.unwrap_or(0.0)));
                for (m, width) in [(&segment.k, s.depth as f64), (&segment.v, cols)] {
                    let all = batch * back * width * bytes(m.arg);
                    match read.iter_mut().find(|r| r.0 == m.arg && r.1 == &m.offset) {
                        Some(known) => known.2 = known.2.max(all),
                        None => read.push((m.arg, &m.offset, all)),
                    }
                }
            }
            work.bytes += read.iter().map(|r| r.2).sum::<f64>();
        }
        if let Some(g) = &self.sweep_gradient {
            let (tokens, keys) = (of(&g.tokens)?, of(&g.keys)?);
            for r in &g.ranges {
                let seen =
                    rows * g.groups as f64 * tokens * seen(keys, Some(tokens), r.near as f64, r.far.map(|f| f as f64));
                // Scores and dq, dk; dp and dv.
                work.products += 2.0 * seen * (3.0 * g.depth as f64 + 2.0 * cols);
                work.scalars += 14.0 * seen;
            }
            for (what, m, _) in g.matrices() {
                let width = match what {
                    "z" | "lse" => 1.0,
                    "v" | "d" | "dv" => cols,
                    _ => g.depth as f64,
                };
                let of_keys = what.ends_with('k') || what.ends_with('v');
                let each = if of_keys { keys } else { g.groups as f64 * tokens };
                work.bytes += rows * each * width * bytes(m.arg);
            }
        }
        Some(work)
    }
}

/// Keys that a row sees, on the average: rows at positions 0.., or one at the last key.
fn seen(keys: f64, tokens: Option<f64>, near: f64, far: Option<f64>) -> f64 {
    let nearer = |x: f64| match tokens {
        None => x.min(keys),
        Some(t) if x >= t => (t + 1.0) / 2.0,
        Some(t) => x - x * (x - 1.0) / (2.0 * t),
    };
    (nearer(far.unwrap_or(f64::INFINITY)) - nearer(near)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::seen;

    /// Against counting.
    #[test]
    fn seen_keys_are_counted() {
        for (t, near, far) in [
            (7, 0, None),
            (7, 0, Some(3)),
            (7, 3, None),
            (5, 2, Some(4)),
            (3, 0, Some(9)),
        ] {
            let sees = |d: i64| d >= near && far.is_none_or(|f| d < f);
            let count: usize = (0..t)
                .map(|p| (0..t).filter(|j| p - j >= 0 && sees(p - j)).count())
                .sum();
            let average = count as f64 / t as f64;
            let told = seen(t as f64, Some(t as f64), near as f64, far.map(|f| f as f64));
            assert!(
                (average - told).abs() < 1e-9,
                "T {t}, {near}..{far:?}: {told}, counted {average}"
            );
        }
    }
}
