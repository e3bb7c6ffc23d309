//! Rows of a tensor from the file's bytes to a weight's: types converted, columns scaled, panels laid out.

use half::{bf16, f16};

use crate::artefact::{DType, PANEL};
use crate::engine::sizes::width;

/// No exponent is all ones.
pub fn finite(data: &[u8], dtype: DType) -> bool {
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

/// Rows of a weight as the file has them; `first` is where they go, counted from the start of the memory that is filled.
pub struct Block<'a> {
    pub data: &'a [u8],
    pub dtype: DType,
    pub first: i64,
    pub rows: i64,
    pub columns: i64,
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
    pub fn scaled(&self, scale: &[u8], scale_type: DType, dtype: DType) -> Vec<u8> {
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

    pub fn row_major(&self, out: *mut u8, dtype: DType) {
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
    pub fn panels(&self, out: *mut u8, dtype: DType, pair: i64) {
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
