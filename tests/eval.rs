//! Looking at models and training them from the command line: gates against the reference, `loopc eval`'s tables, and
//! what `loopc train` reads and leaves behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use compiler::Target;
use compiler::pipeline::{self, ModelFacts};
use ir::DType;
use model::graph::gates;
use runtime::weights::Checkpoint;
use runtime::{Engine, Input};
use safetensors::SafeTensors;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct Sandbox(tempfile::TempDir);

impl Sandbox {
    fn new() -> Sandbox {
        Sandbox(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.0.path().join(name), bytes).unwrap();
        self.path(name)
    }

    fn loopc(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loopc"));
        command
            .args(args)
            .env("LOOPC_CACHE", self.path("cache"))
            .output()
            .unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.loopc(args);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{args:?}: {stderr}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// Exit 1 and one line on standard error that holds `word`.
    fn refused(&self, args: &[&str], word: &str) {
        let out = self.loopc(args);
        let stderr = String::from_utf8_lossy(&out.stderr).to_string();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: wants `{word}`: {stderr}");
    }
}

fn austen() -> String {
    root().join("tests/models/austen").display().to_string()
}

/// About `words` words that are not all alike.
fn prose(words: usize) -> String {
    let known = [
        "the ", "Emma ", "was ", "very ", "fond of ", "a ", "walk, ", "and ", "not ", "happy. ", "She ", "said ",
        "so; ",
    ];
    let mut n = 7u64;
    let mut word = || {
        n = n.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        known[(n >> 33) as usize % known.len()]
    };
    (0..words).map(|_| word()).collect()
}

#[test]
fn gates_match_the_reference() {
    let mut modes = vec![];
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root().join("tests/goldens"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    folders.sort();
    for folder in folders.into_iter().filter(|f| f.is_dir()) {
        let mut files = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
        let Some(file) = files.find(|p| p.to_string_lossy().contains("gates_")) else {
            continue;
        };
        let bytes = std::fs::read(&file).unwrap();
        let wanted = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| -> Vec<[u8; 4]> {
            wanted
                .tensor(name)
                .unwrap()
                .data()
                .chunks(4)
                .map(|c| c.try_into().unwrap())
                .collect()
        };
        let tokens: Vec<i32> = words("tokens").into_iter().map(i32::from_le_bytes).collect();
        let (b, t) = (
            wanted.tensor("tokens").unwrap().shape()[0],
            wanted.tensor("tokens").unwrap().shape()[1],
        );
        let ahead: Vec<i32> = tokens
            .chunks(t)
            .flat_map(|row| row[1..].iter().copied().chain([-1]))
            .collect();
        let golden = std::fs::read(file.to_string_lossy().replace("gates_", "golden_")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let loss = f32::from_le_bytes(golden.tensor("loss").unwrap().data().try_into().unwrap());

        let config = model::Config::from_folder(&folder).unwrap();
        modes.push(config.attention.mode);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        for (dtype, program, tolerance) in [
            (DType::F32, passes::Program::fused(), 2e-6),
            (DType::F32, passes::Program::op_by_op(), 2e-6),
            (DType::BF16, passes::Program::fused(), 3e-2),
        ] {
            let what = format!("{}, {dtype}, {}", folder.display(), program.name);
            let options = model::graph::Options {
                dtype,
                embedding: DType::F32,
                max_context: 64,
            };
            let module = gates::gates(&config, &options).unwrap();
            let facts = ModelFacts {
                hash: String::new(),
                facts: serde_json::Value::Null,
                shapes: checkpoint.shapes(),
            };
            let options = pipeline::Options {
                entries: vec!["gates".to_string()],
                targets: vec![Target::native().unwrap()],
                max_context: 64,
                program,
                tuning: Default::default(),
                emit: vec![],
            };
            let artefact = pipeline::compile(module, &facts, &options).unwrap().0;
            let engine = Engine::load(&artefact, &checkpoint, runtime::Options::cpu(2)).unwrap();
            let inputs = [("tokens", Input::I32(&tokens)), ("targets", Input::I32(&ahead))];
            let found = engine
                .call("gates", &[("B", b as i64), ("T", t as i64)], &inputs, None)
                .unwrap();
            assert_eq!(
                found.len(),
                wanted.names().len(),
                "{what}: nll instead of tokens, and the gates"
            );
            for name in wanted.names().into_iter().filter(|n| *n != "tokens") {
                let g: Vec<f32> = words(name).into_iter().map(f32::from_le_bytes).collect();
                assert_eq!(found[name].shape, [b as i64, config.heads, t as i64], "{what}: {name}");
                let error = found[name]
                    .data
                    .iter()
                    .zip(&g)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(error < tolerance, "{what}: {name} is off by {error:e}");
            }
            let mean = found["nll"].data.iter().sum::<f32>() / (b * (t - 1)) as f32;
            assert!(
                (mean / loss - 1.0).abs() < tolerance.max(1e-5),
                "{what}: loss {mean} for {loss}"
            );
        }
    }
    for mode in model::Mode::ALL.into_iter().filter(|m| m.gated()) {
        assert!(modes.contains(&mode), "the gates of {mode:?} are gone");
    }
}

#[test]
fn eval_tells_positions_and_gates() {
    let s = Sandbox::new();
    let text = s.file("text.txt", prose(150).as_bytes());
    let plain = [
        "eval",
        &austen(),
        "--text",
        &text,
        "--context",
        "40",
        "--max-tokens",
        "110",
    ];
    let loss = |report: &serde_json::Value| report["loss"].as_f64().unwrap();
    let alone = s.json(&plain);
    let plot = s.path("gates.svg");
    let report = s.json(&[&plain[..], &["--positions", "--gates", "--plot", &plot]].concat());
    assert!((loss(&report) - loss(&alone)).abs() < 1e-5, "{alone} {report}");
    assert!(alone.get("gates").is_none() && alone.get("positions").is_none());

    // Windows of 40, 40 and 30 tokens: three predictions saw 1 token, two saw 39.
    let positions = report["positions"].as_array().unwrap();
    let counts: Vec<u64> = positions.iter().map(|p| p["predictions"].as_u64().unwrap()).collect();
    assert_eq!(counts, [vec![3; 29], vec![2; 10]].concat());
    let sum: f64 = positions
        .iter()
        .zip(&counts)
        .map(|(p, n)| p["loss"].as_f64().unwrap() * *n as f64)
        .sum();
    assert!((sum / 107.0 - loss(&report)).abs() < 1e-9);

    let layers = report["gates"][0]["layers"].as_array().unwrap();
    let gates: Vec<f64> = layers
        .iter()
        .flat_map(|l| l.as_array().unwrap())
        .map(|g| g.as_f64().unwrap())
        .collect();
    assert_eq!((layers.len(), gates.len()), (6, 36));
    assert!(gates.iter().all(|g| (0.0..=1.0).contains(g)));
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));

    let tables = s.ok(&[&plain[..], &["--positions", "--gates"]].concat());
    assert!(
        tables.contains("32 to 39") && tables.contains("of 36 heads look mostly at the window"),
        "{tables}"
    );

    s.refused(
        &[&plain[..], &["--gates", "--plot", &s.path("gates.png")]].concat(),
        ".svg",
    );
    let base = root().join("tests/goldens/base").display().to_string();
    s.refused(&["eval", &base, "--text", &text, "--gates"], "no gates");
    s.refused(&["eval", &text, "--text", &text, "--gates"], "Hugging Face folder");
}

#[test]
fn every_recipe_can_be_used() {
    let mut count = 0;
    for file in std::fs::read_dir(root().join("recipes"))
        .unwrap()
        .map(|e| e.unwrap().path())
    {
        let recipe = model::train::Recipe::from_file(&file).unwrap_or_else(|e| panic!("{e}"));
        recipe.check().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        count += 1;
    }
    assert!(count >= 3);
}

#[test]
fn training_leaves_tensorboard_files_and_goes_on_in_a_new_one() {
    let s = Sandbox::new();
    let text = s.file(
        "text.jsonl",
        serde_json::json!({"text": prose(200)}).to_string().as_bytes(),
    );
    let run = s.path("run");
    let args = [
        "train",
        &austen(),
        "--data",
        &text,
        "--validation",
        &text,
        "-o",
        &run,
        "--context",
        "80",
        "--batch",
        "1",
    ];
    let train = |more: &[&str]| s.ok(&[&args[..], more].concat());
    train(&["--steps", "2"]);
    train(&["--steps", "5", "--resume"]);
    let mut files: Vec<PathBuf> = std::fs::read_dir(Path::new(&run).join("tensorboard"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    let count = |file: &PathBuf, name: &str| {
        let bytes = std::fs::read(file).unwrap();
        bytes.windows(name.len()).filter(|w| *w == name.as_bytes()).count()
    };
    let counts: Vec<Vec<usize>> = [
        "loss/train",
        "loss/validation",
        "gradient_norm",
        "rate",
        "tokens_per_second",
    ]
    .map(|name| files.iter().map(|f| count(f, name)).collect())
    .to_vec();
    // Validation is before the first step and after each run's last.
    assert_eq!(counts, [[2, 3], [2, 1], [2, 3], [2, 3], [2, 3]]);
}

#[test]
fn data_that_cannot_be_trained_on_is_told_in_one_line() {
    let s = Sandbox::new();
    let run = s.path("run");
    let train = |data: &str, more: &[&str], word: &str| {
        s.refused(
            &[&["train", &austen(), "--data", data, "-o", &run], more].concat(),
            word,
        );
        assert!(!Path::new(&run).exists(), "{word}: something was left behind");
    };
    train(&s.file("empty.txt", b""), &[], "is empty");
    train(&s.file("binary.txt", b"a\0b"), &[], "binary");
    train(&s.file("latin.txt", b"caf\xe9"), &[], "iconv");
    train(
        &s.file("lines.jsonl", b"{\"body\": \"x\"}"),
        &[],
        "name one of body with --field",
    );
    train(&s.file("cut.parquet", b"PAR1PAR1"), &[], "no readable Parquet");
    train(
        &s.file("short.txt", b"Emma was"),
        &["--context", "80"],
        "smaller context",
    );
    train(&s.path("nothing.txt"), &[], "nothing.txt");
    let (long, short) = (
        s.file("long.txt", prose(99).as_bytes()),
        s.file("short.txt", b"Emma was"),
    );
    let more = ["--validation", &short, "--context", "80"];
    train(&long, &more, "more text or a smaller context");
}
