//! From the chosen terms back to the graph: chains of measures become `sweep` ops, their means `mean`.
//!
//! Only what the rules changed is written anew; a class without a measure in it is still the value it came from. A choice that
//! has no ops (scores that are no scaled product of queries and keys) leaves its root as it was, and what the root is made of is
//! tried instead.

use std::collections::{HashMap, HashSet};

use egg::{Id, Language};
use ir::{Attr, Attrs, DType, Dim, Function, ValueId};

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
    let mut open: Vec<(ValueId, Id, At)> = import.roots.iter().rev().cloned().collect();
    let mut seen: HashSet<ValueId> = open.iter().map(|r| r.0).collect();
    while let Some((v, id, at)) = open.pop() {
        let id = exporter.graph.find(id);
        if !exporter.has_measure(id) {
            continue;
        }
        if let Some(new) = exporter.root(v, id, &at) {
            replaced.insert(v, new);
            continue;
        }
        let op = exporter.f.ops[..old].iter().find(|op| op.results.contains(&v));
        for x in op.map(|op| op.operands.clone()).unwrap_or_default() {
            let known = import.terms.iter().find(|t| t.0 == x);
            if let Some((_, at, id)) = known.filter(|_| seen.insert(x)) {
                open.push((x, *id, at.clone()));
            }
        }
    }
    // What reads a replaced value sees the new one; old terms that nobody reads die.
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
        let new = self.value(id)?;
        let new = self.arrange(&new, at)?;
        let ty = self.f.ty(v).clone();
        let new = self.f.cast(new, ty.dtype);
        (self.f.ty(new).shape == ty.shape).then_some(new)
    }

    /// A value at indices of its own, with the axes of `to`: turned, and ones put in or left out. What has no index says nothing by its
    /// place, neither here nor there.
    fn arrange(&mut self, (v, own): &(ValueId, At), to: &At) -> Option<ValueId> {
        if own == to {
            return Some(*v);
        }
        // Indices in their new order, any ones in the place of others or else behind.
        let mut perm: Vec<i64> = vec![];
        for i in to {
            let free = |p: &usize| own[*p] == *i && !perm.contains(&(*p as i64));
            perm.extend((0..own.len()).find(free).map(|p| p as i64));
        }
        for (p, i) in own.iter().enumerate() {
            if !perm.contains(&(p as i64)) {
                if i.is_some() {
                    return None;
                }
                perm.push(p as i64);
            }
        }
        let named = |p: &&i64| own[**p as usize].is_some();
        let turned = if perm.len() == to.len() || !perm.iter().filter(named).is_sorted() {
            self.f.transpose(*v, &perm)
        } else {
            *v
        };
        let mut ty = self.f.ty(*v).clone();
        let size = |i: &Option<Index>| own.iter().position(|o| i.is_some() && o == i);
        let shape = to
            .iter()
            .map(|i| size(i).map_or(Dim::Const(1), |d| ty.shape[d].clone()));
        ty.shape = shape.collect();
        if *self.f.ty(turned) == ty {
            return Some(turned);
        }
        Some(self.f.reshape(turned, ty))
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
                let (a, b) = (&args[0], &args[1]);
                if let Some(at) = aligned(&a.1, &b.1) {
                    return Some((self.f.try_op(&name, &[a.0, b.0], Attrs::new()).ok()?, at));
                }
                // Their axes do not line up: as the one with more of them has them.
                let named = |at: &At| at.iter().flatten().count();
                let (more, less) = if named(&b.1) > named(&a.1) { (b, a) } else { (a, b) };
                let mut at = more.1.clone();
                at.extend(less.1.iter().filter(|i| i.is_some() && !more.1.contains(i)));
                let (a, b) = (self.arrange(a, &at)?, self.arrange(b, &at)?);
                Some((self.f.try_op(&name, &[a, b], Attrs::new()).ok()?, at))
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
        let Scores { q, k, depth, scale } = self.scores(x, j)?;
        // Queries at [.., row, d], keys at [.., j, d], values at [.., j, e].
        let start = pair.start.map(|(_, b)| b);
        let (q, batch) = self.queries(q, pair.row, depth, start)?;
        let k = self.keys(k, &batch, j, Some(depth))?;
        let (v, e) = self.values_under(f, &batch, j)?;
        let at: At = batch.iter().copied().chain([pair.row, e]).collect();
        for (near, far) in pair.intervals(bits) {
            let mut operands = vec![q, k, v];
            let mut attrs = Attrs::from([
                ("scale".to_string(), Attr::Float(scale)),
                ("near".to_string(), Attr::Int(near)),
            ]);
            if let Some(far) = far {
                attrs.insert("far".to_string(), Attr::Int(far));
            }
            if let Some((start, _)) = pair.start {
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

    /// Queries at [batch.., row, depth], and the batch; `start` is the index that must come first, if one must.
    fn queries(
        &mut self,
        q: Id,
        row: Option<Index>,
        depth: Index,
        start: Option<Option<Index>>,
    ) -> Option<(ValueId, At)> {
        let has = |at: &At, i: Option<Index>| i.is_none() || at.contains(&i);
        let in_place = |at: &At| at.len() > 2 && at[at.len() - 2..] == [row, Some(depth)];
        let list = self.narrowest(q, |at| has(at, row) && has(at, Some(depth)));
        // Of equal values the one that attention was written over: what it is blended with has as many axes.
        let own = list.iter().max_by_key(|(_, at)| (in_place(at), at.len()))?.clone();
        let mut batch: At = if in_place(&own.1) {
            own.1[..own.1.len() - 2].to_vec()
        } else {
            let batch = own.1.iter().copied().filter(|i| i.is_some() && *i != row);
            batch.filter(|i| *i != Some(depth)).collect()
        };
        match start {
            Some(Some(b)) if batch.first() != Some(&Some(b)) => {
                batch.retain(|i| *i != Some(b));
                batch.insert(0, Some(b));
            }
            Some(None) if batch.first().is_some_and(Option::is_some) => batch.insert(0, None),
            _ => {}
        }
        if batch.is_empty() {
            batch.push(None);
        }
        let to: At = batch.iter().copied().chain([row, Some(depth)]).collect();
        Some((self.arrange(&own, &to)?, batch))
    }

    /// What changes with the key at [batch.., j, last].
    fn keys(&mut self, id: Id, batch: &At, j: Index, last: Option<Index>) -> Option<ValueId> {
        let layout = |at: &At| -> At {
            let shared = batch.iter().map(|i| i.filter(|_| at.contains(i)));
            shared.chain([Some(j), last]).collect()
        };
        let has = |at: &At, i: Option<Index>| i.is_none() || at.contains(&i);
        let list = self.narrowest(id, |at| has(at, Some(j)) && has(at, last));
        let own = list.iter().find(|(_, at)| *at == layout(at)).or(list.first())?.clone();
        self.arrange(&own, &layout(&own.1))
    }

    /// Values at [batch.., j, e], and e: what is neither key nor batch.
    fn values_under(&mut self, f: Id, batch: &At, j: Index) -> Option<(ValueId, Option<Index>)> {
        let list = self.narrowest(f, |at| at.contains(&Some(j)));
        let mut own = list.first()?.1.iter().flatten();
        let e = own.find(|i| **i != j && !batch.contains(&Some(**i))).copied();
        Some((self.keys(f, batch, j, e)?, e))
    }

    /// x as scale * sum over depth of q * k, with k the factor that changes with j.
    fn scores(&self, x: Id, j: Index) -> Option<Scores> {
        let class = &self.graph[self.graph.find(x)];
        for term in &class.nodes {
            match term {
                Term::Sum([depth, d, body]) if self.graph[*d].data.domain == Some(Domain::All) => {
                    for product in &self.graph[*body].nodes {
                        if let Term::Mul([a, b]) = product {
                            let moves = |id: &Id| self.graph[*id].data.free >> j.0 & 1 == 1;
                            let (q, k) = match (moves(a), moves(b)) {
                                (false, true) => (*a, *b),
                                (true, false) => (*b, *a),
                                _ => continue,
                            };
                            return Some(Scores {
                                q,
                                k,
                                depth: self.graph[*depth].data.index?,
                                scale: 1.0,
                            });
                        }
                    }
                }
                Term::Mul([a, b]) => {
                    for (x, factor) in [(a, b), (b, a)] {
                        if let Some(c) = self.number(*factor)
                            && let Some(s) = self.scores(*x, j)
                        {
                            return Some(Scores {
                                scale: s.scale * c,
                                ..s
                            });
                        }
                    }
                }
                Term::Div([x, factor]) => {
                    if let Some(c) = self.number(*factor)
                        && let Some(s) = self.scores(*x, j)
                    {
                        return Some(Scores {
                            scale: s.scale / c,
                            ..s
                        });
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

    /// The values of the class that fit, of the narrowest type: products are made in it.
    fn narrowest(&self, id: Id, fits: impl Fn(&At) -> bool) -> Vec<(ValueId, At)> {
        let all = self.values.get(&self.graph.find(id)).into_iter().flatten();
        let mut list: Vec<(ValueId, At)> = all.filter(|(_, at)| fits(at)).cloned().collect();
        let bytes = |v: &ValueId| self.f.ty(*v).dtype.bytes();
        if let Some(least) = list.iter().map(|(v, _)| bytes(v)).min() {
            list.retain(|(v, _)| bytes(v) == least);
        }
        list.sort_by_key(|(v, _)| *v);
        list
    }
}

/// scale * sum over depth of q * k
struct Scores {
    q: Id,
    k: Id,
    depth: Index,
    scale: f64,
}

/// The indices of a broadcast result; `None` if the operands' dimensions do not line up: each index must stand once.
fn aligned(a: &At, b: &At) -> Option<At> {
    let rank = a.len().max(b.len());
    let of = |x: &At, d: usize| (d + x.len() >= rank).then(|| x[d + x.len() - rank]).flatten();
    let at: At = (0..rank)
        .map(|d| match (of(a, d), of(b, d)) {
            (Some(i), Some(j)) if i != j => None,
            (i, j) => Some(i.or(j)),
        })
        .collect::<Option<_>>()?;
    let twice = |(d, i): (usize, &Option<Index>)| i.is_some() && at[..d].contains(i);
    (!at.iter().enumerate().any(twice)).then_some(at)
}
