//! A graph's function as terms: which values are leaves, what their indices are called, and one term per root.
//!
//! Terms are made from the roots downwards: a value asked for at other indices is another term (keys are read at j where queries
//! are read at i). A contraction's index is named after the dimension it runs over, so that two softmaxes of one score matrix
//! speak of the same keys.
//!
//! A dimension of size 1 has no index, whether it is broadcast or not: [B, 1, G, T, D] is [B, G, T, D] to the terms, and one KV head
//! is none. Only what a reduction runs over always has one: a sum over one key is a sum.

use std::collections::{HashMap, HashSet, VecDeque};

use egg::Id;
use ir::{Attr, Function, Op, Size, ValueId};

use super::analysis::{Facts, Graph};
use super::names::{Names, is_one, is_term, reduced, same_but_ones};
use super::term::{Domain, Index, LeafInfo, Number, Pair, Tables, Term};
use crate::attrs::{flag, float, int, ints};

/// The indices of a value's dimensions; `None` where the size is 1 and nothing reduces it.
pub type At = Vec<Option<Index>>;

/// A function in the e-graph.
pub struct Import {
    pub graph: Graph,
    /// Values that something outside the terms reads: their term and indices, in the order of the ops.
    pub roots: Vec<(ValueId, Id, At)>,
    /// Every value that became a term, at the indices it was asked for.
    pub terms: Vec<(ValueId, At, Id)>,
}

pub fn import(f: &Function) -> Import {
    let mut importer = Importer {
        f,
        ops: HashMap::new(),
        names: Names::new(f),
        graph: Graph::new(Facts::default()),
        known: HashMap::new(),
        terms: vec![],
        edges: edges(f),
        cut: vec![],
    };
    for op in &f.ops {
        if is_term(f, op) {
            importer.ops.insert(op.results[0], op);
        }
    }
    let mut roots = vec![];
    let mut open: VecDeque<ValueId> = roots_of(f, &importer.ops).into();
    let mut seen: HashSet<ValueId> = open.iter().copied().collect();
    while let Some(v) = open.pop_front() {
        let mut at = vec![];
        for d in 0..f.ty(v).rank() {
            let i = (!is_one(f, v, d)).then(|| importer.dimension(v, d, &at));
            at.push(i);
        }
        let id = importer.term(v, &at);
        roots.push((v, id, at));
        // What a leaf is made of is a root too.
        let made: Vec<ValueId> = importer.cut.drain(..).collect();
        open.extend(
            made.into_iter()
                .filter(|v| importer.ops.contains_key(v) && seen.insert(*v)),
        );
    }
    let mut graph = importer.graph;
    graph.rebuild();
    let terms = importer.terms;
    Import { graph, roots, terms }
}

/// About how many indices the function's terms need.
pub fn indices(f: &Function) -> usize {
    let names = Names::new(f);
    let mut classes = HashSet::new();
    for op in f.ops.iter().filter(|op| is_term(f, op)) {
        for v in op.operands.iter().chain(&op.results) {
            let real = |d: &usize| !is_one(f, *v, *d);
            classes.extend((0..f.ty(*v).rank()).filter(real).map(|d| names.find(*v, d)));
        }
        classes.extend(reduced(f, op).map(|d| names.find(op.operands[0], d)));
    }
    classes.len()
}

/// Where windows end, 0 first: every mask of a function has the same cells.
pub fn edges(f: &Function) -> Vec<i64> {
    let windows = f.ops.iter().filter(|op| op.name == "mask").filter_map(window);
    let mut edges: Vec<i64> = windows.chain([0]).collect();
    edges.sort();
    edges.dedup();
    edges
}

fn window(op: &Op) -> Option<i64> {
    match op.attrs.get("window") {
        Some(Attr::Int(w)) => Some(*w),
        _ => None,
    }
}

/// Values that are terms and are read by an op that is none, or returned.
fn roots_of(f: &Function, ops: &HashMap<ValueId, &Op>) -> Vec<ValueId> {
    let mut read: Vec<ValueId> = f
        .ops
        .iter()
        .filter(|op| !ops.contains_key(&op.results[0]))
        .flat_map(|op| op.operands.iter().copied())
        .chain(f.returns.iter().map(|(_, v)| *v))
        .collect();
    read.sort();
    read.dedup();
    read.retain(|v| ops.contains_key(v));
    read
}

struct Importer<'f> {
    f: &'f Function,
    ops: HashMap<ValueId, &'f Op>,
    names: Names,
    graph: Graph,
    known: HashMap<(ValueId, At), Id>,
    terms: Vec<(ValueId, At, Id)>,
    /// Of every mask's cells.
    edges: Vec<i64>,
    /// Operands of ops that are leaves although they have a term.
    cut: Vec<ValueId>,
}

impl Importer<'_> {
    fn tables(&mut self) -> &mut Tables {
        &mut self.graph.analysis.tables
    }

    /// The index of a dimension, another one than those in `taken`.
    fn dimension(&mut self, v: ValueId, d: usize, taken: &[Option<Index>]) -> Index {
        let class = self.names.find(v, d);
        self.index(class, &self.f.ty(v).shape[d].size(), taken)
    }

    /// Where a result is read at `at`, an operand's dimensions, its first at `from` of the result's: broadcasting reads its only element.
    fn of_result(&self, v: ValueId, result: ValueId, at: &At, dims: usize) -> At {
        let skip = at.len() - self.f.ty(v).rank();
        let broadcast = |d: usize| is_one(self.f, v, d) && !is_one(self.f, result, d + skip);
        (0..dims).map(|d| at[d + skip].filter(|_| !broadcast(d))).collect()
    }

    fn index(&mut self, class: usize, size: &Size, taken: &[Option<Index>]) -> Index {
        let mut name = format!("{class}:{size}");
        loop {
            let index = self.tables().index(&name, size.clone());
            if !taken.contains(&Some(index)) {
                return index;
            }
            name.push('\'');
        }
    }

    fn add(&mut self, term: Term) -> Id {
        self.graph.add(term)
    }

    fn number(&mut self, x: f64) -> Id {
        self.add(Term::Const(Number::from(x)))
    }

    fn term(&mut self, v: ValueId, at: &At) -> Id {
        if let Some(id) = self.known.get(&(v, at.clone())) {
            return *id;
        }
        let id = match self.ops.get(&v).copied() {
            Some(op) if !self.makes_keys(op, at) => self.op(op, v, at),
            op => {
                self.cut.extend(op.map(|op| op.operands[0]));
                let name = self.f.value_name(v).to_string();
                let leaf = LeafInfo {
                    value: v,
                    name,
                    at: at.clone(),
                };
                let leaf = self.tables().leaf(leaf);
                self.add(Term::Leaf(leaf))
            }
        };
        self.known.insert((v, at.clone()), id);
        self.terms.push((v, at.clone(), id));
        id
    }

    /// Is the op a reshape that adds a one which is read at an index, as of [B, KV, D] to one key? Its operand has no place for that
    /// index, so that terms of it could not say which of them change with the key.
    fn makes_keys(&self, op: &Op, at: &At) -> bool {
        op.name == "reshape"
            && same_but_ones(self.f, op)
                .is_some_and(|dims| dims.iter().zip(at).any(|(d, i)| d.is_none() && i.is_some()))
    }

    /// An operand that broadcasting reads at the result's indices.
    fn broadcast(&mut self, v: ValueId, result: ValueId, at: &At) -> Id {
        let own = self.of_result(v, result, at, self.f.ty(v).rank());
        self.term(v, &own)
    }

    fn op(&mut self, op: &Op, v: ValueId, at: &At) -> Id {
        let f = self.f;
        let args: Vec<Id> = match op.name.as_str() {
            "matmul" | "softmax" | "reduce_sum" | "reduce_max" | "transpose" | "reshape" | "where" | "constant" => {
                vec![]
            }
            _ => op.operands.iter().map(|x| self.broadcast(*x, v, at)).collect(),
        };
        match op.name.as_str() {
            "add" => self.add(Term::Add([args[0], args[1]])),
            "sub" => self.add(Term::Sub([args[0], args[1]])),
            "mul" => self.add(Term::Mul([args[0], args[1]])),
            "div" => self.add(Term::Div([args[0], args[1]])),
            "max" => self.add(Term::Max([args[0], args[1]])),
            "neg" => self.add(Term::Neg(args[0])),
            "exp" => self.add(Term::Exp(args[0])),
            "log" => self.add(Term::Log(args[0])),
            "rsqrt" => self.add(Term::Rsqrt(args[0])),
            "sigmoid" => self.add(Term::Sigmoid(args[0])),
            "silu" => self.add(Term::Silu(args[0])),
            "cast" => args[0],
            "constant" => self.number(float(op, "value")),
            "where" => {
                let domain = self.domain(op.operands[0], v, at);
                let [a, b] = [op.operands[1], op.operands[2]].map(|x| self.broadcast(x, v, at));
                self.add(Term::Where([domain, a, b]))
            }
            "transpose" => {
                let mut own = vec![None; at.len()];
                for (d, p) in ints(op, "perm").iter().enumerate() {
                    own[*p as usize] = at[d];
                }
                self.term(op.operands[0], &own)
            }
            "reshape" => {
                let x = op.operands[0];
                let mut own = vec![None; f.ty(x).rank()];
                for (d, o) in same_but_ones(f, op).into_iter().flatten().enumerate() {
                    if let Some(o) = o {
                        own[o] = at[d];
                    }
                }
                self.term(x, &own)
            }
            "reduce_sum" | "reduce_max" => {
                let (x, axis) = (op.operands[0], int(op, "axis") as usize);
                let mut own = at.clone();
                let j = self.dimension(x, axis, at);
                own[axis] = Some(j);
                let x = self.term(x, &own);
                self.reduce(op.name == "reduce_sum", j, x)
            }
            "softmax" => {
                let (x, last) = (op.operands[0], at.len() - 1);
                let j = at[last].unwrap_or_else(|| self.dimension(x, last, at));
                let mut own = at.clone();
                own[last] = Some(j);
                let x = self.term(x, &own);
                let max = self.reduce(false, j, x);
                let shifted = self.add(Term::Sub([x, max]));
                let e = self.add(Term::Exp(shifted));
                let sum = self.reduce(true, j, e);
                // The only element is the sum of all of them.
                let e = if at[last].is_some() { e } else { sum };
                self.add(Term::Div([e, sum]))
            }
            "matmul" => {
                let (a, b) = (op.operands[0], op.operands[1]);
                let (ra, rb) = (f.ty(a).rank(), f.ty(b).rank());
                let k = self.dimension(a, ra - 1, at);
                let mut own = self.of_result(a, v, at, ra - 1);
                own.push(Some(k));
                let x = self.term(a, &own);
                let mut own = self.of_result(b, v, at, rb - 2);
                let n = at[at.len() - 1];
                own.extend(if transposed(op) { [n, Some(k)] } else { [Some(k), n] });
                let y = self.term(b, &own);
                let product = self.add(Term::Mul([x, y]));
                self.reduce(true, k, product)
            }
            other => unreachable!("{other} ({v:?}) is no term"),
        }
    }

    fn reduce(&mut self, sum: bool, j: Index, x: Id) -> Id {
        let (j, all) = (self.add(Term::Index(j)), self.add(Term::Domain(Domain::All)));
        self.add(if sum {
            Term::Sum([j, all, x])
        } else {
            Term::RowMax([j, all, x])
        })
    }

    /// A mask at the indices of the `where` that reads it.
    fn domain(&mut self, v: ValueId, result: ValueId, at: &At) -> Id {
        let f = self.f;
        let op = f
            .ops
            .iter()
            .find(|o| o.results[0] == v)
            .expect("only masks are asked for");
        let rank = f.ty(v).rank();
        let own = self.of_result(v, result, at, rank);
        // A single key that nothing reduces: an index of its own, of size 1.
        let key = own[rank - 1].unwrap_or_else(|| self.index(usize::MAX, &Size::one(), &[]));
        self.cells(own[rank - 2], key, op, own[0])
    }

    fn cells(&mut self, row: Option<Index>, key: Index, op: &Op, b: Option<Index>) -> Id {
        let (edges, far) = (self.edges.clone(), window(op));
        let start = op.operands.first().map(|s| (*s, b));
        let pair = Pair { row, key, start, edges };
        let bits = pair.cells(0, far);
        let tables = self.tables();
        let at = match tables.pairs.iter().position(|p| *p == pair) {
            Some(at) => at,
            None => {
                tables.pairs.push(pair);
                tables.pairs.len() - 1
            }
        };
        self.add(Term::Domain(Domain::Cells { pair: at as u32, bits }))
    }
}

pub fn transposed(op: &Op) -> bool {
    flag(op, "transpose_b")
}
