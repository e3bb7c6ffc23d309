//! `loopc check`: compiled programs against the graph's evaluator, on random data and sizes, on any device. How kernels are verified on a
//! machine that has nothing but this program.
//!
//! A failure is told with the words that repeat it. A kernel that breaks its GPU's context breaks this process for the device: it is told,
//! and the process begins anew behind it.

mod models;
mod subjects;
mod trial;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, bail};

use self::subjects::Subject;
use self::trial::{Outcome, Tester};
use crate::options::Common;

#[derive(clap::Args)]
pub struct Args {
    /// Graphs in text form, as `loopc compile --emit graph=DIR` writes them
    files: Vec<PathBuf>,
    /// Every op of the graph, each of its samples
    #[arg(long)]
    ops: bool,
    /// Models of random small configurations: all modes, all entry points, gradients and training steps
    #[arg(long)]
    modes: bool,
    /// Random programs
    #[arg(long)]
    random: bool,
    /// Runs of each file and op, on other data and sizes; programs of --random, models of each mode of --modes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    cases: u64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only programs whose name holds this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Write the first program that fails to this file
    #[arg(long, value_name = "OUT.mlir")]
    save: Option<PathBuf>,
    /// Begin behind so many programs, with what was counted before them
    #[arg(long, hide = true, value_name = "PROGRAMS,RUNS,FAILED", value_delimiter = ',')]
    from: Vec<u64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Default)]
struct Count {
    programs: u64,
    runs: u64,
    failed: u64,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        if self.files.is_empty() && !(self.ops || self.modes || self.random) {
            bail!("name graph files, or give --ops, --modes or --random");
        }
        let subjects = self.subjects()?;
        let mut tester = Tester::new(&self.common)?;
        let mut count = match self.from[..] {
            [programs, runs, failed] => Count { programs, runs, failed },
            _ => Count::default(),
        };
        for subject in subjects.iter().skip(count.programs as usize) {
            count.programs += 1;
            let outcome = tester.test(subject, self.seeds(subject));
            count.runs += outcome.runs;
            if self.common.verbose && outcome.failures.is_empty() {
                eprintln!("{}: {} runs", subject.name, outcome.runs);
            }
            self.tell(subject, &outcome, &mut count)?;
            if outcome.is_broken {
                // The device is lost to this process. The command line again, from the next program on.
                let place = format!("--from={},{},{}", count.programs, count.runs, count.failed);
                let kept = std::env::args_os()
                    .skip(1)
                    .filter(|a| !a.to_string_lossy().starts_with("--from="));
                let program = std::env::current_exe().context("cannot go on behind a broken device")?;
                let failure = std::process::Command::new(program).args(kept).arg(place).exec();
                return Err(failure).context("cannot go on behind a broken device");
            }
        }
        let (machine, target) = (tester.machine(), tester.target());
        if self.common.json {
            let report = serde_json::json!({
                "programs": count.programs, "runs": count.runs, "failed": count.failed, "target": target, "machine": machine,
            });
            println!("{report}");
        } else {
            println!(
                "{} programs, {} runs on {target} ({machine}), {} failed",
                count.programs, count.runs, count.failed
            );
        }
        if count.failed > 0 {
            bail!("{} of {} programs failed", count.failed, count.programs);
        }
        Ok(())
    }

    /// Of the data.
    fn seeds(&self, subject: &Subject) -> std::ops::Range<u64> {
        match subject.made {
            Some((seed, trials)) => seed << 4..(seed << 4) + trials,
            None => self.seed..self.seed.saturating_add(self.cases),
        }
    }

    fn subjects(&self) -> anyhow::Result<Vec<Subject>> {
        let mut all = vec![];
        for file in &self.files {
            all.push(subjects::of_file(file, self.seed)?);
        }
        if self.ops {
            all.extend(subjects::ops()?);
        }
        if self.random {
            for i in 0..self.cases {
                all.extend(subjects::random(self.seed.wrapping_add(i))?);
            }
        }
        if self.modes {
            for i in 0..self.cases {
                all.extend(models::of(
                    self.seed.wrapping_add(i),
                    self.common.dtype(),
                    self.common.program(),
                )?);
            }
        }
        let wanted = |s: &Subject| self.only.as_ref().is_none_or(|text| s.name.contains(text.as_str()));
        all.retain(wanted);
        if all.is_empty() {
            bail!("no program's name holds `{}`", self.only.as_deref().unwrap_or_default());
        }
        Ok(all)
    }

    fn tell(&self, subject: &Subject, outcome: &Outcome, count: &mut Count) -> anyhow::Result<()> {
        if outcome.failures.is_empty() {
            return Ok(());
        }
        for failure in &outcome.failures {
            let c = &self.common;
            let mut again = format!("loopc check {}", subject.option);
            if let Some(seed) = subject.made.map(|m| m.0).or(failure.seed) {
                again += &format!(" --seed {seed} --cases 1");
            }
            if subject.option.starts_with("--") {
                again += &format!(" --only '{}'", subject.name);
            }
            again += &format!(" --device {} --dtype {}", c.device, c.dtype().name());
            if c.no_fuse {
                again += " --no-fuse";
            }
            println!("FAILED {}: {}\n       {again}", subject.name, failure.what);
        }
        if let Some(path) = self.save.as_ref().filter(|_| count.failed == 0) {
            runtime::weights::write_whole(path, &[subject.module.to_string().as_bytes()])?;
        }
        count.failed += 1;
        Ok(())
    }
}
