//! Entries whose functions wait for values, not for each other (`awaited`): decoding, on Hopper.
//!
//! A function has its place and its weights while those in front of it still work: each lets the next one begin at once, and products poll
//! their rows, attention what is projected, in the memory that others fill. Small kernels wait for the function in front of them, as always,
//! and others for the values that they store.
//!
//! All or nothing: an entry is taken if every launch has such a function, and every value is written once.

use std::collections::HashMap;
use std::ops::Range;

use ir::Size;
use ir::plan::{BufferKind, Expr, Kernel, Plan};
use runtime::artefact::{Awaited, GpuKernel, Join};

use super::awaited::Awaiting;
use super::kernels::sweep;
use super::{Emitted, Target, few_rows_mma, join, map};
use crate::pipeline::size;

/// Sequences up to which it pays: measured on an H200, one gains 8 to 11%, eight lose 7%.
const SEQUENCES: i64 = 1;

/// Kernels that are made already: what they are, and their names.
pub type Known = HashMap<(String, Awaiting), String>;

/// Launches that run as one function.
struct Group {
    launches: Range<usize>,
    points: Vec<i64>,
}

/// The entry, if it is one, and the kernels that are not known yet. `names`: of each kernel of the plan.
pub fn entry(plan: &Plan, names: &[String], target: &Target, known: &mut Known) -> Option<(Awaited, Vec<Emitted>)> {
    if !target.hopper {
        return None;
    }
    let groups = groups(plan);
    let makers = makers(plan)?;
    let group_of = |launch: usize| groups.iter().position(|g| g.launches.contains(&launch));
    // Temporaries that a group makes for another.
    let crosses: Vec<bool> = (0..plan.buffers.len())
        .map(|b| {
            let Some(maker) = makers[b].filter(|_| is_temporary(plan, b)) else {
                return false;
            };
            let readers = plan.launches.iter().enumerate().filter(|(_, l)| l.args.contains(&b));
            readers.into_iter().any(|(i, _)| group_of(i) != group_of(maker))
        })
        .collect();
    let mut rows = vec![];
    let (mut joins, mut new) = (vec![], vec![]);
    for group in &groups {
        let launches = &plan.launches[group.launches.clone()];
        let kernels: Vec<Kernel> = launches.iter().map(|l| plan.kernels[l.kernel].clone()).collect();
        let buffers: Vec<usize> = launches.iter().flat_map(|l| l.args.iter().copied()).collect();
        // Memory that groups in front have in use too, without anybody waiting for its values.
        let in_front = &plan.launches[..group.launches.start];
        let foreign = |b: usize| !crosses[b] && makers[b].is_some() && in_front.iter().any(|l| l.args.contains(&b));
        let mut awaiting = Awaiting {
            buffers: buffers.iter().map(|b| crosses[*b]).collect(),
            polls: !buffers.iter().any(|b| foreign(*b)),
        };
        let last = kernels.last()?;
        match (&last.contraction, &last.sweep) {
            (Some(c), _) => {
                if !few_rows_mma::takes(last, c) || !awaiting.polls {
                    return None;
                }
                rows.push(Size::product(&last.outer));
            }
            (None, Some(s)) => {
                let first = buffers.len() - last.args.len();
                let own = awaiting.buffers[first..].iter().enumerate();
                let mut rows = own.filter(|(_, awaited)| **awaited).map(|(arg, _)| arg);
                awaiting.polls &= !rows.any(|arg| sweep::loads_rows(s, arg));
                if !sweep::takes(last, &[]) {
                    return None;
                }
            }
            (None, None) if last.sweep_gradient.is_some() => return None,
            (None, None) => awaiting.polls = false,
        }
        let parts: Vec<&str> = launches.iter().map(|l| names[l.kernel].as_str()).collect();
        let key = (parts.join("+"), awaiting.clone());
        let name = match known.get(&key) {
            Some(name) => name.clone(),
            None => {
                let same = known.keys().filter(|(base, _)| *base == key.0).count();
                let name = match same {
                    0 => format!("{}.awaiting", key.0),
                    n => format!("{}.awaiting.{n}", key.0),
                };
                new.push(made(&name, &kernels, group, &awaiting, target));
                known.insert(key, name.clone());
                name
            }
        };
        joins.push(Join {
            entry: plan.entry.clone(),
            first: group.launches.start as u32,
            count: launches.len() as u32,
            kernel: name,
        });
    }
    let awaited = Awaited {
        entry: plan.entry.clone(),
        at_most: at_most(&rows)?,
        joins,
    };
    Some((awaited, new))
}

/// All launches in their order.
fn groups(plan: &Plan) -> Vec<Group> {
    let mut all: Vec<Group> = vec![];
    let alone = |i: usize| Group {
        launches: i..i + 1,
        points: vec![],
    };
    for joined in join::groups(plan) {
        let at = all.last().map_or(0, |g| g.launches.end);
        all.extend((at..joined.launches.start).map(alone));
        all.push(Group {
            launches: joined.launches,
            points: joined.points,
        });
    }
    let at = all.last().map_or(0, |g| g.launches.end);
    all.extend((at..plan.launches.len()).map(alone));
    all
}

fn is_temporary(plan: &Plan, buffer: usize) -> bool {
    matches!(plan.buffers[buffer].kind, BufferKind::Temp { .. })
}

/// The last launch that writes each buffer; nothing if a temporary is written twice, or read by who writes it.
fn makers(plan: &Plan) -> Option<Vec<Option<usize>>> {
    let mut makers = vec![None; plan.buffers.len()];
    for (i, launch) in plan.launches.iter().enumerate() {
        let kernel = &plan.kernels[launch.kernel];
        for (arg, buffer) in launch
            .args
            .iter()
            .enumerate()
            .filter(|(arg, _)| kernel.args[*arg].written)
        {
            let loads = |e: &Expr| matches!(e, Expr::Load(a) if a.arg == arg);
            let again = makers[*buffer].is_some() || kernel.exprs.iter().any(loads);
            if is_temporary(plan, *buffer) && again {
                return None;
            }
            makers[*buffer] = Some(i);
        }
    }
    Some(makers)
}

/// The largest number of sequences whose rows the functions of products take.
fn at_most(rows: &[Size]) -> Option<(runtime::artefact::Size, i64)> {
    let sequences = Size {
        coef: 1,
        ..rows.first()?.clone()
    };
    let is_one = |n: &&Size| n.syms == sequences.syms;
    if sequences.syms != ["B"] || !rows.iter().all(|n| is_one(&n)) {
        return None;
    }
    let most = rows.iter().map(|n| n.coef).max()?;
    let rows = few_rows_mma::ROWS.into_iter().max()?;
    (most * SEQUENCES <= rows).then(|| (size(&sequences), SEQUENCES))
}

fn made(name: &str, kernels: &[Kernel], group: &Group, awaiting: &Awaiting, target: &Target) -> Emitted {
    let function = join::function_name(name);
    match kernels {
        [kernel] => match &kernel.contraction {
            Some(c) => {
                let ways = few_rows_mma::ROWS.map(|rows| {
                    let function = format!("{function}_r{rows}");
                    let (variant, text) = few_rows_mma::awaiting(kernel, c, rows, &function, awaiting);
                    (variant, (function, text))
                });
                let (variants, functions) = ways.into_iter().unzip();
                Emitted {
                    kernel: GpuKernel {
                        name: name.to_string(),
                        variants,
                    },
                    functions,
                }
            }
            None if kernel.sweep.is_some() => sweep::with_prologue(name, &function, kernel, &[], awaiting, target),
            None => {
                let mut emitted = map::awaiting(kernel, &function, awaiting, target);
                emitted.kernel.name = name.to_string();
                emitted
            }
        },
        kernels => join::awaiting(name, kernels, &group.points, awaiting, target),
    }
}
