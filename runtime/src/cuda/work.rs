//! The memory that calls reuse: how much one needs, and room for it. What is done there is `Cuda`'s.

use std::sync::Arc;

use super::driver::{Context, Held};
use super::graphs::Graphs;
use super::memory::{DeviceMemory, Pinned};
use super::module::{Event, Graph};
use crate::error::RuntimeError;

/// Outputs of at most so many bytes come back through pinned memory; larger ones directly, which is slower but pins nothing.
const PINNED: usize = 16 << 20;

/// Memory that calls reuse, and what was recorded on it.
#[derive(Default)]
pub struct Work {
    pub graphs: Graphs<(Graph, Arc<Layout>)>,
    pub arena: Option<DeviceMemory>,
    pub workspace: Option<DeviceMemory>,
    /// Zero between launches.
    pub counters: Option<DeviceMemory>,
    pub inputs: Option<DeviceMemory>,
    pub outputs: Option<DeviceMemory>,
    pub staging: Option<Pinned>,
    pub events: Vec<Event>,
}

/// Bytes that a call works on, and where its parts begin.
pub struct Layout {
    pub slots: Vec<usize>,
    pub arena: usize,
    /// Of each launch, its workspaces: launches run one after the other, and share them.
    pub workspaces: Vec<Vec<usize>>,
    pub workspace: usize,
    pub counters: usize,
    pub inputs: Vec<usize>,
    pub input: usize,
    pub outputs: Vec<usize>,
    pub output: usize,
}

impl Layout {
    pub fn bytes(&self) -> usize {
        self.arena + self.workspace + self.counters + self.input + self.output
    }
}

impl Work {
    /// Room for a call. Nothing uses what is given up for it: every call has waited for its end.
    pub fn reserve(&mut self, context: &Arc<Context>, layout: &Layout) -> Result<(), RuntimeError> {
        let has_counters = fits(&self.counters, layout.counters);
        let parts = [
            (&mut self.arena, layout.arena),
            (&mut self.workspace, layout.workspace),
            (&mut self.inputs, layout.input),
            (&mut self.outputs, layout.output),
            (&mut self.counters, layout.counters),
        ];
        for (memory, len) in parts {
            if !fits(memory, len) {
                // First what was recorded on it, then itself, then the new one: never both, and nothing stale if there is no room.
                self.graphs.forget();
                *memory = None;
                *memory = Some(DeviceMemory::new(context, len, Held::Work)?);
            }
        }
        if let Some(counters) = self.counters.as_ref().filter(|_| !has_counters) {
            context.zero(counters.address(), counters.len())?;
        }
        let staging = layout.input.max(layout.output.min(PINNED));
        if self.staging.as_ref().is_none_or(|s| s.len() < staging) {
            self.staging = None;
            self.staging = Some(Pinned::new(context, staging)?);
        }
        Ok(())
    }
}

fn fits(memory: &Option<DeviceMemory>, len: usize) -> bool {
    len == 0 || memory.as_ref().is_some_and(|m| m.len() >= len)
}
