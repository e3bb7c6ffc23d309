//! Folders as users have them: configurations, weights and retrofits, good and bad.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use model::retrofit::{Options, RetrofitError, retrofit};
use model::write::WriteError;
use model::{Config, LoopAttention, Mode, weights};
use runtime::weights::Checkpoint;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

fn base() -> Value {
    json!({"model_type": "qwen3", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 12, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": true, "eos_token_id": 7, "bos_token_id": 1, "rope_scaling": null})
}

/// `base` with keys set; `null` takes a key away.
fn with(changes: Value) -> Value {
    let mut json = base();
    json.as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    json
}

fn parse(json: Value) -> Result<Config, String> {
    Config::from_values(Path::new("M"), json, None).map_err(|e| e.to_string())
}

#[test]
fn configurations_are_read() {
    let c = parse(base()).unwrap();
    assert_eq!(
        (c.heads, c.kv_heads, c.head_dim, c.group(), c.theta, c.tied),
        (4, 2, 6, 2, 1e6, true)
    );
    assert_eq!((c.attention.mode, c.eos.clone(), c.bos), (Mode::Base, vec![7], Some(1)));
    assert_eq!(parse(with(json!({"head_dim": null}))).unwrap().head_dim, 2);
    let theta = json!({"rope_theta": null, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
    assert_eq!(parse(with(theta)).unwrap().theta, 5e5);
    assert_eq!(
        parse(with(json!({"model_type": "llama", "num_key_value_heads": null})))
            .unwrap()
            .kv_heads,
        4
    );
    let loops = |changes| parse(with(changes)).unwrap().attention;
    assert_eq!(
        loops(json!({"loop_attention": {"mode": "restart", "window": 3, "loops": 4}})),
        LoopAttention {
            mode: Mode::Restart,
            window: 3,
            loops: 4
        }
    );
    assert_eq!(
        loops(json!({"model_type": "iquestloopcoder", "loop_num": 3, "loop_window_size": 5})),
        LoopAttention {
            mode: Mode::Stack,
            window: 5,
            loops: 3
        }
    );
    let generation = json!({"eos_token_id": [9, 7]});
    let c = Config::from_values(Path::new("M"), base(), Some(generation)).unwrap();
    assert_eq!(c.eos, [7, 9]);
    assert_eq!(
        Config::from_facts(Path::new("A"), &c.facts()).unwrap(),
        c,
        "an artefact carries all of it"
    );
}

#[test]
fn bad_configurations_are_refused_by_file_and_key() {
    let cases = [
        (
            json!({"model_type": "gpt2"}),
            "model_type",
            "known are qwen3, llama and iquestloopcoder",
        ),
        (json!({"hidden_size": null}), "hidden_size", "is missing"),
        (json!({"hidden_size": 0}), "hidden_size", "from 1 to 131072, not 0"),
        (json!({"hidden_size": 9e18}), "hidden_size", "whole number"),
        (json!({"vocab_size": -5}), "vocab_size", "not -5"),
        (
            json!({"num_hidden_layers": 100000}),
            "num_hidden_layers",
            "from 1 to 4096",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "num_key_value_heads",
            "does not divide num_attention_heads = 4",
        ),
        (
            json!({"num_key_value_heads": null}),
            "num_key_value_heads",
            "is missing",
        ),
        (json!({"head_dim": 5}), "head_dim", "must be even"),
        (
            json!({"head_dim": null, "hidden_size": 9}),
            "head_dim",
            "no multiple of 4 heads",
        ),
        (json!({"rms_norm_eps": "tiny"}), "rms_norm_eps", "must be a number"),
        (json!({"rms_norm_eps": 0}), "rms_norm_eps", "above 0"),
        (json!({"rope_theta": null}), "rope_theta", "is missing"),
        (json!({"rope_theta": 0.5}), "rope_theta", "above 1"),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}}),
            "rope_scaling",
            "set it to null",
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "rope_scaling",
            "set it to null",
        ),
        (
            json!({"rope_parameters": {"rope_type": "llama3"}}),
            "rope_parameters",
            "set it to null",
        ),
        (json!({"attention_bias": true}), "attention_bias", "not supported"),
        (json!({"mlp_bias": true}), "mlp_bias", "not supported"),
        (
            json!({"use_sliding_window": true}),
            "use_sliding_window",
            "set it to false",
        ),
        (
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "layer_types",
            "not supported",
        ),
        (json!({"hidden_act": "gelu"}), "hidden_act", "only silu"),
        (
            json!({"quantization_config": {"bits": 4}}),
            "quantization_config",
            "f32, f16 or bf16",
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
            "is not 1",
        ),
        (
            json!({"tie_word_embeddings": "yes"}),
            "tie_word_embeddings",
            "true or false",
        ),
        (json!({"eos_token_id": [1, -1]}), "eos_token_id", "token id or a list"),
        (
            json!({"loop_attention": "layer"}),
            "loop_attention",
            "must be a JSON object",
        ),
        (
            json!({"loop_attention": {"window": 3}}),
            "loop_attention.mode",
            "is missing",
        ),
        (
            json!({"loop_attention": {"mode": "spiral"}}),
            "loop_attention.mode",
            "known are base, layer, restart and stack",
        ),
        (
            json!({"loop_attention": {"mode": "layer", "window": 0}}),
            "loop_attention.window",
            "from 1",
        ),
        (
            json!({"loop_attention": {"mode": "stack", "loops": 1}}),
            "loop_attention.loops",
            "from 2 to 64",
        ),
        (json!({"loop_num": 1}), "loop_num", "from 2 to 64"),
        (json!({"model_type": "iquestloopcoder"}), "loop_num", "is missing"),
    ];
    for (changes, key, words) in cases {
        let error = parse(with(changes.clone())).expect_err(&changes.to_string());
        let start = format!("M/config.json: `{key}` ");
        assert!(error.starts_with(&start) && error.contains(words), "{changes}: {error}");
    }
    assert_eq!(
        parse(json!([1])).unwrap_err(),
        "M/config.json: `the whole file` must be a JSON object"
    );
    let dir = tempfile::tempdir().unwrap();
    assert!(
        Config::from_folder(dir.path())
            .unwrap_err()
            .to_string()
            .contains("config.json: cannot read it")
    );
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(
        Config::from_folder(dir.path())
            .unwrap_err()
            .to_string()
            .contains("config.json: not JSON")
    );
}

type Shapes = BTreeMap<String, Vec<i64>>;

/// Writes tensors of these shapes, all elements 0.5.
fn write_tensors(file: &Path, tensors: &Shapes) {
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(n, s)| {
            (
                n.clone(),
                s.iter().map(|x| *x as usize).collect(),
                0.5f32.to_le_bytes().repeat(s.iter().product::<i64>() as usize),
            )
        })
        .collect();
    let views = data
        .iter()
        .map(|(n, s, d)| (n.clone(), TensorView::new(Dtype::F32, s.clone(), d).unwrap()));
    safetensors::serialize_to_file(views, None::<HashMap<String, String>>, file).unwrap();
}

/// A folder with this configuration, its tensors changed by `change`, over one or two files.
fn folder(json: &Value, sharded: bool, change: impl Fn(&mut Shapes)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let mut tensors = weights::expected(&parse(json.clone()).unwrap());
    change(&mut tensors);
    if !sharded {
        write_tensors(&dir.path().join("model.safetensors"), &tensors);
        return dir;
    }
    let mut map = BTreeMap::new();
    for s in 0..2 {
        let file = format!("model-{s}.safetensors");
        let part: Shapes = tensors
            .iter()
            .skip(s)
            .step_by(2)
            .map(|(n, s)| (n.clone(), s.clone()))
            .collect();
        write_tensors(&dir.path().join(&file), &part);
        map.extend(part.into_keys().map(|n| (n, file.clone())));
    }
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

/// Opens and checks; errors with the folder's name taken out.
fn checked(dir: &Path) -> Result<(), String> {
    let plain = |e: &dyn std::error::Error| e.to_string().replace(&dir.display().to_string(), "M");
    let config = Config::from_folder(dir).map_err(|e| plain(&e))?;
    let checkpoint = Checkpoint::open(dir).map_err(|e| plain(&e))?;
    weights::check(&config, &checkpoint).map_err(|e| plain(&e))
}

fn layer_mode() -> Value {
    with(json!({"loop_attention": {"mode": "layer", "window": 2, "loops": 2}}))
}

#[test]
fn the_expected_tensors_are_the_reference_s() {
    let names = |json| weights::expected(&parse(json).unwrap());
    let tensors = names(layer_mode());
    // 11 a layer (Qwen3), 2 for its gate, embedding and last norm.
    assert_eq!(tensors.len(), 2 * (11 + 2) + 2);
    assert_eq!(tensors["model.layers.1.self_attn.q_proj.weight"], [24, 8]);
    assert_eq!(tensors["model.layers.0.self_attn.k_proj.weight"], [12, 8]);
    assert_eq!(tensors["model.layers.0.self_attn.o_proj.weight"], [8, 24]);
    assert_eq!(tensors["model.layers.0.mlp.down_proj.weight"], [8, 12]);
    assert_eq!(tensors["model.gate_projections.1.weight"], [4, 6]);
    assert_eq!(tensors["model.gate_projections.1.bias"], [4]);
    assert_eq!(
        names(with(json!({"model_type": "llama", "tie_word_embeddings": false}))).len(),
        2 * 9 + 3
    );
}

#[test]
fn weights_that_fit_are_accepted() {
    for sharded in [false, true] {
        assert_eq!(checked(folder(&layer_mode(), sharded, |_| ()).path()), Ok(()));
        // A tied model may carry its head, and old checkpoints their rotary tables.
        let spare = folder(&base(), sharded, |t| {
            t.insert("lm_head.weight".to_string(), vec![11, 8]);
            t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_string(), vec![3]);
        });
        assert_eq!(checked(spare.path()), Ok(()));
    }
}

#[test]
fn all_that_is_wrong_with_weights_comes_in_one_error() {
    let bad = folder(&base(), true, |t| {
        t.remove("model.norm.weight");
        t.remove("model.layers.1.self_attn.q_norm.weight");
        t.insert("model.layers.2.mlp.up_proj.weight".to_string(), vec![12, 8]);
        t.insert("model.layers.0.mlp.up_proj.weight".to_string(), vec![8, 12]);
    });
    insta::assert_snapshot!(checked(bad.path()).unwrap_err(), @"M: the weights do not fit config.json: missing: model.layers.1.self_attn.q_norm.weight, model.norm.weight; extra: model.layers.2.mlp.up_proj.weight; wrong shape: model.layers.0.mlp.up_proj.weight is [8, 12], wants [12, 8]");
    let none = folder(&layer_mode(), false, |t| {
        t.retain(|n, _| !n.contains("gate_projections"))
    });
    assert!(checked(none.path()).unwrap_err().contains("`loopc retrofit`"));
    let one = folder(&layer_mode(), false, |t| {
        drop(t.remove("model.gate_projections.1.bias"))
    });
    assert!(
        checked(one.path())
            .unwrap_err()
            .contains("missing: model.gate_projections.1.bias")
    );
    let unused = folder(&base(), false, |t| {
        drop(t.insert("model.gate_projections.0.bias".to_string(), vec![4]))
    });
    assert!(
        checked(unused.path())
            .unwrap_err()
            .contains("config.json has no `loop_attention`")
    );
}

#[test]
fn a_retrofit_adds_gates_and_changes_nothing_else() {
    for sharded in [false, true] {
        for mode in [Mode::Layer, Mode::Restart, Mode::Stack] {
            let plain = folder(&base(), sharded, |_| ());
            let parent = tempfile::tempdir().unwrap();
            let out = parent.path().join("loop");
            let options = Options {
                mode,
                window: 5,
                loops: 3,
                gate_bias: 4.5,
            };
            retrofit(plain.path(), &out, &options).unwrap();
            let config = Config::from_folder(&out).unwrap();
            assert_eq!(
                config.attention,
                LoopAttention {
                    mode,
                    window: 5,
                    loops: 3
                }
            );
            assert_eq!(checked(&out), Ok(()));
            let checkpoint = Checkpoint::open(&out).unwrap();
            let read = |name: &str| {
                let data = checkpoint.tensor(name).unwrap().data;
                data.chunks(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect::<Vec<f32>>()
            };
            assert_eq!(read("model.gate_projections.1.weight"), [0.0; 24]);
            assert_eq!(read("model.gate_projections.0.bias"), [4.5; 4]);
            for name in weights::expected(&parse(base()).unwrap()).keys() {
                assert!(read(name).iter().all(|x| *x == 0.5), "{name}");
            }
            assert!(out.join("tokenizer.json").exists());
            let mut json = config.json.clone();
            json.as_object_mut().unwrap().remove("loop_attention");
            assert_eq!(json, base());
            assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1, "no draft is left");

            // Again onto it, and from it.
            assert!(matches!(
                retrofit(plain.path(), &out, &options),
                Err(RetrofitError::Write(WriteError::Exists { .. }))
            ));
            let again = retrofit(&out, &parent.path().join("again"), &options);
            assert!(matches!(again, Err(RetrofitError::LoopModel { .. })));
        }
    }
}

#[test]
fn impossible_retrofits_leave_nothing() {
    let plain = folder(&base(), false, |_| ());
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("loop");
    for (mode, window, loops, bias, words) in [
        (Mode::Base, 4, 2, 0.0, "needs a second pass"),
        (Mode::Layer, 0, 2, 0.0, "--window 0"),
        (Mode::Stack, 4, 1, 0.0, "--loops 1"),
        (Mode::Layer, 4, 2, f32::NAN, "--gate-bias NaN"),
        (Mode::Layer, 4, 2, f32::INFINITY, "--gate-bias inf"),
    ] {
        let error = retrofit(
            plain.path(),
            &out,
            &Options {
                mode,
                window,
                loops,
                gate_bias: bias,
            },
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains(words), "{error}");
    }
    let broken = folder(&base(), false, |t| drop(t.remove("model.norm.weight")));
    let options = Options {
        mode: Mode::Layer,
        window: 4,
        loops: 2,
        gate_bias: 4.0,
    };
    assert!(
        retrofit(broken.path(), &out, &options)
            .unwrap_err()
            .to_string()
            .contains("missing: model.norm.weight")
    );
    assert!(
        retrofit(plain.path(), &out.join("no/such"), &options).is_ok(),
        "parents are made"
    );
    std::fs::remove_dir_all(&out).unwrap();
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
}

mod random {
    use proptest::prelude::*;

    use super::*;

    /// Values that configurations have, and values they should not have.
    fn value() -> impl Strategy<Value = Value> {
        let odd = [
            json!(null),
            json!({}),
            json!([]),
            json!([1, "a"]),
            json!(1e308),
            json!(-0.5),
            json!({"rope_type": 3}),
        ];
        prop_oneof![
            any::<i64>().prop_map(|n| json!(n)),
            (0i64..20).prop_map(|n| json!(n)),
            any::<bool>().prop_map(|b| json!(b)),
            "[a-z_]{0,8}".prop_map(|s| json!(s)),
            proptest::sample::select(odd.to_vec()),
        ]
    }

    proptest! {
        /// Whatever stands in the file: no panic; and what is accepted builds a graph that verifies.
        #[test]
        fn configurations_are_refused_or_build(changes in proptest::collection::vec((0usize..32, value()), 0..4)) {
            let keys = ["loop_num", "loop_window_size", "loop_attention", "rope_parameters", "eos_token_id", "layer_types",
                "hidden_act", "attention_bias", "max_position_embeddings", "quantization_config", "use_sliding_window"];
            let mut json = base();
            let names: Vec<String> = json.as_object().unwrap().keys().cloned().chain(keys.map(String::from)).collect();
            for (at, value) in changes {
                json[&names[at % names.len()]] = value;
            }
            if let Ok(config) = parse(json) {
                let options = model::graph::Options { dtype: ir::DType::F32, embedding: ir::DType::F32, max_context: 100 };
                // Thousands of layers are fine but slow to build here.
                if config.layers <= 20 {
                    let module = model::graph::build(&config, &options).unwrap();
                    prop_assert!(ir::verify::verify(&module).is_empty());
                }
            }
        }
    }
}
