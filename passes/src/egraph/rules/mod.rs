//! The rewrite rules, as data: small, directional, named, in themed tables. None of them names attention or a softmax.
//!
//! A rule holds for all finite values of its variables unless a condition says more. The laws: a masked value is -inf before an
//! exponential and 0 after it; 0 / 0 is 0; the maximum of nothing is 0 (so that a row without keys gives 0, not NaN).

mod linear;
mod masks;
mod online;

use std::sync::Arc;

use egg::{Condition, ConditionalApplier, Id, MultiPattern, Pattern, Rewrite, Subst, Var};

use super::analysis::{Facts, Graph};
use super::term::{Domain, Term};

pub type EggRule = Rewrite<Term, Facts>;

/// One rule: where `left` is found and `when` holds, `right` is the same.
#[derive(Clone, Debug)]
pub struct Rule {
    pub name: &'static str,
    pub left: &'static str,
    pub right: &'static str,
    pub when: &'static [When],
    /// Why it is true or what it is for.
    pub why: &'static str,
}

/// A side condition on a rule's variables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// The first does not depend on the second, an index.
    Independent(&'static str, &'static str),
    /// The first, a domain, chooses values of the second, an index.
    Over(&'static str, &'static str),
    /// Nothing infinite inside.
    Finite(&'static str),
    /// Finite or -inf: what stays -inf when -inf is added.
    Below(&'static str),
    /// Two different domains that overlap; `?k` becomes what they share, `?r` what only the first has.
    Splits(&'static str, &'static str),
}

/// All tables, in the order of the derivation.
pub fn all() -> Vec<Rule> {
    [masks::RULES, linear::RULES, online::RULES].concat()
}

fn var(name: &str) -> Var {
    name.parse().expect("rules name variables with a question mark")
}

impl When {
    pub fn holds(&self, egraph: &Graph, subst: &Subst) -> bool {
        let data = |name: &str| &egraph[subst[var(name)]].data;
        match self {
            When::Independent(x, j) => data(j).index.is_some_and(|j| data(x).free >> j.0 & 1 == 0),
            When::Over(d, j) => match (data(d).domain, data(j).index) {
                (Some(Domain::Cells { pair, .. }), Some(j)) => egraph.analysis.tables.pairs[pair as usize].key == j,
                _ => false,
            },
            When::Finite(x) => data(x).finite,
            When::Below(x) => data(x).below,
            When::Splits(c, w) => split(egraph, subst, c, w).is_some(),
        }
    }
}

/// What domain `c` shares with `w`, and what it has alone; `None` unless both are something.
fn split(egraph: &Graph, subst: &Subst, c: &str, w: &str) -> Option<(Domain, Domain)> {
    let (c, w) = (egraph[subst[var(c)]].data.domain?, egraph[subst[var(w)]].data.domain?);
    let (common, rest) = (c.and(w)?, c.minus(w)?);
    (!common.is_empty() && !rest.is_empty()).then_some((common, rest))
}

struct All(Arc<Vec<When>>);

impl Condition<Term, Facts> for All {
    fn check(&self, egraph: &mut Graph, _: Id, subst: &Subst) -> bool {
        self.0.iter().all(|w| w.holds(egraph, subst))
    }
}

/// The split of a domain enters the right side as `?k` and `?r`.
struct Split {
    right: Pattern<Term>,
    target: Var,
    when: Vec<When>,
}

impl egg::Applier<Term, Facts> for Split {
    fn apply_one(
        &self,
        egraph: &mut Graph,
        _: Id,
        subst: &Subst,
        _: Option<&egg::PatternAst<Term>>,
        rule: egg::Symbol,
    ) -> Vec<Id> {
        if !self.when.iter().all(|w| w.holds(egraph, subst)) {
            return vec![];
        }
        let parts = self.when.iter().find_map(|w| match w {
            When::Splits(c, w) => split(egraph, subst, c, w),
            _ => None,
        });
        let Some((common, rest)) = parts else {
            return vec![];
        };
        let mut subst = subst.clone();
        let (k, r) = (egraph.add(Term::Domain(common)), egraph.add(Term::Domain(rest)));
        subst.insert(var("?k"), k);
        subst.insert(var("?r"), r);
        let whole = subst[self.target];
        let new = egraph.add_instantiation(&self.right.ast, &subst);
        if egraph.union_trusted(whole, new, rule) {
            vec![new]
        } else {
            vec![]
        }
    }
}

impl Rule {
    /// As egg runs it.
    pub fn compile(&self) -> EggRule {
        let right: Pattern<Term> = self.right.parse().unwrap_or_else(|e| panic!("rule {}: {e}", self.name));
        let bad = |e: &dyn std::fmt::Display| -> ! { panic!("rule {}: {e}", self.name) };
        if self.left.contains('=') {
            // Several terms at once; the first one's variable names the class that `right` joins.
            let left: MultiPattern<Term> = self.left.parse().unwrap_or_else(|e| bad(&e));
            let target = var(self.left.split('=').next().unwrap_or_default().trim());
            let applier = Split {
                right,
                target,
                when: self.when.to_vec(),
            };
            return Rewrite::new(self.name, left, applier).unwrap_or_else(|e| bad(&e));
        }
        let left: Pattern<Term> = self.left.parse().unwrap_or_else(|e| bad(&e));
        let applier = ConditionalApplier {
            condition: All(Arc::new(self.when.to_vec())),
            applier: right,
        };
        Rewrite::new(self.name, left, applier).unwrap_or_else(|e| bad(&e))
    }
}
