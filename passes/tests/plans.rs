//! Plans against the evaluator: every op on its samples, and random programs. The plan must also pass its verifier.

use ir::plan::{BufferKind, WeightRecipe, eval as interpreter, verify::verify};
use ir::testing::{Case, ENTRY, random, random_training, sample_case};
use passes::{Pass, Program, Scheduling};

/// Op by op as it came, and with all passes and fused kernels.
fn check(case: &Case) -> Result<(), String> {
    check_as(case, &[], &Scheduling::OP_BY_OP).map_err(|e| format!("op by op: {e}"))?;
    let apart = Program::without("merge").ok_or("there is no such switch")?;
    for program in [Program::pass_by_pass(), apart, Program::fused()] {
        check_as(case, &program.steps().unwrap(), &program.scheduling).map_err(|e| format!("{}: {e}", program.name))?;
    }
    Ok(())
}

/// Runs the case's plan in the interpreter and compares results and states with the evaluator's.
fn check_as(case: &Case, passes: &[&Pass], options: &Scheduling) -> Result<(), String> {
    let mut module = case.module.clone();
    for pass in passes {
        (pass.run)(&mut module).map_err(|e| format!("{}: {e}", pass.name))?;
        let faults = ir::verify::verify(&module);
        if !faults.is_empty() {
            return Err(format!("after {}: {faults:?}\n{module}", pass.name));
        }
    }
    let plan = passes::schedule(&module, ENTRY, options).map_err(|e| format!("schedule: {e}\n{module}"))?;
    let faults: Vec<String> = verify(&plan).iter().map(ToString::to_string).collect();
    if !faults.is_empty() {
        return Err(format!("{}\n{plan}", faults.join("\n")));
    }
    let (results, states) = case.run(false).map_err(|e| format!("evaluator: {e}"))?;
    let mut memory = interpreter::allocate(&plan, &case.sizes).map_err(|e| e.to_string())?;
    for (b, data) in plan.buffers.iter().zip(&mut memory) {
        let given: Option<Vec<f64>> = match &b.kind {
            BufferKind::Input(name) => case.inputs.get(name).map(|t| t.data.clone()),
            BufferKind::State(name) => case.states.get(name).map(|t| t.data.clone()),
            BufferKind::Weight(WeightRecipe::Tensors { names, scale, .. }) => {
                let parts: Option<Vec<_>> = names.iter().map(|n| case.weights.get(n)).collect();
                let data = parts.map(|parts| parts.iter().flat_map(|t| t.data.clone()).collect::<Vec<f64>>());
                let scale = scale.as_ref().and_then(|s| case.weights.get(s)).map(|t| t.data.clone());
                let by = |i: usize| scale.as_ref().map_or(1.0, |s| s[i % s.len()]);
                data.map(|d| {
                    let scaled = d
                        .iter()
                        .enumerate()
                        .map(|(i, x)| interpreter::round(x * by(i), b.dtype));
                    scaled.collect()
                })
            }
            _ => continue,
        };
        *data = given.ok_or_else(|| format!("no value for {}", b.name))?;
    }
    interpreter::run(&plan, &case.sizes, &mut memory).map_err(|e| format!("{e}\n{plan}"))?;
    for (b, found) in plan.buffers.iter().zip(&memory) {
        let wanted = match &b.kind {
            BufferKind::Output(name) => &results[name],
            BufferKind::State(name) => &states[name],
            _ => continue,
        };
        // Roundings to bf16 may fall to the other side where sums associate differently.
        let scale = wanted
            .data
            .iter()
            .fold(1.0, |m: f64, x| if x.is_finite() { m.max(x.abs()) } else { m });
        let bf16 = plan.buffers.iter().any(|b| b.dtype == ir::DType::BF16);
        let tolerance = scale * if bf16 { 0.03 } else { 1e-5 };
        for (i, (x, y)) in found.iter().zip(&wanted.data).enumerate() {
            let close = (x - y).abs() <= tolerance;
            if x != y && !close {
                return Err(format!(
                    "{} [{i}] is {x}, the evaluator says {y}\nsizes {:?}\n{plan}",
                    b.name, case.sizes
                ));
            }
        }
    }
    Ok(())
}

fn report(failures: Vec<String>) {
    assert!(
        failures.is_empty(),
        "{} fail:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}

#[test]
fn every_op_on_its_samples() {
    let mut failures = vec![];
    for op in ir::ops::OPS {
        // A sweep's state lives inside one kernel, from the first sweep to the mean; `fusion.rs` runs such chains.
        if matches!(op.name, "sweep" | "mean" | "lse") {
            continue;
        }
        for (s, sample) in (op.samples)().iter().enumerate() {
            let error = (0..4).find_map(|seed| {
                let case = sample_case(op, sample, seed).unwrap_or_else(|e| panic!("{} sample {s}: {e}", op.name));
                check(&case)
                    .err()
                    .map(|e| format!("{} sample {s} seed {seed}: {e}", op.name))
            });
            failures.extend(error);
        }
    }
    report(failures);
}

#[test]
fn random_programs() {
    let cases: u64 = std::env::var("LOOPC_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(200);
    for (kind, make) in [("random", random as fn(u64) -> Case), ("training", random_training)] {
        let error = |seed: u64| check(&make(seed)).err().map(|e| format!("{kind} seed {seed}: {e}"));
        report((0..cases).filter_map(error).collect());
    }
}

/// Random programs have attention, also with axes of size 1, and all of it fuses.
#[test]
fn random_attention_fuses() {
    let (mut sweeps, mut one_head) = (0, 0);
    for seed in 0..100 {
        let mut module = random(seed).module;
        for pass in Program::fused().steps().unwrap() {
            (pass.run)(&mut module).unwrap();
        }
        for f in &module.functions {
            for op in &f.ops {
                // Products of rank 5 by something else than a weight are attention's alone.
                let softmax = |v: &ir::ValueId| f.ops.iter().any(|o| o.results[0] == *v && o.name == "softmax");
                let product = op.name == "matmul" && softmax(&op.operands[0]) && f.ty(op.operands[1]).rank() == 5;
                assert!(!product, "seed {seed}: attention is left in\n{module}");
                if op.name == "sweep" {
                    sweeps += 1;
                    one_head += usize::from(f.ty(op.operands[1]).shape[1] == ir::Dim::Const(1));
                }
            }
        }
    }
    assert!(
        sweeps > 20 && one_head > 5,
        "{sweeps} sweeps, {one_head} with one KV head"
    );
}

/// What 10,000 random programs found, as small as it gets: (name, the program between input `x` and result `y`).
#[test]
fn found_by_random_programs() {
    use ir::eval::Tensor;
    use ir::{DType, Function, Module, Param, TensorType, ValueId};
    type Make = fn(&mut Function, ValueId) -> ValueId;
    let f32 = |shape: &[ir::Dim]| TensorType::new(shape.to_vec(), DType::F32);
    let found: [(&str, Vec<ir::Dim>, Make); 4] = [
        // Its second half starts at S * 4 + 2, which no single term is.
        (
            "rope of a slice",
            vec![2i64.into(), 2i64.into(), "S".into(), 4i64.into()],
            |f, x| {
                let ty = TensorType::new([2i64.into(), 1i64.into(), "S".into(), ir::Dim::from(4i64)], DType::F32);
                let half = f.slice(x, 1, 1, ty);
                f.rope(half, None, 100.0, 64, DType::F32)
            },
        ),
        // The one column of the reduction was dropped from the kernel, so that it ran over the rows.
        (
            "a row of one column",
            vec![2i64.into(), "S".into(), 1i64.into()],
            |f, x| {
                let max = f.reduce_max(x, 2);
                let two = f.scalar(2.0, DType::F32);
                f.mul(max, two)
            },
        ),
        // The product waited for the reduction, which reads memory.
        (
            "a reduced product",
            vec![2i64.into(), "S".into(), 1i64.into()],
            |f, x| {
                let p = f.matmul(x, x, true, DType::F32);
                let p = f.reduce_max(p, 2);
                let p = f.reduce_sum(p, 1);
                f.unary("neg", p)
            },
        ),
        (
            "a reduced sum of products",
            vec![2i64.into(), 3i64.into(), 1i64.into()],
            |f, x| {
                let p = f.matmul(x, x, true, DType::F32);
                let p = f.add(p, p);
                f.reduce_sum(p, 2)
            },
        ),
    ];
    for (name, shape, make) in found {
        let mut f = Function::new(ENTRY);
        let x = f.param("x", f32(&shape), Param::Input("x".into()));
        let y = make(&mut f, x);
        f.returns("y", y);
        let sizes: ir::Sizes = [("S".to_string(), 5)].into();
        let shape: Vec<usize> = f.ty(x).resolve(&sizes).unwrap().iter().map(|n| *n as usize).collect();
        let n: usize = shape.iter().product();
        let data = (0..n).map(|i| ((i * 37 % 19) as f64 - 9.0) / 8.0).collect();
        let case = Case {
            module: Module { functions: vec![f] },
            sizes,
            inputs: [("x".to_string(), Tensor::new(&shape, DType::F32, data))].into(),
            weights: Default::default(),
            states: Default::default(),
        };
        check(&case).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
