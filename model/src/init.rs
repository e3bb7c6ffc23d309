//! A fresh checkpoint: config.json for a tokenizer, the tokenizer itself (byte-level BPE, made from texts, or one that exists), and
//! weights drawn from a seed.
//!
//! Matrices are normal, those that write to the residual stream narrower the more layers there are; norms are one; gates start as a
//! retrofit's do. Trains nothing (`train` does).

use std::fs;
use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::RuntimeError;
use runtime::weights::Checkpoint;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::config::{Config, ConfigError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::{self, WeightsError};
use crate::write::{self, WriteError, io_error};

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Checkpoint(#[from] RuntimeError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the texts are empty: there is nothing to make a tokenizer from")]
    Empty,
    #[error("{0} entries: a byte-level tokenizer needs 257 for the bytes and the end of a text")]
    Entries(usize),
    #[error("cannot make the tokenizer: {0}")]
    Train(String),
    #[error("gate bias {0}: it must be a finite number")]
    Bias(f32),
    #[error(
        "the shape has {0} parameters; more than {MOST_PARAMETERS} are not drawn on one machine: choose a smaller one"
    )]
    Parameters(i64),
}

/// Where the tokenizer comes from.
pub enum Vocabulary {
    /// Byte-level BPE of so many entries, made from texts (fewer entries if the texts have fewer pairs to join).
    Texts { texts: Vec<String>, entries: usize },
    /// A tokenizer.json.
    File(PathBuf),
}

/// What the weights start as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Same seed, same bytes.
    pub seed: u64,
    /// The gates' first bias: sigmoid(bias) is the weight of the global pass.
    pub gate_bias: f32,
}

/// The token that ends a text, id 0 of a tokenizer that is made here.
pub const END: &str = "<|endoftext|>";
const STD: f64 = 0.02;
const MOST_PARAMETERS: i64 = 1 << 31;
/// The vocabulary is padded to a multiple of this, for the sake of kernels' tiles.
const PADDING: u32 = 64;

/// The shape that `loopc init` starts from when no config.json is given: 2.8 million parameters with 2,048 tokens.
pub fn small() -> Map<String, Value> {
    let value = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_bias": false,
        "vocab_size": null, "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 32, "intermediate_size": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "max_position_embeddings": 1024, "torch_dtype": "float32",
    });
    value.as_object().cloned().unwrap_or_default()
}

/// Writes the folder `out`: `json` with the tokenizer's `vocab_size` and end of text, the tokenizer, fresh weights. `named` is the file
/// that errors about `json` name.
pub fn init(
    out: &Path,
    json: Map<String, Value>,
    named: &Path,
    vocabulary: &Vocabulary,
    options: &Options,
) -> Result<Config, InitError> {
    if !options.gate_bias.is_finite() {
        return Err(InitError::Bias(options.gate_bias));
    }
    // Making a tokenizer takes long: what cannot be is refused before, with a vocabulary that stands for the one to come.
    fresh(&checked(json.clone(), 257, None, named)?, options)?;
    write::new_folder(out, |draft| {
        let file = draft.join("tokenizer.json");
        let end = match vocabulary {
            Vocabulary::Texts { texts, entries } => {
                let text = byte_level_bpe(texts, *entries)?;
                fs::write(&file, text).map_err(io_error(&file))?;
                Some(END)
            }
            Vocabulary::File(from) => {
                Tokenizer::from_file(from.clone())?;
                fs::copy(from, &file).map_err(io_error(from))?;
                None
            }
        };
        let tokenizer = Tokenizer::from_folder(draft)?;
        // A tokenizer that is made here has its own end; one that exists has the one that its config.json says, if it does.
        let known = end.is_none() && json.get("eos_token_id").is_some_and(|id| !id.is_null());
        let end = if known { None } else { tokenizer.id(END) };
        let made = checked(json, tokenizer.ids(), end, named)?;
        write::json(&draft.join("config.json"), &made.json)?;
        write::tensors(&draft.join("model.safetensors"), write::PYTORCH, fresh(&made, options)?)?;
        // What we wrote must be what we would read.
        let written = Config::from_folder(draft)?;
        weights::check(&written, &Checkpoint::open(draft)?)?;
        Ok(written)
    })
}

/// The configuration for a tokenizer of `ids` tokens.
fn checked(mut json: Map<String, Value>, ids: u32, end: Option<u32>, named: &Path) -> Result<Config, ConfigError> {
    json.insert("vocab_size".to_string(), ids.next_multiple_of(PADDING).into());
    json.insert("torch_dtype".to_string(), "float32".into());
    if let Some(end) = end {
        json.insert("eos_token_id".to_string(), end.into());
        // Ids of another tokenizer.
        json.shift_remove("bos_token_id");
        json.shift_remove("pad_token_id");
    }
    Config::from_values(named, Value::Object(json), None).map_err(|e| match e {
        ConfigError::Key { key, problem, .. } => ConfigError::Key {
            file: named.to_path_buf(),
            key,
            problem,
        },
        e => e,
    })
}

/// tokenizer.json of a byte-level BPE: any text has an encoding.
fn byte_level_bpe(texts: &[String], entries: usize) -> Result<String, InitError> {
    if texts.iter().all(|t| t.trim().is_empty()) {
        return Err(InitError::Empty);
    }
    if entries <= 256 {
        return Err(InitError::Entries(entries));
    }
    let failed = |e: tokenizers::Error| InitError::Train(e.to_string());
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    let trainer = BpeTrainer::builder()
        .vocab_size(entries)
        .show_progress(false)
        .special_tokens(vec![tokenizers::AddedToken::from(END, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts.iter())
        .map_err(failed)?;
    tokenizer.to_string(true).map_err(failed)
}

/// Every tensor of the model. A matrix' numbers follow from the seed and its place among the matrices, so that models which differ only
/// in gates start alike.
fn fresh(config: &Config, options: &Options) -> Result<Vec<(String, write::Tensor<'static>)>, InitError> {
    let expected = weights::expected(config);
    let parameters: i64 = expected.values().map(|shape| shape.iter().product::<i64>()).sum();
    if parameters > MOST_PARAMETERS {
        return Err(InitError::Parameters(parameters));
    }
    let residual = STD / (2.0 * config.layers as f64).sqrt();
    let (bias, seed) = (options.gate_bias, options.seed);
    let mut matrices = 0;
    let mut tensors = vec![];
    for (name, shape) in expected {
        let shape: Vec<usize> = shape.into_iter().map(|n| n as usize).collect();
        let n = shape.iter().product();
        let constant = match name.as_str() {
            _ if name.starts_with(weights::GATES) => Some(if name.ends_with("bias") { bias } else { 0.0 }),
            _ if name.ends_with("norm.weight") => Some(1.0),
            _ => None,
        };
        let narrow = ["o_proj.weight", "down_proj.weight"].iter().any(|n| name.ends_with(n));
        let std = if narrow { residual } else { STD };
        let stream = matrices;
        matrices += u64::from(constant.is_none());
        let write = move |out: &mut dyn std::io::Write| {
            let values = match constant {
                Some(value) => vec![value; n],
                None => normal(n, std, seed, stream),
            };
            write::floats(out, &values)
        };
        let tensor = write::Tensor {
            dtype: Dtype::F32,
            shape,
            write: Box::new(write),
        };
        tensors.push((name, tensor));
    }
    Ok(tensors)
}

/// Box and Muller's pairs.
fn normal(n: usize, std: f64, seed: u64, stream: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        // The logarithm needs a number above 0.
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        let radius = std * (-2.0 * u.ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(n);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(entries: usize) -> Vocabulary {
        let texts = vec![
            "She sells sea shells by the sea shore.\n".repeat(20),
            "naïve 世界".to_string(),
        ];
        Vocabulary::Texts { texts, entries }
    }

    fn shape(changes: Value) -> Map<String, Value> {
        let mut json = small();
        json.extend(
            json!({ "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96 })
                .as_object()
                .cloned()
                .unwrap(),
        );
        json.extend(changes.as_object().cloned().unwrap());
        json
    }

    fn make(out: &Path, changes: Value, seed: u64) -> Result<Config, InitError> {
        let options = Options { seed, gate_bias: 2.5 };
        init(out, shape(changes), Path::new("shape"), &texts(300), &options)
    }

    #[test]
    fn weights_have_the_spread_they_should() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new");
        let config = make(&out, json!({ "loop_attention": { "mode": "layer" } }), 3).unwrap();
        assert_eq!(
            (config.vocab, config.eos.as_slice()),
            (320, &[0][..]),
            "at most 300 entries, padded"
        );
        let checkpoint = Checkpoint::open(&out).unwrap();
        let spread = |name: &str| {
            let values = checkpoint.floats(name).unwrap();
            let n = values.len() as f64;
            let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
            (
                mean,
                (values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt(),
            )
        };
        for (name, mean, std) in [
            ("model.embed_tokens.weight", 0.0, 0.02),
            ("model.layers.0.self_attn.q_proj.weight", 0.0, 0.02),
            ("model.layers.1.self_attn.o_proj.weight", 0.0, 0.01),
            ("model.layers.1.mlp.down_proj.weight", 0.0, 0.01),
            ("model.layers.1.self_attn.k_norm.weight", 1.0, 0.0),
            ("model.norm.weight", 1.0, 0.0),
            ("model.gate_projections.1.weight", 0.0, 0.0),
            ("model.gate_projections.1.bias", 2.5, 0.0),
        ] {
            let (m, s) = spread(name);
            // Five standard errors of the smallest matrix (6,144 numbers).
            assert!(
                (m - mean).abs() <= 0.0013 && (s - std).abs() <= 0.05 * std,
                "{name}: {m} {s}"
            );
        }
        let values = |name: &str| checkpoint.floats(name).unwrap();
        assert_ne!(
            values("model.layers.0.mlp.up_proj.weight"),
            values("model.layers.1.mlp.up_proj.weight")
        );
    }

    #[test]
    fn models_that_differ_in_gates_start_alike() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        make(&a, json!({}), 3).unwrap();
        make(&b, json!({ "loop_attention": { "mode": "stack" } }), 3).unwrap();
        let (a, b) = (Checkpoint::open(&a).unwrap(), Checkpoint::open(&b).unwrap());
        for name in a.shapes().keys() {
            assert_eq!(a.floats(name), b.floats(name), "{name}");
        }
    }

    #[test]
    fn any_text_survives_the_tokenizer() {
        let json = byte_level_bpe(&["a text about shells and shores, and shells".to_string()], 400).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        assert_eq!(tokenizer.id(END), Some(0));
        for text in ["shells and shores", "naïve 世界 🦀\r\n\t  two", ""] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
        let joined = tokenizer.encode(" shells", false).unwrap();
        assert!(joined.len() < 4, "a word of the text is a few tokens: {joined:?}");
    }

    #[test]
    fn nothing_is_left_of_what_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new");
        for (changes, word) in [
            (json!({ "num_key_value_heads": 4 }), "shape: `num_key_value_heads` is 4"),
            (json!({ "head_dim": 31 }), "even"),
            (json!({ "hidden_size": 0 }), "hidden_size"),
            (json!({ "rope_theta": null }), "rope_theta"),
            (
                json!({ "hidden_size": 100_000, "intermediate_size": 100_000 }),
                "parameters",
            ),
            (json!({ "loop_attention": { "mode": "ring" } }), "ring"),
        ] {
            let error = make(&out, changes.clone(), 1).unwrap_err().to_string();
            assert!(error.contains(word), "{changes}: {error}");
        }
        for (vocabulary, word) in [
            (texts(256), "257"),
            (
                Vocabulary::Texts {
                    texts: vec![" \n".to_string()],
                    entries: 300,
                },
                "empty",
            ),
            (Vocabulary::File(dir.path().join("none.json")), "none.json"),
        ] {
            let options = Options {
                seed: 0,
                gate_bias: 4.0,
            };
            let error = init(&out, small(), Path::new("shape"), &vocabulary, &options)
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        }
        let options = Options {
            seed: 0,
            gate_bias: f32::NAN,
        };
        assert!(init(&out, small(), Path::new("shape"), &texts(300), &options).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        make(&out, json!({}), 1).unwrap();
        assert!(
            make(&out, json!({}), 1)
                .unwrap_err()
                .to_string()
                .contains("exists already")
        );
    }
}
