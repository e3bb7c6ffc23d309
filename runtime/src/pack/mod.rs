//! Weight buffers from recipes: stacking, scaling, rotary tables; in place from the mapped file where nothing changes. `block` converts.

mod block;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use memmap2::Mmap;

use self::block::{Block, finite};
use crate::artefact::{Layout, PANEL, Source, Weight};
use crate::engine::sizes::width;
use crate::error::RuntimeError;
use crate::memory::Memory;
use crate::weights::{Checkpoint, TensorView};

pub(crate) use self::block::element;

/// A weight as kernels read it.
pub enum WeightBuffer {
    Mapped { file: Arc<Mmap>, offset: usize, len: usize },
    Own(Memory),
}

impl WeightBuffer {
    pub fn ptr(&self) -> *const u8 {
        match self {
            WeightBuffer::Mapped { file, offset, .. } => unsafe { file.as_ptr().add(*offset) },
            WeightBuffer::Own(m) => m.ptr(),
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            WeightBuffer::Mapped { len, .. } => *len,
            WeightBuffer::Own(m) => m.len(),
        }
    }
}

/// Rows of one weight that one thread makes at a time: whole panels.
const ROWS: i64 = 8 * PANEL;

/// A piece of work: rows `first..first + ROWS` of weight `weight`.
struct Piece {
    weight: usize,
    first: i64,
}

/// Makes all weights; errors name the tensor.
pub fn load(weights: &[Weight], checkpoint: &Checkpoint, threads: usize) -> Result<Vec<WeightBuffer>, RuntimeError> {
    let mut buffers = vec![];
    let mut pieces = vec![];
    for (i, w) in weights.iter().enumerate() {
        check(w, checkpoint)?;
        if let Some(mapped) = in_place(w, checkpoint) {
            buffers.push(mapped);
            continue;
        }
        let (rows, columns) = matrix(w);
        let bytes = match w.layout {
            Layout::RowMajor => rows * columns * width(w.dtype),
            Layout::Panels { pair } => up(rows, PANEL) * up(columns, pair) * width(w.dtype),
        };
        buffers.push(WeightBuffer::Own(Memory::zeroed(bytes as usize)?));
        pieces.extend((0..rows).step_by(ROWS as usize).map(|first| Piece { weight: i, first }));
    }
    let work = |_: &mut (), at: usize| {
        let piece: &Piece = &pieces[at];
        let w = &weights[piece.weight];
        let last = (piece.first + ROWS).min(matrix(w).0);
        let place = Place {
            out: buffers[piece.weight].ptr() as *mut u8,
            origin: 0,
            layout: w.layout,
        };
        make(w, piece.first..last, &place, checkpoint)
    };
    shared_out(pieces.len(), threads, &|| Ok(()), &work)?;
    Ok(buffers)
}

/// Pieces 0..count of a job over threads, each with what `begin` gives it; the first failure ends all.
pub(crate) fn shared_out<S>(
    count: usize,
    threads: usize,
    begin: &(dyn Fn() -> Result<S, RuntimeError> + Sync),
    work: &(dyn Fn(&mut S, usize) -> Result<(), RuntimeError> + Sync),
) -> Result<(), RuntimeError> {
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<RuntimeError>> = Mutex::new(None);
    let serve = || {
        let all = || {
            let mut own = begin()?;
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return Ok(());
                }
                work(&mut own, at)?;
            }
        };
        if let Err(e) = all() {
            failure.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(e);
            next.store(count, Ordering::Relaxed);
        }
    };
    std::thread::scope(|s| {
        for _ in 1..threads.clamp(1, count.max(1)) {
            s.spawn(serve);
        }
        serve();
    });
    match failure.into_inner().unwrap_or_else(|p| p.into_inner()) {
        Some(e) => Err(e),
        None => Ok(()),
    }
}

fn up(n: i64, to: i64) -> i64 {
    (n + to - 1) / to * to
}

/// Rows (stacked first axes) and the product of the other axes.
pub(crate) fn matrix(w: &Weight) -> (i64, i64) {
    match &w.source {
        Source::RopeTable { rows, dim, .. } => (*rows, dim / 2),
        Source::Tensors(parts) => {
            let columns = parts.first().map_or(1, |t| t.shape.iter().skip(1).product());
            (
                parts.iter().map(|t| t.shape.first().copied().unwrap_or(1)).sum(),
                columns,
            )
        }
    }
}

/// Are the tensors there, with the recipe's shapes?
pub(crate) fn check(w: &Weight, checkpoint: &Checkpoint) -> Result<(), RuntimeError> {
    let Source::Tensors(parts) = &w.source else {
        return Ok(());
    };
    for part in parts {
        let wrong = |reason: String| RuntimeError::Tensor {
            name: part.name.clone(),
            reason,
        };
        let t = checkpoint
            .tensor(&part.name)
            .ok_or_else(|| wrong(format!("{} has no such tensor", checkpoint.path().display())))?;
        if t.shape != part.shape {
            return Err(wrong(format!(
                "has shape {:?}, the artefact wants {:?}; compile the model again",
                t.shape, part.shape
            )));
        }
        if let Some(name) = &part.scale {
            let columns = part.shape.last().copied().unwrap_or(0);
            let wrong = |reason: String| RuntimeError::Tensor {
                name: name.clone(),
                reason,
            };
            let scale = checkpoint
                .tensor(name)
                .ok_or_else(|| wrong(format!("{} has no such tensor", checkpoint.path().display())))?;
            if part.shape.len() != 2 || scale.shape != [columns] {
                let reason = format!(
                    "has shape {:?} and cannot scale {} of {:?}",
                    scale.shape, part.name, part.shape
                );
                return Err(wrong(reason));
            }
        }
    }
    Ok(())
}

fn in_place(w: &Weight, checkpoint: &Checkpoint) -> Option<WeightBuffer> {
    let Source::Tensors(parts) = &w.source else { return None };
    let [part] = parts.as_slice() else { return None };
    let t = checkpoint.tensor(&part.name)?;
    if w.layout != Layout::RowMajor || t.dtype != w.dtype || part.scale.is_some() {
        return None;
    }
    let offset = t.data.as_ptr() as usize - t.file.as_ptr() as usize;
    Some(WeightBuffer::Mapped {
        file: t.file.clone(),
        offset,
        len: t.data.len(),
    })
}

/// Where rows go: row `origin` of the weight lies at `out`.
pub(crate) struct Place {
    pub out: *mut u8,
    /// A whole number of panels.
    pub origin: i64,
    pub layout: Layout,
}

/// Makes these rows of a weight. Calls for different rows write different bytes.
pub(crate) fn make(w: &Weight, rows: Range<i64>, place: &Place, checkpoint: &Checkpoint) -> Result<(), RuntimeError> {
    let (_, columns) = matrix(w);
    let parts = match &w.source {
        &Source::RopeTable { dim, theta, sin, .. } => {
            let theta = f64::from_bits(theta.0);
            for row in rows {
                for i in 0..columns {
                    let angle = row as f64 * theta.powf(-2.0 * i as f64 / dim as f64);
                    let value = if sin { angle.sin() } else { angle.cos() };
                    let at = ((row - place.origin) * columns + i) as usize;
                    unsafe { (place.out as *mut f32).add(at).write_unaligned(value as f32) };
                }
            }
            return Ok(());
        }
        Source::Tensors(parts) => parts,
    };
    let mut begin = 0;
    for part in parts {
        let end = begin + part.shape.first().copied().unwrap_or(1);
        let (from, to) = (rows.start.max(begin), rows.end.min(end));
        if from < to
            && let Some(t) = checkpoint.tensor(&part.name)
        {
            let bytes = (columns * width(t.dtype)) as usize;
            let data = &t.data[(from - begin) as usize * bytes..(to - begin) as usize * bytes];
            populate(&t, data);
            let damaged = |name: &str| RuntimeError::Tensor {
                name: name.to_string(),
                reason: "holds a NaN or an infinity; the checkpoint is damaged".to_string(),
            };
            if !finite(data, t.dtype) {
                return Err(damaged(&part.name));
            }
            let mut block = Block {
                data,
                dtype: t.dtype,
                first: from - place.origin,
                rows: to - from,
                columns,
            };
            let scaled;
            if let Some((name, scale)) = part.scale.as_ref().and_then(|n| Some((n, checkpoint.tensor(n)?))) {
                if !finite(scale.data, scale.dtype) {
                    return Err(damaged(name));
                }
                scaled = block.scaled(scale.data, scale.dtype, w.dtype);
                block = Block {
                    data: &scaled,
                    dtype: w.dtype,
                    ..block
                };
            }
            match place.layout {
                Layout::RowMajor => block.row_major(place.out, w.dtype),
                Layout::Panels { pair } => block.panels(place.out, w.dtype, pair),
            }
            release(&t, data);
        }
        begin = end;
    }
    Ok(())
}

/// All pages of `data` in one call: faults one by one cost more than the packing.
fn populate(t: &TensorView, data: &[u8]) {
    let offset = (data.as_ptr() as usize - t.file.as_ptr() as usize) / 4096 * 4096;
    let end = data.as_ptr() as usize + data.len() - t.file.as_ptr() as usize;
    // Advice only (Linux 5.14); without it the pages come one by one.
    unsafe {
        libc::madvise(
            t.file.as_ptr().add(offset) as *mut libc::c_void,
            end - offset,
            libc::MADV_POPULATE_READ,
        )
    };
}

/// The file's pages of `data` may go: they are clean and their content is packed.
pub(crate) fn release(t: &TensorView, data: &[u8]) {
    let page = 4096;
    let start = (data.as_ptr() as usize - t.file.as_ptr() as usize).next_multiple_of(page);
    let end = (data.as_ptr() as usize + data.len() - t.file.as_ptr() as usize) / page * page;
    if start < end {
        // Advice only: what it refuses costs memory, nothing else.
        unsafe {
            libc::madvise(
                t.file.as_ptr().add(start) as *mut libc::c_void,
                end - start,
                libc::MADV_DONTNEED,
            )
        };
    }
}
