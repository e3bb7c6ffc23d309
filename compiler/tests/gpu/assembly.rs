//! Machine code of every kernel, by NVIDIA's assembler where it is at hand (`LOOPC_PTXAS`, what `.ci/setup` has fetched, or `PATH`): no
//! register spills, nothing lies in local memory, a block's threads have as many registers as they ask for, and the matrix and copy units
//! are used where the PTX says so. Elsewhere the checks say that they were left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use ptx::text::Tree;
use runtime::artefact::GpuKernel;

use crate::describe;

/// Registers of a multiprocessor.
const REGISTERS: u32 = 65536;

/// What the assembler says of one function.
#[derive(Clone, Debug, Default)]
struct Told {
    registers: u32,
    stack: u32,
    spills: u32,
}

/// A tool of CUDA's, if it runs.
fn tool(name: &str) -> Option<PathBuf> {
    let own = std::env::var_os(format!("LOOPC_{}", name.to_uppercase())).map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/ptxas/nvidia/cu13/bin")
        .join(name);
    let all = own.into_iter().chain([fetched, PathBuf::from(name)]);
    all.into_iter().find(|p| {
        Command::new(p)
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
    })
}

/// What is wrong with the machine code of these kernels' functions; a line each.
pub fn faults(name: &str, target: &str, text: &str, kernels: &[GpuKernel]) -> Vec<String> {
    let Some(ptxas) = tool("ptxas") else {
        eprintln!("{name} for {target}: not assembled, there is no ptxas");
        return vec![];
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("assembly");
    std::fs::create_dir_all(&folder).expect("a folder");
    let (source, cubin) = (
        folder.join(format!("{name}.{target}.ptx")),
        folder.join(format!("{name}.{target}.cubin")),
    );
    std::fs::write(&source, text).expect("it is written");
    let mut command = Command::new(ptxas);
    command
        .args(["-v", &format!("-arch={target}"), "-o"])
        .arg(&cubin)
        .arg(&source);
    let out = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&out.stderr) + String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        return vec![format!("{name} for {target}: {said}")];
    }
    let mut faults: Vec<String> = (said.lines())
        .filter(|l| l.contains("Performance Loss") || l.contains("warning"))
        .map(str::to_string)
        .collect();
    let told = read(&said);
    let tree = ptx::text::parse(text).expect("PTX that is read");
    for step in kernels.iter().flat_map(|k| &k.variants).flat_map(|v| &v.steps) {
        let Some(t) = told.get(&step.function) else {
            faults.push(format!("{}: the assembler does not tell of it", step.function));
            continue;
        };
        if t.spills > 0 || t.stack > 0 {
            faults.push(format!("{}: {t:?}", step.function));
        }
        // Registers are given out by eights.
        if t.registers.next_multiple_of(8) * step.threads > REGISTERS {
            faults.push(format!(
                "{}: {} threads of {} registers",
                step.function, step.threads, t.registers
            ));
        }
    }
    faults.extend(machine_code(&cubin, kernels, &tree));
    faults
}

/// By function.
fn read(said: &str) -> BTreeMap<String, Told> {
    let mut all: BTreeMap<String, Told> = BTreeMap::new();
    let mut name = String::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("entry function '") {
            name = rest.split('\'').next().unwrap_or("").to_string();
        }
        let told = all.entry(name.clone()).or_default();
        if line.contains("bytes stack frame") {
            let numbers: Vec<u32> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
            told.stack = numbers[0];
            told.spills = numbers[1..].iter().sum();
        }
        if let Some((_, rest)) = line.split_once("Used ") {
            told.registers = rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        }
    }
    all
}

/// Instructions of the machine code against what the PTX asks for.
fn machine_code(cubin: &Path, kernels: &[GpuKernel], tree: &Tree) -> Vec<String> {
    let Some(nvdisasm) = tool("nvdisasm") else {
        eprintln!("machine code is not looked at, there is no nvdisasm");
        return vec![];
    };
    let out = Command::new(nvdisasm).arg("-c").arg(cubin).output().expect("it runs");
    if !out.status.success() {
        return vec![format!("nvdisasm: {}", String::from_utf8_lossy(&out.stderr))];
    }
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut faults = vec![];
    for step in kernels.iter().flat_map(|k| &k.variants).flat_map(|v| &v.steps) {
        let head = format!(".section\t.text.{},", step.function);
        let Some((_, body)) = text.split_once(&head) else {
            faults.push(format!("{}: nvdisasm does not list it", step.function));
            continue;
        };
        let body = body.split("\n\t.section\t").next().unwrap_or("");
        let has = |what: &str| body.split_whitespace().any(|word| word.split('.').next() == Some(what));
        let counts = describe::count(describe::function(tree, &step.function));
        let asks = |what: &str| counts.keys().any(|k| k.starts_with(what));
        for (asked, unit) in [
            ("wgmma m64", "HGMMA"),
            ("mma m16", "HMMA"),
            ("ldmatrix", "LDSM"),
            ("cp.async.bulk.tensor", "UTMALDG"),
            ("cp.async.cg", "LDGSTS"),
        ] {
            // A copy of a tensor may also go the other way.
            let stores = unit == "UTMALDG" && has("UTMASTG");
            if asks(asked) && !has(unit) && !stores {
                faults.push(format!("{}: {asked} in the PTX, but no {unit}", step.function));
            }
        }
        for local in ["LDL", "STL"] {
            if has(local) {
                faults.push(format!("{}: {local}, local memory", step.function));
            }
        }
    }
    faults
}
