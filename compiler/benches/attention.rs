//! Attention alone, Qwen3-0.6B's heads in bf16: plain causal, both passes fused, both passes apart, and op by op.
//!
//!     cargo bench -p compiler --bench attention -- [TOKENS] [WINDOW]
//!
//! Programs take turns in one process; times are the kernels' own (the casts of the inputs left out), the best of all rounds.

use compiler::Target;
use compiler::pipeline::{self, ModelFacts};
use ir::{DType, Dim, Function, Module, Param, TensorType, ValueId};
use passes::Program;
use runtime::Input;
use runtime::engine::{Engine, Options};
use runtime::weights::Checkpoint;

const KV: i64 = 8;
const GROUP: i64 = 2;
const HEAD: i64 = 128;
const ROUNDS: usize = 7;

struct Graph(Function);

impl Graph {
    fn input(&mut self, name: &str, shape: [Dim; 5]) -> ValueId {
        let ty = TensorType {
            shape: shape.to_vec(),
            dtype: DType::F32,
        };
        self.0.param(name, ty, Param::Input(name.to_string()))
    }

    fn attend(&mut self, [q, k, v]: [ValueId; 3], window: Option<i64>) -> ValueId {
        let f = &mut self.0;
        let scores = f.matmul(q, k, true, DType::F32);
        let scale = f.scalar(1.0 / (HEAD as f64).sqrt(), DType::F32);
        let scores = f.mul(scores, scale);
        let mask = f.mask(None, window, TensorType::new(["T", "T"], DType::I1));
        let never = f.scalar(f64::NEG_INFINITY, DType::F32);
        let scores = f.select(mask, scores, never);
        let p = f.softmax(scores, DType::BF16);
        f.matmul(p, v, false, DType::F32)
    }
}

/// Plain attention, or with a window the blend of both passes.
fn graph(window: Option<i64>) -> Module {
    let mut g = Graph(Function::new("attention"));
    let shape = |groups: i64, width: i64| [Dim::sym("B"), KV.into(), groups.into(), Dim::sym("T"), width.into()];
    let inputs = [("q", GROUP), ("k", 1), ("v", 1)].map(|(name, groups)| {
        let x = g.input(name, shape(groups, HEAD));
        g.0.cast(x, DType::BF16)
    });
    let mut out = g.attend(inputs, None);
    if let Some(w) = window {
        let gate = g.input("gate", shape(GROUP, 1));
        let near = g.attend(inputs, Some(w));
        let f = &mut g.0;
        let share = f.unary("sigmoid", gate);
        let one = f.scalar(1.0, DType::F32);
        let rest = f.sub(one, share);
        let (far, near) = (f.mul(share, out), f.mul(rest, near));
        out = f.add(far, near);
    }
    let out = g.0.cast(out, DType::BF16);
    g.0.returns("out", out);
    Module { functions: vec![g.0] }
}

fn main() {
    let arguments: Vec<i64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let t = arguments.first().copied().unwrap_or(2048);
    let w = arguments.get(1).copied().unwrap_or(64);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/austen");
    let checkpoint = Checkpoint::open(folder.as_ref()).expect("the bundled model is there");
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let runs = [
        ("plain causal", graph(None), Program::fused()),
        ("both passes, fused", graph(Some(w)), Program::fused()),
        ("both passes, each its sweep", graph(Some(w)), Program::pass_by_pass()),
        ("both passes, op by op", graph(Some(w)), Program::op_by_op()),
    ];
    let engines: Vec<(&str, Engine)> = runs
        .into_iter()
        .map(|(name, module, program)| {
            let options = pipeline::Options {
                entries: vec!["attention".to_string()],
                targets: vec![Target::native().expect("this machine has a target")],
                max_context: t,
                program,
                tuning: Default::default(),
                emit: vec![],
            };
            let facts = ModelFacts {
                hash: String::new(),
                facts: serde_json::Value::Null,
                shapes: checkpoint.shapes(),
            };
            let (artefact, _) = pipeline::compile(module, &facts, &options).expect("it compiles");
            (
                name,
                Engine::load(&artefact, &checkpoint, Options::cpu(threads)).expect("it loads"),
            )
        })
        .collect();
    let mut state = 1u32;
    let mut random = |n: i64| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    };
    let (q, k, v) = (
        random(KV * GROUP * t * HEAD),
        random(KV * t * HEAD),
        random(KV * t * HEAD),
    );
    let gate = random(KV * GROUP * t);
    let inputs = [("q", &q), ("k", &k), ("v", &v), ("gate", &gate)].map(|(name, x)| (name, Input::F32(x)));
    let mut best = vec![f64::INFINITY; engines.len()];
    for _ in 0..ROUNDS {
        for ((_, engine), best) in engines.iter().zip(&mut best) {
            engine.profile(true);
            engine
                .call("attention", &[("B", 1), ("T", t)], &inputs, None)
                .expect("it runs");
            let kernels = engine.profile(false);
            let own = kernels
                .iter()
                .filter(|r| !r.ran.kernel.starts_with("cast") || r.ran.kernel.contains('_'));
            *best = best.min(own.map(|r| r.time.as_secs_f64()).sum());
        }
    }
    let plain = 4.0 * (KV * GROUP * HEAD) as f64 * (t * (t + 1) / 2) as f64;
    println!("T {t}, W {w}, {KV} x {GROUP} heads of {HEAD}, bf16, {threads} threads");
    for ((name, _), time) in engines.iter().zip(&best) {
        println!(
            "{name:30} {:9.2} ms   {:5.2} x plain   {:7.1} GFLOP/s of plain's products",
            1e3 * time,
            time / best[0],
            1e-9 * plain / time
        );
    }
}
