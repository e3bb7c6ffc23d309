//! What stands in front of a token's attention, and may be its beginning: in every mode the norms and rotations of queries and keys, and what they
//! read keeps its memory until the attention has ended.

mod training;

use std::ops::Range;

use ir::DType;
use ir::plan::{BufferKind, Plan};
use passes::{Program, Scheduling};

fn plan(mode: &str, entry: &str, program: &Program) -> Plan {
    let config = training::config([32, 32, 2, 4, 2, 16, 32], mode);
    let options = model::graph::Options {
        dtype: DType::BF16,
        embedding: DType::BF16,
        max_context: 64,
    };
    let mut module = model::graph::build(&config, &options).unwrap();
    for pass in program.steps().unwrap() {
        (pass.run)(&mut module).unwrap();
    }
    let scheduling = Scheduling {
        panels: false,
        ..program.scheduling
    };
    passes::schedule(&module, entry, &scheduling).unwrap()
}

/// Launches in front of each sweep, with the points that a batch point has of each, and the sweep.
fn prologues(plan: &Plan) -> Vec<(Range<usize>, Vec<i64>)> {
    let sweeps = |i: &usize| plan.kernels[plan.launches[*i].kernel].sweep.is_some();
    let all = (0..plan.launches.len()).filter(sweeps);
    all.map(|at| {
        let points = plan.prologue(at);
        (at - points.len()..at, points)
    })
    .collect()
}

fn points(mode: &str, entry: &str, program: &Program) -> Vec<Vec<i64>> {
    let plan = plan(mode, entry, program);
    prologues(&plan).into_iter().map(|(_, points)| points).collect()
}

#[test]
fn norms_and_rotations_are_a_tokens_attentions_beginning() {
    let fused = Program::fused();
    // Two query heads for a head of keys.
    assert_eq!(points("layer", "decode", &fused), [[2, 1], [2, 1]]);
    // Of the second trip too, whose keys go to a ring.
    assert_eq!(points("stack", "decode", &fused), [[2, 1]; 4]);
    // Both trips' rows are one stack, of which each attention reads its own.
    assert_eq!(points("restart", "decode", &fused), [[2, 1]; 4]);
}

#[test]
fn many_tokens_have_none() {
    assert!(points("layer", "prefill", &Program::fused()).iter().all(Vec::is_empty));
}

/// What two blocks' points have in common is no block's own: all query heads of one head of keys, as one row.
#[test]
fn what_batch_points_share_is_not_theirs() {
    let mut plan = plan("layer", "decode", &Program::fused());
    let (launches, _) = prologues(&plan)[0].clone();
    let queries = plan.launches[launches.start].kernel;
    let spread = |plan: &mut Plan, by: i64| {
        for stage in &mut plan.kernels[queries].stages {
            if let ir::plan::Stage::Store { to, .. } = stage {
                for stride in &mut to.strides {
                    stride.coef *= by;
                }
            }
        }
    };
    assert_eq!(plan.prologue(launches.end), [2, 1]);
    spread(&mut plan, 2);
    assert_eq!(
        plan.prologue(launches.end),
        [1],
        "its rows lie elsewhere than they are read"
    );
}

#[test]
fn what_it_reads_keeps_its_memory() {
    for mode in ["layer", "stack", "restart"] {
        let plan = plan(mode, "decode", &Program::fused());
        let slot = |b: &usize| match plan.buffers[*b].kind {
            BufferKind::Temp { slot } => Some(slot),
            _ => None,
        };
        for (front, _) in prologues(&plan) {
            let sweep = &plan.launches[front.end];
            let written = plan.kernels[sweep.kernel]
                .args
                .iter()
                .zip(&sweep.args)
                .filter(|(a, _)| a.written);
            let results: Vec<u32> = written.filter_map(|(_, b)| slot(b)).collect();
            let held: Vec<u32> = front.flat_map(|i| &plan.launches[i].args).filter_map(slot).collect();
            assert!(!results.is_empty() && !held.is_empty(), "{mode}");
            assert!(
                results.iter().all(|r| !held.contains(r)),
                "{mode}: {results:?} of {held:?}"
            );
        }
    }
}
