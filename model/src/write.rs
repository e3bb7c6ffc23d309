//! Folders that are complete or absent, and tensor files whose tensors are made one at a time.
//!
//! Knows no model: `init`, `export` and `retrofit` say what lies in a folder.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};
use serde_json::Value;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{out}: it exists already; remove it or choose another name", out = out.display())]
    Exists { out: PathBuf },
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: cannot write the tensors: {source}", path = path.display())]
    Tensors {
        path: PathBuf,
        source: safetensors::SafeTensorError,
    },
}

/// For `map_err`: what went wrong, and where.
pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> WriteError + use<> {
    let path = path.to_path_buf();
    move |source| WriteError::Io { path, source }
}

/// Makes the folder `out`, which must not exist, by `fill`. All or nothing: `fill` gets a folder beside `out`, which is renamed when it
/// is complete.
pub(crate) fn new_folder<T, E: From<WriteError>>(out: &Path, fill: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
    if out.symlink_metadata().is_ok() {
        return Err(WriteError::Exists { out: out.to_path_buf() }.into());
    }
    let name = out
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let draft = out.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = fs::create_dir_all(&draft)
        .map_err(|e| io_error(&draft)(e).into())
        .and_then(|()| fill(&draft))
        .and_then(|made| match fs::rename(&draft, out) {
            Ok(()) => Ok(made),
            Err(e) => Err(io_error(out)(e).into()),
        });
    if written.is_err() {
        let _ = fs::remove_dir_all(&draft);
    }
    written
}

/// Indented, with a newline at the end.
pub(crate) fn json(path: &Path, value: &Value) -> Result<(), WriteError> {
    fs::write(path, format!("{value:#}\n")).map_err(io_error(path))
}

/// A tensor whose bytes are made when they are written, so that a file never lies in memory as a whole.
pub(crate) struct Tensor<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// As many bytes as type and shape ask for.
    pub bytes: Box<dyn Fn() -> Cow<'a, [u8]> + 'a>,
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (self.bytes)()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// A safetensors file as Hugging Face's libraries write it.
pub(crate) fn tensors(path: &Path, tensors: Vec<(String, Tensor)>) -> Result<(), WriteError> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|source| WriteError::Tensors {
        path: path.to_path_buf(),
        source,
    })
}
