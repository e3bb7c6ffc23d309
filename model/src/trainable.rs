//! Which tensors of a checkpoint are trained.

use std::str::FromStr;

use regex::Regex;

/// `gates`, `gates+norms`, `all`, or a regular expression over tensor names.
#[derive(Clone, Debug)]
pub enum Trainable {
    Gates,
    GatesAndNorms,
    All,
    Matching(Regex),
}

impl FromStr for Trainable {
    type Err = String;

    fn from_str(text: &str) -> Result<Trainable, String> {
        Ok(match text {
            "gates" => Trainable::Gates,
            "gates+norms" => Trainable::GatesAndNorms,
            "all" => Trainable::All,
            _ => Trainable::Matching(Regex::new(text).map_err(|e| {
                let reason = e.to_string();
                let reason = reason.lines().last().unwrap_or_default();
                format!("neither `gates`, `gates+norms` or `all` nor a regular expression: {reason}")
            })?),
        })
    }
}

impl std::fmt::Display for Trainable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Trainable::Gates => "gates",
            Trainable::GatesAndNorms => "gates+norms",
            Trainable::All => "all",
            Trainable::Matching(regex) => regex.as_str(),
        })
    }
}

impl Trainable {
    /// Is the tensor of this name trained? A regular expression may match any part of it.
    pub fn includes(&self, tensor: &str) -> bool {
        let gate = tensor.starts_with("model.gate_projections.");
        match self {
            Trainable::Gates => gate,
            Trainable::GatesAndNorms => gate || tensor.ends_with("norm.weight"),
            Trainable::All => true,
            Trainable::Matching(regex) => regex.is_match(tensor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let chosen = |text: &str| {
            let trainable: Trainable = text.parse().unwrap();
            assert_eq!(trainable.to_string(), text);
            [
                "model.gate_projections.0.bias",
                "model.layers.3.self_attn.q_norm.weight",
                "model.layers.13.post_attention_layernorm.weight",
                "model.norm.weight",
                "model.layers.3.mlp.up_proj.weight",
            ]
            .map(|n| trainable.includes(n))
        };
        assert_eq!(chosen("gates"), [true, false, false, false, false]);
        assert_eq!(chosen("gates+norms"), [true, true, true, true, false]);
        assert_eq!(chosen("all"), [true; 5]);
        assert_eq!(chosen(r"layers\.3\."), [false, true, false, false, true]);
        assert!("(".parse::<Trainable>().unwrap_err().contains("unclosed"));
    }
}
