//! Evaluates every term of every class on small random tensors: alternatives that disagree are a wrong rule.
//!
//! Checking only what was extracted proves little: a wrong side that is never chosen would pass. Values live over the whole space
//! of index assignments, so nothing here relies on the analysis that the rules' conditions use.

use std::collections::HashMap;

use egg::{Id, Language};

use super::analysis::Graph;
use super::term::{Domain, Index, Tables, Term};

/// What an e-class is on one assignment of sizes and leaves.
#[derive(Clone, Debug)]
enum Value {
    Tensor(Vec<f64>),
    Truth(Vec<bool>),
    Index(Index),
    /// x where the measure lives, over the stream too.
    Measure {
        stream: Index,
        x: Vec<f64>,
        inside: Vec<bool>,
    },
}

/// All assignments of the indices, row-major.
pub struct Space {
    sizes: Vec<usize>,
    strides: Vec<usize>,
    len: usize,
    /// Positions of row 0, by sequence.
    starts: Vec<i64>,
    seed: u64,
}

impl Space {
    /// Small sizes: `row` and `key` indices of masks long enough to cross windows.
    pub fn new(tables: &Tables, sizes: &dyn Fn(Index) -> usize, seed: u64) -> Space {
        let sizes: Vec<usize> = (0..tables.indices.len()).map(|i| sizes(Index(i as u32))).collect();
        let mut strides = vec![1; sizes.len()];
        for i in (0..sizes.len().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * sizes[i + 1];
        }
        let len = sizes.iter().product();
        let starts = (0..8).map(|b| (hash(&[seed, 99, b]) % 4) as i64).collect();
        Space {
            sizes,
            strides,
            len,
            starts,
            seed,
        }
    }

    fn at(&self, point: usize, i: Index) -> usize {
        point / self.strides[i.0 as usize] % self.sizes[i.0 as usize]
    }

    /// The points that differ from `point` in `i` alone.
    fn line(&self, point: usize, i: Index) -> impl Iterator<Item = usize> {
        let (stride, size) = (self.strides[i.0 as usize], self.sizes[i.0 as usize]);
        let base = point - self.at(point, i) * stride;
        (0..size).map(move |n| base + n * stride)
    }
}

fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0x9e37_79b9_7f4a_7c15, |h, w| {
        let mut h = (h ^ w).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^= h >> 33;
        h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ (h >> 29)
    })
}

/// Two terms of one class that differ, told.
#[derive(Debug, Clone, PartialEq)]
pub struct Disagreement {
    pub class: Id,
    pub first: String,
    pub other: String,
}

/// All classes whose terms disagree; empty if every alternative is the same function.
pub fn audit(graph: &Graph, space: &Space) -> Vec<Disagreement> {
    let mut values: HashMap<Id, (Value, &Term)> = HashMap::new();
    let mut wrong = vec![];
    // A class has a value as soon as one of its terms can be computed; acyclic terms make progress in every round.
    loop {
        let before = values.len();
        for class in graph.classes() {
            if values.contains_key(&class.id) {
                continue;
            }
            let ready = |t: &&Term| t.all(|c| values.contains_key(&graph.find(c)));
            if let Some(term) = class.nodes.iter().find(ready)
                && let Some(v) = value(graph, space, &values, term)
            {
                values.insert(class.id, (v, term));
            }
        }
        if values.len() == before {
            break;
        }
    }
    for class in graph.classes() {
        let Some((first, one)) = values.get(&class.id) else {
            continue;
        };
        for term in &class.nodes {
            if term == *one || !term.all(|c| values.contains_key(&graph.find(c))) {
                continue;
            }
            let other = value(graph, space, &values, term);
            if !other.is_some_and(|other| alike(space, first, &other)) {
                wrong.push(Disagreement {
                    class: class.id,
                    first: one.to_string(),
                    other: term.to_string(),
                });
            }
        }
    }
    wrong
}

fn close(a: f64, b: f64) -> bool {
    // Infinities are alike only if they are equal, NaN never: a term that may be NaN is not to be trusted.
    a == b || (a.is_finite() && b.is_finite() && (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs())))
}

fn alike(space: &Space, a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Tensor(a), Value::Tensor(b)) => a.iter().zip(b).all(|(a, b)| close(*a, *b)),
        (Value::Truth(a), Value::Truth(b)) => a == b,
        (Value::Index(a), Value::Index(b)) => a == b,
        (
            Value::Measure { stream: s, x, inside },
            Value::Measure {
                stream: t,
                x: y,
                inside: other,
            },
        ) => s == t && inside == other && (0..space.len).all(|p| !inside[p] || close(x[p], y[p])),
        _ => false,
    }
}

fn value(graph: &Graph, space: &Space, values: &HashMap<Id, (Value, &Term)>, term: &Term) -> Option<Value> {
    let of = |id: &Id| values.get(&graph.find(*id)).map(|(v, _)| v);
    let tensor = |id: &Id| match of(id)? {
        Value::Tensor(v) => Some(v),
        _ => None,
    };
    let truth = |id: &Id| match of(id)? {
        Value::Truth(v) => Some(v),
        _ => None,
    };
    let index = |id: &Id| match of(id)? {
        Value::Index(i) => Some(*i),
        _ => None,
    };
    let map = |a: &Id, f: fn(f64) -> f64| Some(Value::Tensor(tensor(a)?.iter().map(|x| f(*x)).collect()));
    let zip = |a: &Id, b: &Id, f: fn(f64, f64) -> f64| {
        Some(Value::Tensor(
            tensor(a)?.iter().zip(tensor(b)?).map(|(x, y)| f(*x, *y)).collect(),
        ))
    };
    let points = 0..space.len;
    match term {
        Term::Add([a, b]) => zip(a, b, |x, y| x + y),
        Term::Sub([a, b]) => zip(a, b, |x, y| x - y),
        Term::Mul([a, b]) => zip(a, b, |x, y| x * y),
        Term::Div([a, b]) => zip(a, b, |x, y| if x == 0.0 { 0.0 } else { x / y }),
        Term::Max([a, b]) => zip(a, b, f64::max),
        Term::Neg(a) => map(a, |x| -x),
        Term::Exp(a) => map(a, f64::exp),
        Term::Log(a) => map(a, |x| x.abs().ln()),
        Term::Rsqrt(a) => map(a, |x| 1.0 / x.abs().sqrt()),
        Term::Sigmoid(a) => map(a, |x| 1.0 / (1.0 + (-x).exp())),
        Term::Silu(a) => map(a, |x| x / (1.0 + (-x).exp())),
        Term::Where([d, a, b]) => {
            let (d, a, b) = (truth(d)?, tensor(a)?, tensor(b)?);
            Some(Value::Tensor(points.map(|p| if d[p] { a[p] } else { b[p] }).collect()))
        }
        Term::And([a, b]) => {
            let (a, b) = (truth(a)?, truth(b)?);
            Some(Value::Truth(points.map(|p| a[p] && b[p]).collect()))
        }
        Term::Sum([j, d, x]) => {
            let (j, d, x) = (index(j)?, truth(d)?, tensor(x)?);
            let sum = |p| space.line(p, j).filter(|p| d[*p]).map(|p| x[p]).sum();
            Some(Value::Tensor(points.map(sum).collect()))
        }
        Term::RowMax([j, d, x]) => {
            let (j, d, x) = (index(j)?, truth(d)?, tensor(x)?);
            Some(Value::Tensor(points.map(|p| maximum(space, j, d, x, p)).collect()))
        }
        Term::Measure([j, d, x]) => Some(Value::Measure {
            stream: index(j)?,
            x: tensor(x)?.clone(),
            inside: truth(d)?.clone(),
        }),
        Term::Extend([s, d]) => {
            let Value::Measure { stream, x, inside } = of(s)? else {
                return None;
            };
            let d = truth(d)?;
            // A key counted twice is no measure any more.
            let twice = points.clone().any(|p| inside[p] && d[p]);
            (!twice).then(|| Value::Measure {
                stream: *stream,
                x: x.clone(),
                inside: points.map(|p| inside[p] || d[p]).collect(),
            })
        }
        Term::Integral([s, f]) => {
            let (Value::Measure { stream, x, inside }, f) = (of(s)?, tensor(f)?) else {
                return None;
            };
            let integral = |p| {
                let max = maximum(space, *stream, inside, x, p);
                let inside = space.line(p, *stream).filter(|p| inside[*p]);
                inside.map(|p| (x[p] - max).exp() * f[p]).sum()
            };
            Some(Value::Tensor(points.map(integral).collect()))
        }
        Term::Const(x) => Some(Value::Tensor(vec![x.value(); space.len])),
        Term::Index(i) => Some(Value::Index(*i)),
        Term::Domain(d) => Some(Value::Truth(points.map(|p| contains(graph, space, *d, p)).collect())),
        Term::Leaf(l) => {
            let leaf = &graph.analysis.tables.leaves[l.0 as usize];
            let element = |p| {
                let mut words = vec![space.seed, leaf.value.0 as u64];
                words.extend(leaf.at.iter().map(|i| i.map_or(0, |i| space.at(p, i) as u64)));
                // In (-2, 2), never 0: leaves divide.
                (hash(&words) % 4000) as f64 / 1000.0 - 1.9995
            };
            Some(Value::Tensor(points.map(element).collect()))
        }
    }
}

/// Over nothing, and over nothing but -inf: 0.
fn maximum(space: &Space, j: Index, inside: &[bool], x: &[f64], p: usize) -> f64 {
    let inside = space.line(p, j).filter(|p| inside[*p]);
    let max = inside.map(|p| x[p]).fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY { 0.0 } else { max }
}

fn contains(graph: &Graph, space: &Space, d: Domain, p: usize) -> bool {
    let Domain::Cells { pair, bits } = d else {
        return true;
    };
    let pair = &graph.analysis.tables.pairs[pair as usize];
    let row = pair.row.map_or(0, |i| space.at(p, i) as i64);
    let start = pair
        .start
        .map_or(0, |(_, b)| space.starts[b.map_or(0, |b| space.at(p, b)) % 8]);
    pair.contains(bits, start + row - space.at(p, pair.key) as i64)
}
