//! Splits PTX text into words, numbers and punctuation, each with its line. Comments vanish here.
//!
//! A word holds its dots and double colons (`cp.async.bulk.shared::cluster`, `%tid.x`, `.reg`): what they mean depends on where the
//! word stands, which only the parser knows.

use super::ParseError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    Word(&'a str),
    /// Any integer literal; negative ones are a minus and a number.
    Int(u64),
    /// `0f3F800000` and `0d3FF0000000000000`: bits.
    F32(u32),
    F64(u64),
    Text(&'a str),
    Mark(char),
}

fn number(word: &str) -> Option<Token<'_>> {
    let bits = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let plain = word.trim_end_matches(['U', 'u']);
    match word.get(..2) {
        Some("0f" | "0F") if word.len() == 10 => bits(&word[2..]).map(|b| Token::F32(b as u32)),
        Some("0d" | "0D") if word.len() == 18 => bits(&word[2..]).map(Token::F64),
        Some("0x" | "0X") => bits(&plain[2..]).map(Token::Int),
        Some("0b" | "0B") => u64::from_str_radix(&plain[2..], 2).ok().map(Token::Int),
        _ => plain.parse().ok().map(Token::Int),
    }
}

/// All tokens of `text`, with their lines counted from 1.
pub fn tokens(text: &str) -> Result<Vec<(Token<'_>, u32)>, ParseError> {
    let bytes = text.as_bytes();
    let mut found = vec![];
    let (mut at, mut line) = (0, 1);
    let in_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%' | b'.');
    while at < bytes.len() {
        let b = bytes[at];
        let rest = &text.as_bytes()[at..];
        if b == b'\n' {
            line += 1;
            at += 1;
        } else if b.is_ascii_whitespace() {
            at += 1;
        } else if rest.starts_with(b"//") {
            at += rest.iter().position(|&c| c == b'\n').unwrap_or(rest.len());
        } else if rest.starts_with(b"/*") {
            let end = text[at + 2..].find("*/").ok_or_else(|| ParseError {
                line,
                what: "a comment that does not end".into(),
            })?;
            line += text[at..at + 2 + end].matches('\n').count() as u32;
            at += end + 4;
        } else if b == b'"' {
            let end = text[at + 1..].find('"').ok_or_else(|| ParseError {
                line,
                what: "a string that does not end".into(),
            })?;
            found.push((Token::Text(&text[at + 1..at + 1 + end]), line));
            at += end + 2;
        } else if in_word(b) {
            let start = at;
            loop {
                while at < bytes.len() && in_word(bytes[at]) {
                    at += 1;
                }
                // `shared::cta` is one word, `label:` is not.
                if bytes[at..].starts_with(b"::") && bytes.get(at + 2).is_some_and(|&c| in_word(c)) {
                    at += 2;
                } else {
                    break;
                }
            }
            let word = &text[start..at];
            let version = word.contains('.') && word.bytes().all(|c| c.is_ascii_digit() || c == b'.');
            let token = if b.is_ascii_digit() && !version {
                number(word).ok_or_else(|| ParseError {
                    line,
                    what: format!("{word:?} is not a number"),
                })?
            } else {
                Token::Word(word)
            };
            found.push((token, line));
        } else if b.is_ascii() {
            found.push((Token::Mark(b as char), line));
            at += 1;
        } else {
            return Err(ParseError {
                line,
                what: "a character outside ASCII".into(),
            });
        }
    }
    Ok(found)
}
