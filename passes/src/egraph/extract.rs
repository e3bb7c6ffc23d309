//! The cheapest choice of terms, where what is shared is paid once.
//!
//! The best tree is where it starts; a tree never chooses to continue a measure, since the head of the chain is paid for by
//! another. So: single moves, then moves of two classes together, then a short annealing, and single moves again. Everything is
//! deterministic.

use egg::{CostFunction, Extractor, Id, Language};

use super::analysis::Graph;
use super::cost::{Choice, Cost, Machine, Model};
use super::term::Term;

/// Steps of the annealing.
const STEPS: usize = 600;

pub struct Extraction {
    pub choice: Choice,
    pub cost: Cost,
    /// What was looked at on the way: (name, cost).
    pub candidates: Vec<(String, Cost)>,
}

/// Fewer and cheaper nodes, each paid for as often as it is used.
struct Tree;

impl CostFunction<Term> for Tree {
    type Cost = f64;
    fn cost<C: FnMut(Id) -> f64>(&mut self, term: &Term, mut costs: C) -> f64 {
        let own = match term {
            Term::Sum(_) | Term::RowMax(_) => 20.0,
            Term::Exp(_) => 8.0,
            Term::Div(_) => 4.0,
            _ => 1.0,
        };
        term.fold(own, |sum, id| sum + costs(id))
    }
}

/// The choice that a tree cost makes.
pub fn by_tree(graph: &Graph) -> Choice {
    let extractor = Extractor::new(graph, Tree);
    let place = |id: Id| {
        let best = extractor.find_best_node(id);
        graph[id].nodes.iter().position(|n| n == best).unwrap_or(0)
    };
    graph.classes().map(|c| (c.id, place(c.id))).collect()
}

pub fn extract(graph: &Graph, roots: &[Id], machine: &Machine) -> Option<Extraction> {
    let model = Model::new(graph, roots);
    let mut choice = by_tree(graph);
    let mut best = model.cost(&choice)?;
    let mut candidates = vec![("the best tree".to_string(), best)];
    let seconds = |choice: &Choice| model.cost(choice).map(|c| (c, c.seconds(machine)));
    let mut open: Vec<(Id, usize)> = graph.classes().map(|c| (c.id, c.nodes.len())).collect();
    open.retain(|(_, n)| *n > 1);
    open.sort();

    let single = |choice: &mut Choice, best: &mut Cost| {
        let mut moved = true;
        while moved {
            moved = false;
            for (id, n) in &open {
                let old = choice[id];
                let mut keep = old;
                for at in (0..*n).filter(|at| *at != old) {
                    choice.insert(*id, at);
                    if let Some((cost, s)) = seconds(choice)
                        && s < best.seconds(machine) * (1.0 - 1e-9)
                    {
                        (*best, keep, moved) = (cost, at, true);
                    }
                }
                choice.insert(*id, keep);
            }
        }
    };
    single(&mut choice, &mut best);
    candidates.push(("single moves".to_string(), best));

    // Measures move together: continuing one pays only when the other is there.
    let measures: Vec<(Id, usize)> = open
        .iter()
        .copied()
        .filter(|(id, _)| graph[*id].data.stream.is_some())
        .collect();
    let mut moved = true;
    while moved {
        moved = false;
        for (i, (a, n)) in measures.iter().enumerate() {
            for (b, m) in &measures[i + 1..] {
                let (old_a, old_b) = (choice[a], choice[b]);
                let mut keep = (old_a, old_b);
                for (x, y) in (0..*n).flat_map(|x| (0..*m).map(move |y| (x, y))) {
                    choice.insert(*a, x);
                    choice.insert(*b, y);
                    if let Some((cost, s)) = seconds(&choice)
                        && s < best.seconds(machine) * (1.0 - 1e-9)
                    {
                        (best, keep, moved) = (cost, (x, y), true);
                    }
                }
                choice.insert(*a, keep.0);
                choice.insert(*b, keep.1);
            }
        }
    }
    single(&mut choice, &mut best);
    candidates.push(("moves of two measures".to_string(), best));

    if !open.is_empty() {
        let mut now = (choice.clone(), best);
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for step in 0..STEPS {
            let mut next = |n: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random >> 11) as usize % n
            };
            let (id, n) = open[next(open.len())];
            let mut trial = now.0.clone();
            trial.insert(id, next(n));
            let Some((cost, s)) = seconds(&trial) else { continue };
            let heat = now.1.seconds(machine) * 0.1 * (1.0 - step as f64 / STEPS as f64);
            let accept = s < now.1.seconds(machine) + heat * (next(1000) as f64 / 1000.0);
            if accept {
                now = (trial, cost);
                if s < best.seconds(machine) * (1.0 - 1e-9) {
                    (choice, best) = now.clone();
                }
            }
        }
        single(&mut choice, &mut best);
        candidates.push(("annealing".to_string(), best));
    }
    Some(Extraction {
        choice,
        cost: best,
        candidates,
    })
}
