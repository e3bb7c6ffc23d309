//! Documents as tokens: tokenised once, on all cores, and kept in the cache by content.

use std::path::{Path, PathBuf};

use anyhow::Context;
use model::tokenizer::{Tokenizer, TokenizerError};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{cache, documents};

/// Bytes of a piece that is tokenised by itself.
const PIECE: usize = 1 << 16;
/// Bytes on each side of a cut with which it is tried.
const AROUND: usize = 64;
/// Places for a cut that are tried; a tokenizer that fits none of them reads the text whole.
const TRIES: usize = 16;

/// The tokens of all files, one after the other (formats: `documents`). A document that ends is followed by the
/// end-of-text token, if the model has one.
pub fn of_files(files: &[PathBuf], field: &str, folder: &Path, end: Option<u32>) -> anyhow::Result<Vec<u32>> {
    let tokenizer = Tokenizer::from_folder(folder)?;
    let vocabulary = std::fs::read(folder.join("tokenizer.json")).unwrap_or_default();
    let mut tokens = vec![];
    for file in files {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let ending = file.extension().unwrap_or_default().as_encoded_bytes();
        let mut hash = Sha256::new();
        for part in [
            &vocabulary[..],
            ending,
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
        let own = of_documents(&tokenizer, &documents::of(file, bytes, field)?, end)?;
        let bytes: Vec<u8> = own.iter().flat_map(|t: &u32| t.to_le_bytes()).collect();
        if let Err(e) = cache::put(&kept, &bytes) {
            eprintln!("loopc: the tokens of {} are not cached: {e}", file.display());
        }
        tokens.extend(own);
    }
    Ok(tokens)
}

/// The tokens of documents, each followed by `end`.
pub fn of_documents(tokenizer: &Tokenizer, documents: &[String], end: Option<u32>) -> Result<Vec<u32>, TokenizerError> {
    let mut pieces: Vec<(&str, bool)> = vec![];
    for document in documents {
        let cuts = cut(tokenizer, document)?;
        let last = cuts.len() - 1;
        pieces.extend(cuts.into_iter().enumerate().map(|(i, p)| (p, i == last)));
    }
    let encode = |(piece, last): &(&str, bool)| -> Result<Vec<u32>, TokenizerError> {
        let mut ids = tokenizer.encode(piece, false)?;
        ids.extend(end.filter(|_| *last));
        Ok(ids)
    };
    let parts: Vec<Vec<u32>> = pieces.par_iter().map(encode).collect::<Result<_, _>>()?;
    Ok(parts.concat())
}

/// `text` in pieces whose tokens, one after the other, are the tokens of the text.
///
/// A cut lies before a space between two letters, where pre-tokenizers split whatever stands further away. That this
/// tokenizer does is tried at every cut on what surrounds it; one that adds something to a text's begin, say, is found
/// out, and the text stays whole.
fn cut<'a>(tokenizer: &Tokenizer, text: &'a str) -> Result<Vec<&'a str>, TokenizerError> {
    let (mut pieces, mut rest) = (vec![], text);
    while rest.len() > 2 * PIECE {
        let bytes = rest.as_bytes();
        let between = |at: &usize| {
            bytes[at - 1].is_ascii_alphabetic() && bytes[*at] == b' ' && bytes[at + 1].is_ascii_alphabetic()
        };
        let mut found = None;
        for at in (PIECE..bytes.len() - AROUND).filter(between).take(TRIES) {
            if splits(tokenizer, rest, at)? {
                found = Some(at);
                break;
            }
        }
        let Some(at) = found else { break };
        let (piece, behind) = rest.split_at(at);
        pieces.push(piece);
        rest = behind;
    }
    pieces.push(rest);
    Ok(pieces)
}

/// Are the tokens on both sides of `at`, for themselves, those of the text around it?
fn splits(tokenizer: &Tokenizer, text: &str, at: usize) -> Result<bool, TokenizerError> {
    let whole_char = |i: &usize| text.is_char_boundary(*i);
    let from = (0..=at - AROUND).rev().find(whole_char).unwrap_or(0);
    let to = (at + AROUND..text.len()).find(whole_char).unwrap_or(text.len());
    let encode = |part: &str| tokenizer.encode(part, false);
    let apart = [encode(&text[from..at])?, encode(&text[at..to])?].concat();
    Ok(encode(&text[from..to])? == apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundled() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/austen")
    }

    /// Prose, code, other scripts and long runs without a space, in an order that repeats nowhere.
    fn text(bytes: usize) -> String {
        let parts = [
            "It is a truth universally acknowledged, that ",
            "Mr. Darcy's 27 carriages;\n\n\tif (x) { y += 3.5e-7; }\r\n",
            "naïve 世界 🦀🦀   fin<|endoftext|> and on ",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "     ",
            "word word word ",
        ];
        let (mut out, mut n) = (String::new(), 1u64);
        while out.len() < bytes {
            n = n.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            out += parts[(n >> 33) as usize % parts.len()];
        }
        out
    }

    #[test]
    fn pieces_have_the_tokens_of_the_whole() {
        let tokenizer = Tokenizer::from_folder(&bundled()).unwrap();
        let text = text(9 * PIECE);
        let pieces = cut(&tokenizer, &text).unwrap();
        assert!(pieces.len() >= 8, "{} pieces", pieces.len());
        assert_eq!(pieces.concat(), text);
        let whole = tokenizer.encode(&text, false).unwrap();
        let documents = [text, "and another".to_string()];
        let found = of_documents(&tokenizer, &documents, Some(0)).unwrap();
        let other = tokenizer.encode("and another", false).unwrap();
        assert_eq!(found, [whole, vec![0], other, vec![0]].concat());
        let no_space = "x".repeat(5 * PIECE);
        assert_eq!(cut(&tokenizer, &no_space).unwrap(), [no_space.as_str()]);
    }

    /// A tokenizer that puts a space before every text would put one before every piece.
    #[test]
    fn a_tokenizer_that_knows_where_a_text_begins_reads_it_whole() {
        let folder = tempfile::tempdir().unwrap();
        let json = std::fs::read_to_string(bundled().join("tokenizer.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["normalizer"] = serde_json::json!({"type": "Prepend", "prepend": "_"});
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        let text = text(3 * PIECE);
        assert_eq!(cut(&tokenizer, &text).unwrap().len(), 1);
    }
}
