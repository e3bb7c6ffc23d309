//! A side of a product as it lies in memory: lines of k, or, turned, lines of rows (the right side's rows are the product's columns).
//!
//! `wgmma` reads bf16 either way from shared memory, so that nothing is turned before it is multiplied: a gradient of weights multiplies
//! two matrices whose lines are tokens, and tokens are its k.

use ir::plan::{Contraction, Expr, Kernel, Rhs};
use ir::{DType, Size};
use runtime::artefact::{MapSource, TensorMap};

use super::super::hopper::{self, Matrix};
use super::super::ptx::I32;
use super::shape::DEPTH;
use crate::mlir::emit::{Emit, Val};
use crate::pipeline::size;

/// Rows of a turned side that are one line of shared memory: 128 bytes.
pub const PANEL: i64 = 64;
/// Bytes of a panel of a stage, and of as many rows that are lines of k.
pub const PANEL_BYTES: i64 = PANEL * DEPTH * 2;

#[derive(Clone, Debug)]
pub struct Side {
    pub source: MapSource,
    offset: Size,
    /// Elements from line to line.
    stride: Size,
    rows: Size,
    pub turned: bool,
}

impl Side {
    /// A, where it can be multiplied as it lies.
    pub fn left(kernel: &Kernel, c: &Contraction) -> Option<Side> {
        let [row, k] = &c.a.strides[..] else { return None };
        let turned = kernel.is_turned();
        let side = Side {
            source: MapSource::Buffer(c.a.arg as u32),
            offset: c.a.offset.clone(),
            stride: if turned { k } else { row }.clone(),
            rows: Size::product(&kernel.outer),
            turned,
        };
        let plain = kernel.args[c.a.arg].dtype == DType::BF16 && !kernel.exprs.contains(&Expr::RowSquares);
        (plain && c.a.indirect.is_none() && side.is_aligned()).then_some(side)
    }

    /// A's rows in a workspace, densely.
    pub fn rounded(kernel: &Kernel, c: &Contraction) -> Side {
        Side {
            source: MapSource::Workspace(0),
            offset: Size::from(0),
            stride: c.k.clone(),
            rows: Size::product(&kernel.outer),
            turned: false,
        }
    }

    pub fn right(kernel: &Kernel, c: &Contraction, b: &Rhs) -> Option<Side> {
        let (arg, offset, stride) = match b {
            Rhs::Packed { arg } => (*arg, Size::from(0), c.k.clone()),
            Rhs::KContiguous { arg, offset, strides } | Rhs::NContiguous { arg, offset, strides } => {
                (*arg, offset.clone(), strides.last()?.clone())
            }
        };
        let side = Side {
            source: MapSource::Buffer(arg as u32),
            offset,
            stride,
            rows: kernel.cols.clone(),
            turned: matches!(b, Rhs::NContiguous { .. }),
        };
        (kernel.args[arg].dtype == DType::BF16 && side.is_aligned()).then_some(side)
    }

    /// The copy engine wants lines at multiples of 16 bytes.
    fn is_aligned(&self) -> bool {
        self.stride.coef > 0 && self.stride.coef % 8 == 0 && self.offset.coef % 8 == 0
    }

    /// What the copy engine reads it by: boxes of `height` rows, or of a panel.
    pub fn map(&self, k: &Size, height: i64) -> TensorMap {
        let (mut dims, mut wide) = (vec![size(k), size(&self.rows)], vec![DEPTH as u32, height as u32]);
        if self.turned {
            dims.reverse();
            wide = vec![PANEL as u32, DEPTH as u32];
        }
        TensorMap {
            source: self.source,
            dtype: runtime::artefact::DType::BF16,
            offset: size(&self.offset),
            dims,
            strides: vec![size(&self.stride)],
            r#box: wide,
            swizzle: 128,
        }
    }

    /// The part of a stage that holds `height` rows of it from `row` on, brought by `copy(to, box)`.
    pub fn bring(
        &self,
        e: &mut Emit,
        to: Val,
        [k, row]: [Val; 2],
        height: i64,
        copy: &dyn Fn(&mut Emit, Val, [Val; 2]),
    ) {
        if !self.turned {
            return copy(e, to, [k, row]);
        }
        for panel in 0..height / PANEL {
            let (right, behind) = (e.int(panel * PANEL, I32), e.int(panel * PANEL_BYTES, I32));
            let (row, to) = (e.add(row, right), e.add(to, behind));
            copy(e, to, [row, k]);
        }
    }

    /// How it lies in shared memory.
    pub fn matrix(&self) -> Matrix {
        Matrix {
            swizzle: 128,
            // Eight lines of 128 bytes.
            stride: 1024,
            leading: if self.turned { PANEL_BYTES } else { 16 },
            turned: self.turned,
        }
    }

    /// Bytes from 16 k to the next 16 k.
    pub fn step(&self) -> i64 {
        if self.turned { 16 * 128 } else { 16 * 2 }
    }
}

/// As `hopper::copy_box`, or to all blocks of a cluster.
pub fn copy(e: &mut Emit, to: Val, map: Val, at: [Val; 2], full: Val, cluster: i64) {
    if cluster > 1 {
        hopper::copy_box_to_all(e, to, map, at, full, (1 << cluster) - 1);
    } else {
        hopper::copy_box(e, to, map, &at, full);
    }
}
