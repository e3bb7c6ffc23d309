//! `loopc check`: compiled programs against the graph's evaluator, on random data and sizes, on any device. How kernels are verified on a
//! machine that has nothing but this program.
//!
//! A failure is told with the words that repeat it. Programs run in a second process of this one (`worker`), which is begun anew behind a
//! program that broke the device, ended the process or never came back (`supervisor`).

mod models;
mod subjects;
mod supervisor;
mod trial;

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;

use self::subjects::Subject;
use self::supervisor::Message;
use self::trial::Tester;
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
    /// Seconds that a program may take
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Be the process that runs programs, from this one on; so many have failed
    #[arg(long, hide = true, value_name = "PROGRAM,FAILED", value_delimiter = ',')]
    worker: Vec<u64>,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        if self.files.is_empty() && !(self.ops || self.modes || self.random) {
            bail!("name graph files, or give --ops, --modes or --random");
        }
        match self.worker[..] {
            [from, failed] => self.work(from as usize, failed),
            _ => {
                // What is wrong with the command line or the device is told here, once.
                self.common.target()?;
                self.subjects()?;
                supervisor::run(&self)
            }
        }
    }

    /// Runs the programs and tells the supervisor, a line of JSON each time.
    fn work(&self, from: usize, mut failed: u64) -> anyhow::Result<()> {
        let tell = |message: &Message| -> anyhow::Result<()> {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", serde_json::to_string(message)?)?;
            Ok(out.flush()?)
        };
        let mut tester = Tester::new(&self.common)?;
        for (at, subject) in self.subjects()?.iter().enumerate().skip(from) {
            tell(&Message::Begin {
                at: at as u64,
                name: subject.name.clone(),
                again: self.again(subject),
            })?;
            let outcome = tester.test(subject, self.seeds(subject));
            if !outcome.failures.is_empty() {
                if let Some(path) = self.save.as_ref().filter(|_| failed == 0) {
                    runtime::weights::write_whole(path, &[subject.module.to_string().as_bytes()])?;
                }
                failed += 1;
            }
            let is_broken = outcome.is_broken;
            tell(&Message::Done(outcome))?;
            if is_broken {
                return Ok(());
            }
        }
        tell(&Message::End {
            machine: tester.machine().to_string(),
            target: tester.target().to_string(),
        })
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
                let program = self.common.program();
                all.extend(models::of(self.seed.wrapping_add(i), self.common.dtype(), program)?);
            }
        }
        let wanted = |s: &Subject| self.only.as_ref().is_none_or(|text| s.name.contains(text.as_str()));
        all.retain(wanted);
        if all.is_empty() {
            bail!("no program's name holds `{}`", self.only.as_deref().unwrap_or_default());
        }
        Ok(all)
    }

    /// The command line for one program; a seed may follow.
    fn again(&self, subject: &Subject) -> String {
        let c = &self.common;
        let mut again = format!("loopc check {}", subject.option);
        if subject.option.starts_with("--") {
            again += &format!(" --only '{}'", subject.name);
        }
        again += &format!(" --device {} --dtype {}", c.device, c.dtype().name());
        if c.no_fuse {
            again += " --no-fuse";
        }
        if let Some((seed, _)) = subject.made {
            again += &format!(" --seed {seed} --cases 1");
        }
        again
    }
}
