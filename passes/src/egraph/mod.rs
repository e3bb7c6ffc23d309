//! The pass `fuse`: algebraic rules turn the naive graph's attention into sweeps over keys.
//!
//! A function becomes terms in index notation (`import`), rules saturate an e-graph of them (`rules`), the cheapest choice that
//! knows sharing is taken (`extract`, `cost`), and what it found goes back into the graph as `sweep` and `mean` ops (`export`).
//! What no rule improved stays exactly as it was. Functions are rewritten once, however many layers call them.

pub mod analysis;
pub mod audit;
pub mod cost;
pub mod explain;
mod export;
pub mod extract;
pub mod import;
mod names;
pub mod rules;
pub mod term;

use egg::{Runner, StopReason};
use ir::{Function, ValueId};

use crate::{Pass, PassError};
use analysis::Facts;
use cost::Machine;
use extract::Extraction;
use import::Import;
use rules::Rule;
use term::Term;

pub const FUSE: Pass = Pass {
    name: "fuse",
    about: "merge attention passes, masks and softmax into sweeps over keys, found by an e-graph",
    run: |module| {
        let rules = rules::all();
        for f in &mut module.functions {
            fuse(f, &rules, &cost::MACHINES[0])?;
        }
        Ok(())
    },
};

pub const FUSE_APART: Pass = Pass {
    name: "fuse-apart",
    about: "as fuse, but no measure continues another: each attention pass sweeps its keys by itself",
    run: |module| {
        let mut rules = rules::all();
        rules.retain(|r| r.name != "split");
        for f in &mut module.functions {
            fuse(f, &rules, &cost::MACHINES[0])?;
        }
        Ok(())
    },
};

/// No graph of ours comes near these; one that does is left with what was found by then.
const NODE_LIMIT: usize = 20_000;
const ROUNDS: usize = 40;
/// Sets of indices are words, and some are added where a value is read at two.
const MOST_INDICES: usize = term::Indices::BITS as usize - 32;

/// A saturated e-graph of a function.
pub struct Saturated {
    pub import: Import,
    pub nodes: usize,
    pub rounds: usize,
    /// Why it ended, if not because nothing was left to find.
    pub limit: Option<String>,
    /// How often each rule found something new.
    pub applied: Vec<(String, usize)>,
}

/// Runs the rules until nothing is new.
pub fn saturate(f: &Function, rules: &[Rule]) -> Saturated {
    let compiled: Vec<_> = rules.iter().map(Rule::compile).collect();
    let Import { graph, roots, terms } = import::import(f);
    let runner: Runner<Term, Facts> = Runner::new(graph.analysis.clone())
        .with_egraph(graph)
        .with_node_limit(NODE_LIMIT)
        .with_iter_limit(ROUNDS)
        .run(&compiled);
    let limit = match &runner.stop_reason {
        None | Some(StopReason::Saturated) => None,
        Some(reason) => Some(format!("{reason:?}")),
    };
    let applied = rules
        .iter()
        .map(|r| {
            let name = egg::Symbol::from(r.name);
            let count = runner.iterations.iter().filter_map(|i| i.applied.get(&name)).sum();
            (r.name.to_string(), count)
        })
        .collect();
    Saturated {
        nodes: runner.egraph.total_size(),
        rounds: runner.iterations.len(),
        limit,
        applied,
        import: Import {
            graph: runner.egraph,
            roots,
            terms,
        },
    }
}

impl Saturated {
    /// The cheapest choice on this machine; `None` if the function has no terms.
    pub fn extract(&self, machine: &Machine) -> Option<Extraction> {
        let roots: Vec<_> = self.import.roots.iter().map(|r| r.1).collect();
        extract::extract(&self.import.graph, &roots, machine)
    }
}

/// Rewrites one function; gives the values that were replaced.
pub fn fuse(f: &mut Function, rules: &[Rule], machine: &Machine) -> Result<Vec<ValueId>, PassError> {
    // A function without a mask has no attention to find.
    if !f.ops.iter().any(|op| op.name == "mask") {
        return Ok(vec![]);
    }
    let indices = import::indices(f);
    if indices > MOST_INDICES {
        log::warn!(
            "@{}: {indices} indices are too many for the e-graph; it stays as it is",
            f.name
        );
        return Ok(vec![]);
    }
    let saturated = saturate(f, rules);
    if let Some(limit) = &saturated.limit {
        log::warn!(
            "@{}: the e-graph stopped at a limit before all rules were done: {limit}",
            f.name
        );
    }
    let Some(extraction) = saturated.extract(machine) else {
        return Ok(vec![]);
    };
    Ok(export::export(f, &saturated.import, &extraction.choice))
}
