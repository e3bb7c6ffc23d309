//! From texts to a model: `loopc init`, `train` and `export` one after the other, and what `init` refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of its own for each test; the cache lies in it too.
struct Sandbox(tempfile::TempDir);

impl Sandbox {
    /// With a text to learn from.
    fn new() -> Sandbox {
        let sandbox = Sandbox(tempfile::tempdir().unwrap());
        let line = |i: usize| format!("Day {i}: she sells sea shells by the sea shore.\n");
        std::fs::write(sandbox.path("book.txt"), (0..200).map(line).collect::<String>()).unwrap();
        sandbox
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Paths are relative to the sandbox.
    fn loopc(&self, args: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_loopc"))
            .args(args.split(' '))
            .current_dir(self.0.path())
            .env("LOOPC_CACHE", self.path("cache"))
            .output()
            .unwrap()
    }

    fn ok(&self, args: &str) -> String {
        let out = self.loopc(args);
        assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn logits(&self, model: &str) -> Vec<f32> {
        self.ok(&format!("logits {model} --tokens 3,1,4,1,5,9,2,6 -o logits"));
        let bytes = std::fs::read(self.path("logits")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let words = tensors.tensor("logits").unwrap().data().to_vec();
        words
            .chunks(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect()
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }
}

const SHAPE: &str = "--hidden 32 --layers 2 --heads 2 --kv-heads 1 --head-dim 16 --intermediate 48 --vocab 300";

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn same_seed_same_bytes() {
    let s = Sandbox::new();
    for (out, seed) in [("a", 5), ("b", 5), ("c", 6)] {
        s.ok(&format!(
            "init {out} --text book.txt {SHAPE} --mode layer --seed {seed}"
        ));
    }
    let files = ["config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names(&s.path("a")), files);
    for file in files {
        assert!(
            s.bytes(&format!("a/{file}")) == s.bytes(&format!("b/{file}")),
            "{file} differs"
        );
    }
    assert!(s.bytes("a/tokenizer.json") == s.bytes("c/tokenizer.json"));
    assert!(s.bytes("a/model.safetensors") != s.bytes("c/model.safetensors"));
}

#[test]
fn a_fresh_model_learns_and_is_handed_on() {
    let s = Sandbox::new();
    s.ok(&format!("init new --text book.txt {SHAPE} --mode layer --window 8"));
    let fresh = s.logits("new");
    assert_eq!(fresh.len() % (8 * 64), 0, "a vocabulary padded to 64");
    assert!(
        fresh.iter().all(|x| x.is_finite() && x.abs() < 1.0),
        "it knows nothing yet"
    );

    let run = "--data book.txt --validation book.txt --trainable all --context 16 --batch 4 --steps 40 --rate 0.01";
    let report: serde_json::Value = serde_json::from_str(&s.ok(&format!("train new {run} -o run --json"))).unwrap();
    let loss = |key: &str| report[key].as_f64().unwrap();
    let (before, after) = (loss("validation_before"), loss("validation"));
    // At first all tokens are alike.
    assert!((before - (fresh.len() as f64 / 8.0).ln()).abs() < 0.3, "{before}");
    assert!(after < 0.5 * before, "{before} to {after}");

    // Without the moments and the recipe, and in either type.
    s.ok("export run/checkpoint --dtype f32 -o whole");
    s.ok("export run/checkpoint -o small");
    for out in ["whole", "small"] {
        assert_eq!(
            names(&s.path(out)),
            ["config.json", "model.safetensors", "tokenizer.json"]
        );
    }
    let trained = s.logits("run/checkpoint");
    assert_ne!(trained, fresh);
    assert_eq!(trained, s.logits("whole"));
    let largest = trained.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
    let error = trained.iter().zip(s.logits("small")).map(|(a, b)| (a - b).abs());
    let error = error.fold(0.0, f32::max) / largest;
    assert!(error > 0.0 && error < 0.03, "bf16 is nearly f32: {error}");
    let length = |file: &str| s.bytes(file).len();
    assert!(length("small/model.safetensors") * 10 < length("whole/model.safetensors") * 6);
}

#[test]
fn an_export_joins_what_a_retrofit_adds() {
    let s = Sandbox::new();
    s.ok(&format!("init new --text book.txt {SHAPE}"));
    s.ok("retrofit new --mode stack --gate-bias 1 -o loop");
    assert!(s.path("loop/model-gates.safetensors").exists());
    s.ok("export loop --dtype f32 -o whole");
    assert_eq!(
        names(&s.path("whole")),
        ["config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(s.logits("loop"), s.logits("whole"));
}

#[test]
fn a_config_and_a_tokenizer_can_be_given() {
    let s = Sandbox::new();
    s.ok(&format!("init a --text book.txt {SHAPE} --mode restart --window 5"));
    // The shape as a file; its vocabulary is the tokenizer's, its other values are kept unless an option replaces them.
    s.ok("init b --config a/config.json --tokenizer a/tokenizer.json --layers 1");
    assert!(s.bytes("a/tokenizer.json") == s.bytes("b/tokenizer.json"));
    let config =
        |of: &str| -> serde_json::Value { serde_json::from_slice(&s.bytes(&format!("{of}/config.json"))).unwrap() };
    let mut wanted = config("a");
    wanted["num_hidden_layers"] = 1.into();
    assert_eq!(config("b"), wanted);
    assert_eq!(config("b")["loop_attention"]["window"], 5);
}

#[test]
fn what_cannot_be_is_told_in_one_line() {
    let s = Sandbox::new();
    let write = |name: &str, bytes: &[u8]| std::fs::write(s.path(name), bytes).unwrap();
    write("empty.txt", b" \n\n");
    write("latin1.txt", b"na\xefve");
    write("lines.jsonl", b"{\"body\": \"some text\"}\n");
    write("list.json", b"[]");
    write("llama.json", b"{\"model_type\": \"llama\"}");
    for (args, word) in [
        ("--text book.txt --heads 4 --kv-heads 3", "num_key_value_heads"),
        ("--text book.txt --head-dim 31", "head_dim"),
        ("--text book.txt --layers 0", "num_hidden_layers"),
        ("--text book.txt --mode layer --window 0", "loop_attention.window"),
        ("--text book.txt --hidden 100000 --intermediate 100000", "parameters"),
        ("--text book.txt --gate-bias nan", "gate bias"),
        ("--text empty.txt", "empty.txt"),
        ("--text book.txt none.txt", "none.txt"),
        ("--text latin1.txt", "latin1.txt"),
        ("--text lines.jsonl", "--field"),
        ("--tokenizer list.json", "list.json"),
        ("--text book.txt --config list.json", "list.json"),
        (
            "--text book.txt --config llama.json",
            "llama.json: `num_attention_heads`",
        ),
    ] {
        let out = s.loopc(&format!("init new {args}"));
        let stderr = String::from_utf8_lossy(&out.stderr).to_string();
        assert_eq!(out.status.code(), Some(1), "{args}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{args}: {stderr}");
        assert!(stderr.contains(word), "{args}: wants `{word}`: {stderr}");
    }
    let left: Vec<String> = names(s.0.path()).into_iter().filter(|n| n.contains("new")).collect();
    assert!(left.is_empty(), "{left:?} left behind");
    for args in [
        "init new",
        "init new --text book.txt --tokenizer t.json",
        "init new --text book.txt --vocab 256",
    ] {
        assert_eq!(s.loopc(args).status.code(), Some(2), "{args}");
    }

    write("taken", b"mine");
    let out = s.loopc(&format!("init taken --text book.txt {SHAPE}"));
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("taken: it exists already"));
    assert_eq!(s.bytes("taken"), b"mine");
}
