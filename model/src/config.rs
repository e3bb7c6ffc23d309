//! `config.json` and `generation_config.json` to a checked [`Config`].
//!
//! Everything later code multiplies, divides or indexes with is in range once a `Config` exists. What the compiler cannot do is
//! refused here, by the key that asks for it. Does not look at weights (`weights` does).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Why a configuration was refused; names file and key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{file}: cannot read it: {source}", file = file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{file}: not JSON: {source}", file = file.display())]
    Json { file: PathBuf, source: serde_json::Error },
    #[error("{file}: `{key}` {problem}", file = file.display())]
    Key {
        file: PathBuf,
        key: String,
        problem: String,
    },
}

/// The architectures we know. They differ in one thing: Qwen3 normalises q and k per head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Qwen3,
    Llama,
}

/// What the second attention pass is (`docs/architecture.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No second pass.
    Base,
    /// Inside each layer, on the layer's own q, k, v.
    Layer,
    /// Later trips through the layers start from the embeddings.
    Restart,
    /// Later trips go on from the trip before.
    Stack,
}

impl Mode {
    pub const ALL: [Mode; 4] = [Mode::Base, Mode::Layer, Mode::Restart, Mode::Stack];

    /// As in `loop_attention.mode`.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Base => "base",
            Mode::Layer => "layer",
            Mode::Restart => "restart",
            Mode::Stack => "stack",
        }
    }

    pub fn from_name(name: &str) -> Option<Mode> {
        Mode::ALL.into_iter().find(|m| m.name() == name)
    }

    /// Does each layer have a gate?
    pub fn gated(self) -> bool {
        self != Mode::Base
    }

    /// Do later trips through the layers exist (and with them the local rings)?
    pub fn trips(self) -> bool {
        matches!(self, Mode::Restart | Mode::Stack)
    }
}

/// `loop_attention` of config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopAttention {
    pub mode: Mode,
    /// Keys the local pass sees, the token itself included. At least 1.
    pub window: i64,
    /// Trips through the layers in `restart` and `stack` (at least 2); 1 in `base`, 2 passes in `layer`.
    pub loops: i64,
}

/// A checked model configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub family: Family,
    pub vocab: i64,
    pub hidden: i64,
    pub layers: i64,
    pub heads: i64,
    /// Divides `heads`.
    pub kv_heads: i64,
    /// Even.
    pub head_dim: i64,
    pub intermediate: i64,
    pub eps: f64,
    pub theta: f64,
    /// The output projection is the embedding table.
    pub tied: bool,
    /// `max_position_embeddings`: the longest text the model was made for, if it says so.
    pub max_position: Option<i64>,
    pub attention: LoopAttention,
    /// Tokens that end a text; both files' joined.
    pub eos: Vec<u32>,
    pub bos: Option<u32>,
    /// config.json as it was read.
    pub json: Value,
    /// generation_config.json, if there is one.
    pub generation: Option<Value>,
}

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

impl Config {
    /// Reads `config.json` and, if it is there, `generation_config.json` of a Hugging Face folder.
    pub fn from_folder(folder: &Path) -> Result<Config, ConfigError> {
        let json = read(&folder.join(CONFIG))?;
        let file = folder.join(GENERATION);
        let generation = if file.exists() { Some(read(&file)?) } else { None };
        Config::from_values(folder, json, generation)
    }

    /// The two files already parsed; `folder` only names them in errors.
    pub fn from_values(folder: &Path, json: Value, generation: Option<Value>) -> Result<Config, ConfigError> {
        let keys = Keys::new(folder.join(CONFIG), "", &json)?;
        let family = family(&keys)?;
        refuse_unsupported(&keys)?;
        let heads = keys.size("num_attention_heads", 1 << 12)?;
        let kv_heads = match family {
            // Early Llama files leave it out when every head has its own keys.
            Family::Llama if keys.get("num_key_value_heads").is_none() => heads,
            _ => keys.size("num_key_value_heads", 1 << 12)?,
        };
        if heads % kv_heads != 0 {
            let problem = format!("is {kv_heads}, which does not divide num_attention_heads = {heads}");
            return Err(keys.error("num_key_value_heads", problem));
        }
        let hidden = keys.size("hidden_size", 1 << 17)?;
        let head_dim = match keys.get("head_dim") {
            Some(_) => keys.size("head_dim", 1 << 12)?,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                let problem = format!("is missing, and hidden_size = {hidden} is no multiple of {heads} heads");
                return Err(keys.error("head_dim", problem));
            }
        };
        if head_dim % 2 != 0 {
            return Err(keys.error("head_dim", format!("is {head_dim}; it must be even (RoPE turns pairs)")));
        }
        let max_position = match keys.get("max_position_embeddings") {
            Some(_) => Some(keys.size("max_position_embeddings", 1 << 31)?),
            None => None,
        };
        let (mut eos, mut bos) = (keys.ids("eos_token_id")?, keys.ids("bos_token_id")?);
        if let Some(generation) = &generation {
            let keys = Keys::new(folder.join(GENERATION), "", generation)?;
            let more = keys.ids("eos_token_id")?;
            eos.extend(more);
            eos.sort_unstable();
            eos.dedup();
            if bos.is_empty() {
                bos = keys.ids("bos_token_id")?;
            }
        }
        Ok(Config {
            family,
            vocab: keys.size("vocab_size", 1 << 24)?,
            hidden,
            layers: keys.size("num_hidden_layers", 1 << 12)?,
            heads,
            kv_heads,
            head_dim,
            intermediate: keys.size("intermediate_size", 1 << 20)?,
            eps: keys.float("rms_norm_eps", 0.0, 1.0)?,
            theta: theta(&keys)?,
            tied: keys.bool("tie_word_embeddings", false)?,
            max_position,
            attention: attention(&keys)?,
            eos,
            bos: bos.first().copied(),
            json: json.clone(),
            generation,
        })
    }

    /// Queries per key head.
    pub fn group(&self) -> i64 {
        self.heads / self.kv_heads
    }

    /// What an artefact must carry so that [`Config::from_facts`] gives this configuration again.
    pub fn facts(&self) -> Value {
        serde_json::json!({ "config": self.json, "generation_config": self.generation })
    }

    /// The inverse of [`Config::facts`]; `file` (the artefact) is named in errors.
    pub fn from_facts(file: &Path, facts: &Value) -> Result<Config, ConfigError> {
        let json = facts.get("config").cloned().unwrap_or(Value::Null);
        let generation = facts.get("generation_config").filter(|g| !g.is_null()).cloned();
        Config::from_values(file, json, generation)
    }
}

/// A JSON file.
pub(crate) fn read(file: &Path) -> Result<Value, ConfigError> {
    let text = std::fs::read(file).map_err(|source| ConfigError::Read {
        file: file.to_path_buf(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| ConfigError::Json {
        file: file.to_path_buf(),
        source,
    })
}

fn family(keys: &Keys) -> Result<Family, ConfigError> {
    match keys.str("model_type")? {
        "qwen3" => Ok(Family::Qwen3),
        "llama" | "iquestloopcoder" => Ok(Family::Llama),
        other => Err(keys.error(
            "model_type",
            format!("is {other:?}; known are qwen3, llama and iquestloopcoder"),
        )),
    }
}

fn attention(keys: &Keys) -> Result<LoopAttention, ConfigError> {
    const MAX: i64 = i32::MAX as i64;
    const LOOPS: i64 = 64;
    if let Some(value) = keys.get("loop_attention") {
        let keys = keys.inner("loop_attention", value)?;
        let name = keys.str("mode")?;
        let mode = Mode::from_name(name)
            .ok_or_else(|| keys.error("mode", format!("is {name:?}; known are base, layer, restart and stack")))?;
        let window = keys.int("window", 64, 1, MAX)?;
        let loops = keys.int("loops", 2, 2, LOOPS)?;
        return Ok(LoopAttention {
            mode,
            window,
            loops: if mode == Mode::Base { 1 } else { loops },
        });
    }
    if keys.get("loop_num").is_some() || keys.str("model_type")? == "iquestloopcoder" {
        if keys.get("loop_num").is_none() {
            return Err(keys.error("loop_num", "is missing; model_type iquestloopcoder needs it"));
        }
        let loops = keys.int("loop_num", 2, 2, LOOPS)?;
        let window = keys.int("loop_window_size", 64, 1, MAX)?;
        return Ok(LoopAttention {
            mode: Mode::Stack,
            window,
            loops,
        });
    }
    Ok(LoopAttention {
        mode: Mode::Base,
        window: 64,
        loops: 1,
    })
}

fn theta(keys: &Keys) -> Result<f64, ConfigError> {
    const MAX: f64 = 1e12;
    if keys.get("rope_theta").is_some() {
        return keys.float("rope_theta", 1.0, MAX);
    }
    match keys.get("rope_parameters") {
        Some(value) => keys.inner("rope_parameters", value)?.float("rope_theta", 1.0, MAX),
        None => Err(keys.error(
            "rope_theta",
            "is missing (neither it nor rope_parameters.rope_theta is there)",
        )),
    }
}

/// Features that would change the result if they were ignored.
fn refuse_unsupported(keys: &Keys) -> Result<(), ConfigError> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(value) = keys.get(key) else { continue };
        let rope = keys.inner(key, value)?;
        let kind = ["rope_type", "type"].into_iter().find(|k| rope.get(k).is_some());
        match kind {
            Some(k) if rope.str(k)? == "default" => {}
            None if key == "rope_parameters" => {}
            _ => {
                let problem = "asks for scaled positions, which are not supported; set it to null to run the model \
                               within the context it was first trained for";
                return Err(keys.error(key, problem));
            }
        }
    }
    for (key, why) in [
        (
            "attention_bias",
            "is true; biases on q, k, v and o are not supported: use a checkpoint without them",
        ),
        (
            "mlp_bias",
            "is true; biases in the MLP are not supported: use a checkpoint without them",
        ),
        (
            "use_sliding_window",
            "is true; sliding windows are not supported: set it to false for full attention",
        ),
        (
            "rope_interleaved",
            "is true; only the half-split pairs of Hugging Face checkpoints are supported",
        ),
    ] {
        if keys.bool(key, false)? {
            return Err(keys.error(key, why));
        }
    }
    if let Some(kinds) = keys.get("layer_types") {
        let full = |k: &Value| k.as_str() == Some("full_attention");
        if !kinds.as_array().is_some_and(|a| a.iter().all(full)) {
            return Err(keys.error(
                "layer_types",
                "has layers other than full_attention, which are not supported",
            ));
        }
    }
    if keys
        .get("partial_rotary_factor")
        .is_some_and(|f| f.as_f64() != Some(1.0))
    {
        return Err(keys.error(
            "partial_rotary_factor",
            "is not 1; only rotation of the whole head is supported",
        ));
    }
    if keys.get("quantization_config").is_some() {
        let problem = "is there; quantised weights are not supported: use the f32, f16 or bf16 checkpoint";
        return Err(keys.error("quantization_config", problem));
    }
    match keys.get("hidden_act").map(|a| a.as_str()) {
        None | Some(Some("silu" | "swish")) => Ok(()),
        Some(_) => Err(keys.error(
            "hidden_act",
            format!("is {}; only silu is supported", keys.map["hidden_act"]),
        )),
    }
}

/// Typed access to one JSON object; every error names the file and the whole path of the key. `null` counts as absent.
struct Keys<'a> {
    file: PathBuf,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn new(file: PathBuf, prefix: &str, value: &'a Value) -> Result<Keys<'a>, ConfigError> {
        match value.as_object() {
            Some(map) => Ok(Keys {
                file,
                prefix: prefix.to_string(),
                map,
            }),
            None => {
                let key = if prefix.is_empty() {
                    "the whole file"
                } else {
                    prefix.trim_end_matches('.')
                };
                Err(ConfigError::Key {
                    file,
                    key: key.to_string(),
                    problem: "must be a JSON object".to_string(),
                })
            }
        }
    }

    fn inner(&self, key: &str, value: &'a Value) -> Result<Keys<'a>, ConfigError> {
        Keys::new(self.file.clone(), &format!("{}{key}.", self.prefix), value)
    }

    fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let key = format!("{}{key}", self.prefix);
        ConfigError::Key {
            file: self.file.clone(),
            key,
            problem: problem.into(),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn need(&self, key: &str) -> Result<&'a Value, ConfigError> {
        self.get(key).ok_or_else(|| self.error(key, "is missing"))
    }

    fn str(&self, key: &str) -> Result<&'a str, ConfigError> {
        let value = self.need(key)?;
        value
            .as_str()
            .ok_or_else(|| self.error(key, format!("must be a string, not {value}")))
    }

    fn bool(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v
                .as_bool()
                .ok_or_else(|| self.error(key, format!("must be true or false, not {v}"))),
        }
    }

    /// Required, 1..=max.
    fn size(&self, key: &str, max: i64) -> Result<i64, ConfigError> {
        self.need(key)?;
        self.int(key, 0, 1, max)
    }

    fn int(&self, key: &str, default: i64, min: i64, max: i64) -> Result<i64, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_i64() {
            Some(n) if (min..=max).contains(&n) => Ok(n),
            _ => Err(self.error(key, format!("must be a whole number from {min} to {max}, not {value}"))),
        }
    }

    /// Required, min < x <= max.
    fn float(&self, key: &str, min: f64, max: f64) -> Result<f64, ConfigError> {
        let value = self.need(key)?;
        match value.as_f64() {
            Some(x) if x > min && x <= max => Ok(x),
            _ => Err(self.error(
                key,
                format!("must be a number above {min} and at most {max}, not {value}"),
            )),
        }
    }

    /// Token ids: absent, one, or a list.
    fn ids(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.get(key) {
            None => Some(vec![]),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(v) => one(v).map(|n| vec![n]),
        };
        ids.ok_or_else(|| {
            self.error(
                key,
                format!("must be a token id or a list of them, not {}", self.map[key]),
            )
        })
    }
}
