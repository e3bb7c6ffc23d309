//! Which tensors a configuration needs, and whether a checkpoint has exactly those.
//!
//! Reads no file; the runtime's [`Checkpoint`] does, and refuses broken ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use runtime::weights::Checkpoint;

use crate::config::{Config, Family};

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
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

/// Refuses a checkpoint that does not have exactly the tensors `config` needs; all that is wrong comes in one error.
///
/// Not counted as extra: a head that a tied model does not use, and the rotary tables of old checkpoints.
pub fn check(config: &Config, checkpoint: &Checkpoint) -> Result<(), WeightsError> {
    let found = checkpoint.shapes();
    let folder = checkpoint.path().to_path_buf();
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
        let is = found.get(name).filter(|is| *is != shape)?;
        Some(format!("{name} is {is:?}, wants {shape:?}"))
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
    Ok(())
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
