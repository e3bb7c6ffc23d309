//! `loopc compile`: a Hugging Face folder to one artefact file.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use clap::ValueEnum;

use crate::options::{self, ComputeType};
use crate::session::{ENTRIES, Request, Source};
use crate::tuning;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder
    model: PathBuf,
    /// The artefact to write
    #[arg(short, long)]
    output: PathBuf,
    /// x86-64-v3, x86-64-v4, x86-64-v4+bf16, sm_80, sm_90a; may be given several times [default: this machine]
    #[arg(long)]
    target: Vec<String>,
    /// prefill, decode, logits, loss; may be given several times [default: all]
    #[arg(long)]
    entry: Vec<String>,
    /// Type of weights and activations
    #[arg(long, value_enum, default_value = "f32")]
    dtype: ComputeType,
    /// Longest sequence: prompt and generated tokens
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(i64).range(1..=1 << 20))]
    max_context: i64,
    /// Ways of GPU kernels, as `loopc tune` writes them [default: as shipped]
    #[arg(long, value_name = "FILE.toml")]
    tuning: Option<PathBuf>,
    /// One kernel per op, for comparison
    #[arg(long)]
    no_fuse: bool,
    /// Write a stage's text: graph, plan, mlir, llvm or all, as STAGE=DIR; may be given several times
    #[arg(long, value_name = "STAGE=DIR")]
    emit: Vec<String>,
    /// Tell how long each stage took
    #[arg(long)]
    time: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let start = Instant::now();
        for entry in &self.entry {
            if !ENTRIES.contains(&entry.as_str()) {
                bail!("--entry {entry}: choose {}", ENTRIES.join(", "));
            }
        }
        let mut emit = vec![];
        for text in &self.emit {
            emit.extend(options::emit(text)?);
        }
        let targets = options::targets(&self.target)?;
        let request = Request {
            tuning: tuning::for_targets(&targets, self.tuning.as_deref())?,
            entries: if self.entry.is_empty() {
                ENTRIES.map(String::from).to_vec()
            } else {
                self.entry
            },
            targets,
            dtype: self.dtype.dtype(),
            max_context: self.max_context,
            program: options::program(self.no_fuse),
            emit,
        };
        let source = Source::open(&self.model)?;
        let (artefact, mut times) = source.compile(&request)?;
        let writing = Instant::now();
        artefact.write(&self.output)?;
        times.push(("write".to_string(), writing.elapsed()));
        let total = start.elapsed();
        let targets: Vec<&str> = request.targets.iter().map(|t| t.name()).collect();
        let bytes = std::fs::metadata(&self.output)?.len();
        if self.json {
            let stages: serde_json::Map<_, _> = times
                .iter()
                .map(|(name, t)| (name.clone(), t.as_secs_f64().into()))
                .collect();
            let dtype = self.dtype.to_possible_value().map(|v| v.get_name().to_string());
            let report = serde_json::json!({
                "output": self.output, "bytes": bytes, "entries": request.entries, "targets": targets, "dtype": dtype,
                "seconds": total.as_secs_f64(), "stages": stages,
            });
            println!("{report}");
            return Ok(());
        }
        if self.time {
            for (name, t) in &times {
                println!("{:>9.1} ms  {name}", t.as_secs_f64() * 1e3);
            }
        }
        println!(
            "{}: {} for {}, {} KiB, {:.2} s",
            self.output.display(),
            request.entries.join(" "),
            targets.join(" "),
            bytes / 1024,
            total.as_secs_f64()
        );
        Ok(())
    }
}
