//! Folders that are complete or absent, and tensor files that are made piece by piece.
//!
//! Knows no model: `init`, `export`, `retrofit` and `train::checkpoint` say what lies in a folder.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{out}: it exists already; remove it or choose another name", out = out.display())]
    Exists { out: PathBuf },
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
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

/// Writes a tensor's bytes.
pub(crate) type WriteBytes<'a> = Box<dyn Fn(&mut dyn Write) -> io::Result<()> + 'a>;

/// A tensor whose bytes are made when they are written, so that neither a file nor a large tensor lies in memory as a whole.
pub(crate) struct Tensor<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Writes as many bytes as type and shape ask for.
    pub write: WriteBytes<'a>,
}

impl Tensor<'_> {
    fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Bytes of a piece: what is copied is copied through so many.
pub(crate) const PIECE: usize = 1 << 20;

/// The fact that Hugging Face's libraries write.
pub(crate) const PYTORCH: (&str, &str) = ("format", "pt");

/// Little-endian.
pub(crate) fn floats(out: &mut dyn Write, values: &[f32]) -> io::Result<()> {
    for piece in values.chunks(PIECE / 4) {
        let bytes: Vec<u8> = piece.iter().flat_map(|x| x.to_le_bytes()).collect();
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// A safetensors file with one fact in its header, in the order of Hugging Face's libraries: types of wide elements first, then by name.
pub(crate) fn tensors(path: &Path, fact: (&str, &str), mut tensors: Vec<(String, Tensor)>) -> Result<(), WriteError> {
    tensors.sort_by(|(a, x), (b, y)| y.dtype.cmp(&x.dtype).then(a.cmp(b)));
    let (mut end, mut infos) = (0, vec![]);
    for (name, t) in &tensors {
        let begin = end;
        end += t.len();
        let info = TensorInfo {
            dtype: t.dtype,
            shape: t.shape.clone(),
            data_offsets: (begin, end),
        };
        infos.push((name.clone(), info));
    }
    let metadata = HashMap::from([(fact.0.to_string(), fact.1.to_string())]);
    let write = || {
        let metadata = Metadata::new(Some(metadata), infos).map_err(io::Error::other)?;
        let mut header = serde_json::to_string(&metadata)?;
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        let mut file = BufWriter::with_capacity(PIECE, fs::File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        tensors.iter().try_for_each(|(_, t)| (t.write)(&mut file))?;
        file.flush()
    };
    write().map_err(io_error(path))
}
