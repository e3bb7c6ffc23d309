//! Loads an artefact and continues token ids greedily: all a program needs to use a compiled model, without LLVM.
//!
//!     cargo run -p runtime --example run -- ARTEFACT FOLDER 12,5,7 [NEW_TOKENS]

use std::path::Path;

use runtime::container::Artefact;
use runtime::weights::Checkpoint;
use runtime::{Engine, Input, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [artefact, folder, tokens, rest @ ..] = args.as_slice() else {
        return Err("usage: run ARTEFACT FOLDER 12,5,7 [NEW_TOKENS]".into());
    };
    let tokens = tokens.split(',').map(str::parse).collect::<Result<Vec<i32>, _>>()?;
    let new: usize = rest.first().map_or(Ok(16), |n| n.parse())?;
    let engine = Engine::load(
        &Artefact::open(Path::new(artefact))?,
        &Checkpoint::open(Path::new(folder))?,
        Options::cpu(2),
    )?;

    let t = tokens.len() as i64;
    let mut state = engine.new_state(1, t + new as i64)?;
    let inputs = [("tokens", Input::I32(&tokens)), ("last", Input::I32(&[t as i32 - 1]))];
    let mut logits = engine.call("prefill", &[("B", 1), ("T", t)], &inputs, Some(&mut state))?;
    let mut generated = vec![];
    for at in t..t + new as i64 {
        let row = &logits["logits"].data;
        let best = (0..row.len())
            .max_by(|a, b| row[*a].total_cmp(&row[*b]))
            .ok_or("no logits")?;
        generated.push(best.to_string());
        let inputs = [
            ("tokens", Input::I32(&[best as i32])),
            ("start", Input::I32(&[at as i32])),
        ];
        logits = engine.call("decode", &[("B", 1), ("S", at + 1)], &inputs, Some(&mut state))?;
    }
    println!("{}", generated.join(","));
    Ok(())
}
