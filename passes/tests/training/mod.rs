//! Training steps of small models, and what they come to on random data.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::Path;

use ir::plan::{BufferKind, Plan, WeightRecipe, eval, verify::verify};
use ir::testing::Rng;
use ir::{DType, Module, Param, Sizes};
use model::Config;
use model::graph::training::{Hyper, training};
use model::graph::{LOGITS, Objective, Options};
use passes::{Program, Scheduling};

/// vocab, hidden, layers, heads, heads of keys, their size, inner.
pub fn config(sizes: [i64; 7], mode: &str) -> Config {
    let [vocab, hidden, layers, heads, kv_heads, head, inner] = sizes;
    let json = serde_json::json!({"model_type": "qwen3", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head, "intermediate_size": inner,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
        "loop_attention": {"mode": mode, "window": 3, "loops": 2}});
    Config::from_values(Path::new("."), json, None).unwrap()
}

/// What a step is for.
#[derive(Clone, Copy)]
pub struct Step {
    pub batch: usize,
    pub context: usize,
    pub dtype: DType,
    pub memory: u64,
    pub wanted: fn(&str) -> bool,
}

/// The graph of a training step, after the program's passes.
pub fn train_step(config: &Config, step: &Step, program: &Program) -> Module {
    let options = Options {
        dtype: step.dtype,
        embedding: step.dtype,
        max_context: step.context as i64,
    };
    let objective = Objective {
        batch: step.batch,
        context: step.context,
        wanted: &step.wanted,
        memory: step.memory,
        logits: LOGITS,
        rewrite: &|module| program.forward(module).map_err(|e| e.to_string()),
    };
    let mut module = training(config, &options, &objective, false).unwrap();
    for pass in program.steps().unwrap() {
        (pass.run)(&mut module).unwrap();
        assert_eq!(ir::verify::verify(&module), [], "after {}", pass.name);
    }
    module
}

pub fn plan(module: &Module, scheduling: &Scheduling) -> Plan {
    let plan = passes::schedule(module, "train_step", scheduling).unwrap();
    assert_eq!(verify(&plan), [], "{plan}");
    plan
}

fn rng(name: &str) -> Rng {
    Rng::new(name.bytes().fold(7, |h, c| h.wrapping_mul(31) + u64::from(c)))
}

/// How many elements the tensors of a checkpoint have.
fn lengths(module: &Module) -> BTreeMap<String, usize> {
    let mut lengths = BTreeMap::new();
    for f in &module.functions {
        for (v, param) in &f.params {
            let Param::Weight(name) = param else { continue };
            let n: i64 = f.ty(*v).resolve(&Sizes::new()).unwrap().iter().product();
            for layer in 0..8 {
                lengths.insert(name.replace("{i}", &layer.to_string()), n as usize);
            }
        }
    }
    lengths
}

/// All outputs and states after a step on random data, the same for the same names.
pub fn step(module: &Module, plan: &Plan, vocab: i64) -> BTreeMap<String, Vec<f64>> {
    let hyper = Hyper {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-3,
        clip: 1.0,
        step: 3,
        rate: [0.1; 3],
        decay: [0.01; 3],
    };
    let lengths = lengths(module);
    let tensor = |name: &String| -> Vec<f64> {
        let mut rng = rng(name);
        (0..lengths[name]).map(|_| rng.unit() - 0.5).collect()
    };
    let mut memory = eval::allocate(plan, &Sizes::new()).unwrap();
    for (b, data) in plan.buffers.iter().zip(&mut memory) {
        let mut rng = rng(&b.name);
        let mut draw =
            |f: &dyn Fn(&mut Rng) -> f64| data.iter_mut().for_each(|x| *x = eval::round(f(&mut rng), b.dtype));
        match &b.kind {
            BufferKind::Input(name) if name == "hyper" => {
                data.iter_mut().zip(hyper.values()).for_each(|(x, h)| *x = f64::from(h));
            }
            BufferKind::Input(_) if b.dtype == DType::I32 => draw(&|rng| rng.below(vocab) as f64),
            BufferKind::Input(_) => draw(&|_| 0.1),
            // Squares' means are positive.
            BufferKind::State(name) if name.starts_with("v.") => draw(&|rng| 0.01 + 0.01 * rng.unit()),
            BufferKind::State(_) => draw(&|rng| rng.unit() - 0.5),
            BufferKind::Weight(WeightRecipe::Tensors { names, scale, .. }) => {
                let scale = scale.as_ref().map(tensor);
                let by = |i: usize| scale.as_ref().map_or(1.0, |s| s[i % s.len()]);
                let parts = names.iter().flat_map(tensor).enumerate();
                let all: Vec<f64> = parts.map(|(i, x)| eval::round(x * by(i), b.dtype)).collect();
                data[..all.len()].copy_from_slice(&all);
            }
            _ => {}
        }
    }
    eval::run(plan, &Sizes::new(), &mut memory).unwrap();
    let kept = |kind: &BufferKind| matches!(kind, BufferKind::Output(_) | BufferKind::State(_));
    let all = plan.buffers.iter().zip(memory).filter(|(b, _)| kept(&b.kind));
    all.map(|(b, data)| (b.name.clone(), data)).collect()
}

/// Do two steps come to the same, as far as roundings allow?
pub fn assert_near(
    wanted: &BTreeMap<String, Vec<f64>>,
    found: &BTreeMap<String, Vec<f64>>,
    tolerance: f64,
    what: &str,
) {
    assert_eq!(wanted.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, x) in wanted {
        let scale = x.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
        for (i, (x, y)) in x.iter().zip(&found[name]).enumerate() {
            let near = (x - y).abs() <= tolerance * scale;
            assert!(near, "{what}: {name}[{i}] is {x} apart, {y} joined");
        }
    }
}
