//! From the chosen terms back to the graph: chains of measures become `sweep` ops, their means `mean`.
//!
//! Only what the rules changed is written anew; a class without a measure in it is still the value it came from. A choice that
//! has no ops (scores that are no scaled product of queries and keys) leaves its root as it was.

use std::collections::HashMap;

use egg::{Id, Language};
use ir::{Attr, Attrs, DType, Function, ValueId};

use super::analysis::Graph;
use super::cost::{Choice, Model};
use super::import::{At, Import};
use super::term::{Domain, Index, Term};

/// Rewrites `f`; says which roots changed.
pub fn export(f: &mut Function, import: &Import, choice: &Choice) -> Vec<ValueId> {
    let roots: Vec<Id> = import.roots.iter().map(|r| r.1).collect();
    let model = Model::new(&import.graph, &roots);
    let mut values: HashMap<Id, Vec<(ValueId, At)>> = HashMap::new();
    for (v, at, id) in &import.terms {
        values.entry(import.graph.find(*id)).or_default().push((*v, at.clone()));
    }
    let old = f.ops.len();
    let mut exporter = Exporter {
        f,
        graph: &import.graph,
        model,
        choice,
        values,
        measured: HashMap::new(),
        built: HashMap::new(),
        states: HashMap::new(),
    };
    let mut replaced: HashMap<ValueId, ValueId> = HashMap::new();
    for (v, id, at) in &import.roots {
        let id = exporter.graph.find(*id);
        if !exporter.has_measure(id) {
            continue;
        }
        if let Some(new) = exporter.root(*v, id, at) {
            replaced.insert(*v, new);
        }
    }
    // Only readers outside the terms see the new values; the old terms die.
    for op in &mut f.ops[..old] {
        op.operands
            .iter_mut()
            .for_each(|v| *v = replaced.get(v).copied().unwrap_or(*v));
    }
    f.returns
        .iter_mut()
        .for_each(|(_, v)| *v = replaced.get(v).copied().unwrap_or(*v));
    crate::order::sort(f);
    let mut changed: Vec<ValueId> = replaced.into_keys().collect();
    changed.sort();
    changed
}

struct Exporter<'a> {
    f: &'a mut Function,
    graph: &'a Graph,
    model: Model<'a>,
    choice: &'a Choice,
    /// The graph's own values of a class.
    values: HashMap<Id, Vec<(ValueId, At)>>,
    measured: HashMap<Id, bool>,
    built: HashMap<Id, Option<(ValueId, At)>>,
    /// Sweeps by measure and integrand.
    states: HashMap<(Id, Id), Option<(ValueId, At)>>,
}

impl Exporter<'_> {
    /// Is there a measure under this class?
    fn has_measure(&mut self, id: Id) -> bool {
        let id = self.graph.find(id);
        if let Some(known) = self.measured.get(&id) {
            return *known;
        }
        let term = self.model.term(self.choice, id);
        let children = term.children().to_vec();
        let has = matches!(term, Term::Measure(_)) || children.into_iter().any(|c| self.has_measure(c));
        self.measured.insert(id, has);
        has
    }

    /// The class in the type and layout of the root it replaces.
    fn root(&mut self, v: ValueId, id: Id, at: &At) -> Option<ValueId> {
        let (new, own) = self.value(id)?;
        let new = if own == *at {
            new
        } else {
            // Axes of size 1 have no index: any of them will do, each once.
            let mut perm: Vec<i64> = vec![];
            for i in at {
                let free = |p: &usize| own[*p] == *i && !perm.contains(&(*p as i64));
                perm.push((0..own.len()).find(free)? as i64);
            }
            if perm.len() != own.len() {
                return None;
            }
            self.f.transpose(new, &perm)
        };
        let ty = self.f.ty(v).clone();
        let new = self.f.cast(new, ty.dtype);
        (self.f.ty(new).shape == ty.shape).then_some(new)
    }

    /// The class as an f32 value, and its indices.
    fn value(&mut self, id: Id) -> Option<(ValueId, At)> {
        let id = self.graph.find(id);
        if let Some(known) = self.built.get(&id) {
            return known.clone();
        }
        let made = self.make(id);
        self.built.insert(id, made.clone());
        made
    }

    fn make(&mut self, id: Id) -> Option<(ValueId, At)> {
        if !self.has_measure(id)
            && let Some((v, at)) = self.values.get(&id).and_then(|list| list.first()).cloned()
        {
            return Some((self.f.cast(v, DType::F32), at));
        }
        let term = self.model.term(self.choice, id).clone();
        match &term {
            Term::Const(x) => Some((self.f.scalar(x.value(), DType::F32), vec![])),
            Term::Div([a, b]) if self.model.is_mean(self.choice, *a, *b) => {
                let Term::Integral([s, x]) = *self.model.term(self.choice, self.graph.find(*a)) else {
                    return None;
                };
                let (state, at) = self.state(s, x)?;
                let mean = self.f.try_op("mean", &[state], Attrs::new()).ok()?;
                Some((mean, at))
            }
            Term::Add(_) | Term::Sub(_) | Term::Mul(_) | Term::Div(_) | Term::Max(_) => {
                let name = term.to_string();
                let args: Vec<(ValueId, At)> = term.children().iter().map(|c| self.value(*c)).collect::<Option<_>>()?;
                let at = aligned(&args[0].1, &args[1].1)?;
                let v = self.f.try_op(&name, &[args[0].0, args[1].0], Attrs::new()).ok()?;
                Some((v, at))
            }
            Term::Neg(x) | Term::Exp(x) | Term::Log(x) | Term::Rsqrt(x) | Term::Sigmoid(x) | Term::Silu(x) => {
                let (x, at) = self.value(*x)?;
                Some((self.f.try_op(&term.to_string(), &[x], Attrs::new()).ok()?, at))
            }
            Term::Sum([j, d, x]) if self.graph[*d].data.domain == Some(Domain::All) => {
                let j = self.graph[*j].data.index;
                let (x, mut at) = self.value(*x)?;
                let axis = at.iter().position(|i| *i == j)?;
                at[axis] = None;
                Some((self.f.reduce_sum(x, axis as i64), at))
            }
            _ => None,
        }
    }

    /// The sweep that integrates `f` under the measure `s`.
    fn state(&mut self, s: Id, f: Id) -> Option<(ValueId, At)> {
        let key = (self.graph.find(s), self.graph.find(f));
        if let Some(known) = self.states.get(&key) {
            return known.clone();
        }
        let made = match *self.model.term(self.choice, key.0) {
            Term::Measure([_, d, _]) => self.sweeps(key, d, None),
            Term::Extend([before, d]) => {
                let before = self.state(before, key.1);
                before.and_then(|b| self.sweeps(key, d, Some(b.0)))
            }
            _ => None,
        };
        self.states.insert(key, made.clone());
        made
    }

    /// One sweep for each interval of distances, the nearest first.
    fn sweeps(&mut self, (s, f): (Id, Id), d: Id, mut state: Option<ValueId>) -> Option<(ValueId, At)> {
        let (j, x) = self.model.head(self.choice, s)?;
        let Some(Domain::Cells { pair, bits }) = self.graph[d].data.domain else {
            return None;
        };
        let pair = self.graph.analysis.tables.pairs[pair as usize].clone();
        if bits & 1 == 1 || pair.key != j {
            return None;
        }
        let (q, k, scale) = self.scores(x, j)?;
        // Queries at [.., row, d], keys at [.., j, d], values at [.., j, e].
        let q = self.layout(q, |at| at.len() > 2 && at[at.len() - 2] == pair.row)?;
        let depth = *q.1.last()?;
        let k = self.layout(k, |at| {
            at.len() == q.1.len() && at.last() == Some(&depth) && at[at.len() - 2] == Some(j)
        })?;
        let v = self.layout(f, |at| at.len() == q.1.len() && at[at.len() - 2] == Some(j))?;
        let mut at = q.1.clone();
        *at.last_mut()? = *v.1.last()?;
        for (near, far) in pair.intervals(bits) {
            let mut operands = vec![q.0, k.0, v.0];
            let mut attrs = Attrs::from([
                ("scale".to_string(), Attr::Float(scale)),
                ("near".to_string(), Attr::Int(near)),
            ]);
            if let Some(far) = far {
                attrs.insert("far".to_string(), Attr::Int(far));
            }
            if let Some((start, b)) = pair.start {
                if b.is_some() && q.1[0] != b {
                    return None;
                }
                operands.push(start);
                attrs.insert("starts".to_string(), Attr::Bool(true));
            }
            if let Some(before) = state {
                operands.push(before);
                attrs.insert("continues".to_string(), Attr::Bool(true));
            }
            state = Some(self.f.try_op("sweep", &operands, attrs).ok()?);
        }
        Some((state?, at))
    }

    /// x as scale * sum over d of q * k, with k the factor that changes with j.
    fn scores(&self, x: Id, j: Index) -> Option<(Id, Id, f64)> {
        let class = &self.graph[self.graph.find(x)];
        for term in &class.nodes {
            match term {
                Term::Sum([_, d, body]) if self.graph[*d].data.domain == Some(Domain::All) => {
                    for product in &self.graph[*body].nodes {
                        if let Term::Mul([a, b]) = product {
                            let moves = |id: &Id| self.graph[*id].data.free >> j.0 & 1 == 1;
                            match (moves(a), moves(b)) {
                                (false, true) => return Some((*a, *b, 1.0)),
                                (true, false) => return Some((*b, *a, 1.0)),
                                _ => {}
                            }
                        }
                    }
                }
                Term::Mul([a, b]) => {
                    for (x, factor) in [(a, b), (b, a)] {
                        if let Some(c) = self.number(*factor)
                            && let Some((q, k, scale)) = self.scores(*x, j)
                        {
                            return Some((q, k, scale * c));
                        }
                    }
                }
                Term::Div([x, factor]) => {
                    if let Some(c) = self.number(*factor)
                        && let Some((q, k, scale)) = self.scores(*x, j)
                    {
                        return Some((q, k, scale / c));
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn number(&self, id: Id) -> Option<f64> {
        self.graph[id].nodes.iter().find_map(|n| match n {
            Term::Const(x) => Some(x.value()),
            _ => None,
        })
    }

    /// A value of the class whose indices fit; the narrowest type wins, since products are made in it.
    fn layout(&self, id: Id, fits: impl Fn(&At) -> bool) -> Option<(ValueId, At)> {
        let list = self.values.get(&self.graph.find(id))?;
        let fitting = list.iter().filter(|(_, at)| fits(at));
        fitting.min_by_key(|(v, _)| (self.f.ty(*v).dtype.bytes(), *v)).cloned()
    }
}

/// The indices of a broadcast result; `None` if the operands' dimensions do not line up.
fn aligned(a: &At, b: &At) -> Option<At> {
    let rank = a.len().max(b.len());
    let of = |x: &At, d: usize| (d + x.len() >= rank).then(|| x[d + x.len() - rank]).flatten();
    (0..rank)
        .map(|d| match (of(a, d), of(b, d)) {
            (Some(i), Some(j)) if i != j => None,
            (i, j) => Some(i.or(j)),
        })
        .collect()
}
