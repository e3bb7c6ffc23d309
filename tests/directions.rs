//! Who may know whom. The borders of docs/architecture.md, read off the manifests: a new edge fails here first.

use std::collections::BTreeMap;

/// Crate, its manifest, the crates of ours it may use, and whether it may use LLVM.
const ALLOWED: [(&str, &str, &[&str], bool); 5] = [
    ("ir", include_str!("../compiler/ir/Cargo.toml"), &[], false),
    ("passes", include_str!("../passes/Cargo.toml"), &["ir"], false),
    ("runtime", include_str!("../runtime/Cargo.toml"), &[], false),
    ("model", include_str!("../model/Cargo.toml"), &["ir", "runtime"], false),
    (
        "compiler",
        include_str!("../compiler/Cargo.toml"),
        &["ir", "passes", "runtime"],
        true,
    ),
];
const LLVM: [&str; 4] = ["melior", "mlir-sys", "inkwell", "llvm-sys"];

/// Names under `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut section = "";
    let mut found = vec![];
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" && !line.is_empty() && !line.starts_with('#') {
            found.push(line.split(['.', ' ', '=']).next().unwrap_or_default());
        }
    }
    found
}

#[test]
fn crates_know_only_whom_they_may() {
    let ours: BTreeMap<&str, ()> = ALLOWED.iter().map(|(name, ..)| (*name, ())).collect();
    let mut broken = vec![];
    for (name, manifest, allowed, llvm) in ALLOWED {
        let deps = dependencies(manifest);
        assert!(
            !deps.is_empty(),
            "{name}: no dependencies read; is the manifest's form still the same?"
        );
        for dep in deps {
            if ours.contains_key(dep) && !allowed.contains(&dep) {
                broken.push(format!("{name} uses {dep}"));
            }
            if LLVM.contains(&dep) && !llvm {
                broken.push(format!("{name} uses {dep}: it must build without LLVM"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
