//! The entry point `gates`: the loss, and beside it what every gate said. For looking at a model; nothing that runs or
//! trains one has it.

use ir::{Attr, DType, Dim, Function, Module, TensorType, ValueId};

use super::{GraphError, Options, Phase, check, entry, layer};
use crate::config::{Config, Mode};

/// The result with the gates of this trip (from 1) and layer.
pub fn result(trip: i64, layer: i64) -> String {
    format!("gate.{trip}.{layer}")
}

/// The trips that have gates: a first trip is plain attention, except in `layer`, which has no other.
pub fn trips(config: &Config) -> std::ops::RangeInclusive<i64> {
    if config.attention.mode == Mode::Layer {
        1..=1
    } else {
        2..=config.attention.loops
    }
}

/// The module with `gates(tokens, targets)` -> `nll` [B, T] as `loss` has it, and `gate.{trip}.{layer}` [B, H, T] f32:
/// the weight of the global pass, from 0 to 1.
pub fn gates(config: &Config, options: &Options) -> Result<Module, GraphError> {
    check(options)?;
    if !config.attention.mode.gated() {
        return Err(GraphError::NoGates);
    }
    let mut layers = layer::functions(config, options, Phase::Full);
    let mut f = entry("loss", config, options, Phase::Full, &layers);
    f.name = "gates".to_string();
    let mut trip = *trips(config).start();
    for layer in &mut layers {
        trip = return_gates(layer, config, trip);
    }
    // The entry was written for layers that give fewer results; its calls get the new ones behind the old.
    let mut ops = std::mem::take(&mut f.ops);
    for op in ops.iter_mut().filter(|op| op.name == "call") {
        let (Some(Attr::Str(callee)), Some(Attr::Int(i))) = (op.attrs.get("callee"), op.attrs.get("layer")) else {
            continue;
        };
        let Some(callee) = layers.iter().find(|l| l.name == *callee) else {
            continue;
        };
        for (name, v) in &callee.returns[op.results.len()..] {
            let g = f.new_value(callee.ty(*v).clone(), None);
            op.results.push(g);
            f.returns(&format!("{name}.{i}"), g);
        }
    }
    f.ops = ops;
    layers.push(f);
    Ok(Module { functions: layers })
}

/// The layer returns its gates too, which are its only sigmoids, one for each trip that it holds; gives the trip after
/// them.
fn return_gates(f: &mut Function, c: &Config, mut trip: i64) -> i64 {
    let found: Vec<ValueId> = f
        .ops
        .iter()
        .filter(|op| op.name == "sigmoid")
        .map(|op| op.results[0])
        .collect();
    for g in found {
        let by_head = [Dim::sym("B"), c.heads.into(), Dim::sym("T")];
        let g = f.reshape(g, TensorType::new(by_head, DType::F32));
        f.returns(&format!("gate.{trip}"), g);
        trip += 1;
    }
    trip
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mode: &str, loops: i64) -> Config {
        let json = serde_json::json!({
            "model_type": "qwen3", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
            "loop_attention": {"mode": mode, "window": 3, "loops": loops},
        });
        Config::from_values(std::path::Path::new(""), json, None).unwrap()
    }

    const OPTIONS: Options = Options {
        dtype: DType::F32,
        embedding: DType::F32,
        max_context: 16,
    };

    #[test]
    fn every_gate_of_every_trip_is_a_result() {
        for (mode, loops, wanted) in [("layer", 2, 1..=1), ("restart", 3, 2..=3), ("stack", 3, 2..=3)] {
            let config = config(mode, loops);
            assert_eq!(trips(&config), wanted);
            let module = gates(&config, &OPTIONS).unwrap();
            assert_eq!(ir::verify::verify(&module), vec![], "{mode}");
            let f = module.function("gates").unwrap();
            let mut names: Vec<String> = wanted.flat_map(|trip| (0..2).map(move |i| result(trip, i))).collect();
            names.push("nll".to_string());
            let mut found: Vec<String> = f.returns.iter().map(|r| r.0.clone()).collect();
            names.sort();
            found.sort();
            assert_eq!(found, names, "{mode}");
        }
        assert_eq!(gates(&config("base", 2), &OPTIONS), Err(GraphError::NoGates));
    }
}
