//! What a run leaves on disk: a Hugging Face folder with the trained tensors, and beside them all that going on needs.
//!
//! A file of the base checkpoint that holds a trained tensor is written anew (trained tensors in f32, exactly the masters); the others are
//! linked. `training.safetensors` holds masters, moments and the step. A folder is complete or absent: it is written under another name and renamed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use runtime::engine::State;
use runtime::weights::Checkpoint;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::Recipe;
use crate::graph::training::PARAM;

/// The file of a checkpoint that `--resume` reads.
pub const STATE_FILE: &str = "training.safetensors";
/// The recipe of the run, in the same folder.
pub const RECIPE_FILE: &str = "recipe.toml";

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}", path = path.display())]
    File { path: PathBuf, reason: String },
    #[error(transparent)]
    Runtime(#[from] runtime::RuntimeError),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.to_path_buf();
    move |source| CheckpointError::Io { path, source }
}

fn file_error(path: &Path, reason: impl ToString) -> CheckpointError {
    CheckpointError::File {
        path: path.to_path_buf(),
        reason: reason.to_string(),
    }
}

/// Sets the trained tensors to the checkpoint's values.
pub fn begin(state: &mut State, base: &Checkpoint) -> Result<(), CheckpointError> {
    let names: Vec<String> = state.names().map(String::from).collect();
    for name in names {
        if let Some(tensor) = name.strip_prefix(PARAM) {
            let values = base
                .floats(tensor)
                .ok_or_else(|| file_error(base.path(), format!("no tensor {tensor}")))?;
            state.write(&name, &values)?;
        }
    }
    Ok(())
}

/// Writes the folder `out`, which replaces one of that name.
pub fn write(out: &Path, base: &Checkpoint, state: &State, recipe: &Recipe, step: u64) -> Result<(), CheckpointError> {
    let name = out
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let draft = out.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let _ = fs::remove_dir_all(&draft);
    let written = write_draft(&draft, base, state, recipe, step).and_then(|()| {
        // The old folder makes room under another name, so that a complete one is there at any time.
        let old = out.with_file_name(format!(".{name}.{}.old", std::process::id()));
        if out.exists() {
            fs::rename(out, &old).map_err(io(out))?;
        }
        fs::rename(&draft, out).map_err(io(out))?;
        let _ = fs::remove_dir_all(&old);
        Ok(())
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&draft);
    }
    written
}

fn write_draft(
    draft: &Path,
    base: &Checkpoint,
    state: &State,
    recipe: &Recipe,
    step: u64,
) -> Result<(), CheckpointError> {
    fs::create_dir_all(draft).map_err(io(draft))?;
    let mut states = BTreeMap::new();
    for name in state.names() {
        if let Some(values) = state.read(name) {
            states.insert(name.to_string(), values);
        }
    }
    let trained: BTreeSet<&str> = states.keys().filter_map(|n| n.strip_prefix(PARAM)).collect();
    for entry in fs::read_dir(base.path()).map_err(io(base.path()))? {
        let entry = entry.map_err(io(base.path()))?;
        let (from, to) = (entry.path(), draft.join(entry.file_name()));
        if !from.is_file() || entry.file_name() == STATE_FILE || entry.file_name() == RECIPE_FILE {
            continue;
        }
        let from = from.canonicalize().map_err(io(&from))?;
        if to.extension().is_none_or(|e| e != "safetensors") {
            fs::copy(&from, &to).map_err(io(&to))?;
            continue;
        }
        if rewrite(&from, &to, &trained, &states)? {
            continue;
        }
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).map_err(io(&to))?;
        }
    }
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = states
        .iter()
        .map(|(name, v)| {
            let shape = v.shape.iter().map(|n| *n as usize).collect();
            (name.clone(), shape, little_endian(&v.data))
        })
        .collect();
    let path = draft.join(STATE_FILE);
    let views = bytes
        .iter()
        .map(|(name, shape, data)| Ok((name.clone(), TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| file_error(&path, e))?;
    let metadata = HashMap::from([("step".to_string(), step.to_string())]);
    safetensors::serialize_to_file(views, Some(metadata), &path).map_err(|e| file_error(&path, e))?;
    let path = draft.join(RECIPE_FILE);
    let text = toml::to_string(recipe).map_err(|e| file_error(&path, e))?;
    fs::write(&path, text).map_err(io(&path))
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The file with the trained tensors in place; `false` if it holds none.
fn rewrite(
    from: &Path,
    to: &Path,
    trained: &BTreeSet<&str>,
    states: &BTreeMap<String, runtime::engine::Output>,
) -> Result<bool, CheckpointError> {
    let file = fs::File::open(from).map_err(io(from))?;
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io(from))?;
    let old = SafeTensors::deserialize(&map).map_err(|e| file_error(from, e))?;
    let names: Vec<String> = old.names().into_iter().map(String::from).collect();
    if !names.iter().any(|n| trained.contains(n.as_str())) {
        return Ok(false);
    }
    let new: BTreeMap<&str, Vec<u8>> = names
        .iter()
        .filter_map(|n| Some((n.as_str(), little_endian(&states.get(&format!("{PARAM}{n}"))?.data))))
        .collect();
    let mut views = vec![];
    for name in &names {
        let view = old.tensor(name).map_err(|e| file_error(from, e))?;
        let view = match new.get(name.as_str()) {
            Some(bytes) => {
                TensorView::new(Dtype::F32, view.shape().to_vec(), bytes).map_err(|e| file_error(from, e))?
            }
            None => view,
        };
        views.push((name.clone(), view));
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(views, Some(metadata), to).map_err(|e| file_error(to, e))?;
    Ok(true)
}

/// Masters and moments of a checkpoint, and the steps that it has taken.
pub fn resume(state: &mut State, folder: &Path) -> Result<u64, CheckpointError> {
    let path = folder.join(STATE_FILE);
    let bytes = fs::read(&path).map_err(io(&path))?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| file_error(&path, e))?;
    let step = metadata.metadata().as_ref().and_then(|m| m.get("step")?.parse().ok());
    let step = step.ok_or_else(|| file_error(&path, "it does not say at which step it was written"))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| file_error(&path, e))?;
    let names: Vec<String> = state.names().map(String::from).collect();
    for name in names {
        let view = tensors
            .tensor(&name)
            .map_err(|_| file_error(&path, format!("it has no {name}: the recipe trains other tensors now")))?;
        let words = view
            .data()
            .chunks_exact(4)
            .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        state.write(&name, &words.collect::<Vec<f32>>())?;
    }
    Ok(step)
}
