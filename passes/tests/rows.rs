//! `join-rows`: streams that one set of weights multiplies are one stack from the first layer to the last, and mean what they meant apart.

use std::collections::BTreeMap;

use ir::eval::{Context, Tensor, run};
use ir::{DType, Dim, Function, Module, Param, Sizes, TensorType};
use passes::Program;

const WIDTH: i64 = 6;

/// Layers of `streams` residual streams: a norm, a product, a factor that the streams share, a residual. The first stream's product goes
/// into the second one, too, if they mix: then their products wait for each other.
fn streams(streams: usize, mixed: bool) -> Module {
    let ty = TensorType::new([Dim::sym("B"), Dim::sym("T"), WIDTH.into()], DType::F32);
    let mut layer = Function::new("layer");
    let xs: Vec<_> = (0..streams)
        .map(|i| layer.param(&format!("x{i}"), ty.clone(), Param::Input(format!("x{i}"))))
        .collect();
    let factor = TensorType::new([Dim::sym("B"), Dim::sym("T"), Dim::Const(1)], DType::F32);
    let factor = layer.param("factor", factor, Param::Input("factor".into()));
    let norm = TensorType::new([WIDTH], DType::F32);
    let norm = layer.param("norm", norm, Param::Weight("norm.{i}".into()));
    let w = TensorType::new([WIDTH, WIDTH], DType::F32);
    let w = layer.param("w", w, Param::Weight("w.{i}".into()));
    let mut before = None;
    for (i, x) in xs.into_iter().enumerate() {
        let x = match before.filter(|_| mixed) {
            Some(y) => layer.add(x, y),
            None => x,
        };
        let n = layer.rms_norm(x, norm, 1e-6, DType::F32);
        let y = layer.matmul(n, w, true, DType::F32);
        before = Some(y);
        let y = layer.mul(y, factor);
        let y = layer.add(x, y);
        layer.returns(&format!("y{i}"), y);
    }
    let mut main = Function::new("main");
    let mut xs: Vec<_> = (0..streams)
        .map(|i| main.param(&format!("x{i}"), ty.clone(), Param::Input(format!("x{i}"))))
        .collect();
    let factor = TensorType::new([Dim::sym("B"), Dim::sym("T"), Dim::Const(1)], DType::F32);
    let factor = main.param("factor", factor, Param::Input("factor".into()));
    for i in 0..3 {
        xs.push(factor);
        xs = main.call(&layer, i, &xs);
    }
    // Each stream is read on its own.
    for (i, x) in xs.into_iter().enumerate() {
        let y = main.unary("silu", x);
        main.returns(&format!("y{i}"), y);
    }
    Module {
        functions: vec![layer, main],
    }
}

fn joined(mut module: Module) -> Module {
    let mut program = Program::fused();
    program.passes = vec!["join-rows"];
    for pass in program.steps().unwrap() {
        (pass.run)(&mut module).unwrap();
    }
    assert_eq!(ir::verify::verify(&module), [], "{module}");
    module
}

fn evaluate(module: &Module) -> BTreeMap<String, Tensor> {
    let sizes = Sizes::from([("B".to_string(), 2), ("T".to_string(), 3)]);
    let tensor = |shape: &[usize], seed: f64| {
        let mut n = seed;
        Tensor::from_fn(shape, DType::F32, |_| {
            n += 1.0;
            (n * 1.7).sin()
        })
    };
    let width = WIDTH as usize;
    let weights = |name: &str| {
        let seed = name.len() as f64 + name.bytes().map(f64::from).sum::<f64>();
        let shape = if name.starts_with('w') {
            vec![width, width]
        } else {
            vec![width]
        };
        Some(tensor(&shape, seed))
    };
    let x = |i: usize| (format!("x{i}"), tensor(&[2, 3, width], 100.0 * i as f64));
    let mut inputs: BTreeMap<String, Tensor> = (0..3).map(x).collect();
    inputs.insert("factor".to_string(), tensor(&[2, 3, 1], 50.0));
    let context = Context {
        module,
        sizes: &sizes,
        weights: &weights,
        exact: true,
    };
    run(&context, "main", &inputs, &mut BTreeMap::new()).unwrap()
}

fn count(module: &Module, function: &str, op: &str) -> usize {
    let f = module.function(function).unwrap();
    f.ops.iter().filter(|o| o.name == op).count()
}

#[test]
fn streams_become_one_stack() {
    for n in [2, 3] {
        let apart = streams(n, false);
        let whole = joined(apart.clone());
        let (a, b) = (evaluate(&apart), evaluate(&whole));
        assert_eq!(a.len(), n);
        for (name, wanted) in &a {
            let far = wanted.data.iter().zip(&b[name].data).map(|(x, y)| (x - y).abs());
            assert!(far.fold(0.0, f64::max) < 1e-12, "{name} of {n} streams");
        }
        let layer = whole.function("layer").unwrap();
        let ops = ["rms_norm", "matmul", "mul", "add"].map(|op| count(&whole, "layer", op));
        assert_eq!(ops, [1; 4], "{whole}");
        assert_eq!((layer.params.len(), layer.returns.len()), (4, 1), "{whole}");
        // Stacked once, in front of the first layer.
        assert_eq!(
            (count(&whole, "layer", "concat"), count(&whole, "main", "concat")),
            (0, 1),
            "{whole}"
        );
    }
}

/// Products that wait for each other are not joined, and then nothing is.
#[test]
fn streams_that_mix_stay_apart() {
    let apart = streams(2, true);
    assert_eq!(joined(apart.clone()).to_string(), apart.to_string());
}
