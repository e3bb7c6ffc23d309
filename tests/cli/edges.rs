//! The fused program's logits against those of one kernel per op: every mode, lengths around the window and around tiles, windows from one
//! token to more than there are.

use std::collections::BTreeSet;

use super::Sandbox;
use super::train::tiny;

fn logits(s: &Sandbox, model: &str, tokens: &[String], more: &[&str]) -> Vec<f32> {
    let out = s.path("logits").display().to_string();
    let mut args = vec!["logits", model, "-o", &out, "--threads", "1"];
    tokens.iter().for_each(|row| args.extend(["--tokens", row]));
    args.extend(more);
    s.ok(&args);
    let bytes = std::fs::read(out).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("logits").unwrap().data();
    data.chunks(4)
        .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
        .collect()
}

#[test]
fn fused_logits_are_the_unfused_ones_at_every_edge() {
    // Three query heads share a key head: a tile of the sweep has 42 rows of each, a panel 64 columns.
    const TILES: [i64; 5] = [42, 43, 64, 65, 129];
    let s = Sandbox::new();
    for mode in ["base", "layer", "restart", "stack"] {
        for window in [1, 2, 43, 200] {
            if mode == "base" && window > 1 {
                continue;
            }
            let model = tiny(&s, mode, mode);
            let config = s.path(mode).join("config.json");
            let text = std::fs::read_to_string(&config).unwrap();
            std::fs::write(&config, text.replace("\"window\":5", &format!("\"window\":{window}"))).unwrap();
            let around = [window - 1, window, window + 1];
            let lengths: BTreeSet<i64> = TILES.iter().chain(&around).copied().filter(|t| *t > 0).collect();
            for t in lengths {
                let row = |by: i64| (0..t).map(|i| ((i * by + by) % 2048).to_string()).collect::<Vec<_>>();
                let tokens = [row(7).join(","), row(11).join(",")];
                let fused = logits(&s, &model, &tokens, &[]);
                let unfused = logits(&s, &model, &tokens, &["--no-fuse"]);
                let most = unfused.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                assert_eq!(fused.len(), unfused.len());
                for (i, (a, b)) in fused.iter().zip(&unfused).enumerate() {
                    assert!(
                        (a - b).abs() <= 1e-5 * most,
                        "{mode}, window {window}, {t} tokens: [{i}] is {a}, one op at a time {b}"
                    );
                }
            }
        }
    }
}
