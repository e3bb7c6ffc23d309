//! From tokens to the tree. Accepts what LLVM prints and what inline assembly adds: braces, several statements on a line, labels.

use super::ParseError;
use super::ast::*;
use super::lex::{Token, tokens};

type Result<T> = std::result::Result<T, ParseError>;

struct Parser<'a> {
    tokens: Vec<(Token<'a>, u32)>,
    at: usize,
}

/// Reads a whole module.
pub fn parse(text: &str) -> Result<Tree> {
    let mut p = Parser {
        tokens: tokens(text)?,
        at: 0,
    };
    let mut tree = Tree::default();
    while let Some(token) = p.peek() {
        let Token::Word(word) = token else {
            return Err(p.unexpected("a directive"));
        };
        match word {
            ".version" | ".target" | ".address_size" => {
                p.at += 1;
                let mut value = String::new();
                // `.version 9.0` is a word's worth of tokens; `.target sm_90a, debug` has commas.
                loop {
                    value += &match p.next("a value")? {
                        Token::Word(w) => w.to_owned(),
                        Token::Int(i) => i.to_string(),
                        _ => return Err(p.back("a value")),
                    };
                    if !p.eat(',') {
                        break;
                    }
                    value += ", ";
                }
                tree.header.push((word[1..].to_owned(), value));
            }
            ".file" | ".loc" | ".section" => p.skip_debug(),
            _ => p.top(&mut tree)?,
        }
    }
    Ok(tree)
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.0)
    }

    fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens.get(self.at.min(last)).map_or(1, |t| t.1)
    }

    fn unexpected(&self, wanted: &str) -> ParseError {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some(Token::Word(w)) => format!("{w:?}"),
            Some(Token::Mark(c)) => format!("{c:?}"),
            Some(other) => format!("{other:?}"),
        };
        ParseError {
            line: self.line(),
            what: format!("{found} where {wanted} was expected"),
        }
    }

    fn back(&mut self, wanted: &str) -> ParseError {
        self.at -= 1;
        self.unexpected(wanted)
    }

    fn next(&mut self, wanted: &str) -> Result<Token<'a>> {
        let token = self.peek().ok_or_else(|| self.unexpected(wanted))?;
        self.at += 1;
        Ok(token)
    }

    fn eat(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += found as usize;
        found
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        if self.eat(mark) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("{mark:?}")))
        }
    }

    fn word(&mut self, wanted: &str) -> Result<&'a str> {
        match self.next(wanted)? {
            Token::Word(w) => Ok(w),
            _ => Err(self.back(wanted)),
        }
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Token::Word(word));
        self.at += found as usize;
        found
    }

    fn int(&mut self) -> Result<u64> {
        let negative = self.eat('-');
        match self.next("a number")? {
            Token::Int(i) if negative => Ok(i.wrapping_neg()),
            Token::Int(i) => Ok(i),
            _ => Err(self.back("a number")),
        }
    }

    /// Debug directives end with their line; `.section` with its braces.
    fn skip_debug(&mut self) {
        let (line, section) = (self.line(), self.peek() == Some(Token::Word(".section")));
        while let Some(token) = self.peek() {
            if section && token == Token::Mark('}') {
                self.at += 1;
                break;
            }
            if !section && self.line() != line {
                break;
            }
            self.at += 1;
        }
    }

    fn top(&mut self, tree: &mut Tree) -> Result<()> {
        let mut external = false;
        loop {
            match self.peek() {
                Some(Token::Word(".extern")) => external = true,
                Some(Token::Word(".visible" | ".weak" | ".common")) => {}
                _ => break,
            }
            self.at += 1;
        }
        match self.peek() {
            Some(Token::Word(".entry")) => {
                self.at += 1;
                let f = self.function(true)?;
                tree.functions.push(f);
            }
            Some(Token::Word(".func")) => {
                self.at += 1;
                let f = self.function(false)?;
                tree.functions.push(f);
            }
            _ => {
                let v = self.variable(external)?;
                tree.variables.push(v);
            }
        }
        Ok(())
    }

    fn parameters(&mut self) -> Result<Vec<Parameter>> {
        let mut all = vec![];
        self.expect('(')?;
        if self.eat(')') {
            return Ok(all);
        }
        loop {
            let mut align = 0;
            let (mut ty, mut pointer) = (None, false);
            // `.param .u64 .ptr .global .align 1 name`: the alignment after .ptr is the pointee's.
            let name = loop {
                match self.word("a parameter")? {
                    ".param" | ".reg" | ".global" | ".shared" | ".const" | ".local" => {}
                    ".ptr" => pointer = true,
                    ".align" => {
                        let by = self.int()? as u32;
                        if !pointer {
                            align = by;
                        }
                    }
                    word if word.starts_with('.') => ty = Some(word[1..].to_owned()),
                    name => break name,
                }
            };
            let ty = ty.ok_or_else(|| self.back("a parameter's type"))?;
            let count = self.count()?;
            let align = align.max(if align == 0 { bytes_of(&ty) } else { 1 });
            all.push(Parameter {
                ty,
                align,
                name: name.to_owned(),
                count,
            });
            if !self.eat(',') {
                self.expect(')')?;
                return Ok(all);
            }
        }
    }

    fn count(&mut self) -> Result<Option<u64>> {
        let mut total = None;
        while self.eat('[') {
            if self.eat(']') {
                total = Some(0);
            } else {
                total = Some(total.unwrap_or(1) * self.int()?);
                self.expect(']')?;
            }
        }
        Ok(total)
    }

    fn function(&mut self, entry: bool) -> Result<Function> {
        let line = self.line();
        let results = match self.peek() {
            Some(Token::Mark('(')) => self.parameters()?,
            _ => vec![],
        };
        let name = self.word("a function's name")?.to_owned();
        let parameters = match self.peek() {
            Some(Token::Mark('(')) => self.parameters()?,
            _ => vec![],
        };
        let mut directives = vec![];
        while let Some(Token::Word(word)) = self.peek() {
            self.at += 1;
            let mut values = vec![];
            while let Some(Token::Int(value)) = self.peek() {
                self.at += 1;
                values.push(value);
                self.eat(',');
            }
            directives.push((word.trim_start_matches('.').to_owned(), values));
        }
        let body = if self.eat(';') {
            None
        } else {
            self.expect('{')?;
            Some(self.items()?)
        };
        Ok(Function {
            entry,
            name,
            results,
            parameters,
            directives,
            body,
            line,
        })
    }

    fn variable(&mut self, external: bool) -> Result<Variable> {
        let (mut align, mut space, mut ty) = (0, None, None);
        let name = loop {
            match self.word("a variable")? {
                word @ (".global" | ".shared" | ".const" | ".local" | ".param") => space = Some(word[1..].to_owned()),
                ".align" => align = self.int()? as u32,
                ".attribute" => {
                    while !self.eat(')') {
                        self.next("an attribute")?;
                    }
                }
                word if word.starts_with('.') => ty = Some(word[1..].to_owned()),
                name => break name.to_owned(),
            }
        };
        let (Some(space), Some(ty)) = (space, ty) else {
            return Err(self.back("a variable's space and type"));
        };
        let count = self.count()?;
        let mut init = vec![];
        if self.eat('=') {
            if self.eat('{') {
                while !self.eat('}') {
                    init.push(self.operand()?);
                    self.eat(',');
                }
            } else {
                init.push(self.operand()?);
            }
        }
        self.expect(';')?;
        Ok(Variable {
            space,
            external,
            align: if align == 0 { bytes_of(&ty) } else { align },
            ty,
            name,
            count,
            init,
        })
    }

    /// Up to and with the closing brace.
    fn items(&mut self) -> Result<Vec<Item>> {
        let mut all = vec![];
        loop {
            match self.peek() {
                Some(Token::Mark('}')) => {
                    self.at += 1;
                    return Ok(all);
                }
                Some(Token::Mark('{')) => {
                    self.at += 1;
                    all.push(Item::Block(self.items()?));
                }
                Some(Token::Mark(';')) => self.at += 1,
                Some(Token::Mark('@')) => all.push(self.instruction()?),
                Some(Token::Word(".reg")) => self.registers(&mut all)?,
                Some(Token::Word(".loc" | ".file")) => self.skip_debug(),
                Some(Token::Word(".pragma")) => {
                    while !self.eat(';') {
                        self.next("';'")?;
                    }
                }
                Some(Token::Word(word)) if word.starts_with('.') => {
                    let v = self.variable(false)?;
                    all.push(Item::Variable(v));
                }
                Some(Token::Word(word)) => {
                    if self.tokens.get(self.at + 1).map(|t| t.0) != Some(Token::Mark(':')) {
                        all.push(self.instruction()?);
                        continue;
                    }
                    self.at += 2;
                    if self.eat_word(".branchtargets") {
                        let mut targets = vec![];
                        while !self.eat(';') {
                            targets.push(self.word("a label")?.to_owned());
                            self.eat(',');
                        }
                        all.push(Item::Targets {
                            name: word.to_owned(),
                            targets,
                        });
                    } else {
                        all.push(Item::Label(word.to_owned()));
                    }
                }
                _ => return Err(self.unexpected("a statement")),
            }
        }
    }

    fn registers(&mut self, all: &mut Vec<Item>) -> Result<()> {
        self.at += 1;
        let ty = self.word("a register's type")?.trim_start_matches('.').to_owned();
        loop {
            let name = self.word("a register's name")?.to_owned();
            let count = if self.eat('<') {
                let n = self.int()? as u32;
                self.expect('>')?;
                Some(n)
            } else {
                None
            };
            all.push(Item::Register {
                ty: ty.clone(),
                name,
                count,
            });
            if !self.eat(',') {
                return self.expect(';');
            }
        }
    }

    fn instruction(&mut self) -> Result<Item> {
        let line = self.line();
        let guard = if self.eat('@') {
            let negated = self.eat('!');
            let name = self.word("a predicate")?.to_owned();
            Some(Guard { name, negated })
        } else {
            None
        };
        let op = self.word("an instruction")?.to_owned();
        let mut operands = vec![];
        while !self.eat(';') {
            operands.push(self.operand()?);
            if !self.eat(',') {
                self.expect(';')?;
                break;
            }
        }
        Ok(Item::Instruction(Instruction {
            line,
            guard,
            op,
            operands,
        }))
    }

    fn list(&mut self, end: char) -> Result<Vec<Operand>> {
        let mut all = vec![];
        while !self.eat(end) {
            all.push(self.operand()?);
            if !self.eat(',') {
                self.expect(end)?;
                break;
            }
        }
        Ok(all)
    }

    /// `+4`, `+-4`, `-4`, or nothing.
    fn offset(&mut self) -> Result<i64> {
        let mut offset = 0i64;
        while matches!(self.peek(), Some(Token::Mark('+' | '-'))) {
            self.eat('+');
            offset = offset.wrapping_add(self.int()? as i64);
        }
        Ok(offset)
    }

    fn operand(&mut self) -> Result<Operand> {
        let first = match self.next("an operand")? {
            Token::Word("generic") if self.eat('(') => {
                let inner = self.operand()?;
                self.expect(')')?;
                inner
            }
            Token::Word(name) => match self.peek() {
                Some(Token::Mark('+' | '-')) => match self.offset()? {
                    0 => Operand::Name(name.to_owned()),
                    by => Operand::Offset(name.to_owned(), by),
                },
                _ => Operand::Name(name.to_owned()),
            },
            Token::Int(value) => Operand::Int(value),
            Token::F32(bits) => Operand::F32(bits),
            Token::F64(bits) => Operand::F64(bits),
            Token::Mark('-') => Operand::Int(match self.next("a number")? {
                Token::Int(value) => value.wrapping_neg(),
                _ => return Err(self.back("a number")),
            }),
            Token::Mark('!') => Operand::Not(Box::new(self.operand()?)),
            Token::Mark('{') => Operand::Vector(self.list('}')?),
            Token::Mark('(') => Operand::List(self.list(')')?),
            Token::Mark('[') => {
                let (base, offset) = match self.operand()? {
                    Operand::Offset(name, by) => (Operand::Name(name), by),
                    other => (other, 0),
                };
                let rest = if self.eat(',') {
                    self.list(']')?
                } else {
                    self.expect(']').map(|()| vec![])?
                };
                Operand::Address {
                    base: Box::new(base),
                    offset,
                    rest,
                }
            }
            _ => return Err(self.back("an operand")),
        };
        if self.eat('|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.operand()?)));
        }
        Ok(first)
    }
}

/// Bytes of an element of a type, by its name.
fn bytes_of(ty: &str) -> u32 {
    crate::types::Type::parse(ty).map_or(1, |t| (t.bits() / 8).max(1))
}
