//! What `loopc eval` measures beside the loss: how it falls with the context, and where the gates look. Counts and
//! shows; decides nothing about models and files.

use std::path::Path;

use model::Config;
use model::graph::gates;
use model::runner::{Cause, EngineRunner, Limits, Runner};
use runtime::engine::{Engine, Input};
use serde_json::{Value, json};

/// A runner that keeps count of what its losses were, and its gates if the engine has the entry point `gates`.
pub struct Watch<'a> {
    inner: EngineRunner<'a>,
    engine: &'a Engine,
    pub positions: Positions,
    pub gates: Option<Gates>,
}

impl<'a> Watch<'a> {
    pub fn new(engine: &'a Engine, config: &Config, max_context: usize) -> Watch<'a> {
        Watch {
            inner: EngineRunner::new(engine, config, max_context),
            engine,
            positions: Positions::default(),
            gates: engine.has_entry("gates").then(|| Gates::new(config)),
        }
    }
}

impl Runner for Watch<'_> {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn begin(&mut self, batch: usize, capacity: usize) -> Result<(), Cause> {
        self.inner.begin(batch, capacity)
    }

    fn prefill(&mut self, tokens: &[i32], last: &[i32]) -> Result<Vec<f32>, Cause> {
        self.inner.prefill(tokens, last)
    }

    fn decode(&mut self, tokens: &[i32], start: &[i32]) -> Result<Vec<f32>, Cause> {
        self.inner.decode(tokens, start)
    }

    fn best(&mut self, tokens: &[i32], start: &[i32]) -> Result<Option<Vec<i32>>, Cause> {
        self.inner.best(tokens, start)
    }

    fn logits(&mut self, batch: usize, tokens: &[i32]) -> Result<Vec<f32>, Cause> {
        self.inner.logits(batch, tokens)
    }

    fn loss(&mut self, batch: usize, tokens: &[i32], targets: &[i32]) -> Result<Vec<f32>, Cause> {
        let rows = tokens.len() / batch.max(1);
        let nll = match &mut self.gates {
            None => self.inner.loss(batch, tokens, targets)?,
            Some(gates) => {
                let sizes = [("B", batch as i64), ("T", rows as i64)];
                let inputs = [("tokens", Input::I32(tokens)), ("targets", Input::I32(targets))];
                let mut results = self.engine.call("gates", &sizes, &inputs, None)?;
                gates.add(rows, |name| Some(results.remove(name)?.data))?;
                results.remove("nll").ok_or("entry gates has no result `nll`")?.data
            }
        };
        for (nll, targets) in nll.chunks(rows.max(1)).zip(targets.chunks(rows.max(1))) {
            self.positions.add(nll, targets);
        }
        Ok(nll)
    }
}

/// Losses by how many tokens of its window a prediction has seen.
#[derive(Default)]
pub struct Positions {
    /// Sum and count of the predictions that saw i + 1 tokens.
    seen: Vec<(f64, usize)>,
}

impl Positions {
    fn add(&mut self, nll: &[f32], targets: &[i32]) {
        // The last token of a window predicts nothing.
        let used = targets.iter().rposition(|t| *t >= 0).map_or(0, |i| i + 1);
        self.seen.resize(self.seen.len().max(used), (0.0, 0));
        for ((sum, count), (x, _)) in self
            .seen
            .iter_mut()
            .zip(nll.iter().zip(targets))
            .filter(|(_, (_, t))| **t >= 0)
        {
            *sum += f64::from(*x);
            *count += 1;
        }
    }

    /// A line for 1, 2 to 3, 4 to 7, .. tokens seen.
    pub fn table(&self) -> String {
        let mut out = format!("{:>15} {:>12} {:>9}\n", "tokens seen", "predictions", "loss");
        let mut from = 1;
        while from <= self.seen.len() {
            let to = (2 * from - 1).min(self.seen.len());
            let bucket = &self.seen[from - 1..to];
            let (sum, count) = bucket.iter().fold((0.0, 0), |(s, n), x| (s + x.0, n + x.1));
            if count > 0 {
                let range = if from == to {
                    from.to_string()
                } else {
                    format!("{from} to {to}")
                };
                out += &format!("{range:>15} {count:>12} {:>9.4}\n", sum / count as f64);
            }
            from *= 2;
        }
        out
    }

    /// Every position: its mean loss and the number of its predictions.
    pub fn json(&self) -> Value {
        let there = self.seen.iter().enumerate().filter(|(_, (_, count))| *count > 0);
        let all =
            there.map(|(i, (sum, count))| json!({"seen": i + 1, "loss": sum / *count as f64, "predictions": count}));
        all.collect()
    }
}

/// Mean gates: the weight of the global pass by trip, layer and head.
pub struct Gates {
    trips: Vec<i64>,
    heads: usize,
    /// Sums over tokens, by trip, layer and head.
    sums: Vec<Vec<Vec<f64>>>,
    tokens: usize,
}

impl Gates {
    fn new(config: &Config) -> Gates {
        let trips: Vec<i64> = gates::trips(config).collect();
        let heads = config.heads as usize;
        Gates {
            sums: vec![vec![vec![0.0; heads]; config.layers as usize]; trips.len()],
            trips,
            heads,
            tokens: 0,
        }
    }

    /// `take` gives the gates [B, H, rows] of a trip and layer by the result's name.
    fn add(&mut self, rows: usize, mut take: impl FnMut(&str) -> Option<Vec<f32>>) -> Result<(), Cause> {
        let mut tokens = 0;
        for (trip, layers) in self.trips.iter().zip(&mut self.sums) {
            for (layer, sums) in layers.iter_mut().enumerate() {
                let name = gates::result(*trip, layer as i64);
                let g = take(&name).ok_or_else(|| format!("entry gates has no result `{name}`"))?;
                for (i, head) in g.chunks(rows.max(1)).enumerate() {
                    sums[i % self.heads] += head.iter().map(|x| f64::from(*x)).sum::<f64>();
                }
                tokens = g.len() / self.heads;
            }
        }
        self.tokens += tokens;
        Ok(())
    }

    /// Means by layer and head, of every trip that has gates.
    pub fn means(&self) -> impl Iterator<Item = (i64, Vec<Vec<f64>>)> {
        let mean = |sum: &f64| sum / self.tokens.max(1) as f64;
        let layers = move |l: &Vec<Vec<f64>>| l.iter().map(|heads| heads.iter().map(mean).collect()).collect();
        self.trips.iter().copied().zip(self.sums.iter().map(layers))
    }

    pub fn json(&self) -> Value {
        self.means()
            .map(|(trip, layers)| json!({"trip": trip, "layers": layers}))
            .collect()
    }

    /// A table per trip, a line per layer, a column per head; and how many heads look mostly at the window.
    pub fn table(&self, window: i64) -> String {
        let mut out = String::new();
        let (mut local, mut all) = (0, 0);
        for (trip, layers) in self.means() {
            let of_trip = if self.trips.len() > 1 {
                format!(" of trip {trip}")
            } else {
                String::new()
            };
            out += &format!(
                "mean gate{of_trip} by layer and head: 1 is the global pass, 0 the last {window} tokens\n{:>5}",
                "layer"
            );
            out.extend((0..self.heads).map(|h| format!("{h:>6}")));
            out.push('\n');
            for (i, heads) in layers.iter().enumerate() {
                out += &format!("{i:>5}");
                out.extend(heads.iter().map(|g| format!("{g:>6.2}")));
                out.push('\n');
                local += heads.iter().filter(|g| **g < 0.5).count();
                all += heads.len();
            }
        }
        out += &format!("{local} of {all} heads look mostly at the window\n");
        out
    }

    /// Heads by layers as coloured squares, the trips side by side, as SVG.
    pub fn plot(&self, path: &Path, title: &str) -> anyhow::Result<()> {
        use plotters::prelude::*;
        const CELL: u32 = 34;
        let layers = self.sums.first().map_or(0, Vec::len);
        let panel = 90 + CELL * self.heads.max(8) as u32;
        let size = (panel * self.trips.len() as u32, 110 + CELL * layers as u32);
        let beside = path.with_extension("svg.part");
        {
            let area = SVGBackend::new(&beside, size).into_drawing_area();
            area.fill(&WHITE)?;
            let title = format!("{title}: mean gate, blue global, orange local");
            let area = area.titled(&title, ("sans-serif", 16))?;
            for ((trip, means), area) in self.means().zip(area.split_evenly((1, self.trips.len()))) {
                let mut chart = ChartBuilder::on(&area)
                    .margin(10)
                    .x_label_area_size(35)
                    .y_label_area_size(45)
                    .build_cartesian_2d(
                        (0..self.heads as i32 - 1).into_segmented(),
                        (0..layers as i32 - 1).into_segmented(),
                    )?;
                let whole = |at: &SegmentValue<i32>| match at {
                    SegmentValue::CenterOf(i) => i.to_string(),
                    _ => String::new(),
                };
                chart
                    .configure_mesh()
                    .disable_mesh()
                    .x_labels(self.heads + 1)
                    .y_labels(layers + 1)
                    .x_label_formatter(&whole)
                    .y_label_formatter(&whole)
                    .x_desc(if self.trips.len() > 1 {
                        format!("head, trip {trip}")
                    } else {
                        "head".to_string()
                    })
                    .y_desc("layer")
                    .draw()?;
                let cells = means.iter().enumerate().flat_map(|(layer, heads)| {
                    let squares = heads
                        .iter()
                        .enumerate()
                        .map(move |(head, g)| (head as i32, layer as i32, *g));
                    squares.collect::<Vec<_>>()
                });
                let cells: Vec<(i32, i32, f64)> = cells.collect();
                chart.draw_series(cells.iter().map(|&(x, y, g)| {
                    let corner = |d: i32| (SegmentValue::Exact(x + d), SegmentValue::Exact(y + d));
                    Rectangle::new([corner(0), corner(1)], colour(g).filled())
                }))?;
                use plotters::style::text_anchor::{HPos, Pos, VPos};
                let style = ("sans-serif", 11).into_font().into_text_style(&area);
                let style = style.pos(Pos::new(HPos::Center, VPos::Center));
                chart.draw_series(cells.iter().map(|&(x, y, g)| {
                    let middle = (SegmentValue::CenterOf(x), SegmentValue::CenterOf(y));
                    Text::new(format!("{g:.2}"), middle, style.clone())
                }))?;
            }
            area.present()?;
        }
        std::fs::rename(&beside, path)?;
        Ok(())
    }
}

/// From orange (0, local) over white to blue (1, global); pale enough that a number can be read on it.
fn colour(g: f64) -> plotters::style::RGBColor {
    let end = if g < 0.5 {
        [240.0, 150.0, 60.0]
    } else {
        [90.0, 140.0, 220.0]
    };
    let part = (2.0 * g - 1.0).abs().min(1.0);
    let [r, g, b] = end.map(|x| (255.0 + part * (x - 255.0)) as u8);
    plotters::style::RGBColor(r, g, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_means_by_tokens_seen() {
        let mut p = Positions::default();
        p.add(&[4.0, 3.0, 2.0, 1.0, 9.0], &[5, 5, 5, 5, -1]);
        p.add(&[2.0, 1.0, 9.0], &[5, 5, -1]);
        let json = p.json();
        let losses: Vec<f64> = json
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x["loss"].as_f64().unwrap())
            .collect();
        assert_eq!(losses, [3.0, 2.0, 2.0, 1.0]);
        assert_eq!(json[1], json!({"seen": 2, "loss": 2.0, "predictions": 2}));
        let table: Vec<Vec<String>> = p
            .table()
            .lines()
            .skip(1)
            .map(|l| l.split_whitespace().map(String::from).collect())
            .collect();
        assert_eq!(
            table,
            [
                vec!["1", "2", "3.0000"],
                vec!["2", "to", "3", "3", "2.0000"],
                vec!["4", "1", "1.0000"]
            ]
        );
    }

    fn gates() -> Gates {
        let mut g = Gates {
            trips: vec![2, 3],
            heads: 2,
            sums: vec![vec![vec![0.0; 2]; 2]; 2],
            tokens: 0,
        };
        // Two windows, of 2 tokens and of 1: tokens weigh the same, not windows.
        for (rows, value) in [(2, 0.5), (1, 0.2)] {
            let take = |name: &str| Some(vec![if name == "gate.3.1" { 1.0 } else { value }; 2 * rows]);
            g.add(rows, take).unwrap();
        }
        g
    }

    #[test]
    fn gates_are_means_over_tokens() {
        let g = gates();
        let means: Vec<_> = g.means().collect();
        assert_eq!(means[1].1[1], [1.0, 1.0]);
        assert!((means[0].1[0][1] - 0.4).abs() < 1e-6);
        let table = g.table(64);
        assert!(
            table.contains("trip 2") && table.contains("    1  1.00  1.00\n"),
            "{table}"
        );
        assert!(table.ends_with("6 of 8 heads look mostly at the window\n"), "{table}");
        assert!(gates().add(1, |_| None).unwrap_err().to_string().contains("gate.2.0"));
    }

    #[test]
    fn the_heat_map_has_every_head() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gates.svg");
        gates().plot(&path, "test").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<svg"));
        assert_eq!(text.matches(">\n0.40\n<").count(), 6, "{text}");
        assert_eq!(text.matches(">\n1.00\n<").count(), 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
