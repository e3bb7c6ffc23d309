//! Compiled models against the float64 PyTorch reference (tests/goldens), and against themselves: decoding = prefill, same bits.

use std::path::{Path, PathBuf};

use compiler::Target;
use compiler::pipeline::{self, ModelFacts};
use ir::DType;
use model::{Config, generate};
use runtime::container::Artefact;
use runtime::weights::Checkpoint;
use runtime::{Engine, Input};
use safetensors::SafeTensors;

const CONTEXT: i64 = 64;

fn folders() -> Vec<PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(all)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() >= 20, "the goldens are gone");
    folders
}

fn compile(folder: &Path, dtype: DType, targets: Vec<Target>) -> (Artefact, Config, Checkpoint) {
    let entries = ["prefill", "decode", "logits", "loss"];
    compile_graph(folder, dtype, targets, &entries, &model::graph::build)
}

type Build<'a> = &'a dyn Fn(&Config, &model::graph::Options) -> Result<ir::Module, model::graph::GraphError>;

fn compile_graph(
    folder: &Path,
    dtype: DType,
    targets: Vec<Target>,
    entries: &[&str],
    build: Build,
) -> (Artefact, Config, Checkpoint) {
    let config = Config::from_folder(folder).unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    let embedding = match checkpoint.dtype("model.embed_tokens.weight").unwrap() {
        runtime::artefact::DType::BF16 => DType::BF16,
        runtime::artefact::DType::F16 => DType::F16,
        _ => DType::F32,
    };
    let options = model::graph::Options {
        dtype,
        embedding,
        max_context: CONTEXT,
    };
    let module = build(&config, &options).unwrap();
    let facts = ModelFacts {
        hash: String::new(),
        facts: serde_json::Value::Null,
        shapes: checkpoint.shapes(),
    };
    let options = pipeline::Options {
        entries: entries.iter().map(|e| e.to_string()).collect(),
        targets,
        max_context: CONTEXT,
        program: passes::Program::fused(),
        tuning: Default::default(),
        emit: vec![],
    };
    (
        pipeline::compile(module, &facts, &options).unwrap().0,
        config,
        checkpoint,
    )
}

struct Golden {
    name: String,
    tokens: Vec<Vec<u32>>,
    logits: Vec<f32>,
    loss: Option<f32>,
}

fn goldens(folder: &Path) -> Vec<Golden> {
    let mut found = vec![];
    for file in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        let name = file.file_name().unwrap().to_string_lossy().to_string();
        if !name.starts_with("golden_") {
            continue;
        }
        let bytes = std::fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Option<Vec<f32>> {
            let t = tensors.tensor(name).ok()?;
            Some(
                t.data()
                    .chunks(4)
                    .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
                    .collect(),
            )
        };
        let tokens = tensors.tensor("tokens").unwrap();
        let ids: Vec<u32> = tokens
            .data()
            .chunks(4)
            .map(|c| u32::from_le_bytes(c.try_into().unwrap()))
            .collect();
        found.push(Golden {
            name: format!("{}/{name}", folder.file_name().unwrap().to_string_lossy()),
            tokens: ids.chunks(tokens.shape()[1]).map(<[u32]>::to_vec).collect(),
            logits: floats("logits").unwrap(),
            loss: floats("loss").map(|v| v[0]),
        });
    }
    assert!(!found.is_empty(), "{}: no goldens", folder.display());
    found
}

/// max |a - b| / max |b|
fn error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let max = |v: &mut dyn Iterator<Item = f32>| v.fold(0.0, |m: f32, x| if x.is_nan() { f32::NAN } else { m.max(x) });
    max(&mut a.iter().zip(b).map(|(x, y)| (x - y).abs())) / max(&mut b.iter().map(|y| y.abs()))
}

/// Logits by feeding one token after the other, of every position behind the first `prompt` tokens.
fn token_by_token(engine: &Engine, g: &Golden, prompt: usize) -> Vec<(usize, Vec<f32>)> {
    let (b, t) = (g.tokens.len() as i64, g.tokens[0].len());
    let mut state = engine.new_state(b, CONTEXT).unwrap();
    let ids = |range: std::ops::Range<usize>| -> Vec<i32> {
        g.tokens
            .iter()
            .flat_map(|row| row[range.clone()].iter().map(|t| *t as i32))
            .collect()
    };
    let last = vec![prompt as i32 - 1; b as usize];
    let tokens = ids(0..prompt);
    let inputs = [("tokens", Input::I32(&tokens)), ("last", Input::I32(&last))];
    let sizes = [("B", b), ("T", prompt as i64)];
    let mut out = engine.call("prefill", &sizes, &inputs, Some(&mut state)).unwrap();
    let mut rows = vec![(prompt - 1, out.remove("logits").unwrap().data)];
    for at in prompt..t {
        let start = vec![at as i32; b as usize];
        let tokens = ids(at..at + 1);
        let inputs = [("tokens", Input::I32(&tokens)), ("start", Input::I32(&start))];
        let mut out = engine
            .call("decode", &[("B", b), ("S", at as i64 + 1)], &inputs, Some(&mut state))
            .unwrap();
        rows.push((at, out.remove("logits").unwrap().data));
    }
    rows
}

/// The reference's logits of one position, [B, vocab].
fn position(g: &Golden, at: usize) -> Vec<f32> {
    let t = g.tokens[0].len();
    let vocab = g.logits.len() / (g.tokens.len() * t);
    (0..g.tokens.len())
        .flat_map(|b| g.logits[(b * t + at) * vocab..][..vocab].to_vec())
        .collect()
}

#[test]
fn logits_loss_and_decoding_match_the_reference_in_f32() {
    for folder in folders() {
        let (artefact, config, checkpoint) = compile(&folder, DType::F32, vec![Target::native().unwrap()]);
        let engine = Engine::load(&artefact, &checkpoint, runtime::Options::cpu(2)).unwrap();
        for g in goldens(&folder) {
            let logits = generate::logits(&engine, &config, CONTEXT as usize, &g.tokens).unwrap();
            let e = error(&logits, &g.logits);
            assert!(e < 1e-5, "{}: logits {e:e}", g.name);
            let t = g.tokens[0].len();
            for prompt in [1, t / 2, t] {
                for (at, row) in token_by_token(&engine, &g, prompt.max(1)) {
                    let e = error(&row, &position(&g, at));
                    assert!(e < 1e-5, "{}: prompt of {prompt}, position {at}: {e:e}", g.name);
                }
            }
            if let Some(loss) = g.loss.filter(|_| g.tokens.len() == 1) {
                let ours =
                    generate::eval_loss(&engine, &config, CONTEXT as usize, &g.tokens[0], 64, &mut |_| ()).unwrap();
                assert!(
                    (ours.loss - f64::from(loss)).abs() < 1e-4,
                    "{}: loss {} against {loss}",
                    g.name,
                    ours.loss
                );
            }
        }
    }
}

#[test]
fn every_target_that_runs_here_agrees() {
    for target in compiler::cpu::Target::ALL {
        if !runtime::container::missing_features(&target.required_features()).is_empty() {
            eprintln!("{}: not run, this CPU lacks it", target.name);
            continue;
        }
        for name in ["layer-d128", "restart-kv1-d64", "layer-untied-f16"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 3e-2)] {
                let (artefact, config, checkpoint) = compile(&folder, dtype, vec![Target::Cpu(target.clone())]);
                let engine = Engine::load(&artefact, &checkpoint, runtime::Options::cpu(1)).unwrap();
                for g in goldens(&folder) {
                    let logits = generate::logits(&engine, &config, CONTEXT as usize, &g.tokens).unwrap();
                    let e = error(&logits, &g.logits);
                    assert!(e < tolerance, "{} {dtype} {}: {e:e}", target.name, g.name);
                }
            }
        }
    }
}

/// `cases.json` keeps PyTorch's own bf16 error against the same float64 reference.
#[test]
fn bf16_errs_at_most_twice_as_much_as_pytorch() {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(all.join("cases.json")).unwrap()).unwrap();
    let yardsticks = cases["pytorch_bf16"].as_array().unwrap().iter();
    let mut compared = 0;
    for case in yardsticks.filter(|c| c["kept"] == true) {
        let name = case["name"].as_str().unwrap();
        let file = format!("{name}/{}", case["file"].as_str().unwrap());
        let (artefact, config, checkpoint) = compile(&all.join(name), DType::BF16, vec![Target::native().unwrap()]);
        let engine = Engine::load(&artefact, &checkpoint, runtime::Options::cpu(2)).unwrap();
        let g = goldens(&all.join(name)).into_iter().find(|g| g.name == file).unwrap();
        let logits = generate::logits(&engine, &config, CONTEXT as usize, &g.tokens).unwrap();
        let pytorch = (case["max_error"].as_f64().unwrap() / case["max_logit"].as_f64().unwrap()) as f32;
        let ours = error(&logits, &g.logits);
        println!("{file}: ours {ours:.2e}, PyTorch's {pytorch:.2e}");
        assert!(ours <= 2.0 * pytorch, "{file}: {ours:e} against PyTorch's {pytorch:e}");
        compared += 1;
    }
    assert!(compared >= 3, "cases.json lost its yardsticks");
}

#[test]
fn threads_and_batch_neighbours_do_not_change_a_bit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/layer-kv1-d32");
    let (artefact, config, checkpoint) = compile(&folder, DType::F32, vec![Target::native().unwrap()]);
    let engines: Vec<Engine> = [1, 2, 5]
        .iter()
        .map(|&threads| Engine::load(&artefact, &checkpoint, runtime::Options::cpu(threads)).unwrap())
        .collect();
    for g in goldens(&folder) {
        let of = |e: &Engine, tokens: &[Vec<u32>]| generate::logits(e, &config, CONTEXT as usize, tokens).unwrap();
        let one = of(&engines[0], &g.tokens);
        assert!(engines[1..].iter().all(|e| of(e, &g.tokens) == one), "{}", g.name);
        let apart: Vec<f32> = g
            .tokens
            .iter()
            .flat_map(|row| of(&engines[0], std::slice::from_ref(row)))
            .collect();
        assert!(error(&apart, &one) < 1e-6, "{}: alone and in a batch", g.name);
    }
}

/// Tokens, loss and gradients by name.
type Reference = (Vec<Vec<u32>>, f32, Vec<(String, Vec<f32>)>);

fn reference_gradients(folder: &Path) -> Option<Reference> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let file = names.into_iter().find(|p| p.to_string_lossy().contains("gradients_"))?;
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks(4).map(|c| c.try_into().unwrap()).collect()
    };
    let ids: Vec<u32> = words("tokens").into_iter().map(u32::from_le_bytes).collect();
    let floats = |name: &str| words(name).into_iter().map(f32::from_le_bytes).collect::<Vec<f32>>();
    let t = tensors.tensor("tokens").unwrap().shape()[1];
    let grads = tensors
        .names()
        .into_iter()
        .filter_map(|n| Some((n.strip_prefix("grad.")?, floats(n))));
    Some((
        ids.chunks(t).map(<[u32]>::to_vec).collect(),
        floats("loss")[0],
        grads.map(|(n, g)| (n.to_string(), g)).collect(),
    ))
}

/// Relative Frobenius norm.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(x, y)| x - y)) / norm(&mut b.iter().copied()).max(1e-30)
}

/// f32 within 1e-3 of float64 (it is much nearer); bf16 of the order of its rounding. All tensors, and then those that are trained alone.
#[test]
fn gradients_match_the_reference() {
    let mut compared = 0;
    for folder in folders() {
        let Some((tokens, loss, wanted)) = reference_gradients(&folder) else {
            continue;
        };
        let name = folder.file_name().unwrap().to_string_lossy().to_string();
        let all = u64::MAX;
        for (dtype, trainable, tolerance, memory, logits) in [
            (DType::F32, "all", 1e-5, all, all),
            (DType::F32, "all", 1e-5, 20_000, 10_000),
            (DType::F32, "gates+norms", 1e-5, 0, all),
            (DType::F32, r"layers\.0\.", 1e-5, all, 10_000),
            (DType::BF16, "all", 1e-1, all, all),
        ] {
            let trainable: model::trainable::Trainable = trainable.parse().unwrap();
            let what = format!("{name} {dtype} {trainable}");
            let build = |c: &Config, o: &model::graph::Options| {
                let objective = model::graph::Objective {
                    batch: tokens.len(),
                    context: tokens[0].len(),
                    wanted: &|n| trainable.includes(n),
                    memory,
                    logits,
                    rewrite: &|module| passes::Program::fused().forward(module).map_err(|e| e.to_string()),
                };
                model::graph::gradients(c, o, &objective)
            };
            let targets = vec![Target::native().unwrap()];
            let (artefact, config, checkpoint) = compile_graph(&folder, dtype, targets, &["gradients"], &build);
            let run = |threads: usize| {
                let engine = Engine::load(&artefact, &checkpoint, runtime::Options::cpu(threads)).unwrap();
                model::gradients::gradients(&engine, &config, CONTEXT as usize, &tokens).unwrap()
            };
            let found = run(2);
            let rounding = if dtype == DType::F32 { 1e-6 } else { 2e-2 };
            assert!(
                (found.loss / loss - 1.0).abs() < rounding,
                "{what}: loss {} for {loss}",
                found.loss
            );
            let asked: Vec<_> = wanted.iter().filter(|(n, _)| trainable.includes(n)).collect();
            assert_eq!(asked.len(), found.tensors.len(), "{what}");
            for (tensor, grad) in asked {
                let d = distance(&found.tensors[tensor].data, grad);
                assert!(d < tolerance, "{what}: grad.{tensor} is off by {d:e}");
            }
            let again = run(5);
            let same = |n: &String| found.tensors[n].data == again.tensors[n].data;
            assert!(found.tensors.keys().all(same), "{what}: threads change gradients");
        }
        compared += 1;
    }
    assert!(compared >= 9, "the gradients of {compared} folders are left");
}
