//! The reference evaluator against results worked out by hand.

use std::collections::BTreeMap;

use ir::eval::{Context, EvalError, Tensor, run};
use ir::testing::ENTRY;
use ir::{Attr, Attrs, DType, Function, Module, Param, Sizes, TensorType, ValueId};

use DType::{BF16, F16, F32, I1, I32};

fn tensor(shape: &[usize], dtype: DType, data: &[f64]) -> Tensor {
    Tensor::new(shape, dtype, data.to_vec())
}

fn ty(x: &Tensor) -> TensorType {
    TensorType {
        shape: x.shape.iter().map(|n| (*n).into()).collect(),
        dtype: x.dtype,
    }
}

fn attrs(list: &[(&str, Attr)]) -> Attrs {
    list.iter().map(|(k, v)| (k.to_string(), v.clone())).collect()
}

/// One op on constant shapes.
fn one(name: &str, operands: &[Tensor], list: &[(&str, Attr)]) -> Tensor {
    one_as(name, operands, list, false)
}

fn one_as(name: &str, operands: &[Tensor], list: &[(&str, Attr)], exact: bool) -> Tensor {
    let mut f = Function::new(ENTRY);
    let mut inputs = BTreeMap::new();
    let values: Vec<ValueId> = operands
        .iter()
        .enumerate()
        .map(|(i, x)| {
            inputs.insert(format!("x{i}"), x.clone());
            f.param(&format!("x{i}"), ty(x), Param::Input(format!("x{i}")))
        })
        .collect();
    let y = f.try_op(name, &values, attrs(list)).expect(name);
    f.returns("y", y);
    let module = Module { functions: vec![f] };
    let context = Context {
        module: &module,
        sizes: &Sizes::new(),
        weights: &|_| None,
        exact,
    };
    run(&context, ENTRY, &inputs, &mut BTreeMap::new())
        .expect(name)
        .remove("y")
        .expect("y")
}

fn near(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    for (a, b) in found.iter().zip(wanted) {
        assert!((a - b).abs() < 1e-6, "{found:?} against {wanted:?}");
    }
}

#[test]
fn mask_with_start_and_window() {
    let ty = |shape: &[i64]| ("type", Attr::Type(TensorType::new(shape.iter().copied(), I1)));
    // No start: row t sees keys 0..=t.
    assert_eq!(
        one("mask", &[], &[ty(&[3, 3])]).data,
        [1., 0., 0., 1., 1., 0., 1., 1., 1.]
    );
    // A window of 1 is the token itself.
    assert_eq!(
        one("mask", &[], &[ty(&[3, 3]), ("window", Attr::Int(1))]).data,
        [1., 0., 0., 0., 1., 0., 0., 0., 1.]
    );
    // Two sequences, the first at position 1, the second at 3; a window of 2: rows 1 2 and 3 4 see (p - 2, p].
    let start = tensor(&[2], I32, &[1., 3.]);
    let found = one("mask", &[start], &[ty(&[2, 1, 2, 5]), ("window", Attr::Int(2))]);
    #[rustfmt::skip]
    assert_eq!(found.data, [
        1., 1., 0., 0., 0.,
        0., 1., 1., 0., 0.,
        0., 0., 1., 1., 0.,
        0., 0., 0., 1., 1.,
    ]);
}

#[test]
fn cache_write_plain() {
    let cache = tensor(&[2, 1, 4, 1], F32, &[0.; 8]);
    let new = tensor(&[2, 1, 2, 1], F32, &[1., 2., 3., 4.]);
    let found = one("cache_write", &[cache.clone(), new.clone()], &[]);
    assert_eq!(found.data, [1., 2., 0., 0., 3., 4., 0., 0.]);
    let found = one("cache_write", &[cache, new, tensor(&[2], I32, &[1., 2.])], &[]);
    assert_eq!(found.data, [0., 1., 2., 0., 0., 0., 3., 4.]);
}

#[test]
fn cache_write_ring() {
    let ring = [("ring", Attr::Bool(true))];
    // More rows than room: of 1..=5 the last three stay, at rows 2 0 1 (positions 2 3 4).
    let cache = tensor(&[1, 1, 3, 1], F32, &[9.; 3]);
    let new = tensor(&[1, 1, 5, 1], F32, &[1., 2., 3., 4., 5.]);
    assert_eq!(
        one("cache_write", &[cache.clone(), new.clone()], &ring).data,
        [4., 5., 3.]
    );
    // The same from position 1: positions 3 4 5 hold 3 4 5.
    assert_eq!(
        one("cache_write", &[cache.clone(), new, tensor(&[1], I32, &[1.])], &ring).data,
        [3., 4., 5.]
    );
    // Two rows from position 5 wrap: rows 2 and 0; row 1 stays.
    let new = tensor(&[1, 1, 2, 1], F32, &[1., 2.]);
    assert_eq!(
        one("cache_write", &[cache, new, tensor(&[1], I32, &[5.])], &ring).data,
        [2., 9., 1.]
    );
}

#[test]
fn rope_pairs_halves() {
    // D = 4, theta = 100: angles p and p / 10 for the pairs (0, 2) and (1, 3).
    let x = tensor(&[1, 2, 4], F32, &[1., 2., 3., 4., 1., 2., 3., 4.]);
    let list = [("theta", Attr::Float(100.0)), ("max", Attr::Int(16))];
    let turned = |p: f64| {
        let (c, s, c1, s1) = (p.cos(), p.sin(), (p / 10.0).cos(), (p / 10.0).sin());
        [c - 3. * s, 2. * c1 - 4. * s1, 3. * c + s, 4. * c1 + 2. * s1]
    };
    near(
        &one("rope", std::slice::from_ref(&x), &list).data,
        &[turned(0.), turned(1.)].concat(),
    );
    near(
        &one("rope", &[x, tensor(&[1], I32, &[7.])], &list).data,
        &[turned(7.), turned(8.)].concat(),
    );
}

#[test]
fn cross_entropy_ignores_negative_targets() {
    let logits = tensor(&[1, 3, 2], F32, &[0., 0., 1., 3., 1000., 0.]);
    let targets = tensor(&[1, 3], I32, &[1., -1., 1.]);
    // log 2; ignored; 1000 without overflow.
    near(
        &one("cross_entropy", &[logits, targets], &[]).data,
        &[2f64.ln(), 0., 1000.],
    );
}

#[test]
fn grouped_matmul_broadcasts() {
    // q [1, 2 KV, 2 G, 1 T, 2 D] by k [1, 2 KV, 1, 2 S, 2 D] transposed: both groups of a head meet that head's keys.
    let q = tensor(&[1, 2, 2, 1, 2], F32, &[1., 0., 0., 1., 1., 1., 2., 0.]);
    let k = tensor(&[1, 2, 1, 2, 2], F32, &[1., 2., 3., 4., 5., 6., 7., 8.]);
    let found = one("matmul", &[q, k], &[("transpose_b", Attr::Bool(true))]);
    assert_eq!(found.shape, [1, 2, 2, 1, 2]);
    assert_eq!(found.data, [1., 3., 2., 4., 11., 15., 10., 14.]);
    // Not transposed, one matrix for all rows.
    let a = tensor(&[2, 1, 2], F32, &[1., 2., 3., 4.]);
    let b = tensor(&[2, 3], F32, &[1., 2., 3., 4., 5., 6.]);
    assert_eq!(one("matmul", &[a, b], &[]).data, [9., 12., 15., 19., 26., 33.]);
}

#[test]
fn softmax_is_stable_and_zero_where_all_is_masked() {
    let inf = f64::NEG_INFINITY;
    let x = tensor(&[3, 2], F32, &[1000., 1000., inf, 5., inf, inf]);
    assert_eq!(one("softmax", &[x], &[]).data, [0.5, 0.5, 0., 1., 0., 0.]);
}

#[test]
fn norm_by_hand() {
    // mean(x^2) = 12.5, with eps 3.5: 1 / sqrt(16).
    let (x, w) = (tensor(&[1, 2], F32, &[3., 4.]), tensor(&[2], F32, &[2., 0.5]));
    assert_eq!(one("rms_norm", &[x, w], &[("eps", Attr::Float(3.5))]).data, [1.5, 0.5]);
}

#[test]
fn layout_ops() {
    let x = tensor(&[2, 3], F32, &[0., 1., 2., 3., 4., 5.]);
    let part = ("type", Attr::Type(TensorType::new([2i64, 2], F32)));
    assert_eq!(
        one(
            "transpose",
            std::slice::from_ref(&x),
            &[("perm", Attr::Ints(vec![1, 0]))]
        )
        .data,
        [0., 3., 1., 4., 2., 5.]
    );
    assert_eq!(
        one(
            "slice",
            std::slice::from_ref(&x),
            &[("axis", Attr::Int(1)), ("begin", Attr::Int(1)), part]
        )
        .data,
        [1., 2., 4., 5.]
    );
    assert_eq!(
        one("reduce_sum", std::slice::from_ref(&x), &[("axis", Attr::Int(0))]).data,
        [3., 5., 7.]
    );
    assert_eq!(
        one("reduce_max", std::slice::from_ref(&x), &[("axis", Attr::Int(1))]).data,
        [2., 5.]
    );
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let rows = [[1., 7., 7.], [-inf, -3., -4.], [nan, 2., 1.], [0., inf, 1.], [-inf; 3]];
    assert_eq!(
        one("arg_max", &[tensor(&[5, 3], F32, rows.as_flattened())], &[]).data,
        [1., 1., -1., -1., -1.]
    );
    let y = tensor(&[2, 1], F32, &[8., 9.]);
    assert_eq!(
        one("concat", &[x, y], &[("axis", Attr::Int(1))]).data,
        [0., 1., 2., 8., 3., 4., 5., 9.]
    );
    let rows = tensor(&[2, 2, 1], F32, &[1., 2., 3., 4.]);
    assert_eq!(
        one("take_rows", &[rows, tensor(&[2], I32, &[1., 0.])], &[]).data,
        [2., 3.]
    );
}

/// Round to nearest, ties to even; overflow is infinity; `exact` rounds nothing.
#[test]
fn rounding() {
    let cast = |x: f64, to: &str, exact| {
        one_as(
            "cast",
            &[tensor(&[1], F32, &[x])],
            &[("dtype", Attr::Str(to.into()))],
            exact,
        )
        .data[0]
    };
    let e = 2f64.powi(-8);
    assert_eq!(cast(1.0 + e, "bf16", false), 1.0);
    assert_eq!(cast(1.0 + 3.0 * e, "bf16", false), 1.0 + 4.0 * e);
    assert_eq!(cast(1.0 + e * 1.01, "bf16", false), 1.0 + 2.0 * e);
    assert_eq!(cast(1.0 + e, "bf16", true), 1.0 + e);
    assert_eq!(cast(65519.0, "f16", false), 65504.0);
    assert_eq!(cast(65520.0, "f16", false), f64::INFINITY);
    // The result of f32 arithmetic is an f32: 1 + 2^-24 is 1.
    let sum = |exact| {
        one_as(
            "add",
            &[tensor(&[], F32, &[1.0]), tensor(&[], F32, &[2f64.powi(-24)])],
            &[],
            exact,
        )
        .data[0]
    };
    assert_eq!((sum(false), sum(true)), (1.0, 1.0 + 2f64.powi(-24)));
    assert_eq!(
        one("neg", &[tensor(&[1], BF16, &[1.0 + e])], &[]).data,
        [-1.0],
        "inputs are rounded to their type"
    );
    assert_eq!(
        one(
            "cast",
            &[tensor(&[1], F16, &[0.1])],
            &[("dtype", Attr::Str("f32".into()))]
        )
        .data,
        [0.0999755859375]
    );
}

/// A layer with weights and a state of its own, called twice.
const LAYERS: &str = r#"module {
  func.func @layer(
    %x: tensor<?xf32, ["T"]> {loop.input = "x"},
    %w: tensor<1xf32> {loop.weight = "layers.{i}.w"},
    %c: tensor<1x1x?x1xf32, ["C"]> {loop.state = "cache.{i}"}
  ) -> (tensor<?xf32, ["T"]> {loop.name = "y"}) {
    %y = "loop.mul"(%x, %w) : (tensor<?xf32, ["T"]>, tensor<1xf32>) -> tensor<?xf32, ["T"]>
    %r = "loop.reshape"(%y) {type = tensor<1x1x?x1xf32, ["T"]>} : (tensor<?xf32, ["T"]>) -> tensor<1x1x?x1xf32, ["T"]>
    %n = "loop.cache_write"(%c, %r) : (tensor<1x1x?x1xf32, ["C"]>, tensor<1x1x?x1xf32, ["T"]>) -> tensor<1x1x?x1xf32, ["C"]>
    return %y : tensor<?xf32, ["T"]>
  }
  func.func @main(%x: tensor<?xf32, ["T"]> {loop.input = "x"}) -> (tensor<?xf32, ["T"]> {loop.name = "y"}) {
    %0 = "loop.call"(%x) {callee = "layer", layer = 0} : (tensor<?xf32, ["T"]>) -> tensor<?xf32, ["T"]>
    %1 = "loop.call"(%0) {callee = "layer", layer = 1} : (tensor<?xf32, ["T"]>) -> tensor<?xf32, ["T"]>
    return %1 : tensor<?xf32, ["T"]>
  }
}"#;

#[test]
fn calls_find_the_layers_weights_and_states() {
    let module = ir::text::parse(LAYERS).expect("parses");
    assert_eq!(ir::verify::verify(&module), []);
    let weights = |name: &str| match name {
        "layers.0.w" => Some(tensor(&[1], F32, &[2.])),
        "layers.1.w" => Some(tensor(&[1], F32, &[5.])),
        _ => None,
    };
    let sizes: Sizes = [("T".to_string(), 2), ("C".to_string(), 3)].into();
    let context = Context {
        module: &module,
        sizes: &sizes,
        weights: &weights,
        exact: false,
    };
    let inputs: BTreeMap<_, _> = [("x".to_string(), tensor(&[2], F32, &[1., 3.]))].into();
    let empty = tensor(&[1, 1, 3, 1], F32, &[0.; 3]);
    let mut states: BTreeMap<_, _> = ["cache.0", "cache.1"].map(|n| (n.to_string(), empty.clone())).into();
    let results = run(&context, ENTRY, &inputs, &mut states).expect("runs");
    assert_eq!(results["y"].data, [10., 30.]);
    assert_eq!(states["cache.0"].data, [2., 6., 0.]);
    assert_eq!(states["cache.1"].data, [10., 30., 0.]);

    // What is missing or of another shape is named.
    let error = |context: &Context, entry: &str, inputs: &BTreeMap<String, Tensor>| {
        run(context, entry, inputs, &mut BTreeMap::new()).expect_err("must fail")
    };
    assert_eq!(error(&context, "loss", &inputs), EvalError::NoFunction("loss".into()));
    let missing = |function: &str, what: &str| EvalError::Missing {
        function: function.into(),
        what: what.into(),
    };
    assert_eq!(error(&context, ENTRY, &BTreeMap::new()), missing(ENTRY, "x"));
    assert_eq!(error(&context, ENTRY, &inputs), missing("layer", "cache.0"));
    let none = Context {
        weights: &|_| None,
        ..context
    };
    assert_eq!(error(&none, ENTRY, &inputs), missing("layer", "layers.0.w"));
    let longer = [("x".to_string(), tensor(&[3], F32, &[1., 3., 4.]))].into();
    assert!(
        matches!(error(&none, ENTRY, &longer), EvalError::Shape { what, found, .. } if what == "x" && found == [3])
    );
}
