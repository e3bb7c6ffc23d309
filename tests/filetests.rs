//! Filetests: each `tests/filetests/NAME.mlir` is a graph whose first line says what to do with it; the expected text lies beside it
//! as `NAME.snap`. To add a case, add a file and run with `INSTA_UPDATE=always`; read the snapshot before committing it.
//!
//!     // passes: cse, dce          the graph after each pass
//!     // plan: main                the kernels of an entry point
//!     // mlir: main                the kernels as MLIR, for x86-64-v4+bf16
//!     // errors                    what the verifier says

use std::fmt::Write;
use std::path::Path;

use compiler::cpu::{Target, emit};

const FUSED: passes::Scheduling = passes::Scheduling::FUSED;

fn run(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let (command, argument) = {
        let first = text.lines().next().unwrap().trim_start_matches("//").trim();
        first.split_once(':').map_or((first, ""), |(c, a)| (c, a.trim()))
    };
    let (mut module, lines) = match ir::text::parse_with_lines(&text) {
        Ok(parsed) => parsed,
        Err(e) if command == "errors" => return format!("{e}\n"),
        Err(e) => panic!("{}:{e}", path.display()),
    };
    let errors = ir::verify::verify_at(&module, &lines);
    if command == "errors" {
        return errors.iter().fold(String::new(), |acc, e| format!("{acc}{e}\n"));
    }
    assert!(errors.is_empty(), "{}: {errors:?}", path.display());
    let mut out = String::new();
    match command {
        "passes" => {
            for name in argument.split(',').map(str::trim) {
                let pass = passes::PASSES
                    .iter()
                    .find(|p| p.name == name)
                    .unwrap_or_else(|| panic!("no pass {name}"));
                (pass.run)(&mut module).unwrap();
                write!(out, "// after {name}: {}\n{module}", pass.about).unwrap();
            }
        }
        "plan" => write!(out, "{}", passes::schedule(&module, argument, &FUSED).unwrap()).unwrap(),
        "mlir" => {
            let target = Target::ALL.iter().find(|t| t.name == "x86-64-v4+bf16").unwrap();
            for kernel in &passes::schedule(&module, argument, &FUSED).unwrap().kernels {
                out += &emit(kernel, target);
            }
        }
        other => panic!("{}: the first line says `{other}`", path.display()),
    }
    out
}

#[test]
fn filetests() {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    settings.set_snapshot_path(&folder);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "mlir"));
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().to_string();
        settings.bind(|| insta::assert_snapshot!(name, run(&file)));
    }
}

/// The naive graph, the passes and the plan of a whole model in each mode, as `--emit` writes them.
#[test]
fn stages_of_every_mode() {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests/modes"));
    for mode in ["base", "layer", "restart", "stack"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(mode);
        let config = model::Config::from_folder(&folder).unwrap();
        let options = model::graph::Options {
            dtype: ir::DType::BF16,
            embedding: ir::DType::F32,
            max_context: 64,
        };
        let mut module = model::graph::build(&config, &options).unwrap();
        settings.bind(|| insta::assert_snapshot!(format!("{mode}-0-naive"), module.to_string()));
        for (i, pass) in passes::Program::fused().steps().unwrap().iter().enumerate() {
            (pass.run)(&mut module).unwrap();
            settings.bind(|| insta::assert_snapshot!(format!("{mode}-{}-{}", i + 1, pass.name), module.to_string()));
        }
        for entry in ["prefill", "decode"] {
            let plan = passes::schedule(&module, entry, &FUSED).unwrap().to_string();
            settings.bind(|| insta::assert_snapshot!(format!("{mode}-9-{entry}-plan"), plan));
        }
    }
}

/// What attention became in every entry point: sweeps of each launch, launches of their gradients, and what is left of softmax.
fn attention(mode: &str, kv: i64, heads: i64, window: i64) -> Vec<String> {
    let mut json = serde_json::json!({
        "model_type": "qwen3", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": 16, "intermediate_size": 40, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": true,
    });
    if mode != "base" {
        json["loop_attention"] = serde_json::json!({ "mode": mode, "window": window, "loops": 2 });
    }
    let config = model::Config::from_values(Path::new("."), json, None).unwrap();
    let options = model::graph::Options {
        dtype: ir::DType::BF16,
        embedding: ir::DType::F32,
        max_context: 64,
    };
    let program = passes::Program::fused();
    let rewrite = |module| program.forward(module).map_err(|e| e.to_string());
    let objective = model::graph::Objective {
        batch: 2,
        context: 16,
        wanted: &|_| true,
        memory: u64::MAX,
        logits: model::graph::LOGITS,
        rewrite: &rewrite,
    };
    let forward = model::graph::build(&config, &options).unwrap();
    let backward = model::graph::gradients(&config, &options, &objective).unwrap();
    let mut told = vec![];
    for (mut module, entries) in [
        (forward, &["prefill", "decode", "logits", "loss"][..]),
        (backward, &["gradients"][..]),
    ] {
        for pass in program.steps().unwrap() {
            (pass.run)(&mut module).unwrap();
        }
        for entry in entries {
            let plan = passes::schedule(&module, entry, &FUSED).unwrap();
            // Launches: two that differ in strides alone may share a kernel where an axis is 1.
            let kernels = || plan.launches.iter().map(|l| &plan.kernels[l.kernel]);
            let sweeps: Vec<usize> = kernels()
                .filter_map(|k| Some(k.sweep.as_ref()?.segments.len()))
                .collect();
            let gradients = kernels().filter(|k| k.sweep_gradient.is_some()).count();
            told.push(format!("{entry}: sweeps {sweeps:?}, {gradients} gradients"));
        }
        let left = module
            .functions
            .iter()
            .flat_map(|f| &f.ops)
            .filter(|op| op.name == "softmax")
            .count();
        told.push(format!("{left} softmax"));
    }
    told
}

/// An axis of size 1 is no reason to fuse less: one KV head, one query head each, one head in all, a window of one key.
#[test]
fn one_head_fuses_as_many() {
    for mode in ["base", "layer", "restart", "stack"] {
        let many = attention(mode, 2, 4, 4);
        assert!(
            many[0].contains("sweeps [") && many.contains(&"0 softmax".to_string()),
            "{mode}: {many:?}"
        );
        for window in [4, 1] {
            for (kv, heads) in [(2, 4), (1, 3), (2, 2), (1, 1)] {
                let found = attention(mode, kv, heads, window);
                assert_eq!(found, many, "{mode}, {kv} KV heads of {heads}, window {window}");
            }
        }
    }
}
