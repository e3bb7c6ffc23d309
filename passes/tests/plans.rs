//! Plans against the evaluator: every op on its samples, and random programs. The plan must also pass its verifier.

use ir::plan::{BufferKind, WeightRecipe, eval as interpreter, verify::verify};
use ir::testing::{Case, ENTRY, random, sample_case};
use passes::{Pass, Program, Scheduling};

/// Op by op as it came, and with all passes and fused kernels.
fn check(case: &Case) -> Result<(), String> {
    check_as(case, &[], &Scheduling::OP_BY_OP).map_err(|e| format!("op by op: {e}"))?;
    for program in [Program::pass_by_pass(), Program::fused()] {
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
            BufferKind::Weight(WeightRecipe::Tensors { names, .. }) => {
                let parts: Option<Vec<_>> = names.iter().map(|n| case.weights.get(n)).collect();
                parts.map(|parts| parts.iter().flat_map(|t| t.data.clone()).collect())
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
        if matches!(op.name, "sweep" | "mean") {
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
    report(
        (0..cases)
            .filter_map(|seed| check(&random(seed)).err().map(|e| format!("seed {seed}: {e}")))
            .collect(),
    );
}
