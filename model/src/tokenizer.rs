//! Text to token ids and back, through `tokenizer.json` and the `tokenizers` crate; streaming text without torn characters.

use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("{file}: there is no tokenizer; copy the model's tokenizer.json there (or pass token ids)", file = file.display())]
    Missing { file: PathBuf },
    #[error("{file}: cannot load the tokenizer: {reason}", file = file.display())]
    Load { file: PathBuf, reason: String },
    #[error("{file}: cannot decode the tokens: {reason}", file = file.display())]
    Decode { file: PathBuf, reason: String },
    #[error("{file}: cannot encode the text: {reason}", file = file.display())]
    Encode { file: PathBuf, reason: String },
}

/// The tokenizer of one model folder.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: PathBuf,
}

impl Tokenizer {
    /// Reads `folder/tokenizer.json`.
    pub fn from_folder(folder: &Path) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_file(folder.join("tokenizer.json"))
    }

    /// Reads a tokenizer.json of any name.
    pub fn from_file(file: PathBuf) -> Result<Tokenizer, TokenizerError> {
        if !file.exists() {
            return Err(TokenizerError::Missing { file });
        }
        match tokenizers::Tokenizer::from_file(&file) {
            Ok(mut inner) => {
                // A file may carry settings of its training; a prompt is never cut or padded.
                let _ = inner.with_truncation(None);
                inner.with_padding(None);
                Ok(Tokenizer { inner, file })
            }
            Err(e) => Err(TokenizerError::Load {
                file,
                reason: e.to_string(),
            }),
        }
    }

    /// The ids of `text`. `special`: with the tokens the tokenizer itself adds (`<s>`); text from a chat template has them already.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoded = self.inner.encode(text, special);
        let encoded = encoded.map_err(|e| TokenizerError::Encode {
            file: self.file.clone(),
            reason: e.to_string(),
        })?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out. Ids the tokenizer lacks (a padded vocabulary has them) are no text.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let text = self.inner.decode(ids, true);
        text.map_err(|e| TokenizerError::Decode {
            file: self.file.clone(),
            reason: e.to_string(),
        })
    }

    /// The id of a token by its exact name (`<|im_end|>`).
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How many ids there are, up to the largest.
    pub fn ids(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id + 1)
    }

    /// Text for tokens that come one by one.
    pub fn stream(&self) -> Stream<'_> {
        Stream {
            tokenizer: self,
            ids: vec![],
            shown: 0,
        }
    }

    /// For the stream, which cannot fail: what cannot be decoded shows as U+FFFD.
    fn shown(&self, ids: &[u32]) -> String {
        self.decode(ids).unwrap_or_else(|_| "\u{fffd}".to_string())
    }
}

/// Decodes token by token. What it returns, put together, is the text of all tokens; a character whose bytes are spread over
/// tokens comes when it is complete.
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens since the last cut, where decoding may begin afresh.
    ids: Vec<u32>,
    /// How many bytes of their text are out.
    shown: usize,
}

impl Stream<'_> {
    /// Takes one more token and returns the text that is now certain (often empty).
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.tokenizer.shown(&self.ids);
        // U+FFFD at the end: the first bytes of a character whose rest is still to come.
        let certain = text.trim_end_matches('\u{fffd}').len();
        let new = text.get(self.shown..certain).unwrap_or("").to_string();
        self.shown = self.shown.max(certain);
        // Decoding all tokens each time would be quadratic. One token stays as context, because decoders treat the first
        // token of a text differently (a leading space).
        if self.ids.len() > 16 && certain == text.len() {
            self.ids.drain(..self.ids.len() - 1);
            self.shown = self.tokenizer.shown(&self.ids).len();
        }
        new
    }

    /// What was held back, at the end of the text.
    pub fn finish(self) -> String {
        let text = self.tokenizer.shown(&self.ids);
        text.get(self.shown..).unwrap_or("").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level BPE without merges (one token a byte), in the form Hugging Face writes; id = order in GPT-2's byte alphabet.
    fn bytes(dir: &Path) -> Tokenizer {
        let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
            .into_iter()
            .collect();
        alphabet.sort_unstable();
        let vocab: serde_json::Map<String, serde_json::Value> = alphabet
            .iter()
            .enumerate()
            .map(|(i, c)| (c.to_string(), i.into()))
            .collect();
        let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let special = serde_json::json!({"id": 256, "content": "<end>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        let json = serde_json::json!({"version": "1.0", "added_tokens": [special], "pre_tokenizer": level, "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
        Tokenizer::from_folder(dir).unwrap()
    }

    const TEXTS: [&str; 4] = [
        "",
        "plain words",
        "naïve 世界 🦀🦀 fin",
        "  leading\n\nand a rather long text, so that the stream cuts 语",
    ];

    #[test]
    fn text_survives_encoding_and_decoding() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bytes(dir.path());
        for text in TEXTS {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids.len(), text.len(), "one token a byte");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn streaming_gives_whole_characters_and_in_the_end_everything() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bytes(dir.path());
        for text in TEXTS {
            let mut stream = tokenizer.stream();
            let mut out = String::new();
            for id in tokenizer.encode(text, false).unwrap() {
                let piece = stream.push(id);
                assert!(!piece.contains('\u{fffd}'), "a torn character in {piece:?}");
                out.push_str(&piece);
                assert!(text.starts_with(&out), "{out:?} begins {text:?}");
            }
            out.push_str(&stream.finish());
            assert_eq!(out, text);
        }
    }

    #[test]
    fn a_text_that_ends_inside_a_character_is_finished_with_a_replacement() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bytes(dir.path());
        let mut stream = tokenizer.stream();
        let ids = tokenizer.encode("a世", false).unwrap();
        let out: String = ids[..3].iter().map(|id| stream.push(*id)).collect();
        assert_eq!(out, "a");
        assert!(stream.finish().starts_with('\u{fffd}'));
    }

    #[test]
    fn special_tokens_are_known_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bytes(dir.path());
        assert_eq!(tokenizer.id("<end>"), Some(256));
        let ids = tokenizer.encode("hi<end>", true).unwrap();
        assert_eq!(
            (ids.last(), tokenizer.decode(&ids).unwrap().as_str()),
            (Some(&256), "hi")
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = |e: TokenizerError| e.to_string().replace(&dir.path().display().to_string(), "DIR");
        insta::assert_snapshot!(error(Tokenizer::from_folder(dir.path()).err().unwrap()), @"DIR/tokenizer.json: there is no tokenizer; copy the model's tokenizer.json there (or pass token ids)");
        assert_eq!(
            bytes(dir.path()).decode(&[290]).unwrap(),
            "",
            "an id of a padded vocabulary"
        );
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert!(
            error(Tokenizer::from_folder(dir.path()).err().unwrap()).starts_with("DIR/tokenizer.json: cannot load")
        );
    }
}
