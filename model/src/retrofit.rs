//! A loop checkpoint from a plain one: the same weights, gates beside them, and `loop_attention` in config.json.
//!
//! Gates start at w = 0 and a constant bias. No weight is computed or converted; files are linked, or copied if they cannot be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use runtime::RuntimeError;
use runtime::weights::Checkpoint;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::config::{self, Config, ConfigError, Mode};
use crate::weights::{self, WeightsError};
use crate::write::{self, WriteError, io_error};

#[derive(Debug, thiserror::Error)]
pub enum RetrofitError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Checkpoint(#[from] RuntimeError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{folder}: it is a loop model already ({mode}); retrofit the plain model it came from", folder = folder.display())]
    LoopModel { folder: PathBuf, mode: &'static str },
    #[error("--mode base: a retrofit needs a second pass: layer, restart or stack")]
    Base,
    #[error("--window {0}: it must be at least 1 (the token itself)")]
    Window(i64),
    #[error("--loops {0}: it must be from 2 to 64")]
    Loops(i64),
    #[error("--gate-bias {0}: it must be a finite number")]
    Bias(f32),
}

/// What to add.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// `Layer`, `Restart` or `Stack`.
    pub mode: Mode,
    /// Keys that the local pass sees, at least 1.
    pub window: i64,
    /// Trips of `Restart` and `Stack`, from 2 to 64.
    pub loops: i64,
    /// The gates' first bias: sigmoid(bias) is the weight of the global pass.
    pub gate_bias: f32,
}

const GATES_FILE: &str = "model-gates.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Writes the folder `out`: `base` with gates of weight 0 and bias `options.gate_bias` (f32) in every head.
///
/// All or nothing: the folder is written beside `out` under another name and renamed when it is complete.
pub fn retrofit(base: &Path, out: &Path, options: &Options) -> Result<(), RetrofitError> {
    if !options.mode.gated() {
        return Err(RetrofitError::Base);
    }
    if !(1..=i64::from(i32::MAX)).contains(&options.window) {
        return Err(RetrofitError::Window(options.window));
    }
    if !(2..=64).contains(&options.loops) {
        return Err(RetrofitError::Loops(options.loops));
    }
    if !options.gate_bias.is_finite() {
        return Err(RetrofitError::Bias(options.gate_bias));
    }
    let config = Config::from_folder(base)?;
    if config.attention.mode.gated() {
        return Err(RetrofitError::LoopModel {
            folder: base.to_path_buf(),
            mode: config.attention.mode.name(),
        });
    }
    let checkpoint = Checkpoint::open(base)?;
    weights::check(&config, &checkpoint)?;
    write::new_folder(out, |draft| fill(base, &config, &checkpoint, options, draft))
}

fn fill(
    base: &Path,
    config: &Config,
    checkpoint: &Checkpoint,
    options: &Options,
    draft: &Path,
) -> Result<(), RetrofitError> {
    for entry in fs::read_dir(base).map_err(io_error(base))? {
        let entry = entry.map_err(io_error(base))?;
        let (from, to) = (entry.path(), draft.join(entry.file_name()));
        let rewritten = ["config.json", INDEX, GATES_FILE]
            .iter()
            .any(|n| entry.file_name() == *n);
        if rewritten || !from.is_file() {
            continue;
        }
        // Weights are large and never changed in place: a link is enough. Hubs' caches hold links, so resolve them first.
        let from = from.canonicalize().map_err(io_error(&from))?;
        let linked = to.extension().is_some_and(|e| e == "safetensors") && fs::hard_link(&from, &to).is_ok();
        if !linked {
            fs::copy(&from, &to).map_err(io_error(&to))?;
        }
    }

    let gates = draft.join(GATES_FILE);
    let (heads, dim) = (config.heads as usize, config.head_dim as usize);
    let biases: Vec<u8> = options.gate_bias.to_le_bytes().repeat(heads);
    let mut tensors = vec![];
    for i in 0..config.layers {
        for (part, shape, bytes) in [
            ("weight", vec![heads, dim], vec![0u8; heads * dim * 4]),
            ("bias", vec![heads], biases.clone()),
        ] {
            let tensor = write::Tensor {
                dtype: Dtype::F32,
                shape,
                write: Box::new(move |out| out.write_all(&bytes)),
            };
            tensors.push((format!("{}{i}.{part}", weights::GATES), tensor));
        }
    }
    let names: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
    write::tensors(&gates, write::PYTORCH, tensors)?;

    let old = base.join(INDEX);
    let old = if old.exists() { config::read(&old)? } else { Value::Null };
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    for name in checkpoint.shapes().into_keys() {
        // Without an index there is one file; a tensor that an index forgets is in one of its shards all the same.
        if let Some(file) = old
            .pointer("/weight_map")
            .map_or(Some("model.safetensors"), |m| m.get(&name)?.as_str())
        {
            map.insert(name, file.to_string());
        }
    }
    map.extend(names.into_iter().map(|name| (name, GATES_FILE.to_string())));
    let mut total = 0;
    for file in map.values().collect::<std::collections::BTreeSet<_>>() {
        total += fs::metadata(draft.join(file))
            .map_err(io_error(&draft.join(file)))?
            .len();
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    write::json(&draft.join(INDEX), &index)?;

    let mut json = config.json.clone();
    if let Some(map) = json.as_object_mut() {
        let value = json!({ "mode": options.mode.name(), "window": options.window, "loops": options.loops });
        map.insert("loop_attention".to_string(), value);
    }
    write::json(&draft.join("config.json"), &json)?;
    // What we wrote must be what we would read.
    let written = Config::from_folder(draft)?;
    weights::check(&written, &Checkpoint::open(draft)?)?;
    Ok(())
}
