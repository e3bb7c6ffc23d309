//! What a run leaves on disk: a Hugging Face folder with the trained tensors, and beside them all that going on needs.
//!
//! A file of the base checkpoint that holds a trained tensor is written anew (trained tensors in f32, exactly the masters; the others
//! byte for byte); files without one are linked. `training.safetensors` holds masters, moments and the step.
//!
//! A kill or a full disk at any point leaves a complete checkpoint. The new folder is written as `.NAME.part` and flushed to the disk;
//! then the old one is renamed to `.NAME.old` and the new one to its name. Between these two there is no folder of that name, but `.old`
//! is complete, and [`find`] puts it back. Whoever calls sees to it that only one run writes at a time.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use runtime::engine::State;
use runtime::weights::Checkpoint;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::Recipe;
use crate::graph::training::PARAM;
use crate::write::{self, WriteError};

/// The file of a checkpoint that `--resume` reads.
pub const STATE_FILE: &str = "training.safetensors";
/// The recipe of the run, in the same folder.
pub const RECIPE_FILE: &str = "recipe.toml";

const CONFIG_FILE: &str = "config.json";
/// Prefix of the first moments: what has one is trained.
const MOMENT: &str = "m.";

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}", path = path.display())]
    File { path: PathBuf, reason: String },
    #[error(transparent)]
    Write(#[from] WriteError),
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

/// Numbers of a state, piece by piece.
pub(super) fn pieces<'a>(
    state: &'a State,
    name: &'a str,
) -> impl Iterator<Item = Result<Vec<f32>, runtime::RuntimeError>> + 'a {
    split(state, name).map(|(first, count)| {
        let mut piece = vec![0.0; count];
        state.read(name, first, &mut piece).map(|()| piece)
    })
}

/// The places and lengths of a state's pieces.
fn split(state: &State, name: &str) -> impl Iterator<Item = (usize, usize)> + use<> {
    let shape = state.shape(name).unwrap_or_default();
    let all = shape.iter().product::<i64>() as usize;
    const COUNT: usize = write::PIECE / 4;
    (0..all)
        .step_by(COUNT)
        .map(move |first| (first, COUNT.min(all - first)))
}

/// Sets the trained tensors to the checkpoint's values.
pub fn begin(state: &mut State, base: &Checkpoint) -> Result<(), CheckpointError> {
    let names: Vec<String> = state.names().map(String::from).collect();
    let mut room = vec![0.0; write::PIECE / 4];
    for name in names {
        let Some(tensor) = name.strip_prefix(PARAM) else {
            continue;
        };
        for (first, count) in split(state, &name) {
            base.read(tensor, first, &mut room[..count])
                .ok_or_else(|| file_error(base.path(), format!("no tensor {tensor}, or not of the model's shape")))?;
            state.write(&name, first, &room[..count])?;
        }
    }
    Ok(())
}

/// The folder's name while it is written (`part`), and once it is replaced (`old`).
fn beside(out: &Path, what: &str) -> PathBuf {
    let name = out
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    out.with_file_name(format!(".{name}.{what}"))
}

/// Is there a checkpoint of this name? Puts back the one that a killed run had moved away and not yet replaced.
pub fn find(out: &Path) -> Result<bool, CheckpointError> {
    let old = beside(out, "old");
    if !out.exists() && old.exists() {
        fs::rename(&old, out).map_err(io(out))?;
    }
    Ok(out.exists())
}

/// Writes the folder `out`, which replaces one of that name. If this fails, the one before is as it was.
pub fn write(out: &Path, base: &Checkpoint, state: &State, recipe: &Recipe, step: u64) -> Result<(), CheckpointError> {
    find(out)?;
    let (draft, old) = (beside(out, "part"), beside(out, "old"));
    // What a killed run left.
    for stale in [&draft, &old] {
        let _ = fs::remove_dir_all(stale);
    }
    let written = write_draft(&draft, base, state, recipe, step).and_then(|()| {
        if out.exists() {
            fs::rename(out, &old).map_err(io(out))?;
        }
        fs::rename(&draft, out).map_err(io(out))?;
        // The old one goes when the new one's name is on the disk, and not before.
        flush(out.parent().unwrap_or(Path::new(".")))
    });
    match &written {
        Ok(()) => drop(fs::remove_dir_all(&old)),
        Err(_) => {
            let _ = fs::remove_dir_all(&draft);
            let _ = find(out);
        }
    }
    written
}

/// A file's bytes, or a folder's names, to the disk.
fn flush(path: &Path) -> Result<(), CheckpointError> {
    // A relative name without a folder has the empty path as its parent.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    fs::File::open(path).and_then(|f| f.sync_all()).map_err(io(path))
}

/// Names of the tensors that the states train. A layer's function has masters for every layer if it has one for any; those that have
/// no moment stay as they are in the base checkpoint.
fn trained(state: &State) -> BTreeSet<String> {
    state
        .names()
        .filter_map(|n| Some(n.strip_prefix(MOMENT)?.to_string()))
        .collect()
}

fn write_draft(
    draft: &Path,
    base: &Checkpoint,
    state: &State,
    recipe: &Recipe,
    step: u64,
) -> Result<(), CheckpointError> {
    fs::create_dir_all(draft).map_err(io(draft))?;
    let trained = trained(state);
    for entry in fs::read_dir(base.path()).map_err(io(base.path()))? {
        let entry = entry.map_err(io(base.path()))?;
        let (from, to) = (entry.path(), draft.join(entry.file_name()));
        if !from.is_file() || entry.file_name() == STATE_FILE || entry.file_name() == RECIPE_FILE {
            continue;
        }
        let from = from.canonicalize().map_err(io(&from))?;
        let tensors = to.extension().is_some_and(|e| e == "safetensors");
        if tensors && rewrite(&from, &to, &trained, state)? {
            continue;
        }
        // A large file that does not change is not stored twice, where the file system can do that.
        if !tensors || fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).map_err(io(&to))?;
            flush(&to)?;
        }
    }
    let mut parts = vec![];
    for prefix in [PARAM, MOMENT, "v."] {
        let names = trained.iter().map(|t| format!("{prefix}{t}"));
        parts.extend(names.filter_map(|name| Some((name.clone(), of_state(state, name)?))));
    }
    save(&draft.join(STATE_FILE), ("step", &step.to_string()), parts)?;
    let path = draft.join(RECIPE_FILE);
    let text = toml::to_string(recipe).map_err(|e| file_error(&path, e))?;
    fs::write(&path, text).map_err(io(&path))?;
    flush(&path)?;
    flush(draft)
}

/// A state as a tensor of a file that is written.
fn of_state(state: &State, name: String) -> Option<write::Tensor<'_>> {
    let shape = state.shape(&name)?.iter().map(|n| *n as usize).collect();
    let write = move |out: &mut dyn Write| {
        pieces(state, &name).try_for_each(|piece| write::floats(out, &piece.map_err(std::io::Error::other)?))
    };
    Some(write::Tensor {
        dtype: Dtype::F32,
        shape,
        write: Box::new(write),
    })
}

/// A tensor as it stands in a file, from where on. Read, not taken from a map: a map's pages would stay with the process, all of the
/// model in the end.
fn of_file<'a>(file: &'a fs::File, offset: usize, view: &TensorView) -> write::Tensor<'a> {
    let end = offset + view.data().len();
    let write = move |out: &mut dyn Write| {
        let mut room = vec![0; write::PIECE];
        for at in (offset..end).step_by(write::PIECE) {
            let piece = &mut room[..write::PIECE.min(end - at)];
            file.read_exact_at(piece, at as u64)?;
            out.write_all(piece)?;
        }
        Ok(())
    };
    write::Tensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        write: Box::new(write),
    }
}

fn save(path: &Path, fact: (&str, &str), parts: Vec<(String, write::Tensor)>) -> Result<(), CheckpointError> {
    write::tensors(path, fact, parts)?;
    flush(path)
}

/// The file with the trained tensors in place; `false` if it holds none.
fn rewrite(from: &Path, to: &Path, trained: &BTreeSet<String>, state: &State) -> Result<bool, CheckpointError> {
    let file = fs::File::open(from).map_err(io(from))?;
    let map = unsafe { Mmap::map(&file) }.map_err(io(from))?;
    let old = SafeTensors::deserialize(&map).map_err(|e| file_error(from, e))?;
    let mut any = false;
    let mut parts = vec![];
    for (name, view) in old.iter() {
        let new = trained
            .contains(name)
            .then(|| of_state(state, format!("{PARAM}{name}")));
        let new = new.flatten();
        any |= new.is_some();
        let offset = view.data().as_ptr() as usize - map.as_ptr() as usize;
        parts.push((name.to_string(), new.unwrap_or_else(|| of_file(&file, offset, &view))));
    }
    if any {
        save(to, write::PYTORCH, parts)?;
    }
    Ok(any)
}

/// Masters and moments of the checkpoint `folder`, and the steps that it has taken. `base` is the model that the run started from.
pub fn resume(state: &mut State, base: &Checkpoint, folder: &Path) -> Result<u64, CheckpointError> {
    let read = |path: PathBuf| fs::read(&path).map_err(io(&path));
    if read(folder.join(CONFIG_FILE))? != read(base.path().join(CONFIG_FILE))? {
        let reason = format!(
            "it is not that of {}; give the model that the run was started from",
            base.path().display()
        );
        return Err(file_error(&folder.join(CONFIG_FILE), reason));
    }
    let path = folder.join(STATE_FILE);
    let file = fs::File::open(&path).map_err(io(&path))?;
    let map = unsafe { Mmap::map(&file) }.map_err(io(&path))?;
    let (_, metadata) = SafeTensors::read_metadata(&map).map_err(|e| file_error(&path, e))?;
    let step = metadata.metadata().as_ref().and_then(|m| m.get("step")?.parse().ok());
    let step = step.ok_or_else(|| file_error(&path, "it does not say at which step it was written"))?;
    let tensors = SafeTensors::deserialize(&map).map_err(|e| file_error(&path, e))?;

    let wanted = trained(state);
    let names = tensors.names();
    let found: BTreeSet<String> = names
        .iter()
        .filter_map(|n| Some(n.strip_prefix(MOMENT)?.to_string()))
        .collect();
    if let Some(other) = wanted.symmetric_difference(&found).next() {
        let (it, recipe) = if found.contains(other) {
            ("trains", "does not")
        } else {
            ("does not train", "does")
        };
        let reason = format!(
            "the run {it} {other}, and the recipe now {recipe}; go on with the same tensors, or begin another run in another folder"
        );
        return Err(file_error(&path, reason));
    }
    begin(state, base)?;
    for tensor in &wanted {
        for name in [PARAM, MOMENT, "v."].map(|prefix| format!("{prefix}{tensor}")) {
            let view = tensors
                .tensor(&name)
                .map_err(|e| file_error(&path, format!("{name}: {e}")))?;
            let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
            let model = state.shape(&name).unwrap_or_default();
            if view.dtype() != Dtype::F32 || shape != model {
                let reason = format!(
                    "{name} is {:?} {shape:?}, and the model's is F32 {model:?}; give the model that the run was started from",
                    view.dtype()
                );
                return Err(file_error(&path, reason));
            }
            let mut at = (view.data().as_ptr() as usize - map.as_ptr() as usize) as u64;
            let mut room = vec![0; write::PIECE];
            for (first, count) in split(state, &name) {
                let bytes = &mut room[..4 * count];
                file.read_exact_at(bytes, at).map_err(io(&path))?;
                at += bytes.len() as u64;
                let words = bytes
                    .chunks_exact(4)
                    .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]));
                state.write(&name, first, &words.collect::<Vec<f32>>())?;
            }
        }
    }
    Ok(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with one file that says which it is.
    fn folder(path: &Path, what: &str) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("what"), what).unwrap();
    }

    /// Every state that a kill between two system calls of [`write`] leaves: the last complete checkpoint is found.
    #[test]
    fn a_kill_anywhere_leaves_a_checkpoint() {
        type Left<'a> = &'a [(&'a str, &'a str)];
        let all: [(Left, Option<&str>); 6] = [
            (&[], None),
            (&[(".checkpoint.part", "torn")], None),
            (&[("checkpoint", "1"), (".checkpoint.part", "torn")], Some("1")),
            (&[(".checkpoint.old", "1"), (".checkpoint.part", "2")], Some("1")),
            (&[("checkpoint", "2"), (".checkpoint.old", "1")], Some("2")),
            (&[("checkpoint", "2")], Some("2")),
        ];
        for (there, wanted) in all {
            let run = tempfile::tempdir().unwrap();
            there
                .iter()
                .for_each(|(name, what)| folder(&run.path().join(name), what));
            let out = run.path().join("checkpoint");
            assert_eq!(find(&out).unwrap(), wanted.is_some(), "{there:?}");
            assert_eq!(
                fs::read_to_string(out.join("what")).ok().as_deref(),
                wanted,
                "{there:?}"
            );
        }
    }
}
