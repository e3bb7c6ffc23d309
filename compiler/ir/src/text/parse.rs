//! Text to module. Checks names and syntax; types are the verifier's business.

use std::collections::HashMap;

use super::lexer::{Spanned, Token, lex};
use crate::graph::{Attr, Attrs, Function, Module, Op, Param, ValueId};
use crate::types::{DType, Dim, TensorType};
use crate::verify::Lines;

/// Where the text is wrong, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

/// Parses what `Module`'s `Display` prints.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    parse_with_lines(text).map(|(module, _)| module)
}

/// Also the line of each op, for the verifier's messages.
pub fn parse_with_lines(text: &str) -> Result<(Module, Lines), ParseError> {
    let mut p = Parser {
        tokens: lex(text)?,
        at: 0,
        lines: vec![],
    };
    p.word("module")?;
    p.punct('{')?;
    let mut module = Module::default();
    while !p.eat('}') {
        p.lines.push(vec![]);
        module.functions.push(p.function()?);
    }
    match p.peek() {
        Token::End => Ok((module, p.lines)),
        _ => Err(p.error("nothing may follow the module")),
    }
}

struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    lines: Lines,
}

type Result<T, E = ParseError> = std::result::Result<T, E>;

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].token
    }

    /// The next token; the last one is `End` and stays.
    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].token.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn error(&self, message: impl Into<String>) -> ParseError {
        let Spanned { line, column, .. } = self.tokens[self.at];
        ParseError {
            line,
            column,
            message: message.into(),
        }
    }

    /// An error at the token just taken.
    fn error_before<T>(&mut self, message: impl Into<String>) -> Result<T> {
        self.at = self.at.saturating_sub(1);
        Err(self.error(message))
    }

    fn eat(&mut self, c: char) -> bool {
        let found = *self.peek() == Token::Punct(c);
        if found {
            self.next();
        }
        found
    }

    fn punct(&mut self, c: char) -> Result<()> {
        if self.eat(c) {
            Ok(())
        } else {
            Err(self.error(format!("expected `{c}`")))
        }
    }

    fn word(&mut self, wanted: &str) -> Result<()> {
        match self.peek() {
            Token::Word(w) if w == wanted => {
                self.next();
                Ok(())
            }
            _ => Err(self.error(format!("expected `{wanted}`"))),
        }
    }

    fn arrow(&mut self) -> Result<()> {
        match self.peek() {
            Token::Arrow => {
                self.next();
                Ok(())
            }
            _ => Err(self.error("expected `->`")),
        }
    }

    fn string(&mut self) -> Result<String> {
        match self.next() {
            Token::Str(s) => Ok(s),
            _ => self.error_before("expected a string"),
        }
    }

    fn value(&mut self) -> Result<String> {
        match self.next() {
            Token::Value(v) => Ok(v),
            _ => self.error_before("expected a value, `%name`"),
        }
    }

    /// `item, item, ... close`, the opening already taken.
    fn list<T>(&mut self, close: char, mut item: impl FnMut(&mut Parser) -> Result<T>) -> Result<Vec<T>> {
        let mut items = vec![];
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close) {
                return Ok(items);
            }
            if !self.eat(',') {
                return Err(self.error(format!("expected `,` or `{close}`")));
            }
        }
    }

    fn function(&mut self) -> Result<Function> {
        self.word("func.func")?;
        let name = match self.next() {
            Token::Symbol(s) => s,
            _ => return self.error_before("expected a function's name, `@name`"),
        };
        let mut f = Function::new(&name);
        let mut names = HashMap::new();
        self.punct('(')?;
        self.list(')', |p| {
            let name = p.value()?;
            p.punct(':')?;
            let ty = p.ty()?;
            p.punct('{')?;
            let kind = match p.next() {
                Token::Word(w) => w,
                _ => return p.error_before("expected loop.input, loop.weight or loop.state"),
            };
            p.punct('=')?;
            let source = p.string()?;
            p.punct('}')?;
            let param = match kind.as_str() {
                "loop.input" => Param::Input(source),
                "loop.weight" => Param::Weight(source),
                "loop.state" => Param::State(source),
                _ => {
                    return Err(p.error(format!(
                        "`{kind}`: a parameter is loop.input, loop.weight or loop.state"
                    )));
                }
            };
            let v = p.define(&mut f, &mut names, name, ty)?;
            f.params.push((v, param));
            Ok(())
        })?;
        self.arrow()?;
        self.punct('(')?;
        let returns = self.list(')', |p| {
            let ty = p.ty()?;
            p.punct('{')?;
            p.word("loop.name")?;
            p.punct('=')?;
            let name = p.string()?;
            p.punct('}')?;
            Ok((name, ty))
        })?;
        self.punct('{')?;
        while !matches!(self.peek(), Token::Word(w) if w == "return") {
            self.op(&mut f, &mut names)?;
        }
        self.word("return")?;
        let mut values = vec![];
        if matches!(self.peek(), Token::Value(_)) {
            loop {
                values.push(self.operand(&names)?);
                if !self.eat(',') {
                    break;
                }
            }
            self.punct(':')?;
            for (i, v) in values.iter().enumerate() {
                if i > 0 {
                    self.punct(',')?;
                }
                let ty = self.ty()?;
                if ty != *f.ty(*v) {
                    return Err(self.error(format!("%{} is {}, returned as {ty}", f.value_name(*v), f.ty(*v))));
                }
            }
        }
        if values.len() != returns.len() || values.iter().zip(&returns).any(|(v, (_, ty))| f.ty(*v) != ty) {
            return Err(self.error(format!("@{name} returns other types than it declares")));
        }
        f.returns = returns.into_iter().map(|(name, _)| name).zip(values).collect();
        self.punct('}')?;
        Ok(f)
    }

    fn define(
        &mut self,
        f: &mut Function,
        names: &mut HashMap<String, ValueId>,
        name: String,
        ty: TensorType,
    ) -> Result<ValueId> {
        if names.contains_key(&name) {
            return Err(self.error(format!("%{name} is defined twice")));
        }
        let v = ValueId(f.values.len() as u32);
        f.values.push(crate::graph::Value { ty, name: name.clone() });
        names.insert(name, v);
        Ok(v)
    }

    fn operand(&mut self, names: &HashMap<String, ValueId>) -> Result<ValueId> {
        let name = self.value()?;
        match names.get(&name) {
            Some(v) => Ok(*v),
            None => self.error_before(format!("%{name} is not defined above")),
        }
    }

    fn op(&mut self, f: &mut Function, names: &mut HashMap<String, ValueId>) -> Result<()> {
        let line = self.tokens[self.at].line;
        self.lines.last_mut().into_iter().for_each(|ops| ops.push(line));
        let mut results = vec![];
        if matches!(self.peek(), Token::Value(_)) {
            loop {
                results.push(self.value()?);
                if !self.eat(',') {
                    break;
                }
            }
            self.punct('=')?;
        }
        let name = self.string()?;
        let Some(name) = name.strip_prefix("loop.").map(str::to_string) else {
            return self.error_before(format!("`{name}` is not of the dialect `loop`"));
        };
        self.punct('(')?;
        let operands = self.list(')', |p| p.operand(names))?;
        let mut attrs = Attrs::new();
        if self.eat('{') {
            self.list('}', |p| {
                let key = match p.next() {
                    Token::Word(w) => w,
                    _ => return p.error_before("expected an attribute's name"),
                };
                p.punct('=')?;
                let attr = p.attr()?;
                match attrs.insert(key.clone(), attr) {
                    None => Ok(()),
                    Some(_) => p.error_before(format!("the attribute {key} stands twice")),
                }
            })?;
        }
        self.punct(':')?;
        self.punct('(')?;
        let types = self.list(')', Parser::ty)?;
        if types.len() != operands.len() || operands.iter().zip(&types).any(|(v, ty)| f.ty(*v) != ty) {
            return Err(self.error(format!(
                "loop.{name}: the operands' types are not those of their values"
            )));
        }
        self.arrow()?;
        let types = if self.eat('(') {
            self.list(')', Parser::ty)?
        } else {
            vec![self.ty()?]
        };
        if types.len() != results.len() {
            return Err(self.error(format!(
                "loop.{name}: {} results with {} types",
                results.len(),
                types.len()
            )));
        }
        let mut ids = vec![];
        for (name, ty) in results.into_iter().zip(types) {
            ids.push(self.define(f, names, name, ty)?);
        }
        f.ops.push(Op {
            name,
            operands,
            attrs,
            results: ids,
        });
        Ok(())
    }

    fn attr(&mut self) -> Result<Attr> {
        if matches!(self.peek(), Token::Word(w) if w == "tensor") {
            return Ok(Attr::Type(self.ty()?));
        }
        let attr = match self.next() {
            Token::Int(i) => Attr::Int(i),
            Token::Float(x) => Attr::Float(x),
            Token::Str(s) => Attr::Str(s),
            Token::Word(w) if w == "true" || w == "false" => Attr::Bool(w == "true"),
            Token::Punct('[') => Attr::Ints(self.list(']', |p| match p.next() {
                Token::Int(i) => Ok(i),
                _ => p.error_before("expected an integer"),
            })?),
            _ => {
                return self
                    .error_before("expected an attribute: a number, string, type, list of integers, true or false");
            }
        };
        match (&attr, self.peek()) {
            (Attr::Int(_), Token::Punct(':')) => {
                self.next();
                self.word("i64")?;
            }
            (Attr::Float(_), Token::Punct(':')) => {
                self.next();
                self.word("f64")?;
            }
            _ => {}
        }
        Ok(attr)
    }

    /// `tensor<?x3xf32, ["B"]>`. The lexer cuts `x3xf32` into words and numbers; they are read as one text.
    fn ty(&mut self) -> Result<TensorType> {
        self.word("tensor")?;
        self.punct('<')?;
        let mut text = String::new();
        loop {
            match self.peek() {
                Token::Word(w) => text += w,
                Token::Int(i) => text += &i.to_string(),
                Token::Punct('?') => text.push('?'),
                _ => break,
            }
            self.next();
        }
        let mut parts: Vec<&str> = text.split('x').collect();
        let element = parts.pop().unwrap_or_default();
        let Some(dtype) = DType::from_name(element) else {
            return Err(self.error(format!("`{element}` is no element type")));
        };
        let mut names = vec![];
        if self.eat(',') {
            self.punct('[')?;
            names = self.list(']', Parser::string)?;
        }
        self.punct('>')?;
        let mut symbols = names.iter();
        let mut shape = vec![];
        for part in parts {
            shape.push(match part {
                "?" => match symbols.next() {
                    Some(s) if !s.is_empty() => Dim::sym(s),
                    _ => return Err(self.error("each `?` of a type wants a name: tensor<?xf32, [\"T\"]>")),
                },
                n => match n.parse::<i64>() {
                    Ok(n) if (0..1 << 40).contains(&n) => Dim::Const(n),
                    _ => return Err(self.error(format!("`{n}` is no size"))),
                },
            });
        }
        if symbols.next().is_some() {
            return Err(self.error("a type has more names than `?`"));
        }
        Ok(TensorType { shape, dtype })
    }
}
