//! `loopc check` and the device `cuda`, on evaluated PTX (compiler/ptx/driver): what a GPU would do, without one.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::{Sandbox, austen};

/// The driver that evaluates PTX, which lies beside this test, as the libcuda.so.1 of a folder.
fn driver(s: &Sandbox) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let beside = test.parent().unwrap();
    let places = [beside, beside.parent().unwrap()].map(|p| p.join("libptx_driver.so"));
    let built = places
        .iter()
        .find(|p| p.exists())
        .expect("libptx_driver.so is built with the tests");
    let folder = s.path("driver");
    std::fs::create_dir_all(&folder).unwrap();
    let link = folder.join("libcuda.so.1");
    if !link.exists() {
        std::os::unix::fs::symlink(built, &link).unwrap();
    }
    folder
}

pub fn evaluated(s: &Sandbox, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loopc"))
        .args(args)
        .env("LOOPC_CACHE", s.path("cache"))
        .env("LD_LIBRARY_PATH", driver(s))
        .output()
        .unwrap()
}

pub fn report(output: &Output) -> serde_json::Value {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {told}"))
}

#[test]
fn programs_agree_with_the_evaluator_on_the_cpu() {
    let s = Sandbox::new();
    let found = report(&s.loopc(&["check", "--ops", "--cases", "2", "--json"]));
    assert!(found["programs"].as_u64() > Some(80) && found["failed"] == 0, "{found}");
    let args = ["check", "--modes", "--cases", "1", "--only", "restart 0", "--json"];
    let found = report(&s.loopc(&args));
    assert_eq!(
        (found["programs"].as_u64(), found["failed"].as_u64()),
        (Some(3), Some(0))
    );
}

#[test]
fn programs_agree_with_the_evaluator_on_cuda() {
    let s = Sandbox::new();
    let found = report(&evaluated(
        &s,
        &["check", "--ops", "--cases", "2", "--json", "--device", "cuda"],
    ));
    assert!(found["programs"].as_u64() > Some(80) && found["failed"] == 0, "{found}");
    assert_eq!(
        (found["target"].as_str(), found["machine"].as_str()),
        (Some("sm_90a"), Some("evaluated PTX"))
    );
    let args = [
        "check",
        "--modes",
        "--cases",
        "1",
        "--only",
        "base 0 text",
        "--json",
        "--device",
        "cuda",
    ];
    let found = report(&evaluated(&s, &args));
    assert_eq!(
        (found["programs"].as_u64(), found["failed"].as_u64()),
        (Some(1), Some(0))
    );
}

#[test]
fn cuda_continues_a_prompt_as_the_cpu_does() {
    let s = Sandbox::new();
    let model = austen().display().to_string();
    let args = [
        "generate",
        &model,
        "--prompt",
        "It is a truth",
        "--max-new-tokens",
        "10",
        "--max-context",
        "64",
        "--device",
    ];
    let text = |out: Output| {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let with = |device| [&args[..], &[device]].concat();
    assert_eq!(text(evaluated(&s, &with("cuda"))), text(s.loopc(&with("cpu"))));
    // One artefact for both: each device takes its code.
    let file = s.path("both.loopc").display().to_string();
    let limits = [
        "--max-context",
        "64",
        "--entry",
        "logits",
        "--target",
        "sm_90a",
        "--target",
        "native",
    ];
    s.ok(&[&["compile", &model, "-o", &file], &limits[..]].concat());
    let out = s.path("logits").display().to_string();
    let logits = ["logits", &file, "--tokens", "5,6,7", "-o", &out];
    s.ok(&logits);
    text(evaluated(&s, &[&logits[..], &["--device", "cuda"]].concat()));
    let told = text(evaluated(&s, &["doctor"]));
    assert!(told.contains("cuda:0") && told.contains("evaluated PTX"), "{told}");
}

/// A trace that Perfetto opens has an event for each kernel of one prefill and one token.
#[test]
fn a_trace_has_every_kernel() {
    let s = Sandbox::new();
    let (model, file) = (
        austen().display().to_string(),
        s.path("trace.json").display().to_string(),
    );
    let args = [
        "bench",
        &model,
        "--context",
        "8",
        "--decode",
        "1",
        "--runs",
        "1",
        "--max-context",
        "32",
        "--trace",
        &file,
    ];
    s.ok(&args);
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for entry in ["prefill", "decode"] {
        assert!(
            events.iter().filter(|e| e["ph"] == "X" && e["cat"] == entry).count() > 10,
            "{entry}"
        );
    }
}

/// Lengths are drawn up to 130; a table of rotations that has eight rows is asked for no more.
#[test]
fn a_file_is_run_at_positions_that_it_has() {
    let s = Sandbox::new();
    let file = s.path("rope.mlir");
    let ty = r#"tensor<?x?x16xf32, ["B", "T"]>"#;
    let rope =
        format!(r#"%y = "loop.rope"(%x) {{dtype = "f32", max = 8 : i64, theta = 10000.0 : f64}} : ({ty}) -> {ty}"#);
    let text = format!(
        r#"module {{
  func.func @main(%x: {ty} {{loop.input = "x"}}) -> ({ty} {{loop.name = "y"}}) {{
    {rope}
    return %y : {ty}
  }}
}}
"#
    );
    std::fs::write(&file, text).unwrap();
    let found = report(&s.loopc(&["check", &file.display().to_string(), "--cases", "12", "--json"]));
    assert_eq!((&found["runs"], &found["failed"]), (&12.into(), &0.into()), "{found}");
}

#[test]
fn what_fails_is_told_with_the_words_that_repeat_it() {
    let s = Sandbox::new();
    // A sweep's state alone: what has no kernel.
    let def = ir::ops::op("sweep").unwrap();
    let case = ir::testing::sample_case(def, &(def.samples)()[0], 0).unwrap();
    let file = s.path("sweep.mlir");
    std::fs::write(&file, case.module.to_string()).unwrap();
    let (file, saved) = (file.display().to_string(), s.path("saved.mlir").display().to_string());
    let out = s.loopc(&["check", &file, "--save", &saved]);
    let told = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{told}");
    for word in [
        "FAILED",
        "no kernel",
        &format!("loopc check {file} --device cpu --dtype f32"),
    ] {
        assert!(told.contains(word), "{told}");
    }
    assert_eq!(std::fs::read_to_string(saved).unwrap(), case.module.to_string());

    let out = s.loopc(&["check", "--modes", "--cases", "1", "--only", "stack 0", "--limit", "1"]);
    let told = String::from_utf8_lossy(&out.stdout);
    // A fast machine may be done in time.
    assert!(out.status.success() || told.contains("took longer than 1 s"), "{told}");
    assert!(told.contains("3 programs"), "{told}");

    s.refused(&["check"], "--ops, --modes or --random");
    s.refused(&["check", "absent.mlir"], "absent.mlir");
    s.refused(
        &["check", "--ops", "--only", "no such op"],
        "no program's name holds `no such op`",
    );
}
