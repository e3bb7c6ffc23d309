//! Changed graph texts: the parser and the verifier refuse them by line, or they are sound and go through every pass and the
//! scheduler without a panic. `PROPTEST_CASES` says how many.

use std::fs;
use std::path::Path;

use ir::testing::{ENTRY, random};
use proptest::prelude::*;

/// The models' graphs that the filetests keep, and random programs.
fn text(seed: u64) -> String {
    let modes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests/modes");
    let mut files: Vec<_> = fs::read_dir(modes)
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.to_string_lossy().ends_with("0-naive.snap"))
        .collect();
    files.sort();
    if seed.is_multiple_of(4) && !files.is_empty() {
        let text = fs::read_to_string(&files[seed as usize / 4 % files.len()]).unwrap();
        // Behind the header of the snapshot.
        return text.splitn(3, "---\n").last().unwrap().to_string();
    }
    random(seed).module.to_string()
}

/// What a slip of the hand does: one character another, a piece gone, doubled or moved elsewhere.
fn change(text: &str, kind: u8, at: usize, len: usize, to: usize, byte: u8) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let at = at % bytes.len();
    let end = (at + len).min(bytes.len());
    let piece = bytes[at..end].to_vec();
    match kind {
        0 => bytes[at] = byte,
        1 => drop(bytes.drain(at..end)),
        2 => drop(bytes.splice(at..at, piece)),
        _ => {
            let to = to % bytes.len();
            drop(bytes.splice(to..to, piece));
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_texts_are_refused_or_sound(
        seed in 0u64..10_000, kind in 0u8..4, at in 0usize..100_000, len in 1usize..24, to in 0usize..100_000, byte in 0x20u8..0x7f,
    ) {
        let text = change(&text(seed), kind, at, len, to, byte);
        let Ok((mut module, lines)) = ir::text::parse_with_lines(&text) else { return Ok(()) };
        if !ir::verify::verify_at(&module, &lines).is_empty() {
            return Ok(());
        }
        // As text: a constant may be NaN, which no comparison of modules survives.
        let printed = module.to_string();
        prop_assert_eq!(ir::text::parse(&printed).unwrap().to_string(), printed);
        for pass in passes::PASSES {
            if (pass.run)(&mut module).is_err() {
                return Ok(());
            }
            prop_assert!(ir::verify::verify(&module).is_empty(), "{} broke it:\n{module}", pass.name);
        }
        let entries: Vec<String> = module.functions.iter().map(|f| f.name.clone()).collect();
        for entry in entries.iter().filter(|e| *e == ENTRY || ["prefill", "decode", "logits", "loss"].contains(&e.as_str())) {
            let _ = passes::schedule(&module, entry, &passes::Scheduling::FUSED);
        }
    }
}
