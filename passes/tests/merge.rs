//! Merged and unmerged plans of a training step mean the same, and the merged one moves fewer bytes.

mod training;

use ir::plan::{Binary, Contraction, Expr, Kernel, Plan, Rhs, Unary};
use ir::{DType, Module, Sizes};
use passes::{Program, Scheduling};
use training::{Step, assert_near, config, step, train_step};

fn plan(module: &Module, merged: bool, panels: bool) -> Plan {
    let scheduling = Scheduling {
        merged,
        panels,
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

/// Does a sweep store the masses that its backward wants, and blend its passes?
fn blends_in_the_sweep(plan: &Plan) -> bool {
    let is = |k: &Kernel, wanted: fn(&Expr) -> bool| k.exprs.iter().any(wanted);
    let weighs = |e: &Expr| matches!(e, Expr::Binary(Binary::Mul, _, _));
    let mass = |e: &Expr| matches!(e, Expr::Lse(_));
    let mut sweeps = plan.kernels.iter().filter(|k| k.sweep.is_some());
    sweeps.any(|k| is(k, weighs) && is(k, mass))
}

/// Products of two right sides, and those that round rows of f32 as they read them and do not measure them.
fn doubles_and_rounding(plan: &Plan) -> (usize, usize) {
    let of = |is: &dyn Fn(&Kernel, &Contraction) -> bool| {
        let is = |k: &&Kernel| k.contraction.as_ref().is_some_and(|c| is(k, c));
        plan.kernels.iter().filter(is).count()
    };
    let type_of = |k: &Kernel, arg: usize| k.args[arg].dtype;
    let rounds = |k: &Kernel, c: &Contraction| match c.b {
        Rhs::Packed { arg } if !k.exprs.contains(&Expr::RowSquares) => {
            (type_of(k, c.a.arg), type_of(k, arg)) == (DType::F32, DType::BF16)
        }
        _ => false,
    };
    (of(&|_, c| c.also.is_some()), of(&rounds))
}

#[test]
fn a_merged_training_step_means_the_same() {
    let vocab = 13;
    let config = config([vocab, 8, 2, 4, 2, 8, 12], "layer");
    let all: fn(&str) -> bool = |_| true;
    let gates: fn(&str) -> bool = |name| name.contains("gate_projections");
    for (context, dtype, memory, wanted, panels, tolerance) in [
        (5, DType::F32, u64::MAX, all, true, 1e-5),
        (5, DType::F32, 0, all, true, 1e-5),
        (5, DType::BF16, 0, all, true, 3e-2),
        // So many rows that a product ends with what its readers did, and that rows are stored rounded.
        (128, DType::F32, 0, all, false, 1e-5),
        (128, DType::BF16, u64::MAX, gates, true, 3e-2),
    ] {
        let batch = 2;
        let of = Step {
            batch,
            context,
            dtype,
            memory,
            wanted,
        };
        let module = train_step(&config, &of, &Program::fused());
        let (apart, merged) = (plan(&module, false, panels), plan(&module, true, panels));
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
        assert!(blends_in_the_sweep(&merged) && !blends_in_the_sweep(&apart), "{merged}");
        let (doubles, rounding) = doubles_and_rounding(&merged);
        assert_eq!((doubles > 0, rounding), (context == 128, 0), "{merged}");
        assert_eq!(doubles_and_rounding(&apart).1 > 0, !wanted("weight"), "{apart}");
        // Gradients are rotated back where a norm's backward takes them.
        let rotates = |plan: &Plan| plan.kernels.iter().any(|k| k.name == "rope");
        assert_eq!((rotates(&apart), rotates(&merged)), (true, false), "{merged}");
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
        plan(&train_step(&config, &of, &Program::fused()), true, true)
    };
    let (few, many) = (plan_of(4), plan_of(6));
    assert_eq!(few.kernels.len(), many.kernels.len());
    let names = |plan: &Plan| plan.kernels.iter().map(|k| k.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&few), names(&many));
}
