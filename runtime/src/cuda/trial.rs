//! One kernel by itself, on made-up data: what each of its ways computes, and how long it takes.
//!
//! No weights and no states are loaded. A way is timed over a series of launches in a graph, so that the host does not stand between them,
//! and ways take turns, so that a clock that falls falls for all. What is cold (weights) is another copy in every launch; the rest is as
//! warm as what an earlier kernel has left.

use std::collections::HashMap;
use std::sync::Arc;

use half::{bf16, f16};

use super::driver::{Context, Held};
use super::geometry::{self, Addresses, Parameters};
use super::launches::{self, Ready};
use super::memory::{ALIGN, DeviceMemory};
use super::module::{Event, Function, Graph, Module};
use crate::artefact::{DType, GpuKernel, Sizes, Variant};
use crate::engine::{Ran, sizes, widened};
use crate::error::RuntimeError;
use crate::memory::Memory;
use crate::trial::Operand;

/// Cold memory in all: more than twice the second cache of an H200.
const COLD: usize = 128 << 20;
/// Launches of a series, at most; so many copies are enough.
const LAUNCHES: usize = 256;
/// Seconds of a series.
const SERIES: f64 = 2e-3;
/// Values that are made up, a prime: then no two rows of a matrix are alike.
const VALUES: usize = 1_000_003;
/// What is looked at of a large result: so many pieces, of so many elements.
const PIECES: (usize, usize) = (64, 1 << 16);

/// A device with the code of a kernel's ways.
pub struct Trials {
    functions: HashMap<String, Function>,
    /// See `made_up`.
    values: [(DType, Vec<u8>); 3],
    _module: Module,
    context: Arc<Context>,
}

impl Trials {
    pub fn open(device: u32, ptx: &[u8], kernels: &[GpuKernel]) -> Result<Trials, RuntimeError> {
        let context = Context::open(device)?;
        let module = Module::load(&context, ptx)?;
        Ok(Trials {
            functions: super::functions(kernels, &module)?,
            values: [DType::F32, DType::BF16, DType::F16].map(|t| (t, made_up(t, VALUES))),
            _module: module,
            context,
        })
    }

    /// The same values over and over; positions and the like are 0, which is a place in every table.
    fn fill(&self, memory: &DeviceMemory, dtype: DType) -> Result<(), RuntimeError> {
        let context = &self.context;
        let Some((_, values)) = self.values.iter().find(|(t, _)| *t == dtype) else {
            return Ok(context.zero(memory.address(), memory.len())?);
        };
        let mut done = values.len().min(memory.len());
        unsafe { context.copy_in(memory.address(), values.as_ptr(), done) }?;
        while done < memory.len() {
            let len = done.min(memory.len() - done);
            context.copy(memory.address() + done as u64, memory.address(), len)?;
            done += len;
        }
        Ok(())
    }

    /// Memory for a kernel at these sizes. `ways`: those that fit them.
    pub fn subject<'a>(
        &'a self,
        operands: &[Operand],
        ways: Vec<&'a Variant>,
        values: &Sizes,
    ) -> Result<Subject<'a>, RuntimeError> {
        let context = &self.context;
        context.enter()?;
        let cold = operands.iter().filter(|o| o.cold).map(length).sum::<usize>();
        let copies = (COLD / cold.max(1)).clamp(1, LAUNCHES - 1) + 1;
        let copies = if cold > 0 { copies } else { 1 };
        let mut buffers = vec![];
        for o in operands {
            let count = if o.cold { copies } else { 1 };
            let memory = DeviceMemory::new(context, count * length(o), Held::Work)?;
            self.fill(&memory, o.dtype)?;
            buffers.push((*o, memory));
        }
        let (mut workspace, mut counters) = (0, 0);
        for way in &ways {
            let (_, len) = geometry::workspaces(way, values).ok_or_else(unknown)?;
            workspace = len.max(workspace);
            counters = counters.max(4 * way.counters as usize);
        }
        let workspace = DeviceMemory::new(context, workspace, Held::Work)?;
        let counters = DeviceMemory::new(context, counters, Held::Work)?;
        context.zero(counters.address(), counters.len())?;
        context.wait()?;
        Ok(Subject {
            trials: self,
            ways,
            values: values.clone(),
            buffers,
            copies,
            workspace,
            counters,
        })
    }
}

/// A kernel at one size.
pub struct Subject<'a> {
    trials: &'a Trials,
    ways: Vec<&'a Variant>,
    values: Sizes,
    buffers: Vec<(Operand, DeviceMemory)>,
    /// Of what is cold.
    copies: usize,
    workspace: DeviceMemory,
    counters: DeviceMemory,
}

impl Subject<'_> {
    /// What a way leaves in the operands that it writes: all, or pieces of it that cover beginning and end.
    pub fn results(&self, way: usize) -> Result<Vec<f32>, RuntimeError> {
        let context = &self.trials.context;
        context.enter()?;
        let written = || self.buffers.iter().filter(|(o, _)| o.written);
        // A kernel may add to what it finds.
        for (o, memory) in written() {
            self.trials.fill(memory, o.dtype)?;
        }
        launches::one_by_one(context, &self.ready(way, 0)?)?;
        let mut all = vec![];
        for (o, memory) in written() {
            let width = sizes::width(o.dtype) as usize;
            for (first, count) in pieces(o.elements) {
                let host = Memory::zeroed(count * width)?;
                unsafe { context.copy_back(host.mut_ptr(), memory.address() + (first * width) as u64, host.len()) }?;
                context.wait()?;
                all.extend(widened(host.ptr(), count, o.dtype));
            }
        }
        Ok(all)
    }

    /// Seconds of a launch, by way: the median of so many series.
    pub fn times(&self, series: u32) -> Result<Vec<f64>, RuntimeError> {
        let context = &self.trials.context;
        context.enter()?;
        let (begin, end) = (Event::new(context)?, Event::new(context)?);
        let timed = |work: &dyn Fn() -> Result<(), RuntimeError>| -> Result<f64, RuntimeError> {
            begin.record()?;
            work()?;
            end.record()?;
            context.wait()?;
            Ok(end.since(&begin)?.max(0.0))
        };
        let mut graphs: Vec<(Graph, usize)> = vec![];
        for way in 0..self.ways.len() {
            let copies = (0..self.copies).map(|copy| self.ready(way, copy));
            let copies: Vec<Vec<Ready>> = copies.collect::<Result<_, _>>()?;
            let once = timed(&|| launches::issue_all(context, &copies[0]))?;
            let count = ((SERIES / once.max(1e-9)) as usize).clamp(1, LAUNCHES);
            let all = || (0..count).try_for_each(|i| launches::issue_all(context, &copies[i % copies.len()]));
            let graph = context.capture(all)?;
            // The first series warms up; where one launch is a series, it has been.
            if count > 1 {
                graph.launch()?;
            }
            graphs.push((graph, count));
        }
        let mut times = vec![vec![]; graphs.len()];
        for _ in 0..series {
            for ((graph, count), times) in graphs.iter().zip(&mut times) {
                times.push(timed(&|| Ok(graph.launch()?))? / *count as f64);
            }
        }
        let median = |mut t: Vec<f64>| {
            t.sort_by(f64::total_cmp);
            t.get(t.len() / 2).copied().unwrap_or_default()
        };
        Ok(times.into_iter().map(median).collect())
    }

    /// The launches of a way, on this copy of what is cold.
    fn ready(&self, way: usize, copy: usize) -> Result<Vec<Ready>, RuntimeError> {
        let variant = self.ways[way];
        let (offsets, _) = geometry::workspaces(variant, &self.values).ok_or_else(unknown)?;
        let address = |(o, memory): &(Operand, DeviceMemory)| {
            memory.address() + if o.cold { (copy * length(o)) as u64 } else { 0 }
        };
        let addresses: Vec<u64> = self.buffers.iter().map(address).collect();
        let all: Vec<u32> = (0..addresses.len() as u32).collect();
        let (workspace, counters) = (self.workspace.address(), self.counters.address());
        let at = Addresses::new(&all, variant, &addresses, workspace, &offsets, counters);
        let mut ready = vec![];
        for step in &variant.steps {
            let failed = |e: String| RuntimeError::Cuda(format!("function `{}`: {e}", step.function));
            let grid = geometry::grid(step, &self.values, self.trials.context.multiprocessors).map_err(failed)?;
            let Some(grid) = grid else { continue };
            let parameters = Parameters::new(step, &self.values, &at).map_err(failed)?;
            ready.push(Ready::new(
                Ran::whole(&step.function, 0),
                self.trials.functions[&step.function],
                grid,
                parameters,
            )?);
        }
        Ok(ready)
    }
}

fn unknown() -> RuntimeError {
    RuntimeError::Cuda("a size is unknown or too large".to_string())
}

/// Bytes of a copy.
fn length(o: &Operand) -> usize {
    (o.elements * sizes::width(o.dtype) as usize).next_multiple_of(ALIGN)
}

/// Up to `PIECES` of them: (first element, elements).
fn pieces(elements: usize) -> Vec<(usize, usize)> {
    let (count, len) = PIECES;
    if elements <= count * len {
        return vec![(0, elements)];
    }
    (0..count).map(|i| ((elements - len) * i / (count - 1), len)).collect()
}

/// Numbers between -0.5 and 0.5, always the same.
fn made_up(dtype: DType, count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![];
    for _ in 0..count {
        // Xorshift: how it is made does not matter, as long as neighbours differ.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let x = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
        match dtype {
            DType::BF16 => bytes.extend(bf16::from_f32(x).to_ne_bytes()),
            DType::F16 => bytes.extend(f16::from_f32(x).to_ne_bytes()),
            _ => bytes.extend(x.to_ne_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_begin_at_the_beginning_and_end_at_the_end() {
        assert_eq!(pieces(10), [(0, 10)]);
        let n = 64 * 65536 + 12345;
        let all = pieces(n);
        assert_eq!((all.len(), all[0]), (64, (0, 65536)));
        assert!(all.iter().any(|(first, len)| first + len == n));
        assert!(all.iter().all(|(first, len)| first + len <= n));
    }

    #[test]
    fn made_up_values_differ_and_are_small() {
        let bytes = made_up(DType::F32, 1000);
        let mut values: Vec<f32> = bytes
            .chunks(4)
            .map(|b| f32::from_ne_bytes(b.try_into().unwrap()))
            .collect();
        assert!(values.iter().all(|x| x.abs() <= 0.5));
        values.sort_by(f32::total_cmp);
        values.dedup();
        assert!(values.len() > 990 && values[0] < -0.45 && values[values.len() - 1] > 0.45);
    }
}
