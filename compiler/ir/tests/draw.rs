//! Pictures: one small graph in full, and what must hold of every graph's.

use ir::draw::dot;
use ir::testing::random;
use ir::{DType, Function, Module, Param, TensorType};

#[test]
fn a_small_drawing() {
    let ty = TensorType::new(["B".into(), "T".into(), ir::Dim::from(8i64)], DType::F32);
    let mut f = Function::new("layer");
    let x = f.param("x", ty, Param::Input("x".into()));
    let w = f.param(
        "w",
        TensorType::new([8i64, 8], DType::F32),
        Param::Weight("w.{i}".into()),
    );
    let y = f.matmul(x, w, true, DType::F32);
    let half = f.scalar(0.5, DType::F32);
    let y = f.sub(half, y);
    let y = f.reduce_sum(y, 2);
    f.returns("y", y);
    let module = Module { functions: vec![f] };
    insta::assert_snapshot!(dot(&module, None));
    assert_eq!(dot(&module, Some("layer")), dot(&module, None));
    assert!(!dot(&module, Some("other")).contains("subgraph"));
}

/// Every edge joins two nodes that are declared, every op is a node or stands in a label.
#[test]
fn edges_join_declared_nodes() {
    for seed in 0..50 {
        let text = dot(&random(seed).module, None);
        let declared = |id: &str| text.contains(&format!("\n    {id} [label=\""));
        let mut edges = 0;
        for line in text.lines() {
            if let Some((from, to)) = line.trim().split_once(" -> ") {
                let to = to.split([' ', ';']).next().unwrap();
                assert!(declared(from) && declared(to), "seed {seed}: {line}");
                edges += 1;
            }
        }
        assert!(edges > 0, "seed {seed}");
    }
}
