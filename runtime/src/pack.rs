//! Weight buffers from recipes: conversion, stacking, panels, rotary tables. In place from the mapped file where nothing changes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use memmap2::Mmap;

use crate::artefact::{DType, Layout, PANEL, Source, Weight};
use crate::error::RuntimeError;
use crate::memory::Memory;
use crate::weights::{Checkpoint, TensorView};

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
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<RuntimeError>> = Mutex::new(None);
    let work = || {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let w = &weights[piece.weight];
            if let Err(e) = make(w, piece.first, &buffers[piece.weight], checkpoint) {
                failure.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(e);
                next.store(pieces.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|s| {
        for _ in 1..threads.max(1) {
            s.spawn(work);
        }
        work();
    });
    match failure.into_inner().unwrap_or_else(|p| p.into_inner()) {
        Some(e) => Err(e),
        None => Ok(buffers),
    }
}

fn up(n: i64, to: i64) -> i64 {
    (n + to - 1) / to * to
}

fn width(dtype: DType) -> i64 {
    match dtype {
        DType::F32 | DType::I32 => 4,
        DType::BF16 | DType::F16 => 2,
        DType::I1 => 1,
    }
}

/// Rows (stacked first axes) and the product of the other axes.
fn matrix(w: &Weight) -> (i64, i64) {
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
fn check(w: &Weight, checkpoint: &Checkpoint) -> Result<(), RuntimeError> {
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

/// Fills rows `first..first + ROWS`. Different calls write different bytes.
fn make(w: &Weight, first: i64, buffer: &WeightBuffer, checkpoint: &Checkpoint) -> Result<(), RuntimeError> {
    let (rows, columns) = matrix(w);
    let last = (first + ROWS).min(rows);
    let out = buffer.ptr() as *mut u8;
    let parts = match &w.source {
        &Source::RopeTable { dim, theta, sin, .. } => {
            let theta = f64::from_bits(theta.0);
            for row in first..last {
                for i in 0..columns {
                    let angle = row as f64 * theta.powf(-2.0 * i as f64 / dim as f64);
                    let value = if sin { angle.sin() } else { angle.cos() };
                    unsafe {
                        (out as *mut f32)
                            .add((row * columns + i) as usize)
                            .write_unaligned(value as f32)
                    };
                }
            }
            return Ok(());
        }
        Source::Tensors(parts) => parts,
    };
    let mut begin = 0;
    for part in parts {
        let end = begin + part.shape.first().copied().unwrap_or(1);
        let (from, to) = (first.max(begin), last.min(end));
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
                first: from,
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
            match w.layout {
                Layout::RowMajor => block.row_major(out, w.dtype),
                Layout::Panels { pair } => block.panels(out, w.dtype, pair),
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

/// No exponent is all ones.
fn finite(data: &[u8], dtype: DType) -> bool {
    let halves = |mask: u16| {
        data.chunks_exact(2)
            .fold(false, |bad, c| bad | (u16::from_le_bytes([c[0], c[1]]) & mask == mask))
    };
    !match dtype {
        DType::BF16 => halves(0x7f80),
        DType::F16 => halves(0x7c00),
        _ => data.chunks_exact(4).fold(false, |bad, c| {
            bad | (u32::from_le_bytes([c[0], c[1], c[2], c[3]]) & 0x7f80_0000 == 0x7f80_0000)
        }),
    }
}

/// Rows `first..first + rows` of a weight, as the file has them.
struct Block<'a> {
    data: &'a [u8],
    dtype: DType,
    first: i64,
    rows: i64,
    columns: i64,
}

/// Rounded to nearest even; of finite numbers.
fn nearest_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Element i of little-endian floats.
pub(crate) fn element(data: &[u8], dtype: DType, i: usize) -> f32 {
    let at2 = || [data[2 * i], data[2 * i + 1]];
    match dtype {
        DType::BF16 => bf16::from_le_bytes(at2()).to_f32(),
        DType::F16 => f16::from_le_bytes(at2()).to_f32(),
        _ => f32::from_le_bytes([data[4 * i], data[4 * i + 1], data[4 * i + 2], data[4 * i + 3]]),
    }
}

impl Block<'_> {
    fn element(&self, i: usize) -> f32 {
        element(self.data, self.dtype, i)
    }

    /// The rows in `dtype`, column k by element k of `scale`.
    fn scaled(&self, scale: &[u8], scale_type: DType, dtype: DType) -> Vec<u8> {
        let columns = self.columns as usize;
        let scale: Vec<f32> = (0..columns).map(|k| element(scale, scale_type, k)).collect();
        let mut out = vec![0; self.rows as usize * columns * width(dtype) as usize];
        for row in 0..self.rows as usize {
            let at = row * columns;
            if (self.dtype, dtype) == (DType::BF16, DType::BF16) {
                // The common case without a branch per element, for the vectoriser.
                let from = &self.data[2 * at..2 * (at + columns)];
                let to = &mut out[2 * at..2 * (at + columns)];
                for ((x, y), s) in from.chunks_exact(2).zip(to.chunks_exact_mut(2)).zip(&scale) {
                    let x = f32::from_bits(u32::from(u16::from_le_bytes([x[0], x[1]])) << 16);
                    y.copy_from_slice(&nearest_bf16(x * s).to_le_bytes());
                }
                continue;
            }
            for (k, s) in scale.iter().enumerate() {
                self.write(out.as_mut_ptr(), at + k, self.element(at + k) * s, dtype);
            }
        }
        out
    }

    fn write(&self, out: *mut u8, at: usize, value: f32, dtype: DType) {
        unsafe {
            match dtype {
                DType::BF16 => (out as *mut u16)
                    .add(at)
                    .write_unaligned(bf16::from_f32(value).to_bits()),
                DType::F16 => (out as *mut u16)
                    .add(at)
                    .write_unaligned(f16::from_f32(value).to_bits()),
                _ => (out as *mut f32).add(at).write_unaligned(value),
            }
        }
    }

    fn row_major(&self, out: *mut u8, dtype: DType) {
        let base = (self.first * self.columns) as usize;
        if dtype == self.dtype {
            let bytes = base * width(dtype) as usize;
            unsafe { std::ptr::copy_nonoverlapping(self.data.as_ptr(), out.add(bytes), self.data.len()) };
            return;
        }
        for i in 0..(self.rows * self.columns) as usize {
            self.write(out, base + i, self.element(i), dtype);
        }
    }

    /// See `Layout::Panels`.
    fn panels(&self, out: *mut u8, dtype: DType, pair: i64) {
        let units = (self.columns + pair - 1) / pair;
        let straight = dtype == self.dtype && pair * width(dtype) == 4;
        for row in 0..self.rows {
            let n = self.first + row;
            // 16 rows at a time where whole units can be moved as they are.
            if straight && n % 16 == 0 && row + 16 <= self.rows {
                self.transpose(out, row, units, pair);
            }
            let moved = straight && (n - n % 16) >= self.first && row - n % 16 + 16 <= self.rows;
            let done = if moved { self.columns / pair * pair } else { 0 };
            for k in done..self.columns {
                let at = ((n / PANEL) * units + k / pair) * PANEL * pair + (n % PANEL) * pair + k % pair;
                self.write(out, at as usize, self.element((row * self.columns + k) as usize), dtype);
            }
        }
    }

    /// Rows `row..row + 16`, whole units of four bytes: blocks of 16 x 16 units turned, so that each cache line is written once.
    fn transpose(&self, out: *mut u8, row: i64, units: i64, pair: i64) {
        let n = self.first + row;
        let stride = (self.columns * 4 / pair) as usize;
        let source = unsafe { self.data.as_ptr().add(row as usize * stride) };
        let target = unsafe { (out as *mut u32).add((n / PANEL * units * PANEL + n % PANEL) as usize) };
        let whole = (self.columns / pair) as usize;
        let mut block = [[0u32; 16]; 16];
        let mut k = 0;
        while k + 16 <= whole {
            for (r, line) in block.iter_mut().enumerate() {
                unsafe {
                    std::ptr::copy_nonoverlapping(source.add(r * stride + 4 * k), line.as_mut_ptr() as *mut u8, 64)
                };
            }
            for (u, line) in transposed(&block).iter().enumerate() {
                unsafe { (target.add((k + u) * PANEL as usize) as *mut [u32; 16]).write_unaligned(*line) };
            }
            k += 16;
        }
        for k in k..whole {
            for r in 0..16 {
                unsafe {
                    let unit = (source.add(r * stride + 4 * k) as *const u32).read_unaligned();
                    target.add(k * PANEL as usize + r).write_unaligned(unit);
                }
            }
        }
    }
}

fn transposed(block: &[[u32; 16]; 16]) -> [[u32; 16]; 16] {
    std::array::from_fn(|u| std::array::from_fn(|r| block[r][u]))
}
