//! What a choice of terms costs: operations, bytes and launches against a target's rates (a roofline with launch costs).
//!
//! A choice is a DAG: what is shared is paid once. A reduction over the keys of a mask is a pass over stored scores, unless it is
//! a measure: measures stream, and one that continues another pays for its own keys only.

use std::collections::{BTreeSet, HashMap, HashSet};

use egg::{Id, Language};
use ir::{Size, Sizes};

use super::analysis::Graph;
use super::term::{Domain, Index, Indices, Term};

/// A machine, as far as choices depend on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    pub name: &'static str,
    /// Operations and bytes in a second, seconds for a launch.
    pub rate: f64,
    pub bandwidth: f64,
    pub launch: f64,
}

pub const MACHINES: &[Machine] = &[
    Machine {
        name: "cpu",
        rate: 2e11,
        bandwidth: 3e10,
        launch: 2e-6,
    },
    Machine {
        name: "gpu",
        rate: 5e14,
        bandwidth: 4e12,
        launch: 2e-6,
    },
];

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub operations: f64,
    pub bytes: f64,
    pub launches: f64,
}

impl Cost {
    /// Seconds; the small term breaks ties towards less work.
    pub fn seconds(&self, m: &Machine) -> f64 {
        let (compute, memory) = (self.operations / m.rate, self.bytes / m.bandwidth);
        compute.max(memory) + 0.01 * (compute + memory) + self.launches * m.launch
    }
}

/// The term chosen in every class, by its place in the class.
pub type Choice = HashMap<Id, usize>;

/// Typical sizes, to compare choices; results do not depend on them.
pub fn typical() -> Sizes {
    [("B", 1), ("T", 2048), ("S", 2048), ("C", 2048)]
        .map(|(k, v)| (k.to_string(), v))
        .into()
}

pub struct Model<'g> {
    graph: &'g Graph,
    roots: Vec<Id>,
    sizes: Vec<f64>,
    /// Key indices of masks: reductions over them are attention's.
    keys: Indices,
}

impl<'g> Model<'g> {
    pub fn new(graph: &'g Graph, roots: &[Id]) -> Model<'g> {
        let typical = typical();
        let tables = &graph.analysis.tables;
        let size = |s: &Size| s.eval(&typical).unwrap_or(1 << 12) as f64;
        Model {
            graph,
            roots: roots.iter().map(|r| graph.find(*r)).collect(),
            sizes: tables.indices.iter().map(|i| size(&i.size)).collect(),
            keys: tables.pairs.iter().fold(0, |s, p| s | p.key.bit()),
        }
    }

    pub fn term(&self, choice: &Choice, class: Id) -> &'g Term {
        let class = &self.graph[class];
        &class.nodes[choice.get(&class.id).copied().unwrap_or(0)]
    }

    /// Classes that the roots need, operands first; `None` if the choice is a cycle.
    pub fn reach(&self, choice: &Choice) -> Option<Vec<Id>> {
        // 1: on the way, 2: done.
        let mut state: HashMap<Id, u8> = HashMap::new();
        let mut order = vec![];
        let mut stack: Vec<(Id, bool)> = self.roots.iter().map(|r| (*r, false)).collect();
        while let Some((id, leave)) = stack.pop() {
            if leave {
                state.insert(id, 2);
                order.push(id);
                continue;
            }
            match state.get(&id) {
                Some(2) => continue,
                Some(_) => return None,
                None => {}
            }
            state.insert(id, 1);
            stack.push((id, true));
            for child in self.term(choice, id).children() {
                let child = self.graph.find(*child);
                match state.get(&child) {
                    Some(1) => return None,
                    Some(_) => {}
                    None => stack.push((child, false)),
                }
            }
        }
        Some(order)
    }

    fn free(&self, id: Id) -> Indices {
        self.graph[id].data.free
    }

    /// How many points these indices have.
    fn points(&self, free: Indices) -> f64 {
        let sizes = self.sizes.iter().enumerate();
        sizes.filter(|(i, _)| free >> i & 1 == 1).map(|(_, n)| n).product()
    }

    /// The part of all keys that lies in a domain, on the average over the rows.
    fn fraction(&self, d: Option<Domain>) -> f64 {
        let Some(Domain::Cells { pair, bits }) = d else {
            return 1.0;
        };
        let pair = &self.graph.analysis.tables.pairs[pair as usize];
        let keys = self.sizes.get(pair.key.0 as usize).copied().unwrap_or(1.0);
        // Keys nearer than x, over rows 0..n, or at the last one.
        let nearer = |x: f64| match pair.row {
            Some(_) if x < keys => x - x * x / (2.0 * keys),
            Some(_) => keys / 2.0,
            None => x.min(keys),
        };
        let seen = pair.intervals(bits).iter().fold(0.0, |sum, (near, far)| {
            sum + nearer(far.map_or(f64::MAX, |f| f as f64)) - nearer(*near as f64)
        });
        let future = if bits & 1 == 1 && pair.row.is_some() {
            keys / 2.0
        } else {
            0.0
        };
        (seen + future) / keys
    }

    /// Operations for one element of a term, its operands given.
    fn own(&self, term: &Term) -> f64 {
        match term {
            Term::Exp(_) | Term::Sigmoid(_) | Term::Silu(_) | Term::Log(_) => 8.0,
            Term::Div(_) | Term::Rsqrt(_) => 4.0,
            Term::Const(_) | Term::Leaf(_) | Term::Index(_) | Term::Domain(_) | Term::And(_) => 0.0,
            Term::Sum(_) | Term::RowMax(_) | Term::Measure(_) | Term::Extend(_) | Term::Integral(_) => 0.0,
            _ => 1.0,
        }
    }

    /// Classes under `body` that change with `j`: what a loop over j computes.
    fn body(&self, choice: &Choice, body: Id, j: Index) -> Vec<Id> {
        let mut seen: HashSet<Id> = HashSet::new();
        let mut stack = vec![self.graph.find(body)];
        let mut list = vec![];
        while let Some(id) = stack.pop() {
            if self.free(id) >> j.0 & 1 == 0 || !seen.insert(id) {
                continue;
            }
            list.push(id);
            stack.extend(self.term(choice, id).children().iter().map(|c| self.graph.find(*c)));
        }
        list
    }

    /// Operations of a loop's body on a part of its points; inner sums count their own loops.
    fn loop_operations(&self, choice: &Choice, body: Id, j: Index, part: f64) -> f64 {
        let mut sum = 0.0;
        for id in self.body(choice, body, j) {
            let term = self.term(choice, id);
            let points = self.points(self.free(id));
            sum += match term {
                Term::Sum([inner, _, _]) => {
                    let inner = self.graph[*inner].data.index;
                    2.0 * points * part * inner.map_or(1.0, |i| self.sizes[i.0 as usize])
                }
                _ => self.own(term) * points * part,
            };
        }
        sum
    }

    /// `None` if the choice is a cycle.
    pub fn cost(&self, choice: &Choice) -> Option<Cost> {
        let order = self.reach(choice)?;
        let chosen: HashSet<Id> = order.iter().copied().collect();
        let mut cost = Cost::default();
        let mut kernels: BTreeSet<Indices> = BTreeSet::new();
        for &id in &order {
            let term = self.term(choice, id);
            let data = &self.graph[id].data;
            match term {
                Term::Sum([j, d, x]) | Term::RowMax([j, d, x]) => {
                    let (Some(j), d) = (self.graph[*j].data.index, self.graph[*d].data.domain) else {
                        continue;
                    };
                    let streams = self.keys >> j.0 & 1 == 1;
                    if data.free & self.keys != 0 {
                        // Inside a loop over keys, which counts it.
                        continue;
                    }
                    let all = self.free(self.graph.find(*x));
                    let part = self.fraction(d);
                    cost.operations += self.loop_operations(choice, *x, j, part);
                    cost.operations += self.points(all | j.bit()) * part;
                    if streams {
                        // Scores are written and read again.
                        cost.bytes += 8.0 * self.points(all);
                        cost.launches += 1.0;
                    }
                }
                Term::Measure([j, d, x]) => {
                    let (Some(j), d) = (self.graph[*j].data.index, self.graph[*d].data.domain) else {
                        continue;
                    };
                    let part = self.fraction(d);
                    cost.operations += self.loop_operations(choice, *x, j, part);
                    cost.operations += 8.0 * self.points(data.free | j.bit()) * part;
                    kernels.insert(data.free);
                }
                Term::Extend([_, d]) => {
                    // The body is the same as the continued measure's: found at the chain's head.
                    let (j, x) = self.head(choice, id)?;
                    let part = self.fraction(self.graph[*d].data.domain);
                    cost.operations += self.loop_operations(choice, x, j, part);
                    cost.operations += 8.0 * self.points(data.free | j.bit()) * part;
                    // A copy of the accumulator.
                    cost.operations += self.points(data.free);
                }
                Term::Integral([s, f]) => {
                    let s = self.graph.find(*s);
                    let Some(j) = self.graph[s].data.stream else {
                        continue;
                    };
                    let part = self.fraction(self.integral_domain(choice, &chosen, s, *f));
                    cost.operations += self.loop_operations(choice, *f, j, part);
                    cost.operations += 2.0 * self.points(data.free | j.bit()) * part;
                    cost.bytes += 2.0 * self.points(self.free(self.graph.find(*f)));
                }
                Term::Div([a, b]) if self.is_mean(choice, *a, *b) => {}
                _ if data.free & self.keys == 0 => cost.operations += self.own(term) * self.points(data.free),
                _ => {}
            }
        }
        cost.launches += kernels.len() as f64;
        Some(cost)
    }

    /// The stream and body of a chain of measures.
    pub fn head(&self, choice: &Choice, mut id: Id) -> Option<(Index, Id)> {
        for _ in 0..64 {
            match self.term(choice, id) {
                Term::Measure([j, _, x]) => return Some((self.graph[*j].data.index?, self.graph.find(*x))),
                Term::Extend([s, _]) => id = self.graph.find(*s),
                _ => return None,
            }
        }
        None
    }

    /// Keys that an integral adds itself: all of the measure's, less those a prefix has integrated too.
    fn integral_domain(&self, choice: &Choice, chosen: &HashSet<Id>, s: Id, f: Id) -> Option<Domain> {
        if let Term::Extend([before, d]) = self.term(choice, s) {
            let prefix = Term::Integral([self.graph.find(*before), self.graph.find(f)]);
            let shared = self.graph.lookup(prefix).is_some_and(|p| chosen.contains(&p));
            if shared {
                return self.graph[*d].data.domain;
            }
        }
        self.graph[s].data.domain
    }

    /// Is a / b a mean under one measure? The sweep that made both divides them.
    pub fn is_mean(&self, choice: &Choice, a: Id, b: Id) -> bool {
        match (
            self.term(choice, self.graph.find(a)),
            self.term(choice, self.graph.find(b)),
        ) {
            (Term::Integral([s, _]), Term::Integral([t, one])) => {
                self.graph.find(*s) == self.graph.find(*t) && self.is_one(choice, *one)
            }
            _ => false,
        }
    }

    fn is_one(&self, choice: &Choice, id: Id) -> bool {
        matches!(self.term(choice, self.graph.find(id)), Term::Const(x) if x.value() == 1.0)
    }
}
