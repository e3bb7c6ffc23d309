//! Text to tokens with their places.

use super::parse::ParseError;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// `func.func`, `tensor`, `loop.weight`, `true`
    Word(String),
    /// `%name`
    Value(String),
    /// `@name`
    Symbol(String),
    Str(String),
    Int(i64),
    Float(f64),
    /// `->` is `>` behind `-`
    Punct(char),
    Arrow,
    End,
}

/// A token and where it starts (line and column from 1).
pub struct Spanned {
    pub token: Token,
    pub line: usize,
    pub column: usize,
}

pub fn lex(text: &str) -> Result<Vec<Spanned>, ParseError> {
    let mut lexer = Lexer {
        bytes: text.as_bytes(),
        at: 0,
        line: 1,
        line_start: 0,
    };
    let mut tokens = vec![];
    loop {
        lexer.skip();
        let (line, column) = (lexer.line, lexer.at - lexer.line_start + 1);
        let token = lexer.token().map_err(|message| ParseError { line, column, message })?;
        let end = token == Token::End;
        tokens.push(Spanned { token, line, column });
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
    line_start: usize,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// White space and `//` comments.
    fn skip(&mut self) {
        while let Some(b) = self.peek() {
            match b {
                b'\n' => {
                    self.line += 1;
                    self.line_start = self.at + 1;
                }
                b if b.is_ascii_whitespace() => {}
                b'/' if self.bytes.get(self.at + 1) == Some(&b'/') => {
                    while self.peek().is_some_and(|b| b != b'\n') {
                        self.at += 1;
                    }
                    continue;
                }
                _ => return,
            }
            self.at += 1;
        }
    }

    fn take(&mut self, ok: impl Fn(u8) -> bool) -> String {
        let start = self.at;
        while self.peek().is_some_and(&ok) {
            self.at += 1;
        }
        self.bytes[start..self.at].iter().map(|b| *b as char).collect()
    }

    fn token(&mut self) -> Result<Token, String> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || b == b'$';
        let Some(b) = self.peek() else { return Ok(Token::End) };
        match b {
            b'%' | b'@' => {
                self.at += 1;
                let name = self.take(|b| word(b) || b == b'-');
                match name.as_str() {
                    "" => Err(format!("a name must follow `{}`", b as char)),
                    _ if b == b'%' => Ok(Token::Value(name)),
                    _ => Ok(Token::Symbol(name)),
                }
            }
            b'"' => self.string(),
            b'-' if self.bytes.get(self.at + 1) == Some(&b'>') => {
                self.at += 2;
                Ok(Token::Arrow)
            }
            b'0'..=b'9' | b'-' => self.number(),
            b if b.is_ascii_alphabetic() || b == b'_' => Ok(Token::Word(self.take(word))),
            b'(' | b')' | b'{' | b'}' | b'[' | b']' | b'<' | b'>' | b',' | b':' | b'=' | b'?' => {
                self.at += 1;
                Ok(Token::Punct(b as char))
            }
            b => Err(format!("unexpected character {:?}", b as char)),
        }
    }

    fn string(&mut self) -> Result<Token, String> {
        self.at += 1;
        let mut bytes = vec![];
        loop {
            match self.peek() {
                None | Some(b'\n') => return Err("the string has no end".to_string()),
                Some(b'"') => break,
                Some(b'\\') => {
                    let hex = self
                        .bytes
                        .get(self.at + 1..self.at + 3)
                        .and_then(|h| std::str::from_utf8(h).ok());
                    let escaped = match self.bytes.get(self.at + 1) {
                        Some(c @ (b'"' | b'\\')) => Some((*c, 2)),
                        _ => hex.and_then(|h| u8::from_str_radix(h, 16).ok()).map(|b| (b, 3)),
                    };
                    let (b, len) = escaped.ok_or("a `\\` in a string wants two hex digits")?;
                    bytes.push(b);
                    self.at += len;
                }
                Some(b) => {
                    bytes.push(b);
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        String::from_utf8(bytes)
            .map(Token::Str)
            .map_err(|_| "the string is not UTF-8".to_string())
    }

    fn number(&mut self) -> Result<Token, String> {
        let start = self.at;
        if self.bytes[self.at..].starts_with(b"0x") && self.bytes.get(self.at + 2).is_some_and(u8::is_ascii_hexdigit) {
            self.at += 2;
            let digits = self.take(|b| b.is_ascii_hexdigit());
            // `0x4xf32` in a shape is the size 0, then `x`: only sixteen digits are the bits of a float.
            if digits.len() == 16 {
                return u64::from_str_radix(&digits, 16)
                    .map(|b| Token::Float(f64::from_bits(b)))
                    .map_err(|e| e.to_string());
            }
            self.at = start;
        }
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        self.take(|b| b.is_ascii_digit());
        let mut float = false;
        if self.peek() == Some(b'.') {
            float = true;
            self.at += 1;
            self.take(|b| b.is_ascii_digit());
        }
        if float && matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'-' | b'+')) {
                self.at += 1;
            }
            self.take(|b| b.is_ascii_digit());
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).map_err(|e| e.to_string())?;
        match float {
            true => text
                .parse()
                .map(Token::Float)
                .map_err(|_| format!("`{text}` is no number")),
            false => text
                .parse()
                .map(Token::Int)
                .map_err(|_| format!("`{text}` is no number")),
        }
    }
}
