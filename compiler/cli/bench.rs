//! `loopc bench`: prefill and decoding of a model, and where the time goes.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use runtime::engine;
use runtime::{Device, Input, State};

use crate::ceilings::{Ceilings, Limits};
use crate::options::Common;
use crate::session::{Request, Session, Source};
use crate::{compare, compare_steps, kernels, trace};

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or an artefact
    model: PathBuf,
    /// Tokens of the prompt, and of context when decoding
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(i64).range(1..))]
    context: i64,
    /// Sequences side by side
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=1024))]
    batch: i64,
    /// Tokens decoded in a measurement
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(i64).range(1..))]
    decode: i64,
    /// Measurements; the best and the median are told
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Time by kernel, of one prefill and one token or one training step, and its fraction of the limit
    #[arg(long, conflicts_with = "compare")]
    kernels: bool,
    /// Write every kernel's run in one prefill and one token, or in one training step, to this file, for Perfetto
    #[arg(long, value_name = "FILE.json", conflicts_with = "compare")]
    trace: Option<PathBuf>,
    /// The checkpoint's folder, if an artefact no longer finds it
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Fused against unfused programs, in turns, at each of these contexts
    #[arg(long, value_name = "CONTEXT,..", value_delimiter = ',', value_parser = clap::value_parser!(i64).range(1..=1 << 20))]
    compare: Vec<i64>,
    /// A training step of --batch windows of --context tokens, fused against op by op, in turns, by what is trained
    #[arg(long, value_name = "gates,all,..", value_delimiter = ',', conflicts_with = "compare")]
    train: Vec<String>,
    /// With --train: the fused program alone, where op by op has no room or no time
    #[arg(long, requires = "train")]
    alone: bool,
    /// With --compare: also the fused program with each of its passes switched off alone
    #[arg(long, requires = "compare")]
    ablate: bool,
    /// With --compare: draw the comparison to this SVG file
    #[arg(long, requires = "compare", value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        if !self.compare.is_empty() {
            let report = compare::run(&self.model, &self.compare, self.runs, self.ablate, &self.common)?;
            if let Some(path) = &self.plot {
                report.plot(path)?;
            }
            if self.common.json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                report.print();
            }
            return Ok(());
        }
        if !self.train.is_empty() {
            let steps = compare_steps::Steps {
                trainables: &self.train,
                batch: self.batch as usize,
                context: self.context as usize,
                rounds: self.runs,
                alone: self.alone,
                kernels: self.kernels,
                trace: self.trace.as_deref(),
            };
            let report = steps.run(&self.model, &self.common)?;
            if self.common.json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                report.print(&mut std::io::stdout().lock())?;
            }
            return Ok(());
        }
        let session = Session::open(&self.model, self.weights.as_deref(), &self.common)?;
        let (b, t) = (self.batch, self.context);
        if t + self.decode > session.max_context as i64 {
            bail!(
                "--context {t} and --decode {} exceed --max-context {}",
                self.decode,
                session.max_context
            );
        }
        let engine = &session.engine;
        let tokens: Vec<i32> = (0..b * t).map(|i| (i * 7919 % session.config.vocab) as i32).collect();
        let last = vec![t as i32 - 1; b as usize];
        let mut state = engine.new_state(b, t + self.decode)?;
        let whole = |state: &mut State| {
            let inputs = [("tokens", Input::I32(&tokens)), ("last", Input::I32(&last))];
            engine
                .call_for(&["best"], "prefill", &[("B", b), ("T", t)], &inputs, Some(state))
                .map(|_| ())
        };
        let one = |i: i64, state: &mut State| {
            let (token, at) = (vec![(i % 100) as i32; b as usize], vec![(t + i) as i32; b as usize]);
            let inputs = [("tokens", Input::I32(&token)), ("start", Input::I32(&at))];
            let keys = engine.keys(t + i + 1, state.capacity);
            engine
                .call_for(&["best"], "decode", &[("B", b), ("S", keys)], &inputs, Some(state))
                .map(|_| ())
        };
        let limits = match self.kernels && self.model.is_dir() {
            true => Some(self.limits()?),
            false => None,
        };
        let (mut prefill, mut decode, mut reading) = (vec![], vec![], vec![]);
        for run in 0..=self.runs {
            let start = Instant::now();
            whole(&mut state)?;
            let time = start.elapsed().as_secs_f64();
            let start = Instant::now();
            for i in 0..self.decode {
                one(i, &mut state)?;
            }
            let each = start.elapsed().as_secs_f64() / self.decode as f64;
            // The first run warms up.
            if run > 0 {
                prefill.push(time);
                decode.push(each);
                // The same bytes, only read: decoding's limit, from the same moment.
                let (bytes, time) = engine.read_weights();
                reading.push(time.as_secs_f64() / bytes.max(1) as f64);
            }
        }
        // One more run is taken apart.
        let mut tables = [vec![], vec![]];
        if self.kernels || self.trace.is_some() {
            engine.trace(true);
            engine.profile(true);
            whole(&mut state)?;
            let prefill = engine.profile(true);
            one(0, &mut state)?;
            let decode = engine.profile(false);
            let spans = engine.trace(false);
            if let Some(path) = &self.trace {
                trace::write(path, &engine.machine(), &spans)?;
            }
            if self.kernels {
                tables = self.by_kernel([prefill, decode], limits, state.capacity)?;
            }
        }
        let best = |v: &[f64]| v.iter().copied().fold(f64::INFINITY, f64::min);
        let median = |v: &[f64]| {
            let mut v = v.to_vec();
            v.sort_by(f64::total_cmp);
            v[v.len() / 2]
        };
        let usage = engine.usage();
        let read_rate = 1e-9 / best(&reading);
        let weight_rate = 1e-9 * usage.weights as f64 / best(&decode);
        if self.common.json {
            let report = serde_json::json!({
                "prefill_tok_s": (b * t) as f64 / best(&prefill), "decode_tok_s": b as f64 / best(&decode),
                "prefill_tok_s_median": (b * t) as f64 / median(&prefill), "decode_tok_s_median": b as f64 / median(&decode),
                "context": t, "batch": b, "machine": engine.machine(), "threads": self.common.threads(),
                "target": engine.target(),
                "read_gb_s": read_rate, "decode_weight_gb_s": weight_rate, "decode_of_read": weight_rate / read_rate,
                "weight_bytes": usage.weights, "arena_bytes": usage.arena,
                "prefill_kernels": tables[0], "decode_kernels": tables[1],
            });
            println!("{report}");
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{}, {}, {b} x {t} tokens; best of {} (median)",
            engine.machine(),
            engine.target(),
            self.runs
        )?;
        let mut row = |name: &str, v: &[f64], per: f64| {
            writeln!(
                out,
                "{name:8} {:9.1} tok/s ({:9.1})   {:9.2} ms ({:9.2})",
                per / best(v),
                per / median(v),
                1e3 * best(v),
                1e3 * median(v)
            )
        };
        row("prefill", &prefill, (b * t) as f64)?;
        row("decode", &decode, b as f64)?;
        let limit = match self.common.device {
            Device::Cpu => "the same weights, only read",
            Device::Cuda(_) => "a large copy",
        };
        writeln!(
            out,
            "decode   reads {weight_rate:.1} GB/s of weights, {:.0}% of {read_rate:.1} GB/s ({limit})",
            100.0 * weight_rate / read_rate
        )?;
        writeln!(
            out,
            "weights made {} MiB, arena {} MiB",
            usage.weights >> 20,
            usage.arena >> 20
        )?;
        if self.kernels {
            kernels::print(&mut out, &tables.concat())?;
        }
        Ok(())
    }

    fn limits(&self) -> anyhow::Result<Limits> {
        let source = Source::open(&self.model)?;
        Ceilings::new(&source, &Request::new(&self.common)?, &self.common)?.measure()
    }

    /// What was measured of a prefill and a token, beside what their plans count; an artefact has no plans.
    fn by_kernel(
        &self,
        measured: [Vec<engine::Row>; 2],
        limits: Option<Limits>,
        capacity: i64,
    ) -> anyhow::Result<[Vec<kernels::Row>; 2]> {
        let Some(limits) = limits else {
            return Ok(measured.map(|functions| kernels::rows(&functions, None)));
        };
        let plans = Source::open(&self.model)?.plans(&Request::new(&self.common)?)?;
        let mut tables = [vec![], vec![]];
        for ((table, functions), (entry, tokens, keys)) in (tables.iter_mut().zip(measured))
            .zip([("prefill", self.context, self.context), ("decode", 1, self.context + 1)])
        {
            let sizes = [("B", self.batch), ("T", tokens), ("S", keys), ("C", capacity)];
            let counted = plans.iter().find(|p| p.entry == entry).map(|plan| kernels::Counted {
                plan,
                sizes: sizes.map(|(k, v)| (k.to_string(), v)).into(),
                limits,
            });
            *table = kernels::rows(&functions, counted.as_ref());
        }
        Ok(tables)
    }
}
