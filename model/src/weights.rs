//! Which tensors a configuration needs, and whether a folder's safetensors files have exactly those.
//!
//! Reads headers only; the values are the runtime's, which maps the files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use ir::DType;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::config::{self, Config, Family};

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{file}: cannot read it: {source}", file = file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{file}: not a valid safetensors file: {reason}; download or copy it again", file = file.display())]
    Broken { file: PathBuf, reason: String },
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    #[error("{file}: {problem}", file = file.display())]
    Index { file: PathBuf, problem: String },
    #[error("{folder}: the weights do not fit config.json: {problems}", folder = folder.display())]
    Unfit { folder: PathBuf, problems: String },
    #[error(
        "{folder}: config.json asks for loop attention ({mode}), but no gate (model.gate_projections.*) is in the weights; \
         make a loop checkpoint from the plain one with `loopc retrofit`",
        folder = folder.display()
    )]
    NoGates { folder: PathBuf, mode: &'static str },
    #[error(
        "{folder}: the weights have gates (model.gate_projections.*), but config.json has no `loop_attention`; \
         add it, e.g. {{\"mode\": \"layer\", \"window\": 64, \"loops\": 2}}",
        folder = folder.display()
    )]
    UnusedGates { folder: PathBuf },
}

/// A tensor of the checkpoint as its file's header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub shape: Vec<i64>,
    /// F32, F16 or BF16.
    pub dtype: DType,
    pub file: PathBuf,
}

/// All tensors of a folder, by name.
pub type Inventory = BTreeMap<String, TensorInfo>;

const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const HEAD: &str = "lm_head.weight";
pub(crate) const GATES: &str = "model.gate_projections.";

/// Names and shapes of the tensors that the graph of `config` reads.
pub fn expected(c: &Config) -> BTreeMap<String, Vec<i64>> {
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[i64]| drop(tensors.insert(name, shape.to_vec()));
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    add("model.embed_tokens.weight".to_string(), &[c.vocab, c.hidden]);
    add("model.norm.weight".to_string(), &[c.hidden]);
    if !c.tied {
        add(HEAD.to_string(), &[c.vocab, c.hidden]);
    }
    for i in 0..c.layers {
        let mut layer = |name: &str, shape: &[i64]| add(format!("model.layers.{i}.{name}.weight"), shape);
        layer("input_layernorm", &[c.hidden]);
        layer("post_attention_layernorm", &[c.hidden]);
        if c.family == Family::Qwen3 {
            layer("self_attn.q_norm", &[c.head_dim]);
            layer("self_attn.k_norm", &[c.head_dim]);
        }
        layer("self_attn.q_proj", &[q, c.hidden]);
        layer("self_attn.k_proj", &[kv, c.hidden]);
        layer("self_attn.v_proj", &[kv, c.hidden]);
        layer("self_attn.o_proj", &[c.hidden, q]);
        layer("mlp.gate_proj", &[c.intermediate, c.hidden]);
        layer("mlp.up_proj", &[c.intermediate, c.hidden]);
        layer("mlp.down_proj", &[c.hidden, c.intermediate]);
        if c.attention.mode.gated() {
            add(format!("{GATES}{i}.weight"), &[c.heads, c.head_dim]);
            add(format!("{GATES}{i}.bias"), &[c.heads]);
        }
    }
    tensors
}

/// The folder's tensors, after checking that they are those `config` needs; all that is wrong comes in one error.
///
/// Not counted as extra: a head that a tied model does not use, and the rotary tables of old checkpoints.
pub fn check(config: &Config, folder: &Path) -> Result<Inventory, WeightsError> {
    let found = inventory(folder)?;
    let folder = folder.to_path_buf();
    let wanted = expected(config);
    let has_gates = found.keys().any(|name| name.starts_with(GATES));
    if config.attention.mode.gated() && !has_gates {
        return Err(WeightsError::NoGates {
            folder,
            mode: config.attention.mode.name(),
        });
    }
    if !config.attention.mode.gated() && has_gates {
        return Err(WeightsError::UnusedGates { folder });
    }
    let ignored = |name: &str| (config.tied && name == HEAD) || name.ends_with("rotary_emb.inv_freq");
    let missing = wanted.keys().filter(|name| !found.contains_key(*name)).cloned();
    let extra = found
        .keys()
        .filter(|name| !wanted.contains_key(*name) && !ignored(name))
        .cloned();
    let wrong = wanted.iter().filter_map(|(name, shape)| {
        let info = found.get(name).filter(|info| info.shape != *shape)?;
        Some(format!("{name} is {:?}, wants {shape:?}", info.shape))
    });
    let mut problems = vec![];
    for (what, names) in [
        ("missing", missing.collect()),
        ("extra", extra.collect()),
        ("wrong shape", wrong.collect()),
    ] {
        list(what, names, &mut problems);
    }
    if !problems.is_empty() {
        return Err(WeightsError::Unfit {
            folder,
            problems: problems.join("; "),
        });
    }
    Ok(found
        .into_iter()
        .filter(|(name, _)| wanted.contains_key(name))
        .collect())
}

/// "missing: a, b and 7 more"
fn list(what: &str, names: Vec<String>, problems: &mut Vec<String>) {
    const SHOWN: usize = 6;
    if names.is_empty() {
        return;
    }
    let mut text = format!("{what}: {}", names[..names.len().min(SHOWN)].join(", "));
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    problems.push(text);
}

/// Every tensor in the folder's safetensors files: those of the index, or else `model.safetensors`.
pub fn inventory(folder: &Path) -> Result<Inventory, WeightsError> {
    let index = folder.join(INDEX);
    let mut found = Inventory::new();
    if !index.exists() {
        read_header(&folder.join(SINGLE), &mut found)?;
        return Ok(found);
    }
    let map = weight_map(&index)?;
    let files: std::collections::BTreeSet<&String> = map.values().collect();
    for file in files {
        read_header(&folder.join(file), &mut found)?;
    }
    for (name, file) in &map {
        if found.get(name).is_none_or(|info| info.file != folder.join(file)) {
            return Err(WeightsError::Index {
                file: index,
                problem: format!("puts {name} in {file}, which does not have it"),
            });
        }
    }
    Ok(found)
}

/// Tensor name to file name, from the index.
pub(crate) fn weight_map(index: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let bad = |problem: String| WeightsError::Index {
        file: index.to_path_buf(),
        problem,
    };
    let json = config::read(index)?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| bad("has no object `weight_map`".to_string()))?;
    let mut files = BTreeMap::new();
    for (name, file) in map {
        let plain = |f: &&str| !f.is_empty() && !f.contains(['/', '\\']) && *f != "." && *f != "..";
        match file.as_str().filter(plain) {
            Some(file) => drop(files.insert(name.clone(), file.to_string())),
            None => {
                return Err(bad(format!(
                    "names the file {file} for {name}; it must be a file of the same folder"
                )));
            }
        }
    }
    Ok(files)
}

/// Adds a file's tensors; the header must describe exactly the bytes that are there.
fn read_header(file: &Path, found: &mut Inventory) -> Result<(), WeightsError> {
    let io = |source| WeightsError::Read {
        file: file.to_path_buf(),
        source,
    };
    let broken = |reason: String| WeightsError::Broken {
        file: file.to_path_buf(),
        reason,
    };
    let handle = File::open(file).map_err(io)?;
    if handle.metadata().map_err(io)?.len() < 8 {
        return Err(broken("it has fewer than 8 bytes".to_string()));
    }
    // SAFETY: read-only, and dropped here; a file that another process shortens meanwhile would be a fault in any reader.
    let bytes = unsafe { memmap2::Mmap::map(&handle) }.map_err(io)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            // Buffers of other types that nobody reads.
            _ if name.ends_with("rotary_emb.inv_freq") => continue,
            other => {
                return Err(broken(format!(
                    "{name} has type {other:?}; only F32, F16 and BF16 are supported"
                )));
            }
        };
        let shape = info.shape.iter().map(|n| *n as i64).collect();
        let info = TensorInfo {
            shape,
            dtype,
            file: file.to_path_buf(),
        };
        if let Some(before) = found.insert(name.clone(), info) {
            return Err(broken(format!("{name} is also in {}", before.file.display())));
        }
    }
    Ok(())
}
