//! `loopc opt`: run graph passes on a textual graph and print it after each.

use std::path::PathBuf;

use anyhow::{Context, bail};

#[derive(clap::Args)]
pub struct Args {
    /// A graph in text form (`loopc compile --emit graph=DIR` writes some)
    #[arg(required_unless_present = "list_passes")]
    file: Option<PathBuf>,
    /// Passes by name, in this order; none: parse, verify and print
    #[arg(long, value_delimiter = ',')]
    passes: Vec<String>,
    /// Print the kernels of this entry point instead of the graph
    #[arg(long, value_name = "ENTRY")]
    plan: Option<String>,
    /// Name the passes and say what they do
    #[arg(long)]
    list_passes: bool,
    /// Print the graph after every pass, not only after the last
    #[arg(long)]
    each: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        if self.list_passes {
            for pass in passes::PASSES {
                println!("{:12} {}", pass.name, pass.about);
            }
            return Ok(());
        }
        let file = self.file.context("name a graph file")?;
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let (mut module, lines) =
            ir::text::parse_with_lines(&text).map_err(|e| anyhow::anyhow!("{}:{e}", file.display()))?;
        report(&ir::verify::verify_at(&module, &lines), &file.display().to_string())?;
        for name in &self.passes {
            let Some(pass) = passes::PASSES.iter().find(|p| p.name == name) else {
                let names: Vec<&str> = passes::PASSES.iter().map(|p| p.name).collect();
                bail!("there is no pass `{name}`; choose from {}", names.join(", "));
            };
            (pass.run)(&mut module).with_context(|| format!("pass {name}"))?;
            report(&ir::verify::verify(&module), &format!("after pass {name}"))?;
            if self.each {
                println!("// after {name}\n{module}");
            }
        }
        match self.plan {
            Some(entry) => print!("{}", passes::schedule(&module, &entry, &passes::Scheduling::FUSED)?),
            None if self.each && !self.passes.is_empty() => {}
            None => print!("{module}"),
        }
        Ok(())
    }
}

fn report(errors: &[ir::verify::VerifyError], at: &str) -> anyhow::Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    for e in errors {
        eprintln!("{at}: {e}");
    }
    bail!("{at}: {} error(s) in the graph", errors.len())
}
