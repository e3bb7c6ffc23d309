//! Checkpoints: safetensors files, mapped into memory. Reads tensors by name; converts nothing (`pack` does).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};

use crate::artefact::DType;
use crate::error::RuntimeError;

/// A folder's tensors. Cheap to clone: the files stay mapped while anyone uses them.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    files: Vec<Arc<Mmap>>,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    shape: Vec<i64>,
    dtype: DType,
    /// Bytes in the file.
    start: usize,
    end: usize,
}

/// One tensor's bytes, row-major, little-endian, not necessarily aligned.
pub struct TensorView<'a> {
    pub shape: &'a [i64],
    pub dtype: DType,
    pub data: &'a [u8],
    pub file: &'a Arc<Mmap>,
}

impl Checkpoint {
    /// `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(folder: &Path) -> Result<Checkpoint, RuntimeError> {
        let index = folder.join("model.safetensors.index.json");
        let (names, promised) = if index.exists() {
            shards(&index)?
        } else {
            (vec!["model.safetensors".to_string()], vec![])
        };
        let mut inner = Inner {
            folder: folder.to_path_buf(),
            files: vec![],
            tensors: BTreeMap::new(),
        };
        for name in &names {
            inner.add(&folder.join(name))?;
        }
        let absent: Vec<&String> = promised
            .iter()
            .filter(|name| !inner.tensors.contains_key(*name))
            .collect();
        if let Some(first) = absent.first() {
            let reason = format!(
                "it promises {} tensor(s) that no shard holds, such as {first}; download the folder again",
                absent.len()
            );
            return Err(RuntimeError::File { path: index, reason });
        }
        Ok(Checkpoint { inner: Arc::new(inner) })
    }

    pub fn path(&self) -> &Path {
        &self.inner.folder
    }

    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        self.inner
            .tensors
            .iter()
            .map(|(name, e)| (name.clone(), e.shape.clone()))
            .collect()
    }

    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.inner.tensors.get(name).map(|e| e.dtype)
    }

    /// A tensor's values, widened to f32.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let t = self.tensor(name)?;
        let n = t.shape.iter().product::<i64>() as usize;
        Some((0..n).map(|i| crate::pack::element(t.data, t.dtype, i)).collect())
    }

    /// A tensor's values from `first` on, widened to f32, as many as `out` has; `None` if it has not so many. The file's pages that were
    /// read do not stay with the process: who reads a whole model in pieces does not hold it twice.
    pub fn read(&self, name: &str, first: usize, out: &mut [f32]) -> Option<()> {
        let t = self.tensor(name)?;
        let width = t.data.len() / t.shape.iter().product::<i64>().max(1) as usize;
        let data = t.data.get(first * width..(first + out.len()) * width)?;
        for (i, x) in out.iter_mut().enumerate() {
            *x = crate::pack::element(data, t.dtype, i);
        }
        crate::pack::release(&t, data);
        Some(())
    }

    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let e = self.inner.tensors.get(name)?;
        let file = &self.inner.files[e.file];
        Some(TensorView {
            shape: &e.shape,
            dtype: e.dtype,
            data: &file[e.start..e.end],
            file,
        })
    }
}

/// The shards' file names and the tensors that the index promises.
fn shards(index: &Path) -> Result<(Vec<String>, Vec<String>), RuntimeError> {
    let failed = |reason: String| RuntimeError::File {
        path: index.to_path_buf(),
        reason,
    };
    let text = std::fs::read_to_string(index).map_err(|e| failed(format!("cannot read it: {e}")))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| failed(format!("not JSON: {e}")))?;
    let map = json["weight_map"]
        .as_object()
        .ok_or_else(|| failed("it has no `weight_map`".to_string()))?;
    let mut names = vec![];
    for (tensor, file) in map {
        match file.as_str() {
            // A shard lies in the folder itself.
            Some(file) if !file.is_empty() && !file.contains(['/', '\\']) => names.push(file.to_string()),
            _ => {
                return Err(failed(format!(
                    "the file of {tensor} is {file}, wants a name in this folder"
                )));
            }
        }
    }
    names.sort();
    names.dedup();
    Ok((names, map.keys().cloned().collect()))
}

impl Inner {
    fn add(&mut self, path: &Path) -> Result<(), RuntimeError> {
        let failed = |reason: String| RuntimeError::File {
            path: path.to_path_buf(),
            reason,
        };
        let file = File::open(path).map_err(|e| failed(format!("cannot open it: {e}")))?;
        if file.metadata().map_err(|e| failed(e.to_string()))?.len() < 8 {
            return Err(failed(
                "too short for a safetensors file; download it again".to_string(),
            ));
        }
        let map = unsafe { Mmap::map(&file) }.map_err(|e| failed(format!("cannot map it: {e}")))?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| failed(format!("not a whole safetensors file ({e}); download it again")))?;
        let data = header + 8;
        for (name, info) in metadata.tensors() {
            let dtype = match info.dtype {
                Dtype::F32 => DType::F32,
                Dtype::BF16 => DType::BF16,
                Dtype::F16 => DType::F16,
                other => {
                    return Err(failed(format!(
                        "tensor {name} is {other:?}; f32, f16 and bf16 are supported"
                    )));
                }
            };
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            let elements = info.shape.iter().try_fold(1usize, |acc, n| acc.checked_mul(*n));
            let width = if dtype == DType::F32 { 4 } else { 2 };
            if elements.and_then(|n| n.checked_mul(width)) != end.checked_sub(start) || end > map.len() {
                return Err(failed(format!(
                    "tensor {name}: its bytes are not its shape's; the file is truncated or its header is wrong"
                )));
            }
            let entry = Entry {
                file: self.files.len(),
                shape: info.shape.iter().map(|n| *n as i64).collect(),
                dtype,
                start,
                end,
            };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(failed(format!("tensor {name} is in two shards")));
            }
        }
        self.files.push(Arc::new(map));
        Ok(())
    }
}

/// Writes f32 tensors (name, shape, little-endian bytes): beside the file first, then renamed.
pub fn write_safetensors(path: &Path, tensors: &[(&str, &Vec<usize>, &Vec<u8>)]) -> Result<(), RuntimeError> {
    let failed = |reason: String| RuntimeError::File {
        path: path.to_path_buf(),
        reason,
    };
    let views = tensors
        .iter()
        .map(|(name, shape, data)| {
            let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.to_vec(), data);
            view.map(|v| (name.to_string(), v))
                .map_err(|e| failed(format!("tensor {name}: {e}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let bytes = safetensors::serialize(views, None).map_err(|e| failed(e.to_string()))?;
    write_whole(path, &[&bytes])
}

/// All or nothing: a temporary file beside `path`, flushed to disk, then renamed.
pub fn write_whole(path: &Path, parts: &[&[u8]]) -> Result<(), RuntimeError> {
    let failed = |e: std::io::Error| RuntimeError::File {
        path: path.to_path_buf(),
        reason: format!("cannot write it: {e}"),
    };
    let name = path
        .file_name()
        .ok_or_else(|| failed(std::io::Error::from(std::io::ErrorKind::InvalidInput)))?;
    // A rename would put a file in a device's place.
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return Err(RuntimeError::File {
            path: path.to_path_buf(),
            reason: "it is a device or a pipe; name a file".to_string(),
        });
    }
    let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let write = || {
        let mut file = File::create(&temporary)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        // What is half written goes; the first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
        failed(e)
    })
}
