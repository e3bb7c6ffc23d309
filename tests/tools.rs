//! `loopc opt` as a tool for people who write passes: drawings, and the comparison of two pass lists.

use std::path::Path;
use std::process::{Command, Output};

fn opt(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loopc"))
        .arg("opt")
        .args(args)
        .output()
        .unwrap()
}

fn graph() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/filetests/cse_joins_equal_masks.mlir")
        .display()
        .to_string()
}

/// A model's graph, behind the header of its snapshot.
fn layer(folder: &Path) -> String {
    let snap = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests/modes/layer-0-naive.snap");
    let text = std::fs::read_to_string(snap).unwrap();
    let file = folder.join("layer.mlir");
    std::fs::write(&file, text.splitn(3, "---\n").last().unwrap()).unwrap();
    file.display().to_string()
}

#[test]
fn draws_before_and_after() {
    let folder = tempfile::tempdir().unwrap();
    let file = layer(folder.path());
    for (ending, start) in [("dot", "digraph"), ("svg", "<svg")] {
        let out = folder.path().join(format!("out.{ending}"));
        let done = opt(&[&file, "--passes", "cse,dce", "--draw", &out.display().to_string()]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(done.stdout.is_empty());
        let after = std::fs::read_to_string(&out).unwrap();
        let before = std::fs::read_to_string(folder.path().join(format!("out.before.{ending}"))).unwrap();
        assert!(after.starts_with(start) && before.starts_with(start));
        assert!(after.len() < before.len(), "cse and dce leave less to draw");
        assert!(after.contains("@layer_prefill") && after.contains("softmax"));
    }
    let done = opt(&[&file, "--draw", &folder.path().join("out.png").display().to_string()]);
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains(".dot or .svg"));
}

#[test]
fn lists_that_agree() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small.mlir");
    let out = small.display().to_string();
    for file in [graph(), layer(folder.path())] {
        let done = opt(&[&file, "--passes", "cse,dce", "--against", "", "--reduce", &out]);
        let stdout = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(stdout.lines().count(), 1);
        assert!(stdout.contains("agree"), "{stdout}");
        assert!(!small.exists());
    }
    let done = opt(&[&graph(), "--against", "css"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("there is no pass `css`"));
}
