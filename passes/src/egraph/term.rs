//! The e-graph's language: index notation over the graph's element-wise ops, reductions and masks.
//!
//! Every expression carries named indices; broadcasting and transposition are by name. `sum` and `rmax` name the index they
//! reduce and its domain. A *measure* is exp(x) on a domain with its running maximum implied: `acc` integrates under it. Casts
//! are not terms: the language speaks of real numbers, and the types come back where values are stored.

use std::fmt;
use std::str::FromStr;

use egg::{Id, define_language};
use ir::{Size, ValueId};

define_language! {
    pub enum Term {
        "add" = Add([Id; 2]),
        "sub" = Sub([Id; 2]),
        "mul" = Mul([Id; 2]),
        "div" = Div([Id; 2]),
        "max" = Max([Id; 2]),
        "neg" = Neg(Id),
        "exp" = Exp(Id),
        "log" = Log(Id),
        "rsqrt" = Rsqrt(Id),
        "sigmoid" = Sigmoid(Id),
        "silu" = Silu(Id),
        // (domain, inside, outside)
        "where" = Where([Id; 3]),
        // Both domains.
        "and" = And([Id; 2]),
        // (index, domain, body)
        "sum" = Sum([Id; 3]),
        "rmax" = RowMax([Id; 3]),
        // (index, domain, x): the measure exp(x) on the domain.
        "st" = Measure([Id; 3]),
        // (measure, domain): the same measure continued over more keys.
        "ext" = Extend([Id; 2]),
        // (measure, f): f integrated under it, relative to its maximum.
        "acc" = Integral([Id; 2]),
        Const(Number),
        Index(Index),
        Domain(Domain),
        Leaf(Leaf),
    }
}

/// An index by its number in [`Tables::indices`]: `j2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Index(pub u32);

/// A set of indices.
pub type Indices = u128;

impl Index {
    pub fn bit(self) -> Indices {
        1 << self.0
    }
}

/// A value of the graph under some indices, by its number in [`Tables::leaves`]: `t4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Leaf(pub u32);

/// `#0.5`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Number(pub u64);

/// Which keys: cells of a [`Pair`] as a bit set, `@1:6`; or all of them, `@all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Domain {
    All,
    Cells { pair: u32, bits: u64 },
}

impl Domain {
    /// Both; `None` for masks over different indices.
    pub fn and(self, other: Domain) -> Option<Domain> {
        match (self, other) {
            (Domain::All, d) | (d, Domain::All) => Some(d),
            (Domain::Cells { pair: p, bits: a }, Domain::Cells { pair: q, bits: b }) if p == q => {
                Some(Domain::Cells { pair: p, bits: a & b })
            }
            _ => None,
        }
    }

    /// The cells of this that are not in `other`, of one pair.
    pub fn minus(self, other: Domain) -> Option<Domain> {
        match (self, other) {
            (Domain::Cells { pair: p, bits: a }, Domain::Cells { pair: q, bits: b }) if p == q => {
                Some(Domain::Cells { pair: p, bits: a & !b })
            }
            _ => None,
        }
    }

    pub fn is_empty(self) -> bool {
        matches!(self, Domain::Cells { bits: 0, .. })
    }
}

impl Number {
    pub fn value(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl From<f64> for Number {
    fn from(x: f64) -> Number {
        // One zero, so that equal numbers are equal terms.
        Number((if x == 0.0 { 0.0 } else { x }).to_bits())
    }
}

/// What the numbers in a term stand for.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub indices: Vec<IndexInfo>,
    pub leaves: Vec<LeafInfo>,
    pub pairs: Vec<Pair>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct IndexInfo {
    pub name: String,
    pub size: Size,
}

/// A tensor read at these indices, one per dimension; `None` where it has size 1.
#[derive(Clone, Debug, PartialEq)]
pub struct LeafInfo {
    pub value: ValueId,
    pub name: String,
    pub at: Vec<Option<Index>>,
}

/// Masks that compare a row's position with a key's: the minterms of all windows over these indices.
///
/// With the distance d = start + row - key, cell 0 is d < 0, cell i is edges[i-1] <= d < edges[i], the last cell has no end.
/// Windows are nested, so the cells are all the minterms there are.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Absent: the row is 0.
    pub row: Option<Index>,
    pub key: Index,
    /// The position of row 0, and the index of its sequences.
    pub start: Option<(ValueId, Option<Index>)>,
    /// From 0 upwards.
    pub edges: Vec<i64>,
}

impl Pair {
    /// `d` in [near, far) as cells; both are edges.
    pub fn cells(&self, near: i64, far: Option<i64>) -> u64 {
        let ends = self.edges.iter().skip(1).map(|e| Some(*e)).chain([None]);
        let inside = |from: i64, to: Option<i64>| from >= near && far.is_none_or(|far| to.is_some_and(|to| to <= far));
        self.edges
            .iter()
            .zip(ends)
            .enumerate()
            .filter(|(_, (from, to))| inside(**from, *to))
            .fold(0, |bits, (i, _)| bits | 1 << (i + 1))
    }

    /// The set of distances as intervals [near, far), the nearest first; negative distances are left out.
    pub fn intervals(&self, bits: u64) -> Vec<(i64, Option<i64>)> {
        let mut list: Vec<(i64, Option<i64>)> = vec![];
        for (i, from) in self.edges.iter().enumerate() {
            if bits >> (i + 1) & 1 == 0 {
                continue;
            }
            let to = self.edges.get(i + 1).copied();
            match list.last_mut() {
                Some(last) if last.1 == Some(*from) => last.1 = to,
                _ => list.push((*from, to)),
            }
        }
        list
    }

    /// Is a distance in these cells?
    pub fn contains(&self, bits: u64, distance: i64) -> bool {
        let cell = self.edges.iter().take_while(|e| distance >= **e).count();
        bits >> cell & 1 == 1
    }

    pub fn free(&self) -> Indices {
        let start = self.start.and_then(|(_, i)| i);
        [self.row, Some(self.key), start]
            .into_iter()
            .flatten()
            .fold(0, |s, i| s | i.bit())
    }
}

impl Tables {
    pub fn index(&mut self, name: &str, size: Size) -> Index {
        match self.indices.iter().position(|i| i.name == name) {
            Some(at) => Index(at as u32),
            None => {
                self.indices.push(IndexInfo {
                    name: name.to_string(),
                    size,
                });
                Index(self.indices.len() as u32 - 1)
            }
        }
    }

    pub fn leaf(&mut self, leaf: LeafInfo) -> Leaf {
        let known = self
            .leaves
            .iter()
            .position(|l| l.value == leaf.value && l.at == leaf.at);
        Leaf(known.unwrap_or_else(|| {
            self.leaves.push(leaf);
            self.leaves.len() - 1
        }) as u32)
    }

    /// A domain as people write it: `0 <= d < 64`.
    pub fn domain(&self, d: Domain) -> String {
        let Domain::Cells { pair, bits } = d else {
            return "all".to_string();
        };
        let Some(pair) = self.pairs.get(pair as usize) else {
            return d.to_string();
        };
        let mut parts: Vec<String> = pair
            .intervals(bits)
            .iter()
            .map(|(near, far)| match far {
                Some(far) => format!("{near} <= d < {far}"),
                None => format!("{near} <= d"),
            })
            .collect();
        if bits & 1 == 1 {
            parts.push("d < 0".to_string());
        }
        if parts.is_empty() {
            "nothing".to_string()
        } else {
            parts.join(" or ")
        }
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "j{}", self.0)
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.value())
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Domain::All => f.write_str("@all"),
            Domain::Cells { pair, bits } => write!(f, "@{pair}:{bits}"),
        }
    }
}

/// A term's text names nothing that begins so.
#[derive(Debug)]
pub struct NotThis;

fn number<T: FromStr>(text: &str, prefix: char) -> Result<T, NotThis> {
    text.strip_prefix(prefix).and_then(|n| n.parse().ok()).ok_or(NotThis)
}

impl FromStr for Index {
    type Err = NotThis;
    fn from_str(s: &str) -> Result<Index, NotThis> {
        number(s, 'j').map(Index)
    }
}

impl FromStr for Leaf {
    type Err = NotThis;
    fn from_str(s: &str) -> Result<Leaf, NotThis> {
        number(s, 't').map(Leaf)
    }
}

impl FromStr for Number {
    type Err = NotThis;
    fn from_str(s: &str) -> Result<Number, NotThis> {
        number::<f64>(s, '#').map(Number::from)
    }
}

impl FromStr for Domain {
    type Err = NotThis;
    fn from_str(s: &str) -> Result<Domain, NotThis> {
        if s == "@all" {
            return Ok(Domain::All);
        }
        let (pair, bits) = s.strip_prefix('@').and_then(|s| s.split_once(':')).ok_or(NotThis)?;
        Ok(Domain::Cells {
            pair: pair.parse().map_err(|_| NotThis)?,
            bits: bits.parse().map_err(|_| NotThis)?,
        })
    }
}
