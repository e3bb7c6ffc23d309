//! The kernels that are looked at: plans of graphs, in groups. Real graphs are those that the filetests keep of a tiny model in every mode;
//! what they have no example of stands beside this file, as graphs or as kernels made by hand.
//!
//! A kernel that an earlier plan has too is looked at once.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use compiler::gpu;
use ir::plan::{Buffer, BufferKind, Kernel, Launch, Plan};
use runtime::artefact::{GpuKernel, Join};

use crate::harness::{Code, target};
use crate::{sweep_gradient, sweeps};

pub const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// Plans that are looked at together.
pub const GROUPS: [&str; 9] = [
    "small", "products", "sweeps", "layer", "base", "restart", "stack", "train", "token",
];

/// A plan, and which of its kernels no plan before it has.
pub struct Subject {
    pub plan: Plan,
    pub new: Vec<bool>,
}

impl Subject {
    fn kernels(&self) -> Vec<Kernel> {
        let all = self.plan.kernels.iter().zip(&self.new);
        all.filter(|(_, new)| **new).map(|(k, _)| k.clone()).collect()
    }
}

/// A subject's code for a target.
pub struct Made {
    pub code: Code,
    /// Those that are new; then those that are joined, whose names have a `+`.
    pub kernels: Vec<GpuKernel>,
    pub joins: Vec<Join>,
}

pub fn make(subject: &Subject, name: &str) -> Made {
    let plan = &subject.plan;
    let names: Vec<String> = plan.kernels.iter().map(|k| k.name.clone()).collect();
    let module = gpu::compile_plans(
        &subject.kernels(),
        &[(plan, &names)],
        &target(name),
        &Default::default(),
        false,
    )
    .expect("it compiles");
    Made {
        code: Code::read(module.compiled.code),
        kernels: module.kernels,
        joins: module.joins,
    }
}

/// The subjects of a group.
pub fn group(name: &str) -> Vec<Subject> {
    let mut seen = HashSet::new();
    for group in GROUPS {
        let mut subjects = vec![];
        for plan in plans(group) {
            let body = |k: &Kernel| Kernel {
                name: String::new(),
                ..k.clone()
            };
            let new = plan.kernels.iter().map(|k| seen.insert(body(k))).collect();
            subjects.push(Subject { plan, new });
        }
        if group == name {
            return subjects;
        }
    }
    panic!("no group {name}");
}

fn plans(group: &str) -> Vec<Plan> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/graphs");
    match group {
        "small" | "products" | "token" => of_graph(&here.join(format!("{group}.mlir"))),
        "train" => of_graph(&here.join("train.mlir")),
        "sweeps" => sweeps::kernels()
            .into_iter()
            .chain(sweep_gradient::kernels())
            .map(of_kernel)
            .collect(),
        mode => {
            let modes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests/modes");
            // Behind the last pass, whatever its number.
            let all = std::fs::read_dir(&modes).unwrap().map(|e| e.unwrap().path());
            let is_last = |p: &PathBuf| {
                let name = p.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&format!("{mode}-")) && name.ends_with("-dce.snap")
            };
            let found: Vec<PathBuf> = all.filter(is_last).collect();
            assert_eq!(found.len(), 1, "snapshots of {mode}: {found:?}");
            of_graph(&found[0])
        }
    }
}

/// The plans of a fused graph's functions that nobody calls; of a real one's those that run a model.
fn of_graph(path: &Path) -> Vec<Plan> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    // A snapshot's text follows its header.
    let text = text.split_once("\n---\n").map_or(&text[..], |(_, text)| text);
    let module = ir::text::parse(text).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
    let entries = module.functions.iter().map(|f| f.name.as_str());
    let scheduling = passes::Scheduling {
        panels: false,
        ..passes::Scheduling::FUSED
    };
    entries
        .filter(|name| !name.contains("layer") && !name.contains("trip") && *name != "logits")
        .map(|entry| {
            passes::schedule(&module, entry, &scheduling).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        })
        .collect()
}

/// A plan of one launch. Elements of a kernel's arguments are counted by whoever made it.
fn of_kernel((kernel, lengths): (Kernel, Vec<ir::Size>)) -> Plan {
    let buffer = |(i, (arg, len)): (usize, (&ir::plan::Arg, ir::Size))| Buffer {
        name: format!("a{i}"),
        dtype: arg.dtype,
        shape: vec![len],
        kind: match (arg.written, arg.dtype) {
            (true, _) => BufferKind::Output(format!("a{i}")),
            (_, ir::DType::I32) => BufferKind::Input("start".to_string()),
            _ => BufferKind::Input(format!("a{i}")),
        },
    };
    Plan {
        entry: kernel.name.clone(),
        buffers: kernel.args.iter().zip(lengths).enumerate().map(buffer).collect(),
        launches: vec![Launch {
            kernel: 0,
            args: (0..kernel.args.len()).collect(),
        }],
        kernels: vec![kernel],
    }
}
