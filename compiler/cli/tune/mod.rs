//! `loopc tune`: every way of a model's GPU kernels, measured on the device; what is fastest is remembered for the device.

mod choose;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use compiler::gpu::tuning::{Table, Tuning};
use compiler::spaces::Space;
use runtime::Device;
use runtime::artefact::{DType, Sizes, Variant};
use runtime::trial::{Operand, Trials};

use self::choose::{Measured, Row};
use crate::options::Common;
use crate::session::{Request, Source};
use crate::tuning;

/// Sequences side by side, in kernels that have a row for each sequence alone.
const MOST_SEQUENCES: i64 = 64;
const TOKENS: &str = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192";

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder; of its weights only the shapes count
    model: PathBuf,
    /// Tokens of a sequence: a measurement serves sizes down to the one before it, or to its half
    #[arg(long, default_value = TOKENS, value_name = "TOKENS,..", value_delimiter = ',',
          value_parser = clap::value_parser!(i64).range(1..=1 << 20))]
    tokens: Vec<i64>,
    /// Sequences side by side
    #[arg(long, default_value = "1", value_name = "SEQUENCES,..", value_delimiter = ',',
          value_parser = clap::value_parser!(i64).range(1..=1024))]
    batch: Vec<i64>,
    /// Measurements of each way; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only kernels whose name holds this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The table to write, or to bring up to date [default: the device's, in the cache]
    #[arg(short, long, value_name = "FILE.toml")]
    output: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let Device::Cuda(number) = self.common.device else {
            println!("there is nothing to tune on the CPU: each of its kernels has one way; add --device cuda");
            return Ok(());
        };
        if !self.model.is_dir() {
            bail!(
                "{}: tuning compiles, so it wants a Hugging Face folder",
                self.model.display()
            );
        }
        let source = Source::open(&self.model)?;
        let target = self.common.target()?;
        let name = runtime::engine::device::gpu(number)?.name;
        // Against what is shipped, not against what was remembered: else a noise would be followed by the next one.
        let shipped = Tuning {
            device: Some(name.clone()),
            ..tuning::for_targets(std::slice::from_ref(&target), self.common.tuning.as_deref())?
        };
        let longest = self.tokens.iter().copied().max().unwrap_or(1);
        let request = Request {
            entries: ["prefill", "decode"].map(String::from).to_vec(),
            targets: vec![target.clone()],
            dtype: self.common.dtype(),
            // Tables of positions must reach as far as what is measured.
            max_context: self.common.max_context.max(longest),
            program: self.common.program(),
            tuning: shipped,
            emit: vec![],
        };
        let path = self
            .output
            .clone()
            .unwrap_or_else(|| tuning::remembered(&name, target.name()));
        let mut table = self.table(&path, &name, target.name())?;
        let names = RefCell::new(BTreeSet::new());
        let wanted = |name: &str| {
            names.borrow_mut().insert(name.to_string());
            self.only.as_ref().is_none_or(|text| name.contains(text.as_str()))
        };
        let spaces = source.spaces(&request, &wanted)?;
        if spaces.is_empty() {
            let names = Vec::from_iter(names.into_inner());
            bail!(
                "there is no kernel with several ways to measure; names are: {}; choose with --only",
                names.join("; ")
            );
        }
        if !self.common.json {
            println!("{name}, {}, {}", target.name(), request.dtype.name());
            println!("{}", Row::HEAD);
        }
        let rows = self.measure(number, &spaces, &mut table, &path)?;
        let faults: Vec<String> = rows.iter().flat_map(Row::faults).collect();
        if self.common.json {
            let report = serde_json::json!({
                "machine": name, "target": target.name(), "dtype": request.dtype.name(), "output": path, "rows": rows,
                "faults": faults,
            });
            println!("{report}");
        } else {
            let faster = rows.iter().filter(|r| r.chosen != r.default).count();
            println!(
                "{}: {} sizes of {} kernels, {faster} faster",
                path.display(),
                rows.len(),
                spaces.len()
            );
        }
        if let Some(first) = faults.first() {
            bail!(
                "{} ways compute something else and were not chosen, a bug in loopc: {first}",
                faults.len()
            );
        }
        Ok(())
    }

    /// What is brought up to date.
    fn table(&self, path: &Path, device: &str, target: &str) -> anyhow::Result<Table> {
        let fresh = Table {
            device: Some(device.to_string()),
            target: target.to_string(),
            ..Table::default()
        };
        if !path.exists() {
            return Ok(fresh);
        }
        match tuning::read(path) {
            Ok(table) if table.device == fresh.device && table.target == fresh.target => Ok(table),
            Ok(table) => bail!(
                "{}: it is for {}, {}, and this device is {device}, {target}; name another file with -o",
                path.display(),
                table.device.unwrap_or("every device".to_string()),
                table.target
            ),
            Err(e) if self.output.is_some() => {
                Err(e.context("no table to bring up to date; name another file with -o"))
            }
            Err(e) => {
                eprintln!("loopc: {e:#}; it is written anew");
                Ok(fresh)
            }
        }
    }

    /// The table is written after each kernel: who ends it early has what was measured.
    fn measure(&self, device: u32, spaces: &[Space], table: &mut Table, path: &Path) -> anyhow::Result<Vec<Row>> {
        let mut all = vec![];
        for space in spaces {
            let key = &space.ways.key;
            let trials = Trials::open(device, &space.ways.code, std::slice::from_ref(&space.ways.kernel))?;
            let mut rows = vec![];
            for (n, values) in self.sizes(space) {
                let row = self
                    .row(&trials, space, n, &values)
                    .with_context(|| format!("`{key}`, {n} rows"))?;
                if !self.common.json {
                    println!("{row}");
                }
                rows.push(row);
            }
            if !rows.is_empty() {
                let choices = choose::choices(&rows);
                table.merge(&Table {
                    kernels: BTreeMap::from([(key.clone(), choices)]),
                    ..table.clone()
                });
                tuning::write(path, table)?;
            }
            all.extend(rows);
        }
        if all.is_empty() {
            bail!("no kernel has rows of these sizes; choose others with --tokens or --batch");
        }
        Ok(all)
    }

    /// The asked-for sizes by rows.
    fn sizes(&self, space: &Space) -> BTreeMap<i64, Sizes> {
        let by_token = by_token(space);
        let mut all = BTreeMap::new();
        for (tokens, batch) in self
            .tokens
            .iter()
            .flat_map(|t| self.batch.iter().map(move |b| (*t, *b)))
        {
            let (t, b) = match by_token {
                true => (tokens, batch),
                false if tokens * batch <= MOST_SEQUENCES => (1, tokens * batch),
                false => continue,
            };
            let values = [("B", b), ("T", t), ("S", t), ("C", t)].map(|(s, n)| (s.to_string(), n));
            let values = Sizes::from(values);
            if let Some(rows) = space.ways.rows.value(&values) {
                all.entry(rows).or_insert(values);
            }
        }
        all
    }

    fn row(&self, trials: &Trials, space: &Space, rows: i64, values: &Sizes) -> anyhow::Result<Row> {
        let ways = &space.ways;
        let chosen = ways.chosen.iter().find(|(_, variant)| variant.fits(values));
        let default = chosen.context("no way fits, a bug in loopc")?.0;
        let fitting: Vec<(usize, &Variant)> = ways
            .kernel
            .variants
            .iter()
            .enumerate()
            .filter(|(_, v)| v.fits(values))
            .collect();
        let operands: Vec<Operand> = (space.operands.iter())
            .map(|o| {
                let elements = o.elements.value(values).and_then(|n| usize::try_from(n).ok());
                Ok(Operand {
                    dtype: o.dtype,
                    elements: elements.context("a size is unknown or too large")?,
                    written: o.written,
                    cold: o.weight,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        let subject = trials.subject(&operands, fitting.iter().map(|(_, v)| *v).collect(), values)?;
        let at = fitting
            .iter()
            .position(|(i, _)| *i == default)
            .context("the default does not fit, a bug in loopc")?;
        let expected = subject.results(at)?;
        let halves = (operands.iter()).any(|o| o.written && matches!(o.dtype, DType::BF16 | DType::F16));
        let mut measured = vec![];
        for (place, (i, _)) in fitting.iter().enumerate() {
            let way = ways.ways[*i].clone();
            let results = subject.results(place).with_context(|| format!("way {way}"))?;
            measured.push(Measured {
                way,
                us: 0.0,
                off: choose::off(&results, &expected),
            });
        }
        for (m, seconds) in measured.iter_mut().zip(subject.times(self.runs)?) {
            m.us = 1e6 * seconds;
        }
        Ok(Row::new(&ways.key, rows, measured, at, halves))
    }
}

/// Does the kernel have rows for each token?
fn by_token(space: &Space) -> bool {
    space.ways.rows.syms.iter().any(|s| s == "T")
}
