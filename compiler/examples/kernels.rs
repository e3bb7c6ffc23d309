//! GPU kernels of a graph's entries as files for `tests/gpu/launch.py`: code.ptx, kernels.json and each kernel's MLIR.
//!
//!     kernels GRAPH.mlir OUT [--target sm_90a] [--no-passes] [--only NAME,NAME] [--skip-failing] [--shapes]
//!
//! `--shapes`: of products alone, with a variant for each shape of their table. GRAPH is a naive graph as `loopc compile --emit graph=DIR` writes it, or a JSON list of plan kernels (`.json`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use compiler::{Target, gpu};
use ir::plan::Kernel;
use runtime::artefact::GpuKernel;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut flag = |name: &str, value: bool| -> Option<String> {
        let at = args.iter().position(|a| a == name)?;
        args.remove(at);
        Some(if value { args.remove(at) } else { String::new() })
    };
    let target = flag("--target", true).unwrap_or("sm_90a".into());
    let (plain, lenient) = (
        flag("--no-passes", false).is_some(),
        flag("--skip-failing", false).is_some(),
    );
    let shapes = flag("--shapes", false).is_some();
    let only = flag("--only", true);
    let [input, out] = &args[..] else {
        return Err("kernels GRAPH.mlir OUT".into());
    };
    let out = PathBuf::from(out);
    let text = std::fs::read_to_string(input)?;
    let Target::Gpu(target) = Target::by_name(&target)? else {
        return Err("a GPU target, please".into());
    };

    let mut kernels: BTreeMap<String, Kernel> = BTreeMap::new();
    if input.ends_with(".json") {
        let list: Vec<Kernel> = serde_json::from_str(&text)?;
        kernels.extend(list.into_iter().map(|k| (k.name.clone(), k)));
    } else {
        let mut module = ir::text::parse(&text).map_err(|e| format!("{e:?}"))?;
        let program = passes::Program::fused();
        for pass in program.steps().map_err(|e| e.to_string())?.iter().filter(|_| !plain) {
            (pass.run)(&mut module).map_err(|e| e.to_string())?;
        }
        let entries = ["prefill", "decode", "logits", "loss", "train_step", "gradients"];
        for entry in entries.into_iter().filter(|f| module.function(f).is_some()) {
            let plan = passes::schedule(&module, entry, &program.scheduling).map_err(|e| e.to_string())?;
            kernels.extend(plan.kernels.into_iter().map(|k| {
                let name = format!("{entry}_{}", k.name.replace('.', "_"));
                (name.clone(), Kernel { name, ..k })
            }));
        }
    }
    let wanted = |k: &&Kernel| only.as_ref().is_none_or(|o| o.split(',').any(|o| k.name.contains(o)));
    let works = |k: &&Kernel| {
        let made = gpu::emit(k, &target);
        if let Err(e) = &made {
            eprintln!("{e}");
        }
        !lenient || made.is_ok()
    };
    let list: Vec<Kernel> = kernels.values().filter(wanted).filter(works).cloned().collect();
    let (compiled, how) = if shapes {
        gpu::compile_ways(&list, &target, true)?
    } else {
        gpu::compile_kernels(&list, &target, true)?
    };
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("code.ptx"), &compiled.code)?;
    for (name, mlir) in &compiled.mlir {
        std::fs::write(out.join(format!("{name}.mlir")), mlir)?;
    }
    let of = |how: &GpuKernel| list.iter().find(|k| k.name == how.name);
    let rows: Vec<_> = (how.iter())
        .filter_map(|how| Some((of(how)?, how)))
        .map(|(k, how)| serde_json::json!({"kernel": k, "gpu": how}))
        .collect();
    std::fs::write(out.join("kernels.json"), serde_json::to_string_pretty(&rows)?)?;
    println!(
        "{} kernels, {} bytes of PTX in {}",
        list.len(),
        compiled.code.len(),
        out.display()
    );
    Ok(())
}
