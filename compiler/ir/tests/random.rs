//! Random programs and damaged texts.

use std::collections::BTreeSet;

use ir::ops::OPS;
use ir::testing::random;
use ir::text::parse;
use ir::verify::verify;
use proptest::prelude::*;

/// The generator reaches every op of the table, and `call`.
#[test]
fn random_programs_reach_all_ops() {
    let reached: BTreeSet<String> = (0..200)
        .flat_map(|seed| {
            random(seed)
                .module
                .functions
                .into_iter()
                .flat_map(|f| f.ops.into_iter().map(|op| op.name))
        })
        .collect();
    // Nobody writes these: `fuse`, `fold-norms` and gradients make them, and their tests run them; which column is the largest hangs on
    // the last bit.
    let made = [
        "sweep",
        "sweep_gradient",
        "lse",
        "arg_max",
        "log_sum_exp",
        "mean",
        "rms_scale",
        "scale_columns",
        "scatter_rows",
        "one_hot",
        "is_target",
        "update",
    ];
    let all: BTreeSet<String> = OPS
        .iter()
        .filter(|o| !made.contains(&o.name))
        .map(|o| o.name.to_string())
        .chain(["call".to_string()])
        .collect();
    assert_eq!(reached, all);
}

proptest! {
    /// Valid, with finite values, near its exact value, and the same after a trip through text.
    #[test]
    fn random_programs(seed: u64) {
        let case = random(seed);
        let text = case.module.to_string();
        prop_assert_eq!(verify(&case.module), vec![], "{}", text);
        let parsed = parse(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&parsed.to_string(), &text);
        prop_assert_eq!(verify(&parsed), vec![]);
        let outcome = case.run(false).map_err(|e| TestCaseError::fail(e.to_string()))?;
        for (name, y) in &outcome.0 {
            prop_assert!(y.data.iter().all(|x| x.is_finite()), "{}: {:?}\n{}", name, y, text);
        }
        prop_assert_eq!(&case.run_as(&parsed, false).map_err(|e| TestCaseError::fail(e.to_string()))?, &outcome);
    }

    /// However a text is damaged: an error with a place inside it, or a module; never a panic. The verifier does not panic either.
    #[test]
    fn damaged_text(seed in 0u64..50, edits in prop::collection::vec((any::<prop::sample::Index>(), 0..6u8, any::<u8>()), 1..6)) {
        let mut text = random(seed).module.to_string().into_bytes();
        for (at, kind, byte) in edits {
            let i = at.index(text.len().max(1)).min(text.len().saturating_sub(1));
            match kind {
                _ if text.is_empty() => {}
                0 => { text.remove(i); }
                1 => text.insert(i, byte),
                2 => text[i] = byte,
                3 => text.truncate(i),
                // A piece stands twice, or digits become many.
                4 => { let piece = text[i..(i + byte as usize).min(text.len())].to_vec(); text.splice(i..i, piece); }
                _ => if let Some(j) = text[i..].iter().position(u8::is_ascii_digit) {
                    text.splice(i + j..i + j, b"99999999".iter().copied().cycle().take(byte as usize % 32));
                },
            }
        }
        let text = String::from_utf8_lossy(&text);
        match parse(&text) {
            Ok(module) => { verify(&module); }
            Err(e) => {
                prop_assert!(e.line >= 1 && e.line <= text.split('\n').count(), "{}", e);
                prop_assert!(e.column >= 1 && !e.message.is_empty());
            }
        }
    }
}
