//! What the e-graph knows of a class: its free indices, whether it may hold -inf, and the index or domain it names.

use egg::{Analysis, DidMerge, EGraph, Id, Language};

use super::term::{Domain, Index, Indices, Tables, Term};

pub type Graph = EGraph<Term, Facts>;

/// The e-graph's context: what the terms' numbers mean.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub tables: Tables,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Indices the value depends on, as a bit set; the fewest that any of the class's terms has.
    pub free: Indices,
    /// No element is -inf or NaN, whatever the (finite) leaves hold.
    pub finite: bool,
    /// No element is +inf or NaN: what a mask makes of finite numbers.
    pub below: bool,
    /// The class is this index.
    pub index: Option<Index>,
    /// The class is this domain; of a measure, where it lives.
    pub domain: Option<Domain>,
    /// The index a measure streams.
    pub stream: Option<Index>,
}

impl Facts {
    fn domain_free(&self, d: Option<Domain>) -> Indices {
        match d {
            Some(Domain::Cells { pair, .. }) => self.tables.pairs[pair as usize].free(),
            _ => 0,
        }
    }
}

fn bit(i: Option<Index>) -> Indices {
    i.map_or(0, Index::bit)
}

impl Analysis<Term> for Facts {
    type Data = Data;

    fn make(egraph: &mut Graph, term: &Term, _: Id) -> Data {
        let of = |id: &Id| &egraph[*id].data;
        let facts = &egraph.analysis;
        let mut data = Data {
            free: term.fold(0, |free, id| free | of(&id).free),
            finite: term.all(|id| of(&id).finite),
            below: false,
            index: None,
            domain: None,
            stream: None,
        };
        match term {
            Term::Const(x) => data.finite = x.value().is_finite(),
            Term::Index(i) => data.index = Some(*i),
            Term::Domain(d) => {
                data.domain = Some(*d);
                data.free = facts.domain_free(Some(*d));
            }
            Term::And([a, b]) => {
                data.domain = of(a).domain.zip(of(b).domain).and_then(|(a, b)| a.and(b));
            }
            Term::Leaf(l) => {
                let at = &facts.tables.leaves[l.0 as usize].at;
                data.free = at.iter().fold(0, |s, i| s | bit(*i));
            }
            // A quotient or logarithm of a leaf may be anything; only what the rules need is claimed.
            Term::Div(_) | Term::Log(_) | Term::Rsqrt(_) => data.finite = false,
            Term::Exp(x) => data.finite = of(x).finite,
            // The maximum of nothing is 0, a sum of nothing too.
            Term::RowMax([j, ..]) => {
                data.free &= !bit(of(j).index);
                data.finite = true;
            }
            Term::Sum([j, ..]) => data.free &= !bit(of(j).index),
            Term::Measure([j, d, _]) => {
                data.stream = of(j).index;
                data.free &= !bit(data.stream);
                data.domain = of(d).domain;
            }
            Term::Extend([s, d]) => {
                data.stream = of(s).stream;
                data.free &= !bit(data.stream);
                data.domain = match (of(s).domain, of(d).domain) {
                    (Some(Domain::Cells { pair: p, bits: a }), Some(Domain::Cells { pair: q, bits: b })) if p == q => {
                        Some(Domain::Cells { pair: p, bits: a | b })
                    }
                    _ => None,
                };
            }
            Term::Integral([s, _]) => data.free &= !bit(of(s).stream),
            _ => {}
        }
        data.below = data.finite
            || match term {
                Term::Const(x) => x.value() == f64::NEG_INFINITY,
                Term::Add([a, b]) | Term::Max([a, b]) | Term::Where([_, a, b]) => of(a).below && of(b).below,
                _ => false,
            };
        data
    }

    fn merge(&mut self, a: &mut Data, b: Data) -> DidMerge {
        let old = a.clone();
        a.free &= b.free;
        a.finite |= b.finite;
        a.below |= b.below;
        a.index = a.index.or(b.index);
        a.domain = a.domain.or(b.domain);
        a.stream = a.stream.or(b.stream);
        DidMerge(*a != old, *a != b)
    }

    /// `and` of two domains is a domain.
    fn modify(egraph: &mut Graph, id: Id) {
        let data = &egraph[id].data;
        if let (Some(d), None) = (data.domain, data.stream) {
            let known = egraph.add(Term::Domain(d));
            egraph.union(id, known);
        }
    }
}
