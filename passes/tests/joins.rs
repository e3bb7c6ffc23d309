//! Matmuls of a training step that are one mean what they meant apart, and cost no copies.

mod training;

use ir::plan::{Kernel, Plan, Stage};
use ir::{DType, Sizes};
use passes::{Program, Scheduling};
use training::{Step, assert_near, config, plan, step, train_step};

type Wanted = fn(&str) -> bool;

fn gates(name: &str) -> bool {
    name.contains("gate_projections")
}

fn with_norms(name: &str) -> bool {
    gates(name) || name.contains("norm")
}

fn all(_: &str) -> bool {
    true
}

/// Plans as for a GPU.
fn scheduling() -> Scheduling {
    Scheduling {
        panels: false,
        ..Scheduling::FUSED
    }
}

fn apart() -> Program {
    let mut program = Program::fused();
    program
        .passes
        .retain(|p| !["join-projections", "join-sums"].contains(p));
    program
}

fn launches(plan: &Plan, of: impl Fn(&Kernel) -> bool) -> usize {
    plan.launches.iter().filter(|l| of(&plan.kernels[l.kernel])).count()
}

fn products(plan: &Plan) -> usize {
    launches(plan, |k| k.contraction.is_some())
}

fn copies(plan: &Plan) -> usize {
    launches(plan, |k| k.name.starts_with("copy"))
}

#[test]
fn a_joined_training_step_means_the_same() {
    let vocab = 13;
    let trained: [(&str, Wanted); 3] = [("gates", gates), ("norms", with_norms), ("all", all)];
    for mode in ["layer", "restart", "stack"] {
        for (name, wanted) in trained {
            for (dtype, memory, tolerance) in [
                (DType::F32, u64::MAX, 1e-5),
                (DType::BF16, u64::MAX, 5e-2),
                (DType::BF16, 0, 5e-2),
            ] {
                let config = config([vocab, 8, 2, 4, 2, 4, 16], mode);
                let of = Step {
                    batch: 2,
                    context: 5,
                    dtype,
                    memory,
                    wanted,
                };
                let both = [apart(), Program::fused()].map(|program| {
                    let module = train_step(&config, &of, &program);
                    let plan = plan(&module, &scheduling());
                    let values = step(&module, &plan, vocab);
                    (plan, values)
                });
                let [(apart, wanted), (joined, found)] = &both;
                assert_near(wanted, found, tolerance, &format!("{mode} {name} {dtype}"));
                assert!(copies(joined) <= copies(apart), "{joined}");
                // f32 weights that are trained are multiplied as they lie.
                let joins = dtype == DType::BF16 || name != "all";
                assert_eq!(products(joined) < products(apart), joins, "{mode} {name} {dtype}");
            }
        }
    }
}

/// Of a model as large as one that is trained, per layer: q, k and v are one product, what comes back through them is one and so is
/// what comes back through gate and up; with all weights trained also the gradients of three, and of two.
#[test]
fn a_layer_has_one_product_where_it_had_three() {
    for (wanted, saved) in [(with_norms as Wanted, 2 + 2 + 1), (all, 2 + 2 + 1 + 2 + 1)] {
        let config = config([1000, 1024, 3, 16, 8, 128, 3072], "layer");
        let of = Step {
            batch: 4,
            context: 512,
            dtype: DType::BF16,
            memory: u64::MAX,
            wanted,
        };
        let [apart, joined] =
            [apart(), Program::fused()].map(|program| plan(&train_step(&config, &of, &program), &scheduling()));
        assert_eq!(products(&joined) + 3 * saved, products(&apart));
        assert_eq!(copies(&joined), copies(&apart));
        assert!(joined.launches.len() + 3 * saved <= apart.launches.len());
        let bytes = |plan: &Plan| plan.work(&Sizes::new()).unwrap().bytes;
        assert!(bytes(&joined) < bytes(&apart));
        // Both halves of SwiGLU's gradient are the end of one product, each in its part of the joined left side.
        let halves = |k: &Kernel| {
            let stores = k.stages.iter().filter_map(|s| match s {
                Stage::Store { to, .. } => Some((to.arg, to.offset.coef)),
                Stage::Reduce { .. } => None,
            });
            let stores: Vec<(usize, i64)> = stores.collect();
            let both = |(arg, offset): &(usize, i64)| *offset == 0 && stores.contains(&(*arg, 3072));
            k.contraction.is_some() && stores.iter().any(both)
        };
        assert_eq!(launches(&joined, halves), 3, "{joined}");
    }
}
