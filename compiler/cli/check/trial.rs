//! One program compiled, run and compared: with the evaluator, and with itself when it is run again.
//!
//! On a GPU the first run waits for each kernel, so that an error names the one that made it; then the same calls come three times as a
//! model makes them (launched, recorded, replayed), and every bit must be as it was.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, anyhow};
use compiler::Target;
use compiler::pipeline::{self, ModelFacts};
use ir::eval::{self, Tensor};
use ir::{DType, Sizes};
use runtime::engine::Output;
use runtime::weights::Checkpoint;
use runtime::{Device, Engine, Input, RuntimeError, State};
use serde::{Deserialize, Serialize};

use super::subjects::{Call, Subject, Trial};
use crate::options::Common;

pub struct Tester<'a> {
    common: &'a Common,
    target: Target,
    machine: String,
    /// The engine before: as long as one lives, the device's context is not made anew.
    last: Option<Engine>,
}

#[derive(Default, Serialize, Deserialize)]
pub struct Outcome {
    pub runs: u64,
    pub failures: Vec<Failure>,
    /// The device does nothing more for this process.
    pub is_broken: bool,
}

#[derive(Serialize, Deserialize)]
pub struct Failure {
    /// None: whatever the data.
    pub seed: Option<u64>,
    pub what: String,
}

/// f32 on two machines: sums in other orders, and products of a GPU's matrix units.
const F32: f64 = 1e-4;

impl<'a> Tester<'a> {
    pub fn new(common: &'a Common) -> anyhow::Result<Tester<'a>> {
        Ok(Tester {
            common,
            target: common.target()?,
            machine: match common.device {
                Device::Cpu => format!("{} threads", common.threads()),
                Device::Cuda(number) => runtime::engine::device::gpu(number)?.name,
            },
            last: None,
        })
    }

    pub fn machine(&self) -> &str {
        &self.machine
    }

    pub fn target(&self) -> &'static str {
        self.target.name()
    }

    pub fn test(&mut self, subject: &Subject, seeds: impl Iterator<Item = u64>) -> Outcome {
        let mut outcome = Outcome::default();
        let engines = match self.engines(subject) {
            Ok(engines) => engines,
            Err(e) => {
                outcome.fail(None, e);
                return outcome;
            }
        };
        for seed in seeds {
            let run = (subject.trial)(seed).and_then(|trial| test_once(&engines, subject, &trial, seed));
            outcome.runs += 1;
            if let Err(e) = run {
                outcome.fail(Some(seed), e);
                if outcome.is_broken {
                    break;
                }
            }
        }
        self.last = Some(engines.careful);
        outcome
    }

    fn engines(&self, subject: &Subject) -> anyhow::Result<Engines> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let bytes = |t: &Tensor| {
            t.data
                .iter()
                .flat_map(|x| (*x as f32).to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let tensors: Vec<_> = subject.weights.iter().map(|(n, t)| (n, &t.shape, bytes(t))).collect();
        let views: Vec<_> = tensors
            .iter()
            .map(|(n, shape, data)| (n.as_str(), *shape, data))
            .collect();
        runtime::weights::write_safetensors(&folder.path().join("model.safetensors"), &views)?;
        let checkpoint = Checkpoint::open(folder.path())?;
        let facts = ModelFacts {
            hash: String::new(),
            facts: serde_json::Value::Null,
            shapes: checkpoint.shapes(),
        };
        let options = pipeline::Options {
            entries: subject.entries.clone(),
            targets: vec![self.target.clone()],
            max_context: subject.max_context,
            program: self.common.program(),
            tuning: self.common.tuning()?,
            emit: vec![],
        };
        let (artefact, _) = pipeline::compile(subject.module.clone(), &facts, &options)?;
        let mut options = self.common.engine();
        options.one_by_one = true;
        let careful = Engine::load(&artefact, &checkpoint, options)?;
        let plain = match self.common.device {
            Device::Cpu => None,
            Device::Cuda(_) => Some(Engine::load(&artefact, &checkpoint, self.common.engine())?),
        };
        Ok(Engines { careful, plain })
    }
}

impl Outcome {
    /// Whatever the data.
    pub fn failed(what: String) -> Outcome {
        Outcome {
            failures: vec![Failure { seed: None, what }],
            ..Outcome::default()
        }
    }

    fn fail(&mut self, seed: Option<u64>, e: anyhow::Error) {
        let runtime = e.downcast_ref::<RuntimeError>();
        self.is_broken |=
            runtime.is_some_and(|e| matches!(e, RuntimeError::Cuda(_)) || e.to_string().contains("cuda:"));
        let what = format!("{e:#}").replace('\n', " ");
        self.failures.push(Failure { seed, what });
    }
}

struct Engines {
    /// Waits for each kernel.
    careful: Engine,
    /// As models are run; on the CPU there is no difference.
    plain: Option<Engine>,
}

/// Results and states by name, of each call.
type Found = Vec<BTreeMap<String, Output>>;

fn test_once(engines: &Engines, subject: &Subject, trial: &Trial, seed: u64) -> anyhow::Result<()> {
    let first = run(&engines.careful, trial, seed)?;
    compare(subject, trial, &first)?;
    let (again, times) = engines.plain.as_ref().map_or((&engines.careful, 1), |plain| (plain, 3));
    for time in 1..=times {
        for ((one, other), call) in first.iter().zip(run(again, trial, seed)?).zip(&trial.calls) {
            let bits = |o: &Output| o.data.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
            if let Some((name, _)) = one.iter().find(|(name, x)| bits(x) != bits(&other[*name])) {
                return Err(anyhow!("@{}: run again ({time}), {name} has other bits", call.entry));
            }
        }
    }
    Ok(())
}

fn run(engine: &Engine, trial: &Trial, seed: u64) -> anyhow::Result<Found> {
    let mut state = engine.new_state(trial.batch, trial.capacity)?;
    let names: Vec<String> = state.names().map(String::from).collect();
    for name in &names {
        let values = trial
            .states
            .get(name)
            .ok_or_else(|| anyhow!("no data for state {name}"))?;
        state.write(name, 0, &floats(values))?;
    }
    let mut found = vec![];
    for call in &trial.calls {
        let mut results: BTreeMap<String, Output> = one_call(engine, call, trial.capacity, &mut state, seed)?
            .into_iter()
            .map(|(name, x)| (format!("result {name}"), x))
            .collect();
        for name in &names {
            results.insert(format!("state {name}"), state.values(name)?);
        }
        found.push(results);
    }
    Ok(found)
}

fn one_call(
    engine: &Engine,
    call: &Call,
    capacity: i64,
    state: &mut State,
    seed: u64,
) -> anyhow::Result<HashMap<String, Output>> {
    let mut sizes = call.sizes.clone();
    if let Some(keys) = sizes.get_mut("S").filter(|_| call.loose_keys) {
        // As a runner gives them, or any number in between.
        let room = capacity - *keys;
        *keys = match seed % 2 {
            0 => engine.keys(*keys, capacity),
            _ => *keys + ir::testing::Rng::new(seed).below(room + 1),
        };
    }
    let sizes: Vec<(&str, i64)> = sizes.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    let whole: BTreeMap<&String, (Vec<i32>, Vec<f32>)> = call
        .inputs
        .iter()
        .map(|(name, t)| (name, (t.data.iter().map(|x| *x as i32).collect(), floats(t))))
        .collect();
    let inputs: Vec<(&str, Input)> = call
        .inputs
        .iter()
        .map(|(name, t)| match t.dtype {
            DType::I32 | DType::I1 => (name.as_str(), Input::I32(&whole[name].0)),
            _ => (name.as_str(), Input::F32(&whole[name].1)),
        })
        .collect();
    let has_states = state.names().next().is_some();
    let state = has_states.then_some(state);
    Ok(engine.call(&call.entry, &sizes, &inputs, state)?)
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.data.iter().map(|x| *x as f32).collect()
}

fn compare(subject: &Subject, trial: &Trial, found: &Found) -> anyhow::Result<()> {
    let weights = |name: &str| subject.weights.get(name).cloned();
    let tolerance = passes::tolerance(&subject.module).max(F32) * subject.slack;
    let mut states = trial.states.clone();
    for (call, found) in trial.calls.iter().zip(found) {
        let context = eval::Context {
            module: &subject.module,
            sizes: &call.sizes,
            weights: &weights,
            exact: false,
        };
        let results = eval::run(&context, &call.entry, &call.inputs, &mut states).context("the evaluator")?;
        let mut wanted: BTreeMap<String, Tensor> = results
            .into_iter()
            .map(|(name, x)| (format!("result {name}"), x))
            .collect();
        wanted.extend(states.iter().map(|(name, x)| (format!("state {name}"), x.clone())));
        // What the program does not touch, the artefact does not have.
        wanted.retain(|name, _| found.contains_key(name));
        let found = found
            .iter()
            .map(|(name, x)| (name.clone(), tensor(x, &wanted, name)))
            .collect();
        if let Some(what) = passes::differ(&found, &wanted, tolerance) {
            return Err(anyhow!("@{}: {what}, sizes {}", call.entry, shown(&call.sizes)));
        }
    }
    Ok(())
}

/// In the type of what is wanted: a device's results are widened.
fn tensor(x: &Output, wanted: &BTreeMap<String, Tensor>, name: &str) -> Tensor {
    Tensor {
        shape: x.shape.iter().map(|n| *n as usize).collect(),
        dtype: wanted.get(name).map_or(DType::F32, |w| w.dtype),
        data: x.data.iter().map(|x| f64::from(*x)).collect(),
    }
}

fn shown(sizes: &Sizes) -> String {
    let all: Vec<String> = sizes.iter().map(|(k, v)| format!("{k}={v}")).collect();
    all.join(" ")
}
