//! Products that follow each other as one kernel of two functions, where the first hands its rows to the second (`matmul::handed`).
//!
//! For how many rows which ways run is what the tables say of each product alone. Where one of the ways is for few rows nothing is
//! handed on: there the second one measures its rows on the way, and the two run as they would apart. So do many rows, where nothing was
//! gained.

use ir::Size;
use ir::plan::{Kernel, Plan};
use runtime::artefact::{GpuKernel, Variant};

use super::tuning::Way;
use super::{Emitted, matmul};
use crate::pipeline::size;

/// Rows up to which it pays: measured on an H200, 8% of a prefill of 128 tokens, 2% of 1,024, nothing of 4,096.
const MOST: i64 = 2048;

/// A launch, and the stage that stores what the launch behind it multiplies.
pub struct Pair {
    pub first: usize,
    pub store: usize,
}

/// Launches that hand rows to the one behind them.
pub fn pairs(plan: &Plan) -> Vec<Pair> {
    let all = 0..plan.launches.len().saturating_sub(1);
    // No launch is in two: what hands on multiplies rows as they lie, and what is handed to does not.
    all.filter_map(|first| {
        Some(Pair {
            first,
            store: hands_on(plan, first)?,
        })
    })
    .collect()
}

fn hands_on(plan: &Plan, at: usize) -> Option<usize> {
    let [a, b] = [at, at + 1].map(|i| &plan.launches[i]);
    let [first, second] = [a, b].map(|l| &plan.kernels[l.kernel]);
    // A row for each sequence is few rows, and what is known to be many does not gain.
    let rows = Size::product(&first.outer);
    let gains = match rows.as_const() {
        Some(n) => n <= MOST,
        None => rows.syms.iter().any(|s| s == "T"),
    };
    if !gains {
        return None;
    }
    let rows = b.args[second.contraction.as_ref()?.a.arg];
    let made = a.args.iter().position(|x| *x == rows)?;
    matmul::hands_on(first, second, made)
}

/// A product's ways, and which of them run: up to how many rows.
pub type Chosen = (Vec<Way>, Vec<(usize, Variant)>);

/// The two as one kernel; none where no number of rows is handed on.
pub fn emit(name: &str, kernels: [&Kernel; 2], store: usize, chosen: [&Chosen; 2]) -> Option<Emitted> {
    let mut all = Emitted {
        kernel: GpuKernel {
            name: name.to_string(),
            variants: vec![],
        },
        functions: vec![],
    };
    let mut hands_on = false;
    for most in limits(kernels[0], chosen)? {
        let [a, b] = chosen.map(|(ways, variants)| {
            let serves = |v: &&(usize, Variant)| match (&v.1.at_most, most.as_ref()) {
                (None, _) => true,
                (Some((_, n)), Some((_, most))) => n >= most,
                (Some(_), None) => false,
            };
            variants
                .iter()
                .find(serves)
                .map(|(way, variant)| (&ways[*way], variant))
        });
        let (a, b) = (a?, b?);
        let shapes = [a.0, b.0].map(|w| matmul::SHAPES.iter().find(|s| s.name() == w.name));
        let few = most.as_ref().is_some_and(|(_, n)| *n <= MOST);
        let mut variant = match shapes {
            [Some(x), Some(y)] if few => {
                let names = [
                    format!("{}_{}_hands", kernels[0].name, x.name()),
                    format!("{}_{}_of_{}", kernels[1].name, y.name(), x.columns),
                ];
                let (variant, functions) = matmul::handed(kernels, store, [*x, *y], [&names[0], &names[1]])?;
                let is_new = |f: &(String, String)| all.functions.iter().all(|(name, _)| *name != f.0);
                let new: Vec<_> = functions.into_iter().filter(is_new).collect();
                all.functions.extend(new);
                hands_on = true;
                variant
            }
            _ => apart([kernels[0].args.len(), kernels[1].args.len()], [a.1, b.1]),
        };
        variant.at_most = most;
        all.kernel.variants.push(variant);
    }
    hands_on.then_some(all)
}

/// The numbers of rows at which something changes, none last. No way may ask for more than a number of
/// rows, or count: counters are given to all steps of a variant.
fn limits(first: &Kernel, chosen: [&Chosen; 2]) -> Option<Vec<Option<(runtime::artefact::Size, i64)>>> {
    let variants = || chosen.iter().flat_map(|(_, variants)| variants).map(|(_, v)| v);
    if variants().any(|v| !v.multiples.is_empty() || v.counters > 0) {
        return None;
    }
    let rows = size(&Size::product(&first.outer));
    let mut all: Vec<_> = variants().filter_map(|v| v.at_most.clone()).collect();
    all.push((rows, MOST));
    all.sort_by_key(|(_, n)| *n);
    all.dedup();
    Some(all.into_iter().map(Some).chain([None]).collect())
}

/// One behind the other, as they are.
fn apart(args: [usize; 2], variants: [&Variant; 2]) -> Variant {
    let [a, b] = variants;
    let mut both = Variant {
        workspaces: [&a.workspaces[..], &b.workspaces[..]].concat(),
        ..Variant::default()
    };
    let (mut buffers, mut workspaces) = (0, 0);
    for (n, v) in args.into_iter().zip(variants) {
        let range = |from: usize, n: usize| Some((from as u32..(from + n) as u32).collect());
        for step in &v.steps {
            let mut step = step.clone();
            step.buffers = range(buffers, n);
            step.workspaces = range(workspaces, v.workspaces.len());
            both.steps.push(step);
        }
        buffers += n;
        workspaces += v.workspaces.len();
    }
    both
}
