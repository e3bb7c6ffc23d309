//! The reducer on a pass that is wrong on purpose, and the comparison on right ones.

use ir::testing::random;
use ir::{Attr, DType, Function, Module, Param, TensorType};
use passes::{compare, disagree, reduce};

/// Subtracts as if it were adding.
fn wrong(module: &Module) -> Module {
    let mut module = module.clone();
    let ops = module.functions.iter_mut().flat_map(|f| &mut f.ops);
    ops.filter(|op| op.name == "sub").for_each(|op| op.name = "add".into());
    module
}

fn ops(module: &Module) -> usize {
    module.functions.iter().map(|f| f.ops.len()).sum()
}

#[test]
fn a_wrong_pass_is_cornered() {
    let mut interesting = |m: &Module| compare(m, &wrong(m), m, 3).is_ok_and(|d| d.is_some());
    let large: Vec<(u64, Module)> = (0..400)
        .map(|seed| (seed, random(seed).module))
        .filter(|(_, m)| ops(m) >= 30 && interesting(m))
        .take(5)
        .collect();
    assert_eq!(large.len(), 5, "too few random graphs of 30 ops show the fault");
    for (seed, module) in large {
        let small = reduce(&module, &mut interesting);
        assert!(ops(&small) <= 3, "seed {seed}: {} ops are left\n{small}", ops(&small));
        assert!(interesting(&small), "seed {seed}:\n{small}");
        assert_eq!(ir::verify::verify(&small), vec![], "seed {seed}:\n{small}");
        assert!(small.functions.iter().any(|f| f.ops.iter().any(|op| op.name == "sub")));
    }
}

/// A fault that shows only through a call keeps the call and loses the rest.
#[test]
fn calls_are_kept_where_they_matter() {
    let module = (0..).map(|seed| random(seed).module).find(|m| ops(m) >= 30).unwrap();
    let calls = |m: &Module| {
        let ops = m.functions.iter().flat_map(|f| &f.ops);
        ops.filter(|op| op.attrs.get("layer") == Some(&Attr::Int(1))).count()
    };
    let small = reduce(&module, &mut |m| calls(m) == 1);
    assert_eq!((small.functions.len(), calls(&small)), (2, 1), "{small}");
    assert!(ops(&small) <= 2, "{small}");
}

#[test]
fn what_is_not_interesting_stays() {
    let module = random(1).module;
    assert_eq!(reduce(&module, &mut |_| false), module);
}

#[test]
fn the_passes_mean_what_they_are_given() {
    for seed in 0..60 {
        let found = disagree(&random(seed).module, &["cse", "dce"], &[], seed);
        assert_eq!(found, Ok(None), "seed {seed}");
    }
    let e = disagree(&random(0).module, &["css"], &[], 0).unwrap_err().to_string();
    assert!(e.contains("css") && e.contains("cse"), "{e}");
}

/// Indices stay in range, whatever reads them; a cache that no row fits is told.
#[test]
fn data_suits_its_readers() {
    let module = |capacity: i64, rows: i64| {
        let mut f = Function::new("main");
        let cache = TensorType::new([1i64, 1, capacity, 1], DType::F32);
        let new = TensorType::new([1i64, 1, rows, 1], DType::F32);
        let cache = f.param("cache", cache, Param::State("cache".into()));
        let new = f.param("new", new, Param::Input("new".into()));
        let start = f.param(
            "start",
            TensorType::new([1i64], DType::I32),
            Param::Input("start".into()),
        );
        let written = f.cache_write(cache, new, Some(start), false);
        f.returns("written", written);
        Module { functions: vec![f] }
    };
    for seed in 0..20 {
        let whole = module(3, 2);
        assert_eq!(compare(&whole, &whole, &whole, seed), Ok(None));
    }
    let short = module(2, 3);
    let e = compare(&short, &short, &short, 0).unwrap_err().to_string();
    assert!(e.contains("cache of 2 rows"), "{e}");
}
