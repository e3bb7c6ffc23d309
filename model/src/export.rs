//! A folder to hand on: one model.safetensors with the tensors that the model reads, in one type, without what only training needs.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use half::bf16;
use runtime::RuntimeError;
use runtime::weights::Checkpoint;
use safetensors::Dtype;

use crate::config::{Config, ConfigError};
use crate::train::checkpoint::RECIPE_FILE;
use crate::weights::{self, WeightsError};
use crate::write::{self, WriteError, io_error};

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Checkpoint(#[from] RuntimeError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What numbers are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    F32,
    /// Rounded to the nearest, ties to even.
    Bf16,
}

/// Writes the folder `out`, which must not exist, from the checkpoint `folder`. All or nothing.
pub fn export(folder: &Path, out: &Path, store: Store) -> Result<(), ExportError> {
    let config = Config::from_folder(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    weights::check(&config, &checkpoint)?;
    write::new_folder(out, |draft| {
        for entry in fs::read_dir(folder).map_err(io_error(folder))? {
            let entry = entry.map_err(io_error(folder))?;
            let (from, name) = (entry.path(), entry.file_name());
            let endings = [".safetensors", ".safetensors.index.json"];
            let tensors = endings.iter().any(|end| name.to_string_lossy().ends_with(end));
            let replaced = tensors || ["config.json", RECIPE_FILE].iter().any(|n| name == *n);
            if !replaced && from.is_file() {
                fs::copy(&from, draft.join(&name)).map_err(io_error(&from))?;
            }
        }
        let mut json = config.json.clone();
        if let Some(map) = json.as_object_mut() {
            let name = match store {
                Store::F32 => "float32",
                Store::Bf16 => "bfloat16",
            };
            map.insert("torch_dtype".to_string(), name.into());
        }
        write::json(&draft.join("config.json"), &json)?;
        let tensors = converted(&config, &checkpoint, store);
        write::tensors(&draft.join("model.safetensors"), write::PYTORCH, tensors)?;
        // What we wrote must be what we would read.
        let written = Config::from_folder(draft)?;
        Ok(weights::check(&written, &Checkpoint::open(draft)?)?)
    })
}

fn converted<'a>(config: &Config, checkpoint: &'a Checkpoint, store: Store) -> Vec<(String, write::Tensor<'a>)> {
    let tensor = |(known, shape): (String, Vec<i64>)| {
        let name = known.clone();
        let count = shape.iter().product::<i64>() as usize;
        let write = move |out: &mut dyn Write| {
            let mut values = vec![0.0; count.min(write::PIECE / 4)];
            for first in (0..count).step_by(write::PIECE / 4) {
                let piece = (count - first).min(values.len());
                let values = &mut values[..piece];
                // `weights::check` has seen every name and shape.
                let read = checkpoint.read(&name, first, values);
                read.ok_or_else(|| io::Error::other(format!("no tensor {name}")))?;
                match store {
                    Store::F32 => write::floats(out, values)?,
                    Store::Bf16 => {
                        let halves = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes());
                        out.write_all(&halves.collect::<Vec<u8>>())?;
                    }
                }
            }
            Ok(())
        };
        let tensor = write::Tensor {
            dtype: match store {
                Store::F32 => Dtype::F32,
                Store::Bf16 => Dtype::BF16,
            },
            shape: shape.into_iter().map(|n| n as usize).collect(),
            write: Box::new(write),
        };
        (known, tensor)
    };
    weights::expected(config).into_iter().map(tensor).collect()
}
