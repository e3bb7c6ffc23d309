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
