//! What a run leaves on disk: a Hugging Face folder with the trained tensors, and beside them all that going on needs.
//!
//! A file of the base checkpoint that holds a trained tensor is written anew (trained tensors in f32, exactly the masters; the others
//! byte for byte); files without one are linked. `training.safetensors` holds masters, moments and the step.
//!
//! A kill or a full disk at any point leaves a complete checkpoint. The new folder is written as `.NAME.part` and flushed to the disk;
//! then the old one is renamed to `.NAME.old` and the new one to its name. Between these two there is no folder of that name, but `.old`
//! is complete, and [`find`] puts it back. Whoever calls sees to it that only one run writes at a time.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use runtime::engine::State;
use runtime::weights::Checkpoint;
use safetensors::View;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::Recipe;
use crate::graph::training::PARAM;

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
    let source = Source {
        state,
        failure: RefCell::new(None),
    };
    for entry in fs::read_dir(base.path()).map_err(io(base.path()))? {
        let entry = entry.map_err(io(base.path()))?;
        let (from, to) = (entry.path(), draft.join(entry.file_name()));
        if !from.is_file() || entry.file_name() == STATE_FILE || entry.file_name() == RECIPE_FILE {
            continue;
        }
        let from = from.canonicalize().map_err(io(&from))?;
        let tensors = to.extension().is_some_and(|e| e == "safetensors");
        if tensors && rewrite(&from, &to, &trained, &source)? {
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
        parts.extend(
            trained
                .iter()
                .filter_map(|t| Part::state(&source, &format!("{prefix}{t}"))),
        );
    }
    let parts = parts.into_iter().map(|p| (p.name().to_string(), p)).collect();
    save(&draft.join(STATE_FILE), parts, ("step", &step.to_string()), &source)?;
    let path = draft.join(RECIPE_FILE);
    let text = toml::to_string(recipe).map_err(|e| file_error(&path, e))?;
    fs::write(&path, text).map_err(io(&path))?;
    flush(&path)?;
    flush(draft)
}

/// The states that are written, and the first failure to read one: a device may fail, and the writer of tensors takes no error.
struct Source<'a> {
    state: &'a State,
    failure: RefCell<Option<runtime::RuntimeError>>,
}

/// A tensor of a file that is written. States are read when it is their turn: a large model is not held twice.
enum Part<'a> {
    /// As it stands in a file that is mapped; from where on.
    Kept {
        view: TensorView<'a>,
        file: &'a fs::File,
        offset: usize,
    },
    State {
        source: &'a Source<'a>,
        name: String,
        shape: Vec<usize>,
    },
}

impl<'a> Part<'a> {
    fn state(source: &'a Source<'a>, name: &str) -> Option<Part<'a>> {
        Some(Part::State {
            source,
            name: name.to_string(),
            shape: source.state.shape(name)?.iter().map(|n| *n as usize).collect(),
        })
    }

    fn name(&self) -> &str {
        match self {
            Part::Kept { .. } => "",
            Part::State { name, .. } => name,
        }
    }
}

impl View for Part<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Part::Kept { view, .. } => view.dtype(),
            Part::State { .. } => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Part::Kept { view, .. } => view.shape(),
            Part::State { shape, .. } => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Part::Kept { view, file, offset } => {
                // Read, not taken from the map: a map's pages would stay with the process, all of the model in the end.
                let mut bytes = vec![0; view.data().len()];
                match file.read_exact_at(&mut bytes, *offset as u64) {
                    Ok(()) => bytes.into(),
                    Err(_) => view.data().into(),
                }
            }
            Part::State { source, name, .. } => match source.state.read(name) {
                Ok(values) => (values.data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).into(),
                Err(e) => {
                    source.failure.borrow_mut().get_or_insert(e);
                    // The file is not kept.
                    vec![0; self.data_len()].into()
                }
            },
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Part::Kept { view, .. } => view.data().len(),
            Part::State { shape, .. } => 4 * shape.iter().product::<usize>(),
        }
    }
}

fn save(path: &Path, parts: Vec<(String, Part)>, fact: (&str, &str), source: &Source) -> Result<(), CheckpointError> {
    let metadata = HashMap::from([(fact.0.to_string(), fact.1.to_string())]);
    safetensors::serialize_to_file(parts, Some(metadata), path).map_err(|e| file_error(path, e))?;
    match source.failure.take() {
        Some(e) => Err(e.into()),
        None => flush(path),
    }
}

/// The file with the trained tensors in place; `false` if it holds none.
fn rewrite(from: &Path, to: &Path, trained: &BTreeSet<String>, source: &Source) -> Result<bool, CheckpointError> {
    let file = fs::File::open(from).map_err(io(from))?;
    let map = unsafe { Mmap::map(&file) }.map_err(io(from))?;
    let old = SafeTensors::deserialize(&map).map_err(|e| file_error(from, e))?;
    let mut any = false;
    let mut parts = vec![];
    for (name, view) in old.iter() {
        let new = trained
            .contains(name)
            .then(|| Part::state(source, &format!("{PARAM}{name}")))
            .flatten();
        any |= new.is_some();
        let kept = Part::Kept {
            offset: view.data().as_ptr() as usize - map.as_ptr() as usize,
            view,
            file: &file,
        };
        parts.push((name.to_string(), new.unwrap_or(kept)));
    }
    if any {
        save(to, parts, ("format", "pt"), source)?;
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
            let words = view
                .data()
                .chunks_exact(4)
                .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]));
            state.write(&name, &words.collect::<Vec<f32>>())?;
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
