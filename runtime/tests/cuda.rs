//! The device `cuda` on a stand-in for NVIDIA's driver (cuda/driver.c): what is asked of the driver, in which order, on which memory. Kernels
//! do not run there; those that matter here copy.
//!
//! The stand-in is found by the loader's path, so each scenario is a process of its own: this file's test `scenario`. Without a C compiler
//! nothing is tested.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use runtime::artefact::{
    Buffer, Code, DType, Entry, GpuKernel, Header, Join, Launch, Layout, Port, Size, Source, State, Step, TensorRef,
    Variant, Weight,
};
use runtime::container::Artefact;
use runtime::weights::Checkpoint;
use runtime::{Device, Engine, Input, Options};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn size(coef: i64, syms: &[&str]) -> Size {
    Size {
        coef,
        syms: syms.iter().map(|s| s.to_string()).collect(),
    }
}

/// Two pointers, then B, T, S, C; a second function for two launches at once.
const PTX: &str = "
.version 8.0
.target sm_90a
.visible .entry copy(
    .param .u64 .ptr .global .align 1 a, .param .u64 .ptr .global .align 1 b,
    .param .u32 B, .param .u32 T, .param .u32 S, .param .u32 C
) { ret; }
.visible .entry nothing(
    .param .u64 .ptr .global .align 1 a, .param .u64 .ptr .global .align 1 b, .param .u64 .ptr .global .align 1 c,
    .param .u64 .ptr .global .align 1 d, .param .u64 .ptr .global .align 1 w, .param .u64 .ptr .global .align 1 n,
    .param .u32 B, .param .u32 T, .param .u32 S, .param .u32 C
) { ret; }
";

/// `e(x)`: `y` is x, through the arena; `z` is the weight's first B T numbers; the state `s` is x. All [B, T].
fn artefact() -> Artefact {
    let matrix = || vec![size(1, &["B"]), size(1, &["T"])];
    let port = |name: &str, buffer| Port {
        name: name.into(),
        dtype: DType::F32,
        shape: matrix(),
        buffer,
    };
    let launch = |kernel: &str, buffers: [u32; 2]| Launch {
        kernel: kernel.into(),
        buffers: buffers.to_vec(),
        tiles: vec![],
        scratch: size(0, &[]),
    };
    let kernel = |name: &str, function: &str, workspaces: Vec<Size>, counters, shared| GpuKernel {
        name: name.into(),
        variants: vec![Variant {
            workspaces,
            counters,
            steps: vec![Step {
                function: function.into(),
                tiles: vec![(size(1, &["B", "T"]), 256)],
                per_multiprocessor: 2,
                threads: 128,
                shared,
                cluster: 2,
                overlap: true,
                ..Step::default()
            }],
            ..Variant::default()
        }],
    };
    let tensor = |name: &str, scale: Option<&str>| TensorRef {
        name: name.into(),
        shape: vec![500, 7],
        scale: scale.map(String::from),
    };
    let weight = |layout| Weight {
        source: Source::Tensors(vec![tensor("w", Some("scale")), tensor("v", None)]),
        dtype: DType::F32,
        layout,
    };
    let entry = Entry {
        name: "e".into(),
        inputs: vec![port("x", 0)],
        outputs: vec![port("y", 2), port("z", 4)],
        slots: vec![vec![size(4, &["B", "T"])]],
        buffers: vec![
            Buffer::Input(0),
            Buffer::Slot(0),
            Buffer::Output(0),
            Buffer::State(0),
            Buffer::Output(1),
            Buffer::Weight(1),
        ],
        launches: vec![
            launch("copy", [0, 1]),
            launch("copy", [1, 2]),
            launch("copy", [0, 3]),
            launch("copy", [5, 4]),
            launch("small", [0, 1]),
            launch("small", [1, 0]),
        ],
    };
    let header = Header {
        producer: "test".into(),
        model_hash: "0".into(),
        model: serde_json::json!({}),
        max_context: 8,
        weights: vec![weight(Layout::RowMajor), weight(Layout::Panels { pair: 1 })],
        states: vec![State {
            name: "s".into(),
            dtype: DType::F32,
            shape: vec![size(1, &["B"]), size(1, &["C"])],
        }],
        entries: vec![entry],
        codes: vec![Code {
            target: "sm_90a".into(),
            features: vec![],
            offset: 0,
            len: PTX.len() as u64,
            kernels: vec![
                kernel("copy", "copy", vec![], 0, 0),
                kernel("small", "copy", vec![], 0, 0),
                kernel("small+small", "nothing", vec![size(1000, &["B"])], 3, 100 << 10),
            ],
            joins: vec![Join {
                entry: "e".into(),
                first: 4,
                count: 2,
                kernel: "small+small".into(),
            }],
        }],
    };
    Artefact {
        header,
        payload: PTX.as_bytes().to_vec(),
    }
}

fn value(i: usize) -> f32 {
    (i % 97) as f32 - 48.0
}

/// w and v [500, 7] in f16, and a scale of w's columns.
fn checkpoint(dir: &Path) -> Checkpoint {
    let halves = |from: usize| -> Vec<u8> {
        (from..from + 3500)
            .flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes())
            .collect()
    };
    let (w, v) = (halves(0), halves(3500));
    let scale: Vec<u8> = (0..7).flat_map(|k| (k as f32).to_le_bytes()).collect();
    let view = |shape: &[usize], kind, data| TensorView::new(kind, shape.to_vec(), data).unwrap();
    let tensors = [
        ("w", view(&[500, 7], Dtype::F16, &w)),
        ("v", view(&[500, 7], Dtype::F16, &v)),
        ("scale", view(&[7], Dtype::F32, &scale)),
    ];
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    Checkpoint::open(dir).unwrap()
}

fn load(change: impl FnOnce(&mut Artefact)) -> Result<Engine, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut artefact = artefact();
    change(&mut artefact);
    let artefact = Artefact::from_bytes(&artefact.to_bytes().unwrap()).unwrap();
    Engine::load(&artefact, &checkpoint(dir.path()), Options::on(Device::Cuda(0), 3)).map_err(|e| e.to_string())
}

/// Calls with all sizes in turns; everything arrives where it should.
fn calls() {
    let engine = load(|_| ()).unwrap_or_else(|e| panic!("{e}"));
    let mut states = [engine.new_state(2, 30).unwrap(), engine.new_state(2, 30).unwrap()];
    for round in 0..6 {
        for (b, t) in [(2, 3), (2, 30), (2, 4)] {
            let x: Vec<f32> = (0..b * t).map(|i| (1000 * round + i) as f32).collect();
            let sizes = [("B", b as i64), ("T", t as i64)];
            let state = &mut states[round % 2];
            let found = engine
                .call("e", &sizes, &[("x", Input::F32(&x))], Some(state))
                .unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(found["y"].data, x, "round {round}, {b} x {t}");
            let wanted: Vec<f32> = (0..b * t).map(|i| value(i) * (i % 7) as f32).collect();
            assert_eq!(found["z"].data, wanted);
            assert_eq!(state.values("s").unwrap().data[..b * t], x);
            assert_eq!(state.shape("s"), Some(vec![2, 30]));
        }
    }
    // 3500 numbers of w, and v behind them.
    let all = vec![0.0; 7000];
    let mut state = engine.new_state(1, 7000).unwrap();
    let found = engine.call(
        "e",
        &[("B", 1), ("T", 7000)],
        &[("x", Input::F32(&all))],
        Some(&mut state),
    );
    let z = &found.unwrap()["z"].data;
    assert!((0..3500).all(|i| z[i] == value(i) * (i % 7) as f32 && z[3500 + i] == value(3500 + i)));
    // Zero at first, and what is written is there.
    assert!(engine.new_state(1, 5).unwrap().values("s").unwrap().data == [0.0; 5]);
    state.write("s", 0, &vec![2.5; 7000]).unwrap();
    assert_eq!(state.values("s").unwrap().data, vec![2.5; 7000]);
    let mut piece = [0.0; 3];
    state.write("s", 100, &[1.0, 2.0]).unwrap();
    state.read("s", 99, &mut piece).unwrap();
    assert_eq!(piece, [2.5, 1.0, 2.0]);
    assert!(state.read("s", 6998, &mut piece).is_err());
    // Like recipes share their memory on a GPU.
    assert!(engine.usage().weights < 2 * 4 * 7000);
    // Time by kernel, and every run of one.
    engine.profile(true);
    engine.trace(true);
    engine
        .call(
            "e",
            &[("B", 1), ("T", 7000)],
            &[("x", Input::F32(&all))],
            Some(&mut state),
        )
        .unwrap();
    let rows = engine.profile(false);
    assert_eq!(rows.iter().map(|r| r.count).sum::<u64>(), 5, "{rows:?}");
    assert_eq!(engine.trace(false).len(), 5);
    assert_eq!((engine.keys(5, 1000), engine.target()), (256, "sm_90a"));
}

/// What can go wrong at load, and how it is told.
fn refusals() {
    let error = load(|a| {
        a.payload = b"no code".to_vec();
        a.header.codes[0].len = 7;
    });
    let error = error.err().unwrap();
    assert!(
        error.contains("this is no PTX") && error.contains("compile the model again"),
        "{error}"
    );
    let error = load(|a| a.header.codes[0].kernels[0].variants[0].steps[0].function = "absent".into());
    assert!(error.err().unwrap().contains("no function `absent`"));
    let error = load(|a| a.header.codes[0].target = "sm_100a".into()).err().unwrap();
    assert!(
        error.contains("compiled for sm_100a") && error.contains("--target sm_90a"),
        "{error}"
    );
    let engine = load(|_| ()).unwrap();
    // 16 GiB are there.
    let error = engine.new_state(1 << 16, 1 << 20).err().unwrap().to_string();
    for word in ["262144 MiB for states", "16384 MiB are free", "1 MiB weights"] {
        assert!(error.contains(word), "{error}");
    }
}

/// What `run`'s process runs; without a scenario's name, as part of all tests, there is nothing to run.
#[test]
fn scenario() {
    match std::env::var("SCENARIO").as_deref() {
        Ok("calls") => calls(),
        Ok("refusals") => refusals(),
        Ok(other) => panic!("there is no scenario `{other}`"),
        Err(_) => {}
    }
}

/// The stand-in as libcuda.so.1; none without a C compiler.
fn driver(dir: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/driver.c");
    let out = dir.join("libcuda.so.1");
    let flags = ["-shared", "-fPIC", "-O1", "-pthread", "-o"];
    let status = Command::new("cc").args(flags).arg(&out).arg(source).status().ok()?;
    assert!(status.success(), "the stand-in does not compile");
    Some(dir.to_path_buf())
}

/// Runs a scenario; gives what it printed, and the driver's log.
fn run(scenario: &str, settings: &[(&str, &str)]) -> Option<(Output, String)> {
    let dir = tempfile::tempdir().unwrap();
    let Some(place) = driver(dir.path()) else {
        eprintln!("not tested: there is no C compiler");
        return None;
    };
    let log = dir.path().join("log");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scenario", "--nocapture"])
        .envs(settings.iter().copied())
        .env("SCENARIO", scenario)
        .env("LD_LIBRARY_PATH", place)
        .env("FAKE_CUDA_LOG", &log)
        .output()
        .unwrap();
    let log = std::fs::read_to_string(log).unwrap_or_default();
    assert!(!log.contains("WRONG"), "{log}");
    Some((output, log))
}

fn count(log: &str, what: &str) -> usize {
    log.lines().filter(|l| l.starts_with(what)).count()
}

#[test]
fn data_arrives_and_memory_goes() {
    let Some((output, log)) = run("calls", &[]) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Two states and three sizes: each is launched, recorded, and replayed once.
    let recorded = 2 * 3;
    assert_eq!(
        count(&log, "cuGraphLaunch"),
        2 * recorded + 1,
        "and the one that was timed"
    );
    assert_eq!(count(&log, "cuGraphInstantiate"), recorded + 1);
    assert_eq!(count(&log, "cuGraphExecDestroy"), recorded + 1);
    assert_eq!(count(&log, "cuMemAlloc"), count(&log, "cuMemFree_v2"));
    assert_eq!(count(&log, "cuMemHostAlloc"), count(&log, "cuMemFreeHost"));
    assert!(log.contains("cuDevicePrimaryCtxRelease_v2 0 used 0"));
    // Twice 132 blocks at most, whole clusters, and shared memory that was asked for.
    assert!(log.contains("cuLaunchKernelEx copy x28 t128 s0 c2 o1"), "{log}");
    assert!(log.contains("cuFuncSetAttribute nothing 8 102400"));
    // The counters are zeroed when they are made, and never again; three states are as small.
    assert_eq!(count(&log, "cuMemsetD8Async 256"), 1 + 3, "{log}");
}

#[test]
fn what_goes_wrong_is_told() {
    let Some((output, _)) = run("refusals", &[]) else {
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (settings, word) in [
        (
            ("FAKE_CUDA_OLD", "1"),
            "the driver goes up to CUDA 11.8, and 12.0 is needed",
        ),
        (("FAKE_CUDA_FAIL", "cuMemHostAlloc:2"), "CUDA_ERROR_OUT_OF_MEMORY"),
        (("FAKE_CUDA_FAIL", "cuLaunchKernelEx:3"), "function `copy`"),
        (
            ("FAKE_CUDA_FAIL", "cuGraphLaunch:1"),
            "entry point `e`: cuda: a kernel or a copy failed: cuGraphLaunch",
        ),
        (("FAKE_CUDA_MEMORY", "10000"), "1 MiB for weights are not to be had"),
    ] {
        let Some((output, _)) = run("calls", &[settings]) else {
            return;
        };
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(word), "{settings:?}: {told}");
    }
}
