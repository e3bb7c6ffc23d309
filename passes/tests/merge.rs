//! Merged and unmerged plans of a training step mean the same, and the merged one moves fewer bytes.

use std::collections::BTreeMap;
use std::path::Path;

use ir::plan::{BufferKind, Contraction, Expr, Kernel, Plan, Rhs, Unary, eval, verify::verify};
use ir::testing::Rng;
use ir::{DType, Module, Sizes};
use model::Config;
use model::graph::training::{Hyper, training};
use model::graph::{LOGITS, Objective, Options};
use passes::{Program, Scheduling};

fn config(sizes: [i64; 7]) -> Config {
    let [vocab, hidden, layers, heads, kv_heads, head, inner] = sizes;
    let json = serde_json::json!({"model_type": "qwen3", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head, "intermediate_size": inner,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
        "loop_attention": {"mode": "layer", "window": 3, "loops": 2}});
    Config::from_values(Path::new("."), json, None).unwrap()
}

/// The graph of a training step, after the fused program's passes. `trained`: a part of the names of what is.
fn train_step(config: &Config, batch: usize, context: usize, dtype: DType, memory: u64, trained: &str) -> Module {
    let options = Options {
        dtype,
        embedding: dtype,
        max_context: context as i64,
    };
    let program = Program::fused();
    let objective = Objective {
        batch,
        context,
        wanted: &|name| name.contains(trained),
        memory,
        logits: LOGITS,
        rewrite: &|module| program.forward(module).map_err(|e| e.to_string()),
    };
    let mut module = training(config, &options, &objective, false).unwrap();
    for pass in program.steps().unwrap() {
        (pass.run)(&mut module).unwrap();
    }
    module
}

fn plan(module: &Module, merged: bool, panels: bool) -> Plan {
    let scheduling = Scheduling {
        merged,
        panels,
        ..Scheduling::FUSED
    };
    let plan = passes::schedule(module, "train_step", &scheduling).unwrap();
    assert_eq!(verify(&plan), [], "{plan}");
    plan
}

/// All outputs and states after a step on random data.
fn step(plan: &Plan, vocab: i64) -> BTreeMap<String, Vec<f64>> {
    let hyper = Hyper {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-3,
        clip: 1.0,
        step: 3,
        rate: [0.1; 3],
        decay: [0.01; 3],
    };
    let mut memory = eval::allocate(plan, &Sizes::new()).unwrap();
    for (b, data) in plan.buffers.iter().zip(&mut memory) {
        let mut rng = Rng::new(b.name.bytes().fold(7, |h, c| h.wrapping_mul(31) + u64::from(c)));
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
            _ => {}
        }
    }
    eval::run(plan, &Sizes::new(), &mut memory).unwrap();
    let kept = |kind: &BufferKind| matches!(kind, BufferKind::Output(_) | BufferKind::State(_));
    let all = plan.buffers.iter().zip(memory).filter(|(b, _)| kept(&b.kind));
    all.map(|(b, data)| (b.name.clone(), data)).collect()
}

/// Does a product compute the sigmoid of SwiGLU's backward from what it loads?
fn ends_with_swiglu(plan: &Plan) -> bool {
    let sigmoid = |k: &Kernel| k.exprs.iter().any(|e| matches!(e, Expr::Unary(Unary::Sigmoid, _)));
    let stores = |k: &Kernel| k.args.iter().filter(|a| a.written).count();
    let mut products = plan.kernels.iter().filter(|k| k.contraction.is_some());
    products.any(|k| sigmoid(k) && stores(k) > 1)
}

/// Does a sweep store the masses that its backward wants, and blend its passes?
fn blends_in_the_sweep(plan: &Plan) -> bool {
    let is = |k: &Kernel, wanted: fn(&Expr) -> bool| k.exprs.iter().any(wanted);
    let sigmoid = |e: &Expr| matches!(e, Expr::Unary(Unary::Sigmoid, _));
    let mass = |e: &Expr| matches!(e, Expr::Lse(_));
    let mut sweeps = plan.kernels.iter().filter(|k| k.sweep.is_some());
    sweeps.any(|k| is(k, sigmoid) && is(k, mass))
}

/// Products of two right sides, and those that round rows of f32 as they read them.
fn doubles_and_rounding(plan: &Plan) -> (usize, usize) {
    let of = |is: &dyn Fn(&Kernel, &Contraction) -> bool| {
        let is = |k: &&Kernel| k.contraction.as_ref().is_some_and(|c| is(k, c));
        plan.kernels.iter().filter(is).count()
    };
    let type_of = |k: &Kernel, arg: usize| k.args[arg].dtype;
    let rounds = |k: &Kernel, c: &Contraction| match c.b {
        Rhs::Packed { arg } => (type_of(k, c.a.arg), type_of(k, arg)) == (DType::F32, DType::BF16),
        _ => false,
    };
    (of(&|_, c| c.also.is_some()), of(&rounds))
}

#[test]
fn a_merged_training_step_means_the_same() {
    let vocab = 13;
    let config = config([vocab, 8, 2, 4, 2, 8, 12]);
    for (context, dtype, memory, trained, panels, tolerance) in [
        (5, DType::F32, u64::MAX, "", true, 1e-5),
        (5, DType::F32, 0, "", true, 1e-5),
        (5, DType::BF16, 0, "", true, 3e-2),
        // So many rows that a product ends with what its readers did, and that rows are stored rounded.
        (128, DType::F32, 0, "", false, 1e-5),
        (128, DType::BF16, u64::MAX, "gate_projections", true, 3e-2),
    ] {
        let module = train_step(&config, 2, context, dtype, memory, trained);
        let (apart, merged) = (plan(&module, false, panels), plan(&module, true, panels));
        let (wanted, found) = (step(&apart, vocab), step(&merged, vocab));
        assert_eq!(wanted.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
        for (name, x) in &wanted {
            let scale = x.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
            for (i, (x, y)) in x.iter().zip(&found[name]).enumerate() {
                let near = (x - y).abs() <= tolerance * scale;
                assert!(near, "{dtype} {name}[{i}] is {x} apart, {y} merged");
            }
        }
        let bytes = |plan: &Plan| plan.work(&Sizes::new()).unwrap().bytes;
        assert!(
            bytes(&merged) < 0.95 * bytes(&apart),
            "{} of {}",
            bytes(&merged),
            bytes(&apart)
        );
        assert!(merged.launches.len() * 4 < apart.launches.len() * 3);
        assert_eq!(ends_with_swiglu(&merged), context == 128, "{merged}");
        assert!(blends_in_the_sweep(&merged) && !blends_in_the_sweep(&apart), "{merged}");
        let (doubles, rounding) = doubles_and_rounding(&merged);
        assert_eq!((doubles > 0, rounding), (context == 128, 0), "{merged}");
        assert_eq!(doubles_and_rounding(&apart).1 > 0, !trained.is_empty(), "{apart}");
        // Gradients are rotated back where a norm's backward takes them.
        let rotates = |plan: &Plan| plan.kernels.iter().any(|k| k.name == "rope");
        assert_eq!((rotates(&apart), rotates(&merged)), (true, false), "{merged}");
    }
}

/// Of a model as large as one that is trained: what a layer's kernels become does not depend on the layer.
#[test]
fn layers_still_share_their_kernels() {
    let plan_of = |layers: i64| {
        let config = config([1000, 1024, layers, 16, 8, 128, 3072]);
        plan(&train_step(&config, 4, 512, DType::BF16, 0, ""), true, true)
    };
    let (few, many) = (plan_of(4), plan_of(6));
    assert_eq!(few.kernels.len(), many.kernels.len());
    let names = |plan: &Plan| plan.kernels.iter().map(|k| k.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&few), names(&many));
}
