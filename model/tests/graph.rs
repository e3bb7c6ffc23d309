//! The naive graph means what the float64 reference means, in every mode; and decoding token by token is prefill.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ir::eval::{Context, Tensor, run};
use ir::{DType, Module, Param, Sizes};
use model::graph::{self, Options};
use model::{Config, Mode, weights};
use safetensors::{Dtype, SafeTensors};

/// Folders with config.json, the weights, and golden.safetensors (`tokens`, `logits`, `loss`) made by the reference.
fn goldens() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    let entries = std::fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let folders = entries
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("golden.safetensors").exists());
    folders.collect::<BTreeSet<_>>().into_iter().collect()
}

fn values(view: &safetensors::tensor::TensorView) -> Vec<f64> {
    let data = view.data();
    match view.dtype() {
        Dtype::F64 => data
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        Dtype::I64 => data
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
            .collect(),
        Dtype::F32 => data
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
            .collect(),
        Dtype::F16 => data
            .chunks_exact(2)
            .map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f64())
            .collect(),
        Dtype::BF16 => data
            .chunks_exact(2)
            .map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f64())
            .collect(),
        other => panic!("a tensor of type {other:?}"),
    }
}

/// All tensors of a file; the element type is given when they are used.
fn read(file: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .iter()
        .map(|(name, view)| (name.to_string(), Tensor::new(view.shape(), DType::F32, values(&view))))
        .collect()
}

/// One golden folder: the model in exact arithmetic, and what the reference says about it.
struct Case {
    name: String,
    config: Config,
    module: Module,
    weights: BTreeMap<String, Tensor>,
    golden: BTreeMap<String, Tensor>,
}

impl Case {
    fn load(folder: &Path) -> Case {
        let config = Config::load(folder).unwrap();
        let inventory = weights::check(&config, folder).unwrap();
        let files: BTreeSet<&PathBuf> = inventory.values().map(|t| &t.file).collect();
        let options = Options {
            dtype: DType::F32,
            embedding: inventory["model.embed_tokens.weight"].dtype,
            max_context: 64,
        };
        let module = graph::build(&config, &options);
        let errors = ir::verify::verify(&module);
        assert!(errors.is_empty(), "{}: {errors:?}", folder.display());
        let weights = files.into_iter().flat_map(|f| read(f)).collect();
        let golden = read(&folder.join("golden.safetensors"));
        Case {
            name: folder.display().to_string(),
            config,
            module,
            weights,
            golden,
        }
    }

    /// Runs an entry point; every input is a matrix or vector of ids.
    fn run(&self, entry: &str, keys: i64, inputs: &[(&str, &[usize], Vec<f64>)], states: &mut States) -> Tensor {
        let inputs: BTreeMap<String, Tensor> = inputs
            .iter()
            .map(|(name, shape, data)| (name.to_string(), Tensor::new(shape, DType::I32, data.clone())))
            .collect();
        let tokens = &inputs["tokens"].shape;
        let sizes = sizes(tokens[0], tokens[1], keys);
        let lookup = |name: &str| self.weights.get(name).cloned();
        let context = Context {
            module: &self.module,
            sizes: &sizes,
            weights: &lookup,
            exact: true,
        };
        run(&context, entry, &inputs, states)
            .unwrap()
            .into_values()
            .next()
            .unwrap()
    }

    /// Zeros of the right shape for every state.
    fn states(&self, batch: usize) -> States {
        let sizes = sizes(batch, 1, 1);
        let params = self
            .module
            .functions
            .iter()
            .flat_map(|f| f.params.iter().map(move |p| (f, p)));
        let mut states = States::new();
        for (f, (v, kind)) in params {
            if let Param::State(name) = kind {
                let shape: Vec<usize> = f.ty(*v).resolve(&sizes).unwrap().iter().map(|n| *n as usize).collect();
                let zeros = Tensor::new(&shape, DType::F32, vec![0.0; shape.iter().product()]);
                (0..self.config.layers)
                    .for_each(|i| drop(states.insert(name.replace("{i}", &i.to_string()), zeros.clone())));
            }
        }
        states
    }
}

type States = BTreeMap<String, Tensor>;

const CAPACITY: i64 = 48;

fn sizes(batch: usize, rows: usize, keys: i64) -> Sizes {
    [("B", batch as i64), ("T", rows as i64), ("S", keys), ("C", CAPACITY)]
        .map(|(k, v)| (k.to_string(), v))
        .into()
}

/// Largest difference, relative to the largest number.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f64, |m, (x, y)| {
        if (x - y).is_nan() {
            f64::NAN
        } else {
            m.max((x - y).abs())
        }
    }) / scale
}

#[test]
fn logits_and_loss_are_the_references() {
    let mut modes = BTreeSet::new();
    for folder in goldens() {
        let case = Case::load(&folder);
        let tokens = &case.golden["tokens"];
        let (batch, rows) = (tokens.shape[0], tokens.shape[1]);
        let ids = ("tokens", &tokens.shape[..], tokens.data.clone());
        let logits = case.run("logits", 0, &[ids.clone()], &mut States::new());
        let error = distance(&logits.data, &case.golden["logits"].data);
        assert!(error < 1e-10, "{}: logits are off by {error:e}", case.name);

        if rows > 1 {
            // The token after the last one is not known: -1 is left out of the mean.
            let next = |b: usize, t: usize| {
                if t + 1 < rows {
                    tokens.data[b * rows + t + 1]
                } else {
                    -1.0
                }
            };
            let targets = (0..batch * rows).map(|at| next(at / rows, at % rows)).collect();
            let nll = case.run(
                "loss",
                0,
                &[ids, ("targets", &[batch, rows], targets)],
                &mut States::new(),
            );
            let loss = nll.data.iter().sum::<f64>() / (batch * (rows - 1)) as f64;
            let wanted = case.golden["loss"].data[0];
            assert!(
                (loss - wanted).abs() < 1e-10 * wanted,
                "{}: loss {loss} instead of {wanted}",
                case.name
            );
        }
        modes.insert(case.config.attention.mode.name());
    }
    assert_eq!(
        modes,
        Mode::ALL.map(Mode::name).into(),
        "there is a golden of every mode"
    );
}

/// Every split into a prefill of n tokens and single steps gives the same rows, past the window and round the ring.
#[test]
fn token_by_token_is_prefill() {
    for folder in goldens() {
        let case = Case::load(&folder);
        let tokens = &case.golden["tokens"];
        let (batch, rows) = (tokens.shape[0], tokens.shape[1].min(CAPACITY as usize));
        let vocab = case.config.vocab as usize;
        let golden = &case.golden["logits"];
        let window = case.config.attention.window as usize;
        let firsts: BTreeSet<usize> = [1, 2, window, window + 1, rows]
            .into_iter()
            .filter(|n| *n <= rows)
            .collect();
        let column = |t: usize| (0..batch).map(|b| tokens.at(&[b, t])).collect::<Vec<f64>>();
        let wanted = |t: usize| -> Vec<f64> {
            (0..batch)
                .flat_map(|b| (0..vocab).map(move |v| (b, v)))
                .map(|(b, v)| golden.at(&[b, t, v]))
                .collect()
        };
        for first in firsts {
            let mut states = case.states(batch);
            let prompt = (0..batch * first)
                .map(|at| tokens.at(&[at / first, at % first]))
                .collect();
            let last = vec![(first - 1) as f64; batch];
            let inputs = [("tokens", &[batch, first][..], prompt), ("last", &[batch], last)];
            let mut logits = case.run("prefill", 0, &inputs, &mut states);
            for t in first..=rows {
                let error = distance(&logits.data, &wanted(t - 1));
                assert!(
                    error < 1e-10,
                    "{}: prefill {first}, row {}: off by {error:e}",
                    case.name,
                    t - 1
                );
                if t < rows {
                    let inputs = [
                        ("tokens", &[batch, 1][..], column(t)),
                        ("start", &[batch], vec![t as f64; batch]),
                    ];
                    logits = case.run("decode", t as i64 + 1, &inputs, &mut states);
                }
            }
        }
    }
}

#[test]
fn the_layer_mode_graph_as_text() {
    let json = serde_json::json!({"model_type": "qwen3", "vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": true, "loop_attention": {"mode": "layer", "window": 8, "loops": 2}});
    let config = Config::from_values(Path::new("."), json, None).unwrap();
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        let module = graph::build(
            &config,
            &Options {
                dtype,
                embedding: DType::BF16,
                max_context: 512,
            },
        );
        insta::assert_snapshot!(format!("layer_{name}"), module.to_string());
    }
}
