//! Models of random small configurations as programs to check: text in, text out, losses, gradients, training steps. Every mode and family.

use std::collections::BTreeMap;

use anyhow::Context;
use ir::eval::Tensor;
use ir::testing::Rng;
use ir::{DType, Module, Param, Sizes};
use model::graph::training::Hyper;
use model::graph::{self, Objective, Options};
use model::{Config, Mode};
use passes::Program;

use super::subjects::{Call, LENGTHS, Subject, Trial};

/// New tokens that are decoded behind a prompt.
const STEPS: i64 = 3;
const MAX_CONTEXT: i64 = 160;

/// One configuration of each mode.
pub fn of(seed: u64, dtype: DType, program: Program) -> anyhow::Result<Vec<Subject>> {
    let mut all = vec![];
    for (at, mode) in Mode::ALL.into_iter().enumerate() {
        let mut rng = Rng::new(seed.wrapping_mul(4).wrapping_add(at as u64));
        let config = config(mode, &mut rng)?;
        let options = Options {
            dtype,
            embedding: *rng.choose(&[DType::F32, DType::BF16]),
            max_context: MAX_CONTEXT,
        };
        let weights = weights(&config, &mut rng);
        let subject =
            |what: &str, module: Module, entries: &[&str], slack: f64, trial: super::subjects::Draw| Subject {
                name: format!("{} {seed} {what}", mode.name()),
                option: "--modes".to_string(),
                made: Some((seed, 3)),
                module,
                entries: entries.iter().map(|e| e.to_string()).collect(),
                weights: weights.clone(),
                max_context: MAX_CONTEXT,
                slack,
                trial,
            };
        let module = graph::build(&config, &options)?;
        let (c, m) = (config.clone(), module.clone());
        let text = Box::new(move |seed| Ok(texts(&c, &m, seed)));
        all.push(subject(
            "text",
            module,
            &["prefill", "decode", "logits", "loss"],
            1.0,
            text,
        ));

        let (batch, context) = (1 + rng.below(2), *rng.choose(&LENGTHS[2..13]));
        let rewrite = |module| program.forward(module).map_err(|e| e.to_string());
        let objective = Objective {
            batch: batch as usize,
            context: context as usize,
            wanted: &|_| true,
            memory: *rng.choose(&[u64::MAX, 1 << 16]),
            logits: graph::LOGITS,
            rewrite: &rewrite,
        };
        let module = graph::gradients(&config, &options, &objective)?;
        let c = config.clone();
        let gradients = Box::new(move |seed| Ok(gradients(&c, batch, context, seed)));
        all.push(subject("gradients", module, &["gradients"], 4.0, gradients));

        let module = graph::training::training(&config, &options, &objective, true)?;
        let (c, m, w) = (config.clone(), module.clone(), weights.clone());
        let steps = Box::new(move |seed| Ok(training(&c, &m, &w, batch, context, seed)));
        let entries = ["accumulate", "train_step", "loss"];
        all.push(subject("training", module, &entries, 4.0, steps));
    }
    Ok(all)
}

fn config(mode: Mode, rng: &mut Rng) -> anyhow::Result<Config> {
    let kv_heads = 1 + rng.below(2);
    let json = serde_json::json!({
        "model_type": rng.choose(&["qwen3", "llama"]), "vocab_size": 40 + rng.below(100), "hidden_size": 8 * (2 + rng.below(15)),
        "num_hidden_layers": 1 + rng.below(2), "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * (1 + rng.below(3)), "head_dim": rng.choose(&[16, 32, 64, 64, 128, 128]),
        "intermediate_size": 8 * (3 + rng.below(20)), "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": rng.below(2) == 0,
        "loop_attention": (mode != Mode::Base).then(|| serde_json::json!({
            "mode": mode.name(), "window": rng.choose(&LENGTHS), "loops": if mode.trips() { 2 + rng.below(2) } else { 2 },
        })),
    });
    let mut json = json;
    if mode == Mode::Base
        && let Some(all) = json.as_object_mut()
    {
        all.remove("loop_attention");
    }
    Config::from_values(std::path::Path::new("."), json, None).context("a configuration of loopc check")
}

/// Matrices keep the size of what they multiply; norms are near 1.
fn weights(config: &Config, rng: &mut Rng) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for (name, shape) in model::weights::expected(config) {
        let (middle, reach) = match (name.ends_with("norm.weight"), shape.len()) {
            (true, _) => (1.0, 0.3),
            (false, 2) if !name.contains("embed") => (0.0, (3.0 / shape[1] as f64).sqrt()),
            _ => (0.0, 1.0),
        };
        let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
        let tensor = Tensor::from_fn(&shape, DType::F32, |_| middle + reach * (2.0 * rng.unit() - 1.0));
        all.insert(name, tensor.rounded());
    }
    all
}

fn sizes(pairs: [(&str, i64); 4]) -> Sizes {
    pairs.map(|(k, v)| (k.to_string(), v)).into()
}

fn ids(shape: &[i64], low: i64, end: i64, rng: &mut Rng) -> Tensor {
    let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
    Tensor::from_fn(&shape, DType::I32, |_| (low + rng.below(end - low)) as f64)
}

fn call<const N: usize>(entry: &str, sizes: Sizes, inputs: [(&str, Tensor); N]) -> Call {
    Call {
        entry: entry.to_string(),
        sizes,
        loose_keys: entry == "decode",
        inputs: inputs.map(|(name, t)| (name.to_string(), t)).into(),
    }
}

/// A prompt, tokens behind it, and the same length without caches.
fn texts(config: &Config, module: &Module, seed: u64) -> Trial {
    let mut rng = Rng::new(seed);
    let (b, t) = (1 + rng.below(3), *rng.choose(&LENGTHS));
    let c = t + STEPS + rng.below(20);
    // Shorter prompts are padded on the right; but round a ring only what is real may go.
    let shorter = if config.attention.mode.trips() && t > config.attention.window {
        0
    } else {
        t.min(4)
    };
    let lengths: Vec<i64> = (0..b).map(|_| t - rng.below(shorter.max(1))).collect();
    let vector = |f: &dyn Fn(i64) -> i64| {
        Tensor::new(
            &[b as usize],
            DType::I32,
            lengths.iter().map(|n| f(*n) as f64).collect(),
        )
    };
    let tokens = ids(&[b, t], 0, config.vocab, &mut rng);
    let at = |keys| sizes([("B", b), ("T", t), ("S", keys), ("C", c)]);
    let mut calls = vec![
        call(
            "prefill",
            at(t),
            [("tokens", tokens.clone()), ("last", vector(&|n| n - 1))],
        ),
        call("logits", at(t), [("tokens", tokens.clone())]),
        call(
            "loss",
            at(t),
            [
                ("tokens", tokens),
                ("targets", ids(&[b, t], -1, config.vocab, &mut rng)),
            ],
        ),
    ];
    let longest = lengths.iter().copied().max().unwrap_or(t);
    for i in 0..STEPS {
        let sizes = sizes([("B", b), ("T", 1), ("S", longest + i + 1), ("C", c)]);
        let tokens = ids(&[b, 1], 0, config.vocab, &mut rng);
        calls.push(call(
            "decode",
            sizes,
            [("tokens", tokens), ("start", vector(&|n| n + i))],
        ));
    }
    let first = at(t);
    Trial {
        states: states(module, config, &first),
        batch: b,
        capacity: c,
        calls,
    }
}

/// Zeros for every state.
fn states(module: &Module, config: &Config, sizes: &Sizes) -> BTreeMap<String, Tensor> {
    let mut states = BTreeMap::new();
    for f in &module.functions {
        for (v, param) in &f.params {
            let Param::State(name) = param else { continue };
            let shape = f.ty(*v).resolve(sizes).unwrap_or_default();
            let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
            for layer in 0..config.layers {
                let zeros = Tensor::from_fn(&shape, f.ty(*v).dtype, |_| 0.0);
                states.insert(name.replace("{i}", &layer.to_string()), zeros);
            }
        }
    }
    states
}

/// Tokens, targets and weights of an objective.
fn batch(config: &Config, b: i64, t: i64, rng: &mut Rng) -> [(&'static str, Tensor); 3] {
    let weight = f64::from(1.0 / (b * t) as f32);
    let weights = Tensor::from_fn(&[b as usize, t as usize], DType::F32, |_| weight);
    [
        ("tokens", ids(&[b, t], 0, config.vocab, rng)),
        ("targets", ids(&[b, t], -1, config.vocab, rng)),
        ("weights", weights),
    ]
}

fn gradients(config: &Config, b: i64, t: i64, seed: u64) -> Trial {
    let sizes = sizes([("B", b), ("T", t), ("S", t), ("C", 1)]);
    Trial {
        states: BTreeMap::new(),
        batch: b,
        capacity: 1,
        calls: vec![call("gradients", sizes, batch(config, b, t, &mut Rng::new(seed)))],
    }
}

/// A micro-batch, a step, another step, a loss. A large `eps` keeps what rounding does to tiny gradients from deciding the update.
fn training(config: &Config, module: &Module, weights: &BTreeMap<String, Tensor>, b: i64, t: i64, seed: u64) -> Trial {
    let mut rng = Rng::new(seed);
    let sizes = sizes([("B", b), ("T", t), ("S", t), ("C", 1)]);
    let mut states = states(module, config, &sizes);
    for (name, state) in &mut states {
        if let Some(values) = name.strip_prefix(graph::training::PARAM).and_then(|n| weights.get(n)) {
            state.data.clone_from(&values.data);
        }
    }
    let hyper = |step| {
        let hyper = Hyper {
            beta1: 0.9,
            beta2: 0.95,
            eps: 0.1,
            clip: 1.0,
            step,
            rate: [0.1, 0.05, 0.1],
            decay: [0.0, 0.0, 0.01],
        };
        let values = hyper.values().map(f64::from);
        Tensor::new(&[Hyper::LEN], DType::F32, values.to_vec())
    };
    let mut calls = vec![call("accumulate", sizes.clone(), batch(config, b, t, &mut rng))];
    for step in 1..=2 {
        let [x, y, z] = batch(config, b, t, &mut rng);
        calls.push(call("train_step", sizes.clone(), [x, y, z, ("hyper", hyper(step))]));
    }
    let [x, y, _] = batch(config, b, t, &mut rng);
    calls.push(call("loss", sizes.clone(), [x, y]));
    Trial {
        states,
        batch: b,
        capacity: 1,
        calls,
    }
}
