//! Every op's gradient against central differences in exact arithmetic, and what the walk over functions must do: through calls,
//! shared weights, and nothing for what is frozen.

use std::collections::BTreeMap;

use ir::eval::{self, Context};
use ir::gradient::{GradientError, Keeping, gradient};
use ir::ops::{OPS, Sample};
use ir::tensor::Tensor;
use ir::testing::{Case, ENTRY, sample_case};
use ir::{Attr, DType, Dim, Function, Module, Param, TensorType};

/// `y` of the case weighed by `r` and summed, its float inputs as weights.
fn with_loss(mut case: Case) -> Case {
    let f = &mut case.module.functions[0];
    for (v, p) in f.params.clone() {
        if let (Param::Input(name), true) = (&p, f.ty(v).dtype.is_float()) {
            let at = f.params.iter().position(|q| q.0 == v).unwrap();
            f.params[at].1 = Param::Weight(name.clone());
            let x = case.inputs.remove(name).unwrap();
            case.weights.insert(name.clone(), x);
        }
    }
    let y = f.returns.remove(0).1;
    let y = f.cast(y, DType::F32);
    let ty = f.ty(y).clone();
    let shape: Vec<usize> = ty.resolve(&case.sizes).unwrap().iter().map(|n| *n as usize).collect();
    let mut n = 0;
    let weigh = Tensor::from_fn(&shape, DType::F32, |_| {
        n += 1;
        f64::from(n * 37 % 11) / 5.0 - 1.0
    });
    let r = f.param("r", ty.clone(), Param::Input("r".to_string()));
    case.inputs.insert("r".to_string(), weigh);
    let mut sum = f.mul(y, r);
    for axis in 0..ty.rank() {
        sum = f.reduce_sum(sum, axis as i64);
    }
    f.returns("loss", sum);
    case
}

fn run(module: &Module, entry: &str, case: &Case) -> BTreeMap<String, Tensor> {
    let weights = |name: &str| case.weights.get(name).cloned();
    let context = Context {
        module,
        sizes: &case.sizes,
        weights: &weights,
        exact: true,
    };
    eval::run(&context, entry, &case.inputs, &mut case.states.clone()).unwrap_or_else(|e| panic!("{e}\n{module}"))
}

/// So many bytes, as they are.
fn keeping(memory: u64) -> Keeping {
    Keeping {
        memory,
        dtype: DType::F32,
    }
}

/// Compares the gradient of `loss` by every weight with differences, whatever is kept and how.
fn check(case: &Case, what: &str) {
    for memory in [u64::MAX, 100, 0] {
        check_with(case, &format!("{what}, {memory} bytes"), keeping(memory));
    }
    let rounded = Keeping {
        memory: u64::MAX,
        dtype: DType::BF16,
    };
    check_with(case, &format!("{what}, bf16"), rounded);
}

fn check_with(case: &Case, what: &str, keeping: Keeping) {
    let module = gradient(&case.module, ENTRY, "loss", &|_| true, "gradients", keeping);
    let module = module.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(ir::verify::verify(&module), [], "{what}\n{module}");
    let found = run(&module, "gradients", case);
    for (name, x) in &case.weights {
        let grad = &found[&format!("grad.{name}")];
        assert_eq!(grad.shape, x.shape, "{what}: {name}");
        for i in 0..x.data.len() {
            let mut moved = case.clone();
            let mut at = |by: f64| {
                moved.weights.get_mut(name).unwrap().data[i] = x.data[i] + by;
                run(&case.module, ENTRY, &moved)["loss"].data[0]
            };
            let step = 1e-4;
            let wanted = (at(step) - at(-step)) / (2.0 * step);
            let (d, scale) = (grad.data[i], grad.data.iter().fold(1.0, |m: f64, x| m.max(x.abs())));
            assert!(
                (d - wanted).abs() <= 1e-5 * scale,
                "{what}: grad.{name}[{i}] is {d}, differences say {wanted}\n{module}"
            );
        }
    }
}

/// Every sample of every op that has a gradient; those that have none are listed, so that none is forgotten.
#[test]
fn every_op_against_differences() {
    let mut without = vec![];
    for def in OPS {
        if def.gradient.is_none() {
            without.push(def.name);
            continue;
        }
        for (i, sample) in (def.samples)().iter().enumerate() {
            for seed in 0..3 {
                let what = format!("{} sample {i} seed {seed}", def.name);
                let case = with_loss(sample_case(def, sample, seed).unwrap());
                if (def.name, i) == ("slice", 1) {
                    // Of a cache, whose rows are no constant: nothing that is trained reads one.
                    let error = gradient(&case.module, ENTRY, "loss", &|_| true, "gradients", keeping(0)).unwrap_err();
                    assert!(
                        error.to_string().contains("`slice` has no gradient: "),
                        "{what}: {error}"
                    );
                    continue;
                }
                check(&case, &what);
            }
        }
    }
    without.sort();
    assert_eq!(without, WITHOUT, "an op that training meets needs a gradient");
}

/// Integers, constants and caches; what only backward graphs and `fuse` write; and the last row of a prompt.
const WITHOUT: [&str; 18] = [
    "arg_max",
    "cache_write",
    "constant",
    "is_target",
    "log_sum_exp",
    "lse",
    "mask",
    "max",
    "mean",
    "one_hot",
    "reduce_max",
    "rms_scale",
    "scale_columns",
    "scatter_rows",
    "sweep",
    "sweep_gradient",
    "take_rows",
    "update",
];

/// A slice's gradient has zeros before it, behind it, both or none.
#[test]
fn every_place_of_a_slice() {
    let slice = ir::ops::op("slice").unwrap();
    for (axis, begin, n) in [(0, 0, 2), (0, 1, 4), (0, 0, 5), (1, 2, 1), (1, 0, 1), (1, 1, 2)] {
        let mut shape = vec![5i64, 3];
        shape[axis] = n;
        let sample = Sample {
            operands: vec![TensorType::new([5i64, 3], DType::F32)],
            attrs: [
                ("axis", Attr::Int(axis as i64)),
                ("begin", Attr::Int(begin)),
                ("type", Attr::Type(TensorType::new(shape, DType::F32))),
            ]
            .map(|(k, v)| (k.to_string(), v))
            .into(),
        };
        let case = with_loss(sample_case(slice, &sample, 1).unwrap());
        check(&case, &format!("slice {begin}..{} of axis {axis}", begin + n));
    }
}

fn weight(f: &mut Function, name: &str, shape: &[i64]) -> ir::ValueId {
    f.param(
        &name.replace(['.', '{', '}'], "_"),
        TensorType::new(shape.to_vec(), DType::F32),
        Param::Weight(name.to_string()),
    )
}

/// x -> silu(x W_i^T) + x, three calls: layers 0, 1 and 0 again, with a head that is used twice.
fn looped() -> Case {
    let rows = || TensorType::new([Dim::Const(2), Dim::Const(3)], DType::F32);
    let mut layer = Function::new("layer");
    let x = layer.param("x", rows(), Param::Input("x".to_string()));
    let w = weight(&mut layer, "layers.{i}.w", &[3, 3]);
    let y = layer.matmul(x, w, true, DType::F32);
    let y = layer.unary("silu", y);
    let y = layer.add(x, y);
    layer.returns("x", y);
    let mut f = Function::new(ENTRY);
    let head = weight(&mut f, "head", &[2, 3]);
    let x = f.param("x", rows(), Param::Input("x".to_string()));
    let mut h = f.mul(x, head);
    for i in [0, 1, 0] {
        h = f.call(&layer, i, &[h])[0];
    }
    let mut sum = f.mul(h, head);
    for axis in [0, 1] {
        sum = f.reduce_sum(sum, axis);
    }
    f.returns("loss", sum);
    let numbers = |shape: &[usize], by: i64| {
        let mut n = by;
        Tensor::from_fn(shape, DType::F32, |_| {
            n = n * 31 % 101;
            n as f64 / 50.0 - 1.0
        })
    };
    let weights = [
        ("head", 7, [2, 3]),
        ("layers.0.w", 11, [3, 3]),
        ("layers.1.w", 13, [3, 3]),
    ];
    Case {
        module: Module {
            functions: vec![layer, f],
        },
        sizes: BTreeMap::new(),
        inputs: BTreeMap::from([("x".to_string(), numbers(&[2, 3], 5))]),
        weights: weights
            .map(|(n, by, shape)| (n.to_string(), numbers(&shape, by)))
            .into(),
        states: BTreeMap::new(),
    }
}

#[test]
fn through_calls_and_shared_weights() {
    check(&looped(), "looped");
}

fn float(x: f64) -> Attr {
    Attr::Float(x)
}

/// A window's mean blended with the mean over all keys by a gate, both under one measure: two queries share a key, rows see 1 to 5 keys.
/// `apart`: the far keys are others, so that nothing is continued in the first.
fn blended(apart: bool) -> Case {
    let ty = |shape: &[i64]| TensorType::new(shape.to_vec(), DType::F32);
    let shapes: &[(&str, &[i64])] = &[
        ("q", &[1, 2, 5, 3]),
        ("k", &[1, 1, 5, 3]),
        ("v", &[1, 1, 5, 4]),
        ("k2", &[1, 1, 5, 3]),
        ("g", &[1, 2, 5, 1]),
    ];
    let mut f = Function::new(ENTRY);
    let v: BTreeMap<&str, ir::ValueId> = shapes
        .iter()
        .map(|(n, s)| (*n, f.param(n, ty(s), Param::Weight(n.to_string()))))
        .collect();
    let sweep = |f: &mut Function, k: &str, near: i64, far: Option<i64>, state: Option<ir::ValueId>| {
        let mut list: ir::Attrs = [
            ("scale".to_string(), float(0.7)),
            ("near".to_string(), Attr::Int(near)),
            ("starts".to_string(), Attr::Bool(false)),
            ("continues".to_string(), Attr::Bool(state.is_some())),
        ]
        .into();
        list.extend(far.map(|far| ("far".to_string(), Attr::Int(far))));
        let operands: Vec<ir::ValueId> = [v["q"], v[k], v["v"]].into_iter().chain(state).collect();
        f.try_op("sweep", &operands, list).unwrap()
    };
    let window = sweep(&mut f, "k", 0, Some(2), None);
    let (far, near) = if apart { ("k2", 0) } else { ("k", 2) };
    let all = sweep(&mut f, far, near, None, (!apart).then_some(window));
    let more = sweep(&mut f, "k2", 5, None, Some(all));
    let mean = |f: &mut Function, state| f.try_op("mean", &[state], ir::Attrs::new()).unwrap();
    let [window, all, more] = [window, all, more].map(|s| mean(&mut f, s));
    let far = f.mul(v["g"], all);
    let out = f.sub(far, window);
    let out = f.add(out, more);
    let squared = f.mul(out, out);
    let mut sum = squared;
    for axis in 0..4 {
        sum = f.reduce_sum(sum, axis);
    }
    f.returns("loss", sum);
    let mut n = 3;
    let weights = shapes.iter().map(|(name, shape)| {
        let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
        let x = Tensor::from_fn(&shape, DType::F32, |_| {
            n = n * 37 % 103;
            f64::from(n) / 50.0 - 1.0
        });
        (name.to_string(), x)
    });
    Case {
        weights: weights.collect(),
        module: Module { functions: vec![f] },
        sizes: BTreeMap::new(),
        inputs: BTreeMap::new(),
        states: BTreeMap::new(),
    }
}

/// Through chains of sweeps, and that ranges over the same keys are one op for each of q, k, v.
#[test]
fn through_sweeps() {
    for apart in [false, true] {
        check(&blended(apart), &format!("sweeps, apart: {apart}"));
    }
    let module = gradient(
        &blended(false).module,
        ENTRY,
        "loss",
        &|_| true,
        "gradients",
        keeping(0),
    )
    .unwrap();
    let ops = &module.function("gradients").unwrap().ops;
    let walks = ops.iter().filter(|op| op.name == "sweep_gradient");
    let ranges = |op: &ir::Op| (op.operands.len() - 3) / 3;
    assert_eq!(walks.map(ranges).collect::<Vec<_>>(), [1, 1, 1, 2, 2, 2], "{module}");
}

#[test]
fn frozen_weights_cost_nothing() {
    let case = looped();
    // Layer 1 alone: the first call of layer 0 needs no backward, the second passes on its input's gradient and none of its weight.
    let module = gradient(
        &case.module,
        ENTRY,
        "loss",
        &|n| n == "layers.1.w",
        "gradients",
        keeping(u64::MAX),
    )
    .unwrap();
    let entry = module.function("gradients").unwrap();
    let returned: Vec<&str> = entry.returns.iter().map(|r| r.0.as_str()).collect();
    assert_eq!(returned, ["loss", "grad.layers.1.w"]);
    let calls = entry.ops.iter().filter(|op| op.name == "call").count();
    assert_eq!(calls, 3 + 2, "{module}");
    let twins: Vec<Vec<&str>> = module
        .functions
        .iter()
        .filter(|f| f.name.contains("_backward"))
        .map(|f| f.returns.iter().map(|r| r.0.as_str()).collect())
        .collect();
    assert_eq!(twins, [vec!["d.x"], vec!["grad.layers.{i}.w"]]);
    let (all, one) = (
        gradient(&case.module, ENTRY, "loss", &|_| true, "gradients", keeping(u64::MAX)).unwrap(),
        module,
    );
    let (all, one) = (run(&all, "gradients", &case), run(&one, "gradients", &case));
    assert_eq!(all["grad.layers.1.w"].data, one["grad.layers.1.w"].data);
}

/// Products are kept in the type that is wanted, and widened where they are read; masses are not.
#[test]
fn what_is_kept_is_rounded() {
    let case = looped();
    let keeping = Keeping {
        memory: u64::MAX,
        dtype: DType::BF16,
    };
    let module = gradient(&case.module, ENTRY, "loss", &|_| true, "gradients", keeping).unwrap();
    let keepers = module.functions.iter().filter(|f| f.name.contains("_keeping"));
    let kept: Vec<DType> = keepers
        .flat_map(|f| {
            f.returns
                .iter()
                .filter(|r| r.0.starts_with("kept."))
                .map(|r| f.ty(r.1).dtype)
        })
        .collect();
    assert!(!kept.is_empty() && kept.iter().all(|t| *t == DType::BF16), "{module}");
    let twins = module.functions.iter().filter(|f| f.name.contains("_backward"));
    for twin in twins {
        let rounded = twin
            .params
            .iter()
            .filter(|(v, _)| twin.ty(*v).dtype == DType::BF16)
            .count();
        let widened = twin.ops.iter().filter(|op| op.name == "cast").count();
        assert!(rounded > 0 && widened >= rounded, "{module}");
    }
}

#[test]
fn what_has_no_gradient_is_told() {
    let case = looped();
    let error = |entry: &str, loss: &str, wanted: &dyn Fn(&str) -> bool| {
        gradient(&case.module, entry, loss, wanted, "gradients", keeping(0)).unwrap_err()
    };
    assert_eq!(
        error("no", "loss", &|_| true),
        GradientError::NoFunction("no".to_string())
    );
    assert!(matches!(error(ENTRY, "no", &|_| true), GradientError::NoLoss { .. }));
    assert!(matches!(error("layer", "x", &|_| true), GradientError::NoLoss { .. }));
    assert_eq!(error(ENTRY, "loss", &|n| n == "other"), GradientError::Nothing);
    let mut case = looped();
    let f = case.module.functions.last_mut().unwrap();
    let loss = f.returns.remove(0).1;
    let most = f.max(loss, loss);
    f.returns("loss", most);
    let error = gradient(&case.module, ENTRY, "loss", &|_| true, "gradients", keeping(u64::MAX)).unwrap_err();
    assert!(error.to_string().contains("`max` has no gradient"), "{error}");
}
