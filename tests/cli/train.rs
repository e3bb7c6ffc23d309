//! `loopc train` as a run meets the world: killed, stopped, out of disk, diverged, given nonsense. What a step computes is checked
//! against PyTorch by tests/tools/check_training.py, which the last test calls.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use model::Config;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::{Sandbox, austen, root};

/// A recipe that trains everything, in few and small steps.
const RECIPE: &str =
    "trainable = \"all\"\ncontext = 13\nbatch = 2\nsteps = 8\nrate = 1e-3\ndecay = 0.1\nschedule = \"constant\"
warmup = 3\nvalidate_every = 3\nvalidate_tokens = 150\ncheckpoint_every = 3\n[gates]\nrate = 1e-2\n";

/// A small random model in the folder `name`, with the bundled model's tokenizer.
pub fn tiny(s: &Sandbox, name: &str, mode: &str) -> String {
    let folder = s.path(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut config = json!({
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "attention_bias": false, "vocab_size": 2048,
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 40, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "max_position_embeddings": 256, "torch_dtype": "bfloat16", "eos_token_id": 0,
    });
    if mode != "base" {
        config["loop_attention"] = json!({ "mode": mode, "window": 5, "loops": 2 });
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(austen().join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let mut n = 1u32;
    let mut unit = || {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(n >> 8) / f64::from(1 << 24) - 0.5
    };
    let mut tensors = vec![];
    for (name, shape) in model::weights::expected(&Config::from_folder(&folder).unwrap()) {
        let shape: Vec<usize> = shape.into_iter().map(|n| n as usize).collect();
        let middle = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let values = (0..shape.iter().product::<usize>()).map(|_| half::bf16::from_f64(middle + 0.2 * unit()));
        let bytes: Vec<u8> = values.flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((name, shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, shape, b)| (name, TensorView::new(Dtype::BF16, shape.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    folder.display().to_string()
}

/// One sandbox with a model, a recipe and texts; runs are folders in it.
struct Runs {
    s: Sandbox,
    model: String,
}

impl Runs {
    fn new(mode: &str) -> Runs {
        let s = Sandbox::new();
        let model = tiny(&s, "model", mode);
        std::fs::write(s.path("recipe.toml"), RECIPE).unwrap();
        for (name, source) in [("data.txt", "loop_qwen3.py"), ("held.txt", "make_goldens.py")] {
            std::fs::copy(root().join("tests/tools").join(source), s.path(name)).unwrap();
        }
        Runs { s, model }
    }

    fn file(&self, name: &str) -> String {
        self.s.path(name).display().to_string()
    }

    /// The command line of a run in the folder `out`; `more` replaces what the recipe says.
    fn args(&self, out: &str, more: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = [
            "train",
            &self.model,
            "--data",
            &self.file("data.txt"),
            "--validation",
            &self.file("held.txt"),
        ]
        .map(String::from)
        .to_vec();
        args.extend(["--output".to_string(), self.file(out)]);
        if !more.contains(&"--resume") {
            args.extend(["--recipe".to_string(), self.file("recipe.toml")]);
        }
        // On a machine that is busy, threads wait for each other longer than they compute anything so small.
        if !more.contains(&"--threads") {
            args.extend(["--threads".to_string(), "1".to_string()]);
        }
        args.extend(more.iter().map(|m| m.to_string()));
        args
    }

    fn train(&self, out: &str, more: &[&str]) -> String {
        let args = self.args(out, more);
        self.s.ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn refused(&self, out: &str, more: &[&str], word: &str) {
        let args = self.args(out, more);
        self.s
            .refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), word);
    }

    fn start(&self, out: &str, more: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loopc"));
        command
            .args(self.args(out, more))
            .env("LOOPC_CACHE", self.s.path("cache"));
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Every tensor of the run's checkpoint, by file and name, and the step.
    fn checkpoint(&self, out: &str) -> (BTreeMap<String, Vec<u8>>, u64) {
        let folder = self.s.path(out).join("checkpoint");
        let mut all = BTreeMap::new();
        for file in ["model.safetensors", "training.safetensors"] {
            all.extend(
                tensors(&folder.join(file))
                    .into_iter()
                    .map(|(name, (_, data))| (format!("{file}: {name}"), data)),
            );
        }
        let bytes = std::fs::read(folder.join("training.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        (all, metadata.metadata().as_ref().unwrap()["step"].parse().unwrap())
    }

    /// metrics.jsonl without what depends on the clock.
    fn metrics(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.s.path(out).join("metrics.jsonl")).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        for line in &mut lines {
            line.as_object_mut().unwrap().remove("tokens_per_second");
        }
        lines
    }

    fn numbers(&self, out: &str, key: &str) -> Vec<f64> {
        self.metrics(out).iter().filter_map(|l| l[key].as_f64()).collect()
    }

    fn assert_equal(&self, a: &str, b: &str) {
        assert_eq!(self.metrics(a), self.metrics(b), "{a} and {b}");
        self.assert_same_bits(a, b);
    }

    fn assert_same_bits(&self, a: &str, b: &str) {
        let (x, y) = (self.checkpoint(a), self.checkpoint(b));
        assert_eq!((x.1, x.0.len()), (y.1, y.0.len()), "{a} and {b}");
        for (name, data) in &x.0 {
            assert!(*data == y.0[name], "{a} and {b}: other bits in {name}");
        }
    }
}

fn tensors(file: &Path) -> BTreeMap<String, (Dtype, Vec<u8>)> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .iter()
        .map(|(name, v)| (name.to_string(), (v.dtype(), v.data().to_vec())))
        .collect()
}

/// Waits until `done` or the process ends; no longer than a machine under load needs.
fn wait(child: &mut Child, done: impl Fn() -> bool) {
    for _ in 0..600_000 {
        if done() || child.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    panic!("the run stands still");
}

fn lines(file: PathBuf) -> usize {
    std::fs::read(file).map_or(0, |b| b.iter().filter(|c| **c == b'\n').count())
}

/// SIGKILL after some steps and in the midst of checkpoints, again and again, until the run is through.
#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let r = Runs::new("layer");
    let recipe = RECIPE
        .replace("checkpoint_every = 3", "checkpoint_every = 1")
        .replace("steps = 8", "steps = 16");
    std::fs::write(r.s.path("recipe.toml"), recipe).unwrap();
    r.train("whole", &[]);
    let (folder, part) = (r.s.path("cut"), r.s.path("cut/.checkpoint.part"));
    let mut torn = 0;
    for round in 0..6 {
        let resume = folder.join("checkpoint").exists() || folder.join(".checkpoint.old").exists();
        let before = lines(folder.join("metrics.jsonl"));
        let mut child = r.start("cut", if resume { &["--resume"] } else { &[] });
        // The first time before there is a checkpoint; then after a line, or as soon as a folder is being written.
        match round {
            0 => wait(&mut child, || lines(folder.join("metrics.jsonl")) > 0),
            1 | 3 => wait(&mut child, || lines(folder.join("metrics.jsonl")) > before.max(2)),
            _ => wait(&mut child, || {
                lines(folder.join("metrics.jsonl")) > before.max(1) && part.exists()
            }),
        }
        // It may have come to its end.
        let _ = child.kill();
        child.wait().unwrap();
        torn += usize::from(part.exists());
        if round == 4 && folder.join("checkpoint").exists() {
            // Between the two renames: the old folder has left its name, the new one has not taken it.
            let _ = std::fs::remove_dir_all(folder.join(".checkpoint.old"));
            std::fs::rename(folder.join("checkpoint"), folder.join(".checkpoint.old")).unwrap();
            std::fs::create_dir_all(&part).unwrap();
            std::fs::write(part.join("model.safetensors"), "torn").unwrap();
        }
    }
    println!("{torn} of 6 kills met a checkpoint that was being written");
    r.train("cut", &["--resume"]);
    r.assert_equal("whole", "cut");
    let steps: Vec<u64> = r
        .metrics("cut")
        .iter()
        .filter(|l| l["loss"].is_f64())
        .map(|l| l["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=16).collect::<Vec<u64>>());
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().to_string())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["checkpoint", "loss.svg", "metrics.jsonl", "tensorboard"],
        "nothing else is left"
    );
    // A run that is through stays as it is.
    r.train("cut", &["--resume"]);
    r.assert_equal("whole", "cut");
}

#[test]
fn ctrl_c_leaves_a_checkpoint() {
    let r = Runs::new("layer");
    let mut child = r.start("run", &["--steps", "1000000"]);
    wait(&mut child, || lines(r.s.path("run/metrics.jsonl")) > 3);
    // Two runs in one folder would overwrite each other.
    r.refused("run", &["--resume"], "another loopc");
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -INT {}", child.id())])
        .status()
        .unwrap();
    assert!(sent.success());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{:?}", out.status);
    assert!(String::from_utf8_lossy(&out.stdout).contains("--resume"));
    let (_, step) = r.checkpoint("run");
    assert_eq!(r.metrics("run").last().unwrap()["step"], step);
    let steps = (step + 2).to_string();
    r.train("run", &["--resume", "--steps", &steps]);
    r.train("whole", &["--steps", &steps]);
    r.assert_equal("whole", "run");
    r.refused("run", &["--resume", "--steps", "2"], "steps = 2");
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let r = Runs::new("restart");
    for threads in ["1", "2", "3"] {
        r.train(threads, &["--threads", threads]);
    }
    // When checkpoints are written is no matter of what is computed.
    let recipe = RECIPE.replace("checkpoint_every = 3", "checkpoint_every = 1");
    std::fs::write(r.s.path("recipe.toml"), recipe).unwrap();
    r.train("again", &["--threads", "2"]);
    for other in ["2", "3", "again"] {
        r.assert_equal("1", other);
    }
    r.train("seed", &["--seed", "1"]);
    assert_ne!(r.numbers("seed", "loss"), r.numbers("1", "loss"));
    r.train("parts", &["--batch", "1", "--accumulate", "2"]);
    for key in ["loss", "gradient_norm", "validation"] {
        let (at_once, parts) = (r.numbers("1", key), r.numbers("parts", key));
        assert_eq!(at_once.len(), parts.len());
        for (a, b) in at_once.iter().zip(&parts) {
            assert!((a / b - 1.0).abs() < 1e-5, "{key}: {a} at once, {b} in parts");
        }
    }
}

/// `loopc eval` says what the run said, in every mode; what was frozen has its bytes.
#[test]
fn what_is_written_loads() {
    for mode in ["base", "layer", "restart", "stack"] {
        let r = Runs::new(mode);
        r.train("all", &[]);
        let folder = r.file("all/checkpoint");
        let text = r.file("held.txt");
        let said = r.s.ok(&[
            "eval",
            &folder,
            "--text",
            &text,
            "--context",
            "13",
            "--max-tokens",
            "150",
            "--json",
        ]);
        let found = serde_json::from_str::<Value>(&said).unwrap()["loss"].as_f64().unwrap();
        let wanted = *r.numbers("all", "validation").last().unwrap();
        assert!(
            (found - wanted).abs() < 1e-6,
            "{mode}: eval says {found}, the run {wanted}"
        );
        if mode == "base" {
            r.refused("output", &["--trainable", "gates"], "trainable = gates");
            continue;
        }
        r.train(
            "some",
            &[
                "--trainable",
                if mode == "layer" { "gates" } else { r"layers\.1\..*norm" },
            ],
        );
        let base = tensors(&Path::new(&r.model).join("model.safetensors"));
        let new = tensors(&r.s.path("some/checkpoint/model.safetensors"));
        assert!(base.keys().eq(new.keys()));
        let changed: Vec<&String> = base.keys().filter(|n| base[*n] != new[*n]).collect();
        let trained = |n: &str| {
            if mode == "layer" {
                n.contains("gate_proj") && !n.contains("mlp")
            } else {
                n.contains("layers.1.") && n.contains("norm")
            }
        };
        assert_eq!(
            changed,
            base.keys().filter(|n| trained(n)).collect::<Vec<_>>(),
            "{mode}"
        );
    }
}

/// A disk that is full, here: a file that may not grow. The checkpoint before stays, and the run goes on from it.
#[test]
fn a_full_disk_spares_the_checkpoint() {
    let r = Runs::new("layer");
    r.train("whole", &[]);
    r.train("run", &["--steps", "4"]);
    let before = r.checkpoint("run");
    let limited = |blocks: &str| {
        let script = format!("ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_loopc")]);
        command
            .args(r.args("run", &["--resume", "--steps", "8"]))
            .env("LOOPC_CACHE", r.s.path("cache"));
        command.output().unwrap()
    };
    // 50 kB are enough for the metrics and too little for the weights; with 400 kB, for the moments.
    for blocks in ["100", "800"] {
        let out = limited(blocks);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
        assert!(
            stderr.contains("File too large") && stderr.contains("step 4 is kept"),
            "{stderr}"
        );
        assert!(r.checkpoint("run") == before);
        assert!(!r.s.path("run/.checkpoint.part").exists());
    }
    r.train("run", &["--resume", "--steps", "8"]);
    // Validated once more, where it ended first.
    r.assert_same_bits("whole", "run");
    assert_eq!(r.numbers("whole", "loss"), r.numbers("run", "loss"));
}

#[test]
fn a_run_that_diverges_keeps_its_checkpoint() {
    let r = Runs::new("layer");
    let recipe = RECIPE
        .replace("checkpoint_every = 3", "checkpoint_every = 1")
        .replace("warmup = 3", "warmup = 0");
    std::fs::write(r.s.path("recipe.toml"), recipe).unwrap();
    r.train("run", &["--steps", "2"]);
    let before = r.checkpoint("run");
    for rate in ["1e30", "1e38"] {
        let more = ["--resume", "--steps", "6", "--rate", rate];
        r.refused("run", &more, "the checkpoint of step 2 is kept: step ");
        assert!(r.checkpoint("run") == before, "{rate}");
    }
    // From the start: nothing is written at all.
    r.refused("new", &["--rate", "1e38"], "there is no checkpoint yet: step ");
    assert!(!r.s.path("new/checkpoint").exists());
}

#[test]
fn nonsense_is_told_in_one_line() {
    let r = Runs::new("layer");
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(r.s.path(name), bytes).unwrap();
        r.file(name)
    };
    let text = r.file("data.txt");
    let train = |args: &[&str], word: &str| {
        let output = r.file("output");
        r.s.refused(&[&["train", &r.model, "--output", &output], args].concat(), word);
    };
    // Texts.
    train(&["--data", "no/such/text"], "no/such/text");
    train(&["--data", &file("empty.txt", b"")], "empty.txt is empty");
    train(&["--data", &file("short.txt", b"A few words.")], "short.txt");
    train(
        &["--data", &file("binary.txt", b"caf\xe9 noir")],
        "binary.txt is not UTF-8",
    );
    train(
        &["--data", &file("bad.jsonl", b"{\"text\": \"a\"}\n{")],
        "bad.jsonl, line 2",
    );
    train(&["--data", &file("other.jsonl", b"{\"words\": \"a\"}")], "--field");
    let short = r.file("short.txt");
    train(
        &["--data", &text, "--context", "16", "--validation", &short],
        "--validation",
    );
    // Recipes.
    let recipe = |text: &str, word: &str| {
        let path = file("bad.toml", text.as_bytes());
        train(&["--data", &r.file("data.txt"), "--recipe", &path], word);
    };
    recipe("steps = 3\nratte = 1", "bad.toml: line 2: unknown field `ratte`");
    recipe("batch = -1", "bad.toml: line 1");
    recipe("steps = ", "bad.toml");
    recipe("steps = 0", "steps = 0");
    recipe("rate = nan", "rate = NaN");
    recipe("eps = 0.0", "eps = 0");
    recipe("schedule = \"cubic\"", "cubic");
    recipe("trainable = \"(\"", "trainable = (");
    recipe("trainable = \"no.such.tensor\"", "no.such.tensor");
    train(&["--data", &text, "--recipe", "no/such/recipe"], "no/such/recipe");
    // The model's window is 5: both passes would see the same.
    train(
        &["--data", &text, "--trainable", "gates", "--context", "5"],
        "the model's window of 5 covers it",
    );
    // Runs.
    train(&["--data", &text, "--resume"], "no checkpoint to resume");
    r.train("run", &["--steps", "1"]);
    let before = r.checkpoint("run");
    r.refused("run", &[], "--resume");
    r.refused("run", &["--resume", "--trainable", "gates"], "the run trains");
    let (whole, other) = (r.model.clone(), tiny(&r.s, "other", "stack"));
    let mut other = Runs { s: r.s, model: other };
    other.refused("run", &["--resume"], "config.json: it is not that of");
    let at = other.s.path("run/checkpoint/training.safetensors");
    let bytes = std::fs::read(&at).unwrap();
    other.model = whole;
    std::fs::write(&at, &bytes[..bytes.len() / 2]).unwrap();
    other.refused("run", &["--resume"], "training.safetensors");
    std::fs::write(&at, bytes).unwrap();
    assert!(other.checkpoint("run") == before);
}

/// The whole curve against PyTorch, where there is one; LOOPC_PYTHON names the interpreter.
#[test]
fn curves_match_pytorch() {
    let python = std::env::var("LOOPC_PYTHON").unwrap_or("python3".to_string());
    let there = Command::new(&python)
        .args(["-c", "import torch, safetensors, tokenizers"])
        .output();
    if !there.is_ok_and(|o| o.status.success()) {
        println!("skipped: {python} has no torch, safetensors and tokenizers; LOOPC_PYTHON names one that has");
        return;
    }
    let script = root().join("tests/tools/check_training.py");
    let out = Command::new(python)
        .arg(script)
        .args([env!("CARGO_BIN_EXE_loopc"), "--steps", "25", "--trainable", "all"])
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    println!("{stdout}");
    assert!(out.status.success(), "{stdout}{stderr}");
}
