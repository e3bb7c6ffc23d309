//! Statements of a function: registers, labels, instructions and their operands.

use super::ParseError;
use super::ast::*;
use super::lex::Token;
use super::parse::Parser;

type Result<T> = std::result::Result<T, ParseError>;

impl Parser<'_> {
    /// Up to and with the closing brace.
    pub(super) fn items(&mut self) -> Result<Vec<Item>> {
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

    pub(super) fn operand(&mut self) -> Result<Operand> {
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
