//! The command line as a user meets it: what works prints what it should, what is wrong is told in one line, exit 1 or 2.

mod check;
mod edges;
mod gradients;
mod train;
mod tune;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn austen() -> PathBuf {
    root().join("tests/models/austen")
}

/// A folder of its own for each test; the cache lies in it too.
struct Sandbox(tempfile::TempDir);

impl Sandbox {
    fn new() -> Sandbox {
        Sandbox(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn loopc(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_loopc"))
            .args(args)
            .env("LOOPC_CACHE", self.path("cache"))
            .output()
            .unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.loopc(args);
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }

    /// Exit 1, one line on standard error that holds `word`, nothing left in the sandbox under `output`.
    fn refused(&self, args: &[&str], word: &str) {
        let out = self.loopc(args);
        let stderr = String::from_utf8_lossy(&out.stderr).to_string();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: wants `{word}`: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(!self.path("output").exists(), "{args:?} left something behind");
    }

    /// The bundled model, changed by `change`.
    fn model(&self, change: impl Fn(&Path)) -> String {
        let to = self.path("model");
        let _ = std::fs::remove_dir_all(&to);
        std::fs::create_dir_all(&to).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(austen().join(name), to.join(name)).unwrap();
        }
        change(&to);
        to.to_string_lossy().to_string()
    }
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{}: no {from}", file.display());
    std::fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn generates_the_same_text_from_folder_and_artefact() {
    let s = Sandbox::new();
    let (model, file) = (austen().display().to_string(), s.path("a.loopc").display().to_string());
    s.ok(&["compile", &model, "-o", &file]);
    let rest = ["--prompt", "Emma Woodhouse was", "--max-new-tokens", "24"];
    let from_folder = s.ok(&[&["generate", &model], &rest[..]].concat());
    let from_file = s.ok(&[&["generate", &file], &rest[..]].concat());
    assert_eq!(from_folder, from_file);
    assert!(from_folder.starts_with("Emma Woodhouse was"));
    let sampled = |seed: &str| s.ok(&[&["generate", &file, "--temperature", "1", "--seed", seed], &rest[..]].concat());
    assert_eq!(sampled("5"), sampled("5"));
    assert_ne!(sampled("5"), sampled("6"));
}

#[test]
fn a_batch_of_unequal_prompts_is_each_prompt_alone() {
    let s = Sandbox::new();
    let model = austen().display().to_string();
    let prompts = ["She", "It is a truth universally acknowledged, that", "Mr. Darcy"];
    let ids = |args: &[&str]| -> serde_json::Value {
        let head = ["generate", &model, "--json", "--max-new-tokens", "12"];
        serde_json::from_str(&s.ok(&[&head, args].concat())).unwrap()
    };
    let batch = ids(&["--prompt", prompts[0], "--prompt", prompts[1], "--prompt", prompts[2]]);
    for (i, prompt) in prompts.iter().enumerate() {
        assert_eq!(
            batch["sequences"][i]["tokens"],
            ids(&["--prompt", prompt])["tokens"],
            "{prompt}"
        );
    }
}

#[test]
fn a_retrofit_with_a_large_bias_is_the_base() {
    let s = Sandbox::new();
    let base = root().join("tests/goldens/base").display().to_string();
    let logits = |model: &str| {
        let out = s.path("logits");
        s.ok(&[
            "logits",
            model,
            "--tokens",
            "3,1,4,1,5,9,2,6",
            "-o",
            &out.display().to_string(),
        ]);
        let bytes = std::fs::read(out).unwrap();
        let t = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = t.tensor("logits").unwrap().data().to_vec();
        data.chunks(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect::<Vec<f32>>()
    };
    let wanted = logits(&base);
    for mode in ["layer", "restart", "stack"] {
        let to = s.path(mode).display().to_string();
        s.ok(&[
            "retrofit",
            &base,
            "--mode",
            mode,
            "--window",
            "3",
            "--gate-bias",
            "40",
            "-o",
            &to,
        ]);
        let error = logits(&to)
            .iter()
            .zip(&wanted)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        let equal = error < 1e-4;
        assert_eq!(equal, mode != "stack", "{mode}: {error}");
    }
}

#[test]
fn graph_tool_prints_what_it_parsed() {
    let s = Sandbox::new();
    let (model, file) = (austen().display().to_string(), s.path("a.loopc").display().to_string());
    let stages = s.path("stages");
    s.ok(&[
        "compile",
        &model,
        "-o",
        &file,
        "--emit",
        &format!("all={}", stages.display()),
    ]);
    let graph = stages.join("00-naive.mlir");
    let text = std::fs::read_to_string(&graph).unwrap();
    assert_eq!(s.ok(&["opt", &graph.display().to_string()]), text);
    let plan = s.ok(&[
        "opt",
        &graph.display().to_string(),
        "--passes",
        "cse,fuse,join-rows,join-projections,join-sums,fold-norms,views-first,dce",
        "--plan",
        "decode",
    ]);
    assert_eq!(plan, std::fs::read_to_string(stages.join("decode.plan")).unwrap());
    let broken = s.path("broken.mlir").display().to_string();
    std::fs::write(&broken, text.replacen("loop.matmul", "loop.matmol", 1)).unwrap();
    let out = s.loopc(&["opt", &broken]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("matmol"));
}

#[test]
fn bad_input_is_told_in_one_line() {
    let s = Sandbox::new();
    let output = s.path("output").display().to_string();
    let weights = |m: &Path| m.join("model.safetensors");
    let config = |m: &Path| m.join("config.json");
    let compile = |model: &str, word: &str| s.refused(&["compile", model, "-o", &output], word);

    compile("no/such/folder", "no/such/folder");
    compile(
        &s.model(|m| edit(&config(m), "\"hidden_size\": 192,", "")),
        "hidden_size",
    );
    compile(
        &s.model(|m| edit(&config(m), "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4")),
        "num_key_value_heads",
    );
    compile(&s.model(|m| edit(&config(m), "{", "")), "config.json");
    compile(
        &s.model(|m| edit(&config(m), "\"head_dim\": 32", "\"head_dim\": 64")),
        "wrong shape",
    );
    compile(
        &s.model(|m| std::fs::remove_file(weights(m)).unwrap()),
        "model.safetensors",
    );
    let cut = |m: &Path, keep: usize| {
        let bytes = std::fs::read(weights(m)).unwrap();
        std::fs::write(weights(m), &bytes[..keep.min(bytes.len())]).unwrap();
    };
    for keep in [0, 7, 100, 20_000, 5_000_000] {
        compile(&s.model(|m| cut(m, keep)), "model.safetensors");
    }
    // A header that claims more bytes than there are.
    compile(
        &s.model(|m| {
            let mut bytes = std::fs::read(weights(m)).unwrap();
            bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            std::fs::write(weights(m), bytes).unwrap();
        }),
        "model.safetensors",
    );
    s.refused(
        &["compile", &austen().display().to_string(), "-o", "/proc/nothing/here"],
        "/proc/nothing/here",
    );
    s.refused(
        &[
            "compile",
            &austen().display().to_string(),
            "-o",
            &output,
            "--target",
            "z80",
        ],
        "z80",
    );

    // NaN in a weight shows when weights are made.
    let nan = s.model(|m| {
        let mut bytes = std::fs::read(weights(m)).unwrap();
        let end = bytes.len();
        bytes[end - 3000..end - 2000].fill(0xff);
        std::fs::write(weights(m), bytes).unwrap();
    });
    s.refused(&["generate", &nan, "--prompt", "x"], "NaN");
    let model = austen().display().to_string();
    s.refused(&["logits", &model, "--tokens", "1,2,99999", "-o", &output], "99999");
    s.refused(
        &[
            "logits",
            &model,
            "--tokens",
            "1,2,3,4,5",
            "-o",
            &output,
            "--max-context",
            "4",
        ],
        "--max-context",
    );
    s.refused(
        &[
            "generate",
            &model,
            "--prompt",
            "a long prompt of many words",
            "--max-context",
            "3",
        ],
        "--max-context",
    );
    s.refused(&["eval", &model, "--text", "no/such/text"], "no/such/text");
    s.refused(&["generate", &model, "--prompt", "x", "--chat"], "template");

    let out = s.loopc(&["generate"]);
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn a_damaged_artefact_is_refused() {
    let s = Sandbox::new();
    let (model, good) = (austen().display().to_string(), s.path("a.loopc"));
    s.ok(&[
        "compile",
        &model,
        "-o",
        &good.display().to_string(),
        "--entry",
        "prefill",
        "--entry",
        "decode",
    ]);
    let bytes = std::fs::read(&good).unwrap();
    let bad = s.path("bad.loopc");
    let try_bytes = |bytes: &[u8], word: &str| {
        std::fs::write(&bad, bytes).unwrap();
        s.refused(&["generate", &bad.display().to_string(), "--prompt", "x"], word);
    };
    for at in [20, bytes.len() / 2, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        try_bytes(&flipped, "checksum");
    }
    try_bytes(&bytes[..bytes.len() / 2], "checksum");
    try_bytes(&bytes[..4], "no loopc artefact");
    let mut newer = bytes.clone();
    newer[7] = 9;
    try_bytes(&newer, "version");
    // Another model's folder is not what it was compiled for.
    let other = root().join("tests/goldens/layer").display().to_string();
    s.refused(
        &[
            "generate",
            &good.display().to_string(),
            "--weights",
            &other,
            "--prompt",
            "x",
        ],
        "another model",
    );
    // An entry point it does not have.
    s.refused(
        &[
            "logits",
            &good.display().to_string(),
            "--tokens",
            "1,2",
            "-o",
            &s.path("output").display().to_string(),
        ],
        "logits",
    );
}
