//! Texts as tokens: plain text and JSON lines, tokenised once and kept in the cache by content.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use model::tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

use crate::cache;

/// The tokens of all files, one after the other. `.jsonl` files have an object per line with a string under `field`; a document that
/// ends is followed by the end-of-text token, if the tokenizer has one.
pub fn of_files(files: &[PathBuf], field: &str, folder: &Path, end: Option<u32>) -> anyhow::Result<Vec<u32>> {
    let tokenizer = Tokenizer::from_folder(folder)?;
    let vocabulary = std::fs::read(folder.join("tokenizer.json")).unwrap_or_default();
    let mut tokens = vec![];
    for file in files {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut hash = Sha256::new();
        for part in [
            &vocabulary[..],
            field.as_bytes(),
            format!("{end:?}").as_bytes(),
            &bytes[..],
        ] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let kept = cache::folder().join(format!("{}.tokens", cache::hex(&hash.finalize())));
        if let Some(known) = std::fs::read(&kept).ok().filter(|b| b.len() % 4 == 0) {
            tokens.extend(
                known
                    .chunks_exact(4)
                    .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])),
            );
            continue;
        }
        let mut own = vec![];
        for document in documents(file, bytes, field)? {
            own.extend(tokenizer.encode(&document, false)?);
            own.extend(end);
        }
        let bytes: Vec<u8> = own.iter().flat_map(|t: &u32| t.to_le_bytes()).collect();
        if let Err(e) = cache::put(&kept, &bytes) {
            eprintln!("loopc: the tokens of {} are not cached: {e}", file.display());
        }
        tokens.extend(own);
    }
    Ok(tokens)
}

/// The texts of a file: all of it, or those of its lines.
pub fn documents(file: &Path, bytes: Vec<u8>, field: &str) -> anyhow::Result<Vec<String>> {
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", file.display()))?;
    if file.extension().is_none_or(|e| e != "jsonl" && e != "json") {
        return Ok(vec![text]);
    }
    let mut documents = vec![];
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let at = || format!("{}, line {}", file.display(), i + 1);
        let value: serde_json::Value = serde_json::from_str(line).with_context(at)?;
        match value.get(field).and_then(|v| v.as_str()) {
            Some(text) => documents.push(text.to_string()),
            None => bail!("{}: no string under `{field}`; name another with --field", at()),
        }
    }
    Ok(documents)
}
