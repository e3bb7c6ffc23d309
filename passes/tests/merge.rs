//! Merged and unmerged plans of a training step mean the same, and the merged one moves fewer bytes.

mod training;

use ir::plan::{Expr, Kernel, Plan, Unary};
use ir::{DType, Module, Sizes};
use passes::{Program, Scheduling};
use training::{Step, assert_near, config, step, train_step};

fn plan(module: &Module, merged: bool) -> Plan {
    let scheduling = Scheduling {
        merged,
        ..Scheduling::FUSED
    };
    training::plan(module, &scheduling)
}

/// Does a product compute the sigmoid of SwiGLU's backward from what it loads?
fn ends_with_swiglu(plan: &Plan) -> bool {
    let sigmoid = |k: &Kernel| k.exprs.iter().any(|e| matches!(e, Expr::Unary(Unary::Sigmoid, _)));
    let stores = |k: &Kernel| {
        k.stages
            .iter()
            .filter(|s| matches!(s, ir::plan::Stage::Store { .. }))
            .count()
    };
    let mut products = plan.kernels.iter().filter(|k| k.contraction.is_some());
    products.any(|k| sigmoid(k) && stores(k) > 1)
}

#[test]
fn a_merged_training_step_means_the_same() {
    let vocab = 13;
    let config = config([vocab, 8, 2, 4, 2, 4, 12], "layer");
    for (context, dtype, memory, tolerance) in [
        (5, DType::F32, u64::MAX, 1e-5),
        (5, DType::F32, 0, 1e-5),
        (5, DType::BF16, 0, 3e-2),
        // So many rows that a product ends with what its readers did.
        (128, DType::F32, 0, 1e-5),
    ] {
        let wanted = |_: &str| true;
        let batch = 2;
        let of = Step {
            batch,
            context,
            dtype,
            memory,
            wanted,
        };
        let module = train_step(&config, &of, &Program::fused());
        let (apart, merged) = (plan(&module, false), plan(&module, true));
        let both = [&apart, &merged].map(|plan| step(&module, plan, vocab));
        assert_near(&both[0], &both[1], tolerance, &dtype.to_string());
        let bytes = |plan: &Plan| plan.work(&Sizes::new()).unwrap().bytes;
        assert!(
            bytes(&merged) < 0.95 * bytes(&apart),
            "{} of {}",
            bytes(&merged),
            bytes(&apart)
        );
        assert!(merged.launches.len() * 4 < apart.launches.len() * 3);
        assert_eq!(ends_with_swiglu(&merged), context == 128, "{merged}");
    }
}

/// Of a model as large as one that is trained: what a layer's kernels become does not depend on the layer.
#[test]
fn layers_still_share_their_kernels() {
    let plan_of = |layers: i64| {
        let config = config([1000, 1024, layers, 16, 8, 128, 3072], "layer");
        let of = Step {
            batch: 4,
            context: 512,
            dtype: DType::BF16,
            memory: 0,
            wanted: |_| true,
        };
        plan(&train_step(&config, &of, &Program::fused()), true)
    };
    let (few, many) = (plan_of(4), plan_of(6));
    assert_eq!(few.kernels.len(), many.kernels.len());
    let names = |plan: &Plan| plan.kernels.iter().map(|k| k.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&few), names(&many));
}
