//! Merged and unmerged plans of a training step mean the same, and the merged one moves fewer bytes.

use std::path::Path;

use ir::plan::{Plan, verify::verify};
use ir::{DType, Module, Sizes};
use model::Config;
use model::graph::{Objective, Options, training};
use passes::{Program, Scheduling};

fn config(sizes: [i64; 7]) -> Config {
    let [vocab, hidden, layers, heads, kv_heads, head, inner] = sizes;
    let json = serde_json::json!({"model_type": "qwen3", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head, "intermediate_size": inner,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
        "loop_attention": {"mode": "layer", "window": 3, "loops": 2}});
    Config::from_values(Path::new("."), json, None).unwrap()
}

/// The graph of a training step, after the fused program's passes.
fn train_step(config: &Config, batch: usize, context: usize, dtype: DType, memory: u64) -> Module {
    let options = Options {
        dtype,
        embedding: dtype,
        max_context: context as i64,
    };
    let program = Program::fused();
    let objective = Objective {
        batch,
        context,
        wanted: &|_| true,
        memory,
        logits: model::graph::LOGITS,
        rewrite: &|module| program.forward(module).map_err(|e| e.to_string()),
    };
    let mut module = training::training(config, &options, &objective, false).unwrap();
    for pass in program.steps().unwrap() {
        (pass.run)(&mut module).unwrap();
    }
    module
}

fn plan(module: &Module, merged: bool) -> Plan {
    let scheduling = Scheduling {
        merged,
        ..Scheduling::FUSED
    };
    let plan = passes::schedule(module, "train_step", &scheduling).unwrap();
    assert_eq!(verify(&plan), [], "{plan}");
    plan
}

#[test]
fn scratch_big() {
    let config = config([151936, 1024, 2, 16, 8, 128, 3072]);
    let module = train_step(&config, 8, 1024, DType::BF16, 0);
    for merged in [false, true] {
        let t = std::time::Instant::now();
        let plan = plan(&module, merged);
        let work = plan.work(&Sizes::new()).unwrap();
        println!("merged {merged}: {} launches, {} kernels, {:.2} GB, in {:?}", plan.launches.len(), plan.kernels.len(), work.bytes / 1e9, t.elapsed());
        std::fs::write(format!("/tmp/merge_{merged}.plan"), plan.to_string()).unwrap();
    }
}

#[test]
fn scratch_infer() {
    let config = config([151936, 1024, 2, 16, 8, 128, 3072]);
    let options = Options { dtype: DType::BF16, embedding: DType::BF16, max_context: 4096 };
    let mut module = model::graph::build(&config, &options).unwrap();
    for pass in Program::fused().steps().unwrap() {
        (pass.run)(&mut module).unwrap();
    }
    for entry in ["prefill", "decode", "logits", "loss"] {
        for merged in [false, true] {
            let plan = passes::schedule(&module, entry, &Scheduling { merged, ..Scheduling::FUSED }).unwrap();
            println!("merged {entry} {merged}: {} launches, {} kernels", plan.launches.len(), plan.kernels.len());
            std::fs::write(format!("/tmp/merge_{entry}_{merged}.plan"), plan.to_string()).unwrap();
        }
    }
}
