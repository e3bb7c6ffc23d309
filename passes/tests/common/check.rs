//! What a graph became: fused, evaluated, as a plan, and every alternative of it.

use std::collections::BTreeMap;

use ir::eval::{Context, Tensor, run};
use ir::{DType, Function, Module, Sizes};
use passes::egraph::{self, rules};

pub fn fused(f: &Function) -> Function {
    let mut module = Module {
        functions: vec![f.clone()],
    };
    for pass in ["cse", "fuse", "cse", "dce"] {
        let pass = passes::PASSES.iter().find(|p| p.name == pass).unwrap();
        (pass.run)(&mut module).unwrap();
        assert_eq!(ir::verify::verify(&module), [], "after {}:\n{module}", pass.name);
    }
    module.functions.remove(0)
}

pub fn count(f: &Function, op: &str) -> usize {
    f.ops.iter().filter(|o| o.name == op).count()
}

pub fn inputs(f: &Function, sizes: &Sizes, seed: u64) -> BTreeMap<String, Tensor> {
    let mut random = seed;
    let mut next = || {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (random >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    };
    let mut inputs = BTreeMap::new();
    for (v, p) in &f.params {
        let ir::Param::Input(name) = p else { continue };
        let ty = f.ty(*v);
        let shape: Vec<usize> = ty.resolve(sizes).unwrap().iter().map(|n| *n as usize).collect();
        let n = shape.iter().product();
        let data = if ty.dtype == DType::I32 {
            vec![(sizes["S"] - 1) as f64; n]
        } else {
            (0..n).map(|_| 3.0 * next()).collect()
        };
        inputs.insert(name.clone(), Tensor::new(&shape, ty.dtype, data).rounded());
    }
    inputs
}

pub fn evaluate(f: &Function, sizes: &Sizes, seed: u64) -> Tensor {
    let inputs = inputs(f, sizes, seed);
    let module = Module {
        functions: vec![f.clone()],
    };
    let context = Context {
        module: &module,
        sizes,
        weights: &|_| None,
        exact: true,
    };
    run(&context, &f.name, &inputs, &mut BTreeMap::new()).unwrap()["out"].clone()
}

pub fn same(f: &Function, g: &Function, sizes: &[(&str, i64)]) {
    let sizes: Sizes = sizes.iter().map(|(k, v)| (k.to_string(), *v)).collect();
    let (a, b) = (evaluate(f, &sizes, 7), evaluate(g, &sizes, 7));
    for (x, y) in a.data.iter().zip(&b.data) {
        assert!((x - y).abs() <= 1e-5 * (1.0 + x.abs()), "{x} and {y} at {sizes:?}");
    }
}

/// The fused plan, interpreted, against the naive graph.
pub fn planned(f: &Function, g: &Function, sizes: &[(&str, i64)]) {
    let module = Module {
        functions: vec![g.clone()],
    };
    let sizes: Sizes = sizes.iter().map(|(k, v)| (k.to_string(), *v)).collect();
    let plan = passes::schedule(&module, &g.name, &passes::Scheduling::FUSED).unwrap();
    assert_eq!(ir::plan::verify::verify(&plan), [], "{plan}");
    let sweeps = plan.kernels.iter().filter(|k| k.sweep.is_some()).count();
    assert_eq!(sweeps, 1, "one kernel for all of attention:\n{plan}");
    let wanted = evaluate(f, &sizes, 7);
    let inputs = inputs(f, &sizes, 7);
    let mut memory = ir::plan::eval::allocate(&plan, &sizes).unwrap();
    for (b, data) in plan.buffers.iter().zip(&mut memory) {
        if let ir::plan::BufferKind::Input(name) = &b.kind {
            *data = inputs[name].data.clone();
        }
    }
    ir::plan::eval::run(&plan, &sizes, &mut memory).unwrap();
    let out = plan
        .buffers
        .iter()
        .position(|b| matches!(b.kind, ir::plan::BufferKind::Output(_)))
        .unwrap();
    for (x, y) in memory[out].iter().zip(&wanted.data) {
        assert!(
            (x - y).abs() <= 1e-5 * (1.0 + y.abs()),
            "{x} and {y} at {sizes:?}\n{plan}"
        );
    }
}

/// Every alternative in every class of the saturated graph is the same function, on so many random inputs.
pub fn agree(what: &str, f: &Function, seeds: u64) {
    let saturated = egraph::saturate(f, &rules::all());
    assert_eq!(saturated.limit, None, "{what}");
    let graph = &saturated.import.graph;
    let tables = &graph.analysis.tables;
    let size = |i: egraph::term::Index| match &tables.indices[i.0 as usize].size {
        n if *n == ir::Size::one() => 1,
        n if *n == ir::Size::sym("T") || *n == ir::Size::sym("S") => 6,
        _ => 2,
    };
    for seed in 0..seeds {
        let space = egraph::audit::Space::new(tables, &size, seed);
        assert_eq!(egraph::audit::audit(graph, &space), [], "{what}");
    }
}
