//! `loopc doctor`: what this machine can compile for and run on, and what is missing.

use compiler::cpu::Target;

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
        if self.json {
            let targets: Vec<_> = targets
                .iter()
                .map(|(name, missing)| serde_json::json!({"target": name, "runs_here": missing.is_empty(), "missing": missing}))
                .collect();
            let report = serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"), "cores": cores, "native": native.ok(), "targets": targets,
                "cuda": serde_json::Value::Null, "cache": cache,
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
        println!("  cuda             not supported by this version");
        println!("compiled models are cached in {}", cache.display());
        Ok(())
    }
}
