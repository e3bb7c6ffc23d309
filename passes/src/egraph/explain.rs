//! What `fuse` did to a function and why: candidates with their costs, and each rule's part in the result.

use ir::Function;

use super::cost::{Cost, Machine, Model};
use super::extract::by_tree;
use super::rules::Rule;
use super::{import, saturate};

/// The account of one function.
pub struct Explanation {
    pub function: String,
    pub nodes_before: usize,
    pub nodes: usize,
    pub rounds: usize,
    pub limit: Option<String>,
    /// As the graph came, then what extraction looked at; the last one won.
    pub candidates: Vec<(String, Cost)>,
    /// Rules that found something: (name, how often, why it holds, the best cost without it).
    pub rules: Vec<(String, usize, String, Option<Cost>)>,
}

/// `None` for a function that has nothing to fuse.
pub fn explain(f: &Function, rules: &[Rule], machine: &Machine) -> Option<Explanation> {
    let saturated = saturate(f, rules);
    let best = saturated.extract(machine)?;
    let naive = import::import(f);
    let roots: Vec<_> = naive.roots.iter().map(|r| r.1).collect();
    let as_it_came = Model::new(&naive.graph, &roots).cost(&by_tree(&naive.graph))?;
    let mut candidates = vec![("as it came".to_string(), as_it_came)];
    candidates.extend(best.candidates);
    let mut account = vec![];
    for (rule, (name, count)) in rules.iter().zip(&saturated.applied) {
        if *count == 0 {
            continue;
        }
        let rest: Vec<Rule> = rules.iter().filter(|r| r.name != rule.name).cloned().collect();
        let without = saturate(f, &rest).extract(machine).map(|e| e.cost);
        account.push((name.clone(), *count, rule.why.to_string(), without));
    }
    Some(Explanation {
        function: f.name.clone(),
        nodes_before: naive.graph.total_size(),
        nodes: saturated.nodes,
        rounds: saturated.rounds,
        limit: saturated.limit,
        candidates,
        rules: account,
    })
}

impl Explanation {
    pub fn text(&self, machine: &Machine) -> String {
        let line = |name: &str, c: &Cost| {
            format!(
                "  {name:24} {:>12.4e} operations {:>12.4e} bytes {:>4} launches  {:>10.1} us\n",
                c.operations,
                c.bytes,
                c.launches,
                1e6 * c.seconds(machine)
            )
        };
        let mut text = format!(
            "@{}: {} nodes, {} after {} rounds{}\n candidates (machine: {})\n",
            self.function,
            self.nodes_before,
            self.nodes,
            self.rounds,
            self.limit
                .as_ref()
                .map(|l| format!(", stopped by a limit: {l}"))
                .unwrap_or_default(),
            machine.name
        );
        for (name, cost) in &self.candidates {
            text += &line(name, cost);
        }
        text += " rules, and the best result without each\n";
        for (name, count, why, without) in &self.rules {
            let cost = without.map_or("  no result\n".to_string(), |c| line(name, &c));
            text += &format!("{}    {count} times: {why}\n", cost);
        }
        text
    }
}
