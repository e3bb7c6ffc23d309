//! `loopc grad`: the fused program's gradients against those of one kernel per op, on shapes that no tile divides.

use std::collections::BTreeMap;

use super::{Sandbox, root};

fn gradients(s: &Sandbox, model: &str, tokens: &[String], more: &[&str]) -> BTreeMap<String, Vec<f32>> {
    let out = s.path("gradients").display().to_string();
    let mut args = vec!["grad", model, "-o", &out, "--threads", "1"];
    tokens.iter().for_each(|row| args.extend(["--tokens", row]));
    args.extend(more);
    s.ok(&args);
    let bytes = std::fs::read(out).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| {
        data.chunks(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect()
    };
    tensors
        .iter()
        .map(|(name, v)| (name.to_string(), floats(v.data())))
        .collect()
}

/// Relative Frobenius norm of what two gradients differ in.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let apart: Vec<f32> = a.iter().zip(b).map(|(x, y)| x - y).collect();
    norm(&apart) / norm(b)
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn fused_gradients_are_the_unfused_ones() {
    let s = Sandbox::new();
    for model in [
        "base",
        "layer-kv1-d32",
        "layer-untied-f16",
        "restart-kv1-d64",
        "stack-window-wide",
    ] {
        let folder = root().join("tests/goldens").join(model);
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
        let vocab = config["vocab_size"].as_i64().unwrap();
        let row = |by: i64, t: i64| {
            (0..t)
                .map(|i| ((i * by + by) % vocab).to_string())
                .collect::<Vec<_>>()
                .join(",")
        };
        let folder = folder.display().to_string();
        for tokens in [vec![row(7, 2)], (3..6).map(|by| row(by, 19)).collect::<Vec<_>>()] {
            let fused = gradients(&s, &folder, &tokens, &[]);
            let unfused = gradients(&s, &folder, &tokens, &["--no-fuse"]);
            assert!(fused.keys().eq(unfused.keys()));
            // A tensor that nothing depends on (one key: no score matters) has rounding errors for a gradient.
            let most = unfused.values().map(|g| norm(g)).fold(0.0, f64::max);
            for (name, wanted) in &unfused {
                let least = 1e-6 * most;
                if norm(wanted) < least {
                    assert!(norm(&fused[name]) < least, "{model}: {name} should be nothing");
                    continue;
                }
                let d = distance(&fused[name], wanted);
                assert!(d < 1e-5, "{model}, {} rows: {name} is off by {d:e}", tokens.len());
            }
        }
    }
}
