//! The naive graph means what the float64 reference means, in every mode; and decoding token by token is prefill.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{Case, States, goldens};
use ir::DType;
use model::graph::{self, GraphError, Options};
use model::{Config, Mode};

/// The goldens are rounded to f32.
const TOLERANCE: f64 = 2e-7;

/// Largest difference, relative to the largest number.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f64, |m, (x, y)| {
        if (x - y).is_nan() {
            f64::NAN
        } else {
            m.max((x - y).abs())
        }
    }) / scale
}

#[test]
fn logits_and_loss_are_the_references() {
    let mut modes = BTreeSet::new();
    for folder in goldens() {
        let case = Case::load(&folder);
        for golden in &case.goldens {
            let tokens = &golden["tokens"];
            let (batch, rows) = (tokens.shape[0], tokens.shape[1]);
            let ids = ("tokens", &tokens.shape[..], tokens.data.clone());
            let logits = case.run("logits", 0, std::slice::from_ref(&ids), &mut States::new());
            let error = distance(&logits.data, &golden["logits"].data);
            assert!(error < TOLERANCE, "{}: logits are off by {error:e}", case.name);

            if rows > 1 {
                // The token after the last one is not known: -1 is left out of the mean.
                let next = |b: usize, t: usize| {
                    if t + 1 < rows {
                        tokens.data[b * rows + t + 1]
                    } else {
                        -1.0
                    }
                };
                let targets = (0..batch * rows).map(|at| next(at / rows, at % rows)).collect();
                let nll = case.run(
                    "loss",
                    0,
                    &[ids, ("targets", &[batch, rows], targets)],
                    &mut States::new(),
                );
                let loss = nll.data.iter().sum::<f64>() / (batch * (rows - 1)) as f64;
                let wanted = golden["loss"].data[0];
                assert!(
                    (loss - wanted).abs() < TOLERANCE * wanted,
                    "{}: loss {loss} instead of {wanted}",
                    case.name
                );
            }
        }
        modes.insert(case.config.attention.mode.name());
    }
    assert_eq!(
        modes,
        Mode::ALL.map(Mode::name).into(),
        "there is a golden of every mode"
    );
}

/// Every split into a prefill of n tokens and single steps gives the same rows, past the window and round the ring.
#[test]
fn token_by_token_is_prefill() {
    for folder in goldens() {
        let case = Case::load(&folder);
        // The longest golden; the others are its beginnings in kind.
        let golden = case.goldens.iter().max_by_key(|g| g["tokens"].shape[1]).unwrap();
        let (tokens, wanted_logits) = (&golden["tokens"], &golden["logits"]);
        let (batch, rows) = (tokens.shape[0], tokens.shape[1]);
        let vocab = case.config.vocab as usize;
        let window = case.config.attention.window as usize;
        let firsts: BTreeSet<usize> = [1, 2, window, window + 1, rows]
            .into_iter()
            .filter(|n| *n <= rows)
            .collect();
        let column = |t: usize| (0..batch).map(|b| tokens.at(&[b, t])).collect::<Vec<f64>>();
        let wanted = |t: usize| -> Vec<f64> {
            (0..batch)
                .flat_map(|b| (0..vocab).map(move |v| (b, v)))
                .map(|(b, v)| wanted_logits.at(&[b, t, v]))
                .collect()
        };
        for first in firsts {
            let mut states = case.states(batch);
            let prompt = (0..batch * first)
                .map(|at| tokens.at(&[at / first, at % first]))
                .collect();
            let last = vec![(first - 1) as f64; batch];
            let inputs = [("tokens", &[batch, first][..], prompt), ("last", &[batch], last)];
            let mut logits = case.run("prefill", 0, &inputs, &mut states);
            for t in first..=rows {
                let error = distance(&logits.data, &wanted(t - 1));
                assert!(
                    error < TOLERANCE,
                    "{}: prefill {first}, row {}: off by {error:e}",
                    case.name,
                    t - 1
                );
                if t < rows {
                    let inputs = [
                        ("tokens", &[batch, 1][..], column(t)),
                        ("start", &[batch], vec![t as f64; batch]),
                    ];
                    logits = case.run("decode", t as i64 + 1, &inputs, &mut states);
                }
            }
        }
    }
}

#[test]
fn the_layer_mode_graph_as_text() {
    let json = serde_json::json!({"model_type": "qwen3", "vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": true, "loop_attention": {"mode": "layer", "window": 8, "loops": 2}});
    let config = Config::from_values(Path::new("."), json, None).unwrap();
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        let module = graph::build(
            &config,
            &Options {
                dtype,
                embedding: DType::BF16,
                max_context: 512,
            },
        )
        .unwrap();
        insta::assert_snapshot!(format!("layer_{name}"), module.to_string());
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let config = Config::from_folder(&goldens()[0]).unwrap();
    let build = |dtype, max_context| {
        graph::build(
            &config,
            &Options {
                dtype,
                embedding: DType::F32,
                max_context,
            },
        )
    };
    assert_eq!(build(DType::F16, 9), Err(GraphError::DType(DType::F16)));
    for found in [0, -1, i64::MAX] {
        assert!(matches!(build(DType::F32, found), Err(GraphError::Context { found: f, .. }) if f == found));
    }
}
