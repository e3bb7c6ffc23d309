//! `loopc opt`: run graph passes on a textual graph and print it after each.

use std::path::{Path, PathBuf};

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
    /// Instead of printing: what `fuse` finds in each function, what candidates cost, and what each rule is good for
    #[arg(long, conflicts_with_all = ["plan", "each", "draw", "against"])]
    explain: bool,
    /// Whose costs --explain counts with: cpu or gpu
    #[arg(long, default_value = "cpu", requires = "explain")]
    machine: String,
    /// Draw the graph after the passes to this .dot or .svg file; with passes, also as it was, to OUT.before.dot or .svg
    #[arg(long, value_name = "OUT")]
    draw: Option<PathBuf>,
    /// Instead of printing: does the graph mean the same after these passes ("": none) as after --passes?
    #[arg(long, value_name = "PASSES", value_delimiter = ',', conflicts_with_all = ["plan", "each", "draw"])]
    against: Option<Vec<String>>,
    /// Where --against finds a difference: write the smallest graph that shows it
    #[arg(long, value_name = "OUT", requires = "against")]
    reduce: Option<PathBuf>,
    /// Of the random data that --against compares on
    #[arg(long, default_value_t = 0, requires = "against")]
    seed: u64,
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
        let list = |passes: &[String]| passes.iter().filter(|p| !p.is_empty()).cloned().collect::<Vec<_>>();
        let names = list(&self.passes);
        if let Some(against) = &self.against {
            return compare(&module, [&names, &list(against)], self.reduce.as_deref(), self.seed);
        }
        if let Some(out) = &self.draw {
            let svg = crate::draw::svg_wanted(out)?;
            if !names.is_empty() {
                crate::draw::write(
                    &module,
                    &out.with_extension(if svg { "before.svg" } else { "before.dot" }),
                )?;
            }
        }
        for name in &names {
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
        if let Some(out) = &self.draw {
            crate::draw::write(&module, out)?;
        }
        if self.explain {
            return explain(&module, &self.machine);
        }
        match self.plan {
            Some(entry) => print!("{}", passes::schedule(&module, &entry, &passes::Scheduling::FUSED)?),
            None if self.each && !names.is_empty() => {}
            None if self.draw.is_some() => {}
            None => print!("{module}"),
        }
        Ok(())
    }
}

/// The e-graph's account of every function that has attention in it.
fn explain(module: &ir::Module, machine: &str) -> anyhow::Result<()> {
    use passes::egraph::{cost::MACHINES, explain::explain, rules};
    let Some(machine) = MACHINES.iter().find(|m| m.name == machine) else {
        let names: Vec<&str> = MACHINES.iter().map(|m| m.name).collect();
        bail!("there is no machine `{machine}`; choose from {}", names.join(", "));
    };
    let attends = |f: &&ir::Function| f.ops.iter().any(|op| op.name == "mask");
    for f in module.functions.iter().filter(attends) {
        match explain(f, &rules::all(), machine) {
            Some(account) => println!("{}", account.text(machine)),
            None => println!("@{}: nothing to fuse\n", f.name),
        }
    }
    Ok(())
}

/// One line and success where the two lists agree; an error that says where they do not.
fn compare(module: &ir::Module, lists: [&[String]; 2], out: Option<&Path>, seed: u64) -> anyhow::Result<()> {
    /// Other data, other sizes: what one draw hides the next may show.
    const DRAWS: u64 = 4;
    let [a, b] = lists.map(|list| list.iter().map(String::as_str).collect::<Vec<_>>());
    for seed in (0..DRAWS).map(|i| seed.wrapping_add(i)) {
        let Some(what) = passes::disagree(module, &a, &b, seed)? else {
            continue;
        };
        let Some(out) = out else {
            bail!("the two lists disagree: {what}");
        };
        let small = passes::reduce(module, &mut |m| {
            passes::disagree(m, &a, &b, seed).is_ok_and(|d| d.is_some())
        });
        runtime::weights::write_whole(out, &[small.to_string().as_bytes()])?;
        bail!(
            "the two lists disagree: {what}; {} shows it with --seed {seed}",
            out.display()
        );
    }
    println!("the two lists agree on {DRAWS} draws of random data");
    Ok(())
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
