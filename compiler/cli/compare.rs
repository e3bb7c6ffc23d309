//! `loopc bench --compare`: fused against unfused on the same matmul kernels, and each switch of the fused program off alone.
//!
//! Programs that are compared take turns in one process, and `ceilings` take turns with them: see `rounds`. Operations and bytes are
//! counted from the plans.

use std::path::Path;
use std::time::Instant;

use anyhow::bail;
use ir::Sizes;
use ir::plan::count::Work;
use passes::{Program, SWITCHES};
use runtime::Input;
use runtime::engine::{Engine, State};

use crate::ceilings::Ceilings;
use crate::options::Common;
use crate::rounds::Times;
use crate::session::{Request, Source};

const ENTRIES: [&str; 2] = ["prefill", "decode"];
/// Decode steps of a measurement.
const STEPS: i64 = 8;

/// One program at one entry point and context.
#[derive(serde::Serialize)]
pub struct Row {
    pub program: String,
    pub entry: &'static str,
    pub context: i64,
    /// Of one call: the best of all rounds, and the median.
    pub seconds: f64,
    pub median: f64,
    /// Over the fused program's time in the same round, by the rounds' median, the least and the most.
    pub of_fused: f64,
    pub of_fused_range: [f64; 2],
    pub operations: f64,
    pub bytes: f64,
    pub launches: f64,
    pub arena_bytes: usize,
    /// The larger of operations over the matmul rate and bytes over the reading rate in a round, over the round's time; the median.
    pub of_limit: f64,
}

#[derive(serde::Serialize)]
pub struct Report {
    pub model: String,
    pub mode: String,
    pub dtype: &'static str,
    pub threads: usize,
    /// What runs it: threads, or a GPU's name.
    pub machine: String,
    pub target: &'static str,
    /// The ceilings of all rounds: the median.
    pub matmul_gflop_s: f64,
    pub read_gb_s: f64,
    pub rows: Vec<Row>,
}

struct Runner {
    program: Program,
    engine: Engine,
    state: State,
    work: Vec<Work>,
}

pub fn run(model: &Path, contexts: &[i64], rounds: u32, ablate: bool, common: &Common) -> anyhow::Result<Report> {
    if !model.is_dir() {
        bail!(
            "{}: --compare compiles, so it wants a Hugging Face folder",
            model.display()
        );
    }
    let source = Source::open(model)?;
    let longest = contexts.iter().copied().max().unwrap_or(512);
    let request = |program: &Program| -> anyhow::Result<Request> {
        Ok(Request {
            entries: ENTRIES.map(String::from).to_vec(),
            targets: vec![common.target()?],
            dtype: common.dtype(),
            max_context: longest + STEPS,
            program: program.clone(),
            tuning: common.tuning()?,
            emit: vec![],
        })
    };
    let runner = |program: Program, context: i64| -> anyhow::Result<Runner> {
        let request = request(&program)?;
        let (artefact, _) = source.compile(&request)?;
        let engine = Engine::load(&artefact, &source.checkpoint, common.engine())?;
        let state = engine.new_state(1, longest + STEPS)?;
        let mut work = vec![];
        for (plan, tokens) in source.plans(&request)?.iter().zip([context, 1]) {
            let sizes = [("B", 1), ("T", tokens), ("S", context), ("C", longest + STEPS)];
            let sizes: Sizes = sizes.map(|(k, v)| (k.to_string(), v)).into();
            work.push(plan.work(&sizes).unwrap_or_default());
        }
        Ok(Runner {
            program,
            engine,
            state,
            work,
        })
    };
    let ceilings = Ceilings::new(&source, &request(&Program::fused())?, common)?;
    let (mut all_matmul, mut all_read) = (Times::default(), Times::default());
    let mut report = Report {
        model: model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        mode: format!("{:?}", source.config.attention.mode).to_lowercase(),
        dtype: common.dtype().name(),
        threads: common.threads(),
        machine: ceilings.machine(),
        target: common.target()?.name(),
        matmul_gflop_s: 0.0,
        read_gb_s: 0.0,
        rows: vec![],
    };
    for &context in contexts {
        let mut groups = vec![vec![Program::fused(), Program::pass_by_pass(), Program::op_by_op()]];
        if ablate {
            let alone = SWITCHES.iter().filter_map(|(name, _)| Program::without(name));
            groups.extend(alone.map(|p| vec![Program::fused(), p]));
        }
        for (g, group) in groups.into_iter().enumerate() {
            let mut runners: Vec<Runner> = group
                .into_iter()
                .map(|p| runner(p, context))
                .collect::<Result<_, _>>()?;
            let mut times: Vec<[Times; 2]> = runners.iter().map(|_| Default::default()).collect();
            let (mut matmul, mut read) = (Times::default(), Times::default());
            for round in 0..=rounds {
                let limits = ceilings.measure()?;
                let mut taken = vec![];
                for r in &mut runners {
                    taken.push(r.measure(context, source.config.vocab)?);
                }
                // The first round warms up.
                if round == 0 {
                    continue;
                }
                for (times, all, seconds) in [
                    (&mut matmul, &mut all_matmul, limits.operation),
                    (&mut read, &mut all_read, limits.byte),
                ] {
                    times.push(seconds);
                    all.push(seconds);
                }
                for (times, taken) in times.iter_mut().zip(taken) {
                    times.iter_mut().zip(taken).for_each(|(t, seconds)| t.push(seconds));
                }
            }
            for (e, entry) in ENTRIES.into_iter().enumerate() {
                for (r, t) in runners.iter().zip(&times).skip(usize::from(g > 0)) {
                    let (work, t) = (r.work[e], &t[e]);
                    let limit = matmul.larger(work.products, &read, work.bytes);
                    let [of_fused, least, most] = t.over(&times[0][e]);
                    report.rows.push(Row {
                        program: r.program.name.clone(),
                        entry,
                        context,
                        seconds: t.best(),
                        median: t.median(),
                        of_fused,
                        of_fused_range: [least, most],
                        operations: work.products + work.scalars,
                        bytes: work.bytes,
                        launches: work.launches,
                        arena_bytes: r.engine.usage().arena,
                        of_limit: limit.over(t)[0],
                    });
                }
            }
        }
    }
    report.matmul_gflop_s = 1e-9 / all_matmul.median();
    report.read_gb_s = 1e-9 / all_read.median();
    Ok(report)
}

impl Runner {
    /// Seconds of one prefill, and of one decode step behind it.
    fn measure(&mut self, context: i64, vocab: i64) -> anyhow::Result<[f64; 2]> {
        let tokens: Vec<i32> = (0..context).map(|i| (i * 7919 % vocab) as i32).collect();
        let last = [context as i32 - 1];
        let inputs = [("tokens", Input::I32(&tokens)), ("last", Input::I32(&last))];
        let start = Instant::now();
        self.engine
            .call("prefill", &[("B", 1), ("T", context)], &inputs, Some(&mut self.state))?;
        let prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for i in 0..STEPS {
            let (token, at) = ([(i % vocab) as i32], [(context + i) as i32]);
            let inputs = [("tokens", Input::I32(&token)), ("start", Input::I32(&at))];
            let keys = self.engine.keys(context + i + 1, self.state.capacity);
            let sizes = [("B", 1), ("S", keys)];
            self.engine.call("decode", &sizes, &inputs, Some(&mut self.state))?;
        }
        Ok([prefill, start.elapsed().as_secs_f64() / STEPS as f64])
    }
}

impl Report {
    pub fn print(&self) {
        println!(
            "{} ({}), {}, {}, {}; matmul {:.0} GFLOP/s, reading {:.1} GB/s in this run",
            self.model, self.mode, self.dtype, self.machine, self.target, self.matmul_gflop_s, self.read_gb_s
        );
        println!(
            "{:26} {:8} {:>7} {:>10} {:>8} {:>10} {:>9} {:>8} {:>9} {:>8}",
            "program", "entry", "context", "ms", "x fused", "GFLOP", "MB", "launches", "arena MB", "of limit"
        );
        for r in &self.rows {
            println!(
                "{:26} {:8} {:>7} {:>10.3} {:>8.2} {:>10.2} {:>9.1} {:>8} {:>9.1} {:>7.0}%",
                r.program,
                r.entry,
                r.context,
                1e3 * r.seconds,
                r.of_fused,
                1e-9 * r.operations,
                1e-6 * r.bytes,
                r.launches,
                1e-6 * r.arena_bytes as f64,
                100.0 * r.of_limit
            );
        }
    }

    /// Bars of every program's time over the fused one's, as SVG.
    pub fn plot(&self, path: &Path) -> anyhow::Result<()> {
        use plotters::prelude::*;
        let height = 90 + 22 * self.rows.len() as u32;
        let beside = path.with_extension("svg.part");
        {
            let area = SVGBackend::new(&beside, (900, height)).into_drawing_area();
            area.fill(&WHITE)?;
            let widest = self.rows.iter().fold(1.0_f64, |m, r| m.max(r.of_fused));
            let title = format!(
                "{} ({}), {}: time over the fused program's",
                self.model, self.mode, self.dtype
            );
            let n = self.rows.len() as i32;
            let mut chart = ChartBuilder::on(&area)
                .caption(title, ("sans-serif", 18))
                .margin(10)
                .x_label_area_size(30)
                .y_label_area_size(290)
                .build_cartesian_2d(0.0..1.08 * widest, (0..n).into_segmented())?;
            let label = |at: &SegmentValue<i32>| match at {
                SegmentValue::CenterOf(i) | SegmentValue::Exact(i) => {
                    let row = usize::try_from(n - 1 - i).ok().and_then(|i| self.rows.get(i));
                    row.map_or(String::new(), |r| format!("{}, {} {}", r.program, r.entry, r.context))
                }
                SegmentValue::Last => String::new(),
            };
            chart
                .configure_mesh()
                .disable_y_mesh()
                .y_labels(self.rows.len() + 1)
                .y_label_formatter(&label)
                .x_desc("times the fused program's time")
                .draw()?;
            chart.draw_series(self.rows.iter().enumerate().map(|(i, r)| {
                let at = n - 1 - i as i32;
                let colour = if r.program == "fused" {
                    RGBColor(40, 110, 60)
                } else {
                    RGBColor(90, 120, 190)
                };
                let (low, high) = (SegmentValue::Exact(at), SegmentValue::Exact(at + 1));
                let mut bar = Rectangle::new([(0.0, low), (r.of_fused, high)], colour.filled());
                bar.set_margin(3, 3, 0, 0);
                bar
            }))?;
            area.present()?;
        }
        std::fs::rename(&beside, path)?;
        Ok(())
    }
}
