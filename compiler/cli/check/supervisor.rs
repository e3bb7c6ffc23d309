//! The process that counts and tells, while another one runs the programs: a kernel may break its device, end its process or never end.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::Args;
use super::trial::Outcome;

/// What a worker says.
#[derive(Serialize, Deserialize)]
pub enum Message {
    /// A program begins; `again` repeats it.
    Begin {
        at: u64,
        name: String,
        again: String,
    },
    Done(Outcome),
    End {
        machine: String,
        target: String,
    },
}

#[derive(Default)]
struct Count {
    programs: u64,
    runs: u64,
    failed: u64,
}

/// How a worker ended.
enum End {
    /// With the last program: machine and target.
    All(String, String),
    /// Within a program, or behind one that broke the device.
    Early,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut count = Count::default();
    let (machine, target) = loop {
        let before = count.programs;
        match follow(args, &mut count)? {
            End::All(machine, target) => break (machine, target),
            End::Early if count.programs > before => {}
            End::Early => bail!("the process that runs the programs ends before the first"),
        }
    };
    if args.common.json {
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
    match count.failed {
        0 => Ok(()),
        n => bail!("{n} of {} programs failed", count.programs),
    }
}

/// One worker, to its end.
fn follow(args: &Args, count: &mut Count) -> anyhow::Result<End> {
    let (mut child, lines) = worker(count)?;
    let mut current: Option<(String, String)> = None;
    loop {
        // The limit is a program's; a process that begins, or ends, is given a minute whatever the machine is busy with.
        let limit = if current.is_some() {
            args.limit
        } else {
            args.limit.max(60)
        };
        let late = match lines.recv_timeout(Duration::from_secs(limit)) {
            Ok(Message::Begin { at, name, again }) => {
                count.programs = at + 1;
                current = Some((name, again));
                continue;
            }
            Ok(Message::Done(outcome)) => {
                count.runs += outcome.runs;
                if let Some((name, again)) = current.take() {
                    tell(args, &name, &again, &outcome, count);
                }
                continue;
            }
            Ok(Message::End { machine, target }) => {
                child.wait()?;
                return Ok(End::All(machine, target));
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        };
        if late {
            child.kill()?;
        }
        let status = child.wait()?;
        if let Some((name, again)) = current.take() {
            let what = match late {
                true => format!("took longer than {} s", args.limit),
                false => format!("its process ended: {status}"),
            };
            tell(args, &name, &again, &Outcome::failed(what), count);
        }
        return Ok(End::Early);
    }
}

/// This command line again, as a worker that goes on behind what is counted; and what it says.
fn worker(count: &Count) -> anyhow::Result<(Child, Receiver<Message>)> {
    let program = std::env::current_exe().context("cannot begin a process for the programs")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg(format!("--worker={},{}", count.programs, count.failed))
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot begin a process for the programs")?;
    let (sender, receiver) = channel();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            let messages = BufReader::new(out).lines().map_while(Result::ok);
            for message in messages.filter_map(|line| serde_json::from_str(&line).ok()) {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
    }
    Ok((child, receiver))
}

fn tell(args: &Args, name: &str, again: &str, outcome: &Outcome, count: &mut Count) {
    if args.common.verbose && outcome.failures.is_empty() {
        eprintln!("{name}: {} runs", outcome.runs);
    }
    for failure in &outcome.failures {
        let seed = match failure.seed {
            Some(seed) if !again.contains("--seed") => format!(" --seed {seed} --cases 1"),
            _ => String::new(),
        };
        let text = format!("FAILED {name}: {}\n       {again}{seed}", failure.what);
        if args.common.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }
    count.failed += u64::from(!outcome.failures.is_empty());
}
