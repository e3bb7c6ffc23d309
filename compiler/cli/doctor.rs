//! `loopc doctor`: what this machine can compile for and run on, and what is missing.

use compiler::cpu::Target;
use runtime::engine::device;

#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let native = Target::native().map(|t| t.name.to_string());
        let targets: Vec<(String, Vec<String>)> = Target::ALL
            .iter()
            .map(|t| {
                (
                    t.name.to_string(),
                    runtime::container::missing_features(&t.required_features()),
                )
            })
            .collect();
        let cache = crate::cache::folder();
        let gpus = device::gpus();
        if self.json {
            let targets: Vec<_> = targets
                .iter()
                .map(|(name, missing)| serde_json::json!({"target": name, "runs_here": missing.is_empty(), "missing": missing}))
                .collect();
            let report = serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"), "cores": cores, "native": native.ok(), "targets": targets,
                "cuda": cuda(&gpus), "cache": cache,
            });
            println!("{report}");
            return Ok(());
        }
        println!("loopc {} with LLVM 22, {cores} cores", env!("CARGO_PKG_VERSION"));
        for (name, missing) in &targets {
            match missing.as_slice() {
                [] if native.as_ref().is_ok_and(|n| n == name) => {
                    println!("  {name:16} compiles and runs here; `--target native` is this one")
                }
                [] => println!("  {name:16} compiles and runs here"),
                missing => println!(
                    "  {name:16} compiles here; to run it this CPU lacks {}",
                    missing.join(", ")
                ),
            }
        }
        if let Err(e) = native {
            println!("  this machine runs none of them: {e}");
        }
        match &gpus {
            Ok(all) => {
                for (number, gpu) in all.iter().enumerate() {
                    println!("  {:16} {}", format!("cuda:{number}"), described(gpu));
                }
            }
            Err(why) => println!("  {why}"),
        }
        println!("compiled models are cached in {}", cache.display());
        Ok(())
    }
}

fn described(gpu: &device::Gpu) -> String {
    let ((major, minor), driver) = (gpu.capability, gpu.driver);
    let target = match gpu.target() {
        Some(target) => format!("{target} compiles and runs here"),
        None => "too old: loopc compiles for compute capability 8.0 and newer".to_string(),
    };
    format!(
        "{target}: {}, {:.1} GiB, {} multiprocessors, compute capability {major}.{minor}, driver for CUDA {}.{}",
        gpu.name,
        gpu.memory as f64 / (1u64 << 30) as f64,
        gpu.multiprocessors,
        driver.0,
        driver.1
    )
}

/// A list of devices, or the reason why there is none.
fn cuda(gpus: &Result<Vec<device::Gpu>, runtime::RuntimeError>) -> serde_json::Value {
    let one = |(number, gpu): (usize, &device::Gpu)| {
        let pair = |(a, b): (u32, u32)| format!("{a}.{b}");
        serde_json::json!({
            "device": format!("cuda:{number}"), "name": gpu.name, "memory_bytes": gpu.memory, "target": gpu.target(),
            "multiprocessors": gpu.multiprocessors, "compute_capability": pair(gpu.capability), "driver_cuda": pair(gpu.driver),
        })
    };
    match gpus {
        Ok(all) => all.iter().enumerate().map(one).collect(),
        Err(why) => serde_json::json!({ "missing": why.to_string() }),
    }
}
