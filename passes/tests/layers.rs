//! Layers are alike: their kernels and their memory exist once.

use ir::DType;
use ir::plan::BufferKind;

#[test]
fn equal_layers_share_their_kernels() {
    let module = |layers: i64| {
        use ir::{Function, Module, Param, TensorType};
        let ty = TensorType::new(["B".into(), "T".into(), ir::Dim::from(8i64)], DType::F32);
        let mut layer = Function::new("layer");
        let x = layer.param("x", ty.clone(), Param::Input("x".into()));
        let w = layer.param(
            "w",
            TensorType::new([8i64, 8], DType::F32),
            Param::Weight("w.{i}".into()),
        );
        let y = layer.matmul(x, w, true, DType::F32);
        let y = layer.add(x, y);
        layer.returns("x", y);
        let mut main = Function::new("main");
        let mut x = main.param("x", ty, Param::Input("x".into()));
        for i in 0..layers {
            x = main.call(&layer, i, &[x])[0];
        }
        main.returns("x", x);
        Module {
            functions: vec![layer, main],
        }
    };
    let (one, many) = (
        passes::schedule(&module(1), "main", &passes::Scheduling::FUSED).unwrap(),
        passes::schedule(&module(9), "main", &passes::Scheduling::FUSED).unwrap(),
    );
    assert_eq!(many.kernels.len(), one.kernels.len());
    assert_eq!(many.launches.len(), 9 * one.launches.len());
    let slots = many.buffers.iter().filter_map(|b| {
        if let BufferKind::Temp { slot } = b.kind {
            Some(slot)
        } else {
            None
        }
    });
    assert!(slots.max() <= Some(3), "layers reuse memory");
}
