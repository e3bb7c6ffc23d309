//! Every rule on random terms, every condition by what goes wrong without it.

use egg::{EGraph, ENodeOrVar, Id, Language, PatternAst, Runner, Var};
use passes::egraph::analysis::{Facts, Graph};
use passes::egraph::audit::{Space, audit};
use passes::egraph::rules::{Rule, When, all};
use passes::egraph::term::{Domain, Index, LeafInfo, Number, Pair, Tables, Term};
use std::collections::HashMap;

const SIZES: [(&str, usize); 5] = [("b", 2), ("i", 4), ("j", 5), ("k", 3), ("d", 2)];

struct Random(u64);

impl Random {
    fn next(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % n
    }
}

fn tables() -> Tables {
    let mut t = Tables::default();
    for (name, n) in SIZES {
        t.index(name, ir::Size::from(n as i64));
    }
    let (b, i, j, k) = (Index(0), Index(1), Index(2), Index(3));
    let start = ir::ValueId(1000);
    t.pairs = vec![
        Pair {
            row: Some(i),
            key: j,
            start: None,
            edges: vec![0, 1, 3],
        },
        Pair {
            row: None,
            key: j,
            start: Some((start, Some(b))),
            edges: vec![0, 2],
        },
        Pair {
            row: Some(i),
            key: k,
            start: None,
            edges: vec![0, 2],
        },
    ];
    t
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Value,
    /// Not 0: graphs do not divide by 0.
    Divisor,
    Index,
    Domain,
}

/// The patterns of a rule's left side, with the variables that name their classes.
fn patterns(rule: &Rule) -> Vec<(Option<Var>, PatternAst<Term>)> {
    let parse = |text: &str| text.trim().parse::<PatternAst<Term>>().unwrap();
    if !rule.left.contains('=') {
        return vec![(None, parse(rule.left))];
    }
    rule.left
        .split(',')
        .map(|part| {
            let (name, pattern) = part.split_once('=').unwrap();
            (Some(name.trim().parse().unwrap()), parse(pattern))
        })
        .collect()
}

/// What each variable stands for, by the places it has.
fn kinds(pattern: &PatternAst<Term>, kinds: &mut Vec<(Var, Kind)>) {
    let nodes = pattern.as_ref();
    let mut note = |id: Id, kind: Kind| {
        if let ENodeOrVar::Var(v) = &nodes[usize::from(id)]
            && !kinds.iter().any(|(w, _)| w == v)
        {
            kinds.push((*v, kind));
        }
    };
    for node in nodes {
        let ENodeOrVar::ENode(term) = node else { continue };
        for (at, child) in term.children().iter().enumerate() {
            let kind = match (term, at) {
                (Term::Where(_), 0) | (Term::And(_), _) => Kind::Domain,
                (Term::Sum(_) | Term::RowMax(_) | Term::Measure(_), 0) => Kind::Index,
                (Term::Sum(_) | Term::RowMax(_) | Term::Measure(_), 1) => Kind::Domain,
                (Term::Div(_), 1) => Kind::Divisor,
                _ => Kind::Value,
            };
            note(*child, kind);
        }
    }
}

fn leaf(graph: &mut Graph, random: &mut Random) -> Id {
    let at: Vec<Option<Index>> = (0..5).map(|i| (random.next(2) == 0).then_some(Index(i))).collect();
    let leaf = LeafInfo {
        value: ir::ValueId(random.next(50) as u32),
        name: "x".to_string(),
        at,
    };
    let leaf = graph.analysis.tables.leaf(leaf);
    graph.add(Term::Leaf(leaf))
}

fn value(graph: &mut Graph, random: &mut Random, infinite: bool) -> Id {
    let leaf = leaf(graph, random);
    match random.next(if infinite { 6 } else { 4 }) {
        0 => graph.add(Term::Const(Number::from(random.next(9) as f64 - 4.5))),
        1 => {
            let d = domain(random);
            let d = graph.add(Term::Domain(d));
            let zero = graph.add(Term::Const(Number::from(0.0)));
            graph.add(Term::Where([d, leaf, zero]))
        }
        n if n >= 4 => {
            let d = domain(random);
            let d = graph.add(Term::Domain(d));
            let never = graph.add(Term::Const(Number::from(f64::NEG_INFINITY)));
            let x = graph.add(Term::Where([d, leaf, never]));
            if n == 4 { x } else { graph.add(Term::Neg(x)) }
        }
        _ => leaf,
    }
}

fn domain(random: &mut Random) -> Domain {
    let pair = random.next(3) as u32;
    match random.next(5) {
        0 => Domain::All,
        _ => Domain::Cells {
            pair,
            bits: random.next(16) as u64,
        },
    }
}

/// The left side on random terms, then the rule: (how often it fired, whether some class disagrees).
fn fire(rule: &Rule, seed: u64, infinite: &[&str]) -> (usize, Option<String>) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut graph: Graph = EGraph::new(Facts { tables: tables() });
    let patterns = patterns(rule);
    let mut vars = vec![];
    patterns.iter().for_each(|(_, p)| kinds(p, &mut vars));
    let mut subst: HashMap<Var, Id> = HashMap::new();
    // Constants inside a pattern are what they are; a filling is 0 or -inf.
    for (v, kind) in &vars {
        let may = infinite.contains(&v.to_string().as_str());
        let id = match kind {
            Kind::Index => graph.add(Term::Index(Index(2 + random.next(2) as u32))),
            Kind::Domain => {
                let d = domain(&mut random);
                graph.add(Term::Domain(d))
            }
            Kind::Value => value(&mut graph, &mut random, may),
            Kind::Divisor => leaf(&mut graph, &mut random),
        };
        subst.insert(*v, id);
    }
    for (_, pattern) in &patterns {
        let mut ids: Vec<Id> = vec![];
        for node in pattern.as_ref() {
            ids.push(match node {
                ENodeOrVar::Var(v) => subst[v],
                ENodeOrVar::ENode(t) => {
                    let t = t.clone().map_children(|c| ids[usize::from(c)]);
                    graph.add(t)
                }
            });
        }
    }
    graph.rebuild();
    let runner: Runner<Term, Facts> = Runner::new(graph.analysis.clone())
        .with_egraph(graph)
        .with_iter_limit(3)
        .run(&[rule.compile()]);
    let fired = runner.iterations.iter().flat_map(|i| i.applied.values()).sum();
    let space = Space::new(&runner.egraph.analysis.tables, &|i| SIZES[i.0 as usize].1, seed);
    let wrong = audit(&runner.egraph, &space);
    (fired, wrong.first().map(|w| format!("{} against {}", w.first, w.other)))
}

/// Variables that a rule says must be finite, or not +inf: they get the chance not to be.
fn finite(rule: &Rule) -> Vec<&'static str> {
    let of = |w: &When| match w {
        When::Finite(x) | When::Below(x) => Some(*x),
        _ => None,
    };
    rule.when.iter().filter_map(of).collect()
}

/// `LOOPC_CASES` sets how many random terms each rule is tried on.
#[test]
fn every_rule_holds() {
    let cases = std::env::var("LOOPC_CASES").ok().and_then(|n| n.parse().ok());
    for rule in all() {
        let mut fired = 0;
        for seed in 1..=cases.unwrap_or(400) {
            let (n, wrong) = fire(&rule, seed, &finite(&rule));
            fired += n;
            assert_eq!(wrong, None, "rule {} at seed {seed}", rule.name);
        }
        assert!(fired > 10, "rule {} fired {fired} times", rule.name);
    }
}

#[test]
fn every_condition_is_needed() {
    for rule in all() {
        for (at, condition) in rule.when.iter().enumerate() {
            // `Over` keeps domains to the index they choose from; without it a rule is true but of no use.
            if matches!(condition, When::Over(..) | When::Splits(..)) {
                continue;
            }
            let mut rest = rule.when.to_vec();
            rest.remove(at);
            let loose = Rule {
                when: rest.leak(),
                ..rule.clone()
            };
            let caught = (1..2000).any(|seed| fire(&loose, seed, &finite(&rule)).1.is_some());
            assert!(caught, "rule {} without {condition:?} is not caught", rule.name);
        }
    }
}

/// Conditions on the wrong variable, or the wrong way round.
#[test]
fn wrong_conditions_are_caught() {
    let wrong = [
        ("sum-div", When::Independent("?x", "?j")),
        ("sum-mul", When::Independent("?x", "?j")),
        ("add-mask", When::Finite("?d")),
        ("mask-add", When::Finite("?d")),
        ("where-sub", When::Finite("?x")),
        ("where-mul", When::Finite("?x")),
        ("online-f", When::Finite("?f")),
        ("online-1", When::Independent("?d", "?j")),
        ("online-ratio", When::Finite("?f")),
        ("split", When::Splits("?w", "?c")),
    ];
    for (name, condition) in wrong {
        let rule = all().into_iter().find(|r| r.name == name).unwrap();
        assert_eq!(rule.when.len(), 1, "{name}");
        let mutated = Rule {
            when: vec![condition].leak(),
            ..rule.clone()
        };
        let caught = (1..2000).any(|seed| fire(&mutated, seed, &finite(&rule)).1.is_some());
        assert!(caught, "rule {name} under {condition:?} is not caught");
    }
}

#[test]
fn wrong_right_sides_are_caught() {
    let wrong = [
        ("split", "(ext (st ?j ?k ?x) ?c)", "keys counted twice"),
        ("split", "(st ?j ?k ?x)", "keys forgotten"),
        ("online-f", "(acc (st ?j @all ?x) ?f)", "masked keys seen"),
        ("online-ratio", "(acc (st ?j ?d ?x) ?f)", "a mean that is not divided"),
        ("sum-where", "(sum ?j ?d ?x)", "the mask dropped"),
        ("add-mask", "?x", "the mask dropped"),
        ("sum-mul", "(mul (sum ?j ?d ?x) ?y)", "a factor forgotten"),
        (
            "sum-add",
            "(add (sum ?j ?d ?x) (sum ?j ?d (mul ?y ?z)))",
            "a factor for one of two",
        ),
        (
            "sum-sub",
            "(sub (sum ?j ?d (mul ?y ?z)) (sum ?j ?d (mul ?x ?z)))",
            "the wrong way round",
        ),
        ("max-where", "(rmax ?j ?d ?x)", "the mask dropped"),
        ("where-exp", "(where ?d (exp ?x) #-inf)", "the filling kept"),
        ("div-mul", "(div ?x (mul ?y ?z))", "the factor below the line"),
        ("sum-div", "(div ?x (sum ?j ?d ?y))", "the divisor summed"),
    ];
    for (name, right, what) in wrong {
        let rule = Rule {
            right,
            ..all().into_iter().find(|r| r.name == name).unwrap()
        };
        let caught = (1..400).any(|seed| fire(&rule, seed, &[]).1.is_some());
        assert!(caught, "{name}: {what}, and no audit saw it");
    }
}

#[test]
fn names_are_unique_and_reasons_are_given() {
    let rules = all();
    for (i, r) in rules.iter().enumerate() {
        assert!(!r.why.is_empty());
        assert!(rules[..i].iter().all(|o| o.name != r.name), "{} stands twice", r.name);
    }
}

/// `tests/rules/RULE.term` is a term that the rule changes; its snapshot, beside it, is every way to write it afterwards.
/// Leaves: t0, t1, t2 vary with row i and key j; t3 does not vary with the key. Domain @0 compares them: cells d < 0, then
/// 0 <= d < 1, 1 <= d < 3, 3 <= d.
#[test]
fn filetests() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(&folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for rule in all() {
        let file = folder.join(format!("{}.term", rule.name));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let term: egg::RecExpr<Term> = text
            .trim()
            .parse()
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let mut facts = Facts { tables: tables() };
        for i in 0..4 {
            let at = if i < 3 {
                vec![Some(Index(1)), Some(Index(2))]
            } else {
                vec![Some(Index(1))]
            };
            facts.tables.leaf(LeafInfo {
                value: ir::ValueId(i),
                name: format!("x{i}"),
                at,
            });
        }
        let runner: Runner<Term, Facts> = Runner::new(facts).with_expr(&term).run(&[rule.compile()]);
        let graph = &runner.egraph;
        let cost = egg::Extractor::new(graph, egg::AstSize);
        let mut lines: Vec<String> = vec![];
        for class in graph.classes().filter(|c| c.nodes.len() > 1) {
            // Of each class that has a choice, every node over the smallest terms of its operands.
            let one = |n: &Term| n.join_recexprs(|id| cost.find_best(id).1).to_string();
            let mut ways: Vec<String> = class.nodes.iter().map(one).collect();
            ways.sort_by_key(|w| (w.len(), w.clone()));
            ways.dedup();
            if ways.len() > 1 {
                lines.push(ways.join("\n  = "));
            }
        }
        lines.sort();
        assert!(!lines.is_empty(), "rule {} does not change {}", rule.name, text.trim());
        settings.bind(|| insta::assert_snapshot!(rule.name, format!("{}\n{}", rule.why, lines.join("\n"))));
    }
}
