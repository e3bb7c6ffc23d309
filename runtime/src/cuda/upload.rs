//! Weights onto the device: threads make rows in pinned memory, the copy engine brings them over while they make the next ones.
//!
//! On a GPU every weight is row-major, so recipes that differ in layout alone share their memory (a table and the head that is tied to it).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::driver::{Context, Held};
use super::memory::{ALIGN, DeviceMemory, Pinned};
use super::module::Event;
use crate::artefact::{DType, Layout, Source, Weight};
use crate::engine::sizes::{places, width};
use crate::error::RuntimeError;
use crate::pack::{self, Place};
use crate::weights::Checkpoint;

/// Bytes that a thread makes at a time: enough for the copy engine to be at its best, little to pin.
const PIECE: usize = 2 << 20;
/// More threads than this do not make the copy engine faster.
const THREADS: usize = 12;

pub struct Weights {
    memory: DeviceMemory,
    offsets: Vec<usize>,
}

impl Weights {
    pub fn load(
        context: &Arc<Context>,
        weights: &[Weight],
        checkpoint: &Checkpoint,
        threads: usize,
    ) -> Result<Weights, RuntimeError> {
        let plan = Plan::new(weights)?;
        for w in &plan.unlike {
            pack::check(w, checkpoint)?;
        }
        let memory = DeviceMemory::new(context, plan.len, Held::Weights)?;
        let begin = || Stage::new(context, plan.staging);
        let work = |stage: &mut Stage, at: usize| {
            let piece = &plan.pieces[at];
            let to = memory.address() + piece.offset as u64;
            stage.bring(to, piece.len, |out| {
                let place = Place {
                    out,
                    origin: piece.rows.start,
                    layout: Layout::RowMajor,
                };
                pack::make(plan.unlike[piece.weight], piece.rows.clone(), &place, checkpoint)
            })
        };
        pack::shared_out(plan.pieces.len(), threads.min(THREADS), &begin, &work)?;
        context.wait()?;
        Ok(Weights {
            memory,
            offsets: plan.offsets,
        })
    }

    pub fn address(&self, weight: usize) -> u64 {
        self.memory.address() + self.offsets[weight] as u64
    }

    pub fn bytes(&self) -> usize {
        self.memory.len()
    }
}

/// What is made, and where it goes.
struct Plan<'a> {
    /// Recipes that are made.
    unlike: Vec<&'a Weight>,
    /// Of every weight of the artefact.
    offsets: Vec<usize>,
    len: usize,
    pieces: Vec<Piece>,
    /// Bytes of the largest piece.
    staging: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// Index into `Plan::unlike`.
    weight: usize,
    rows: Range<i64>,
    offset: usize,
    len: usize,
}

impl<'a> Plan<'a> {
    fn new(weights: &'a [Weight]) -> Result<Plan<'a>, RuntimeError> {
        let mut known: HashMap<(&Source, DType), usize> = HashMap::new();
        let mut unlike = vec![];
        let mut indices = vec![];
        for w in weights {
            indices.push(*known.entry((&w.source, w.dtype)).or_insert_with(|| {
                unlike.push(w);
                unlike.len() - 1
            }));
        }
        let row = |w: &Weight| (pack::matrix(w).1 * width(w.dtype)) as usize;
        let lengths = unlike.iter().map(|w| pack::matrix(w).0 as usize * row(w));
        let (starts, len) = places(lengths, ALIGN).ok_or(RuntimeError::OutOfMemory { bytes: usize::MAX })?;
        let (mut pieces, mut staging) = (vec![], 0);
        for (weight, w) in unlike.iter().enumerate() {
            let (rows, row) = (pack::matrix(w).0, row(w));
            let step = (PIECE / row.max(1)).max(1);
            for first in (0..rows).step_by(step) {
                let last = (first + step as i64).min(rows);
                let len = (last - first) as usize * row;
                staging = staging.max(len);
                pieces.push(Piece {
                    weight,
                    rows: first..last,
                    offset: starts[weight] + first as usize * row,
                    len,
                });
            }
        }
        Ok(Plan {
            unlike,
            offsets: indices.into_iter().map(|i| starts[i]).collect(),
            len,
            pieces,
            staging,
        })
    }
}

/// A thread's two pieces of pinned memory: one is filled while the other is on its way.
struct Stage {
    context: Arc<Context>,
    slots: [(Pinned, Event); 2],
    turn: usize,
}

impl Stage {
    fn new(context: &Arc<Context>, len: usize) -> Result<Stage, RuntimeError> {
        context.enter()?;
        let slot = || -> Result<_, RuntimeError> { Ok((Pinned::new(context, len)?, Event::new(context)?)) };
        Ok(Stage {
            context: context.clone(),
            slots: [slot()?, slot()?],
            turn: 0,
        })
    }

    fn bring(
        &mut self,
        to: u64,
        len: usize,
        make: impl FnOnce(*mut u8) -> Result<(), RuntimeError>,
    ) -> Result<(), RuntimeError> {
        let (memory, gone) = &self.slots[self.turn];
        self.turn = 1 - self.turn;
        // An event that was never recorded has passed.
        gone.wait()?;
        make(memory.ptr())?;
        unsafe { self.context.copy_in(to, memory.ptr(), len) }?;
        Ok(gone.record()?)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What is on its way must arrive before its memory goes.
        let _ = self.context.enter();
        let _ = self.context.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artefact::TensorRef;

    fn weight(name: &str, shape: &[i64], dtype: DType, layout: Layout) -> Weight {
        let tensor = TensorRef {
            name: name.to_string(),
            shape: shape.to_vec(),
            scale: None,
        };
        Weight {
            source: Source::Tensors(vec![tensor]),
            dtype,
            layout,
        }
    }

    #[test]
    fn pieces_cover_every_row_once_and_like_recipes_share() {
        let panels = Layout::Panels { pair: 2 };
        let weights = [
            weight("a", &[3000, 1000], DType::BF16, Layout::RowMajor),
            weight("v", &[5], DType::F32, Layout::RowMajor),
            weight("a", &[3000, 1000], DType::BF16, panels),
            weight("a", &[3000, 1000], DType::F32, panels),
            weight("long", &[2, 1 << 20], DType::F32, Layout::RowMajor),
        ];
        let plan = Plan::new(&weights).unwrap();
        assert_eq!(plan.unlike.len(), 4);
        assert_eq!(plan.offsets[0], plan.offsets[2]);
        assert!(plan.offsets.iter().all(|o| o % ALIGN == 0));
        assert_eq!(plan.staging, 4 << 20, "a row is never cut");
        for (i, w) in plan.unlike.iter().enumerate() {
            let (rows, columns) = pack::matrix(w);
            let mut next = 0;
            for p in plan.pieces.iter().filter(|p| p.weight == i) {
                assert_eq!(p.rows.start, next);
                assert_eq!(p.len as i64, (p.rows.end - p.rows.start) * columns * width(w.dtype));
                assert!(p.offset + p.len <= plan.len);
                next = p.rows.end;
            }
            assert_eq!(next, rows);
        }
    }
}
