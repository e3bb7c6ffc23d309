//! Golden checkpoints run by the reference evaluator in exact arithmetic.
#![allow(dead_code)] // Each test file uses its part.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ir::eval::{Context, Tensor, run};
use ir::{DType, Module, Param, Sizes};
use model::graph::{self, Options};
use model::{Config, weights};
use runtime::weights::Checkpoint;
use safetensors::{Dtype, SafeTensors};

/// Folders with config.json, the weights, and golden_*.safetensors (`tokens`, `logits`, `loss`) made by the reference.
pub fn goldens() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    let folders: Vec<PathBuf> = list(&root)
        .into_iter()
        .filter(|p| p.join("config.json").exists())
        .collect();
    assert!(!folders.is_empty(), "{}: no goldens", root.display());
    folders
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries
        .map(|e| e.unwrap().path())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
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
        Dtype::I32 => data
            .chunks_exact(4)
            .map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap())))
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
pub struct Case {
    pub name: String,
    pub config: Config,
    pub module: Module,
    pub weights: BTreeMap<String, Tensor>,
    /// `tokens`, `logits` and (T > 1) `loss` of each golden file.
    pub goldens: Vec<BTreeMap<String, Tensor>>,
}

impl Case {
    pub fn load(folder: &Path) -> Case {
        let config = Config::from_folder(folder).unwrap();
        weights::check(&config, &Checkpoint::open(folder).unwrap()).unwrap();
        // Exact arithmetic does not ask for the embedding's stored type.
        let options = Options {
            dtype: DType::F32,
            embedding: DType::F32,
            max_context: CAPACITY,
        };
        let module = graph::build(&config, &options).unwrap();
        let errors = ir::verify::verify(&module);
        assert!(errors.is_empty(), "{}: {errors:?}", folder.display());
        let (goldens, shards): (Vec<PathBuf>, Vec<PathBuf>) = list(folder)
            .into_iter()
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .partition(|p| p.file_name().unwrap().to_string_lossy().starts_with("golden_"));
        let goldens: Vec<_> = goldens.iter().map(|f| read(f)).collect();
        let weights = shards.iter().flat_map(|f| read(f)).collect();
        assert!(!goldens.is_empty(), "{}: no golden", folder.display());
        Case {
            name: folder.display().to_string(),
            config,
            module,
            weights,
            goldens,
        }
    }

    /// Runs an entry point; every input is a matrix or vector of ids.
    pub fn run(&self, entry: &str, keys: i64, inputs: &[(&str, &[usize], Vec<f64>)], states: &mut States) -> Tensor {
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
        // `decode` gives what is best beside its logits.
        let mut results = run(&context, entry, &inputs, states).unwrap();
        let result = if entry == "loss" { "nll" } else { "logits" };
        results.remove(result).unwrap()
    }

    /// Zeros of the right shape for every state.
    pub fn states(&self, batch: usize) -> States {
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

pub type States = BTreeMap<String, Tensor>;

pub const CAPACITY: i64 = 48;

fn sizes(batch: usize, rows: usize, keys: i64) -> Sizes {
    [("B", batch as i64), ("T", rows as i64), ("S", keys), ("C", CAPACITY)]
        .map(|(k, v)| (k.to_string(), v))
        .into()
}
