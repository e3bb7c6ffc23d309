//! Runs entry points: buffers resolved to pointers, launches in order over the pool. Knows no model: names, sizes and bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use half::{bf16, f16};

use crate::artefact::{Buffer, DType, Entry, KernelFn, Port, SYMBOLS, Size, Sizes, State as StateSpec};
use crate::container::{Artefact, missing_features};
use crate::elf::Code;
use crate::error::RuntimeError;
use crate::memory::Memory;
use crate::pack::{self, WeightBuffer};
use crate::threads::Pool;
use crate::weights::Checkpoint;

pub struct Options {
    pub threads: usize,
}

/// A model, ready to run.
pub struct Engine {
    // Fields drop in order: the pool's threads stop before the code they run goes.
    pool: Pool,
    entries: BTreeMap<String, Ready>,
    states: Vec<StateSpec>,
    weights: Vec<WeightBuffer>,
    work: Mutex<Work>,
    profile: Mutex<Option<BTreeMap<String, (u64, Duration)>>>,
    _code: Code,
    target: String,
}

/// An entry point with its kernels resolved.
struct Ready {
    entry: Entry,
    kernels: Vec<KernelFn>,
}

/// Memory that calls reuse.
#[derive(Default)]
struct Work {
    arena: Option<Memory>,
    scratch: Option<Memory>,
}

/// What outlives a call, by the artefact's states: caches of `batch` sequences with room for `capacity` tokens each, or the tensors
/// that are trained.
pub struct State {
    pub batch: i64,
    pub capacity: i64,
    specs: Vec<StateSpec>,
    buffers: Vec<Memory>,
}

impl State {
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.specs.iter().map(|s| s.name.as_str())
    }

    /// Memory of all states.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Memory::len).sum()
    }

    fn sizes(&self) -> Sizes {
        Sizes::from([("B".to_string(), self.batch), ("C".to_string(), self.capacity)])
    }

    /// Does any state have a place per sequence?
    fn is_batched(&self) -> bool {
        self.specs.iter().any(|s| s.shape.iter().any(|n| !n.syms.is_empty()))
    }

    /// Of a state, for this batch and capacity.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let spec = self.specs.iter().find(|s| s.name == name)?;
        let sizes = self.sizes();
        spec.shape.iter().map(|n| eval(n, &sizes)).collect()
    }

    /// Numbers of an f32 state from `first` on, as many as `out` has. In pieces, so that a large state is not held twice.
    pub fn read(&self, name: &str, first: usize, out: &mut [f32]) -> Result<(), RuntimeError> {
        let from = self.place(name, first, out.len())?;
        // The numbers are there, as was checked.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Replaces numbers of an f32 state from `first` on.
    pub fn write(&mut self, name: &str, first: usize, values: &[f32]) -> Result<(), RuntimeError> {
        let to = self.place(name, first, values.len())?;
        // The buffer is ours alone, and has the room, as was checked.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()) };
        Ok(())
    }

    /// Where `count` numbers of an f32 state lie from `first` on.
    fn place(&self, name: &str, first: usize, count: usize) -> Result<*mut f32, RuntimeError> {
        let failed = |reason: String| RuntimeError::Tensor {
            name: name.to_string(),
            reason,
        };
        let at = self.specs.iter().position(|s| s.name == name);
        let at = at.ok_or_else(|| failed("the code has no such state".to_string()))?;
        let spec = &self.specs[at];
        let there = elements(&spec.shape, &self.sizes()).and_then(|n| usize::try_from(n).ok());
        let end = first.checked_add(count);
        if spec.dtype != DType::F32 || end.is_none_or(|end| there.is_none_or(|n| end > n)) {
            let reason = format!(
                "{count} f32 values from {first} on do not fit {:?} {:?}",
                spec.dtype, spec.shape
            );
            return Err(failed(reason));
        }
        Ok(unsafe { self.buffers[at].mut_ptr().cast::<f32>().add(first) })
    }
}

/// What a caller feeds; row-major.
pub enum Input<'a> {
    I32(&'a [i32]),
    F32(&'a [f32]),
}

/// A result, widened to f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub shape: Vec<i64>,
    pub data: Vec<f32>,
}

/// Bytes held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub weights: usize,
    pub arena: usize,
}

fn bytes(dtype: DType) -> i64 {
    match dtype {
        DType::F32 | DType::I32 => 4,
        DType::BF16 | DType::F16 => 2,
        DType::I1 => 1,
    }
}

impl Engine {
    /// Takes the best code that this CPU runs, links it and makes the weights.
    pub fn load(artefact: &Artefact, checkpoint: &Checkpoint, options: Options) -> Result<Engine, RuntimeError> {
        let header = &artefact.header;
        let runs = |c: &&crate::artefact::Code| missing_features(&c.features).is_empty();
        let Some(code) = header.codes.iter().filter(runs).max_by_key(|c| c.features.len()) else {
            let first = &header.codes[0];
            return Err(RuntimeError::Foreign {
                compiled: header
                    .codes
                    .iter()
                    .map(|c| c.target.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
                missing: missing_features(&first.features).join(", "),
            });
        };
        let target = code.target.clone();
        let code = Code::load(&artefact.payload[code.offset as usize..(code.offset + code.len) as usize])?;
        let mut entries = BTreeMap::new();
        for entry in &header.entries {
            let kernels = entry
                .launches
                .iter()
                .map(|l| {
                    code.kernel(&l.kernel)
                        .ok_or_else(|| RuntimeError::Code(format!("it has no kernel `{}`", l.kernel)))
                })
                .collect::<Result<_, _>>()?;
            entries.insert(
                entry.name.clone(),
                Ready {
                    entry: entry.clone(),
                    kernels,
                },
            );
        }
        let weights = pack::load(&header.weights, checkpoint, options.threads)?;
        Ok(Engine {
            pool: Pool::new(options.threads),
            entries,
            states: header.states.clone(),
            weights,
            work: Mutex::default(),
            profile: Mutex::default(),
            _code: code,
            target,
        })
    }

    /// The target whose code runs.
    pub fn target(&self) -> &str {
        &self.target
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub fn has_entry(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Zeroed caches.
    pub fn new_state(&self, batch: i64, capacity: i64) -> Result<State, RuntimeError> {
        let sizes = Sizes::from([("B".to_string(), batch), ("C".to_string(), capacity)]);
        let mut buffers = vec![];
        for s in &self.states {
            let n = elements(&s.shape, &sizes).and_then(|n| n.checked_mul(bytes(s.dtype)));
            let n = n
                .and_then(|n| usize::try_from(n).ok())
                .ok_or(RuntimeError::OutOfMemory { bytes: usize::MAX })?;
            buffers.push(Memory::zeroed(n)?);
        }
        Ok(State {
            batch,
            capacity,
            specs: self.states.clone(),
            buffers,
        })
    }

    pub fn usage(&self) -> Usage {
        let own = |w: &WeightBuffer| if let WeightBuffer::Own(m) = w { m.len() } else { 0 };
        let work = self.work.lock().unwrap_or_else(|p| p.into_inner());
        let len = |m: &Option<Memory>| m.as_ref().map_or(0, Memory::len);
        Usage {
            weights: self.weights.iter().map(own).sum(),
            arena: len(&work.arena) + len(&work.scratch),
        }
    }

    /// Bytes that calls with these sizes take at most: all weights, those read in place included, and the largest entry's working
    /// memory. States, inputs and outputs come on top. `None` where a size is not known.
    pub fn planned(&self, sizes: &[(&str, i64)]) -> Option<usize> {
        let values: Sizes = sizes.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        let mut work = 0;
        for ready in self.entries.values() {
            let layout = layout(&ready.entry, &values)?;
            work = work.max(layout.arena + layout.scratch * self.pool.threads());
        }
        Some(work + self.weights.iter().map(WeightBuffer::bytes).sum::<usize>())
    }

    /// Reads every weight once over the pool and does nothing else: (bytes, time). What decoding cannot beat.
    pub fn read_weights(&self) -> (usize, Duration) {
        const PIECE: usize = 1 << 20;
        let pieces: Vec<&[u8]> = self
            .weights
            .iter()
            .filter(|w| matches!(w, WeightBuffer::Own(_)))
            .flat_map(|w| unsafe { std::slice::from_raw_parts(w.ptr(), w.bytes()) }.chunks(PIECE))
            .collect();
        let start = Instant::now();
        self.pool.run(pieces.len() as i64, &|begin, end, _| {
            for piece in &pieces[begin as usize..end as usize] {
                std::hint::black_box(sum(piece));
            }
        });
        (pieces.iter().map(|p| p.len()).sum(), start.elapsed())
    }

    /// Starts (true) or ends counting time by kernel; returns what was counted: (kernel, launches, time), the dearest first.
    pub fn profile(&self, on: bool) -> Vec<(String, u64, Duration)> {
        let counted = std::mem::replace(
            &mut *self.profile.lock().unwrap_or_else(|p| p.into_inner()),
            on.then(BTreeMap::new),
        );
        let mut rows: Vec<_> = counted
            .unwrap_or_default()
            .into_iter()
            .map(|(k, (n, t))| (k, n, t))
            .collect();
        rows.sort_by_key(|(_, _, t)| std::cmp::Reverse(*t));
        rows
    }

    /// Runs an entry point. `sizes` gives B and T (and S for decoding); C follows from the state.
    pub fn call(
        &self,
        entry: &str,
        sizes: &[(&str, i64)],
        inputs: &[(&str, Input)],
        state: Option<&mut State>,
    ) -> Result<HashMap<String, Output>, RuntimeError> {
        let Some(ready) = self.entries.get(entry) else {
            let known = self.entries.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(RuntimeError::NoEntry {
                entry: entry.to_string(),
                known,
            });
        };
        let failed = |reason: String| RuntimeError::Call {
            entry: entry.to_string(),
            reason,
        };
        let mut values: Sizes = sizes.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        if let Some(s) = &state {
            values.insert("C".to_string(), s.capacity);
            if s.is_batched() && values.get("B") != Some(&s.batch) {
                return Err(failed(format!(
                    "{:?} sequences with caches for {}",
                    values.get("B"),
                    s.batch
                )));
            }
        }
        if values.values().any(|v| !(1..1 << 31).contains(v)) {
            return Err(failed(format!("sizes {values:?} are out of range")));
        }
        let e = &ready.entry;
        let unknown = || failed(format!("a size is unknown or too large; given are {values:?}"));

        let mut work = self.work.lock().unwrap_or_else(|p| p.into_inner());
        let Layout {
            offsets,
            arena,
            scratch: scratch_size,
        } = layout(e, &values).ok_or_else(unknown)?;
        let arena = grown(&mut work.arena, arena)?;
        let scratch = grown(&mut work.scratch, scratch_size * self.pool.threads())?;

        // Inputs and outputs in memory of this call.
        let mut input_memory = vec![];
        for port in &e.inputs {
            let Some((_, input)) = inputs.iter().find(|(name, _)| *name == port.name) else {
                return Err(failed(format!("input `{}` is missing", port.name)));
            };
            input_memory.push(input.stored(port, &values).map_err(failed)?);
        }
        let mut output_memory = vec![];
        for port in &e.outputs {
            let n = elements(&port.shape, &values)
                .and_then(|n| n.checked_mul(bytes(port.dtype)))
                .ok_or_else(unknown)?;
            output_memory.push(Memory::zeroed(n as usize + 64)?);
        }
        let mut pointers: Vec<*mut u8> = vec![];
        for buffer in &e.buffers {
            pointers.push(match buffer {
                Buffer::Slot(i) => unsafe { arena.add(offsets[*i as usize]) },
                Buffer::Weight(i) => self.weights[*i as usize].ptr() as *mut u8,
                Buffer::State(i) => match &state {
                    Some(s) => s.buffers[*i as usize].mut_ptr(),
                    None => return Err(failed("it needs caches".to_string())),
                },
                Buffer::Input(i) => input_memory[*i as usize].mut_ptr(),
                Buffer::Output(i) => output_memory[*i as usize].mut_ptr(),
            });
        }
        let symbols: Vec<i64> = SYMBOLS.iter().map(|s| values.get(*s).copied().unwrap_or(0)).collect();
        let mut profile = self.profile.lock().unwrap_or_else(|p| p.into_inner());
        let mut args: Vec<*mut u8> = vec![];
        for (launch, kernel) in e.launches.iter().zip(&ready.kernels) {
            args.clear();
            args.extend(launch.buffers.iter().map(|b| pointers[*b as usize]));
            let mut tiles = 1i64;
            for (size, block) in &launch.tiles {
                let n = eval(size, &values).ok_or_else(unknown)?;
                tiles = tiles.checked_mul((n + block - 1) / block).ok_or_else(unknown)?;
            }
            let start = profile.is_some().then(Instant::now);
            let call = Call {
                kernel: *kernel,
                args: args.as_ptr(),
                symbols: symbols.as_ptr(),
                scratch,
                scratch_size,
            };
            self.pool.run(tiles, &|begin, end, worker| call.run(begin, end, worker));
            if let (Some(profile), Some(start)) = (&mut *profile, start) {
                let row = profile.entry(launch.kernel.clone()).or_default();
                row.0 += 1;
                row.1 += start.elapsed();
            }
        }
        let mut outputs = HashMap::new();
        for (port, memory) in e.outputs.iter().zip(&output_memory) {
            let shape: Option<Vec<i64>> = port.shape.iter().map(|s| eval(s, &values)).collect();
            let shape = shape.ok_or_else(unknown)?;
            let data = widened(memory, shape.iter().product::<i64>() as usize, port.dtype);
            outputs.insert(port.name.clone(), Output { shape, data });
        }
        Ok(outputs)
    }
}

/// Four streams of 64-bit words side by side, so that the loads and not the additions are what takes time.
fn sum(bytes: &[u8]) -> u64 {
    let (_, words, _) = unsafe { bytes.align_to::<[u64; 8]>() };
    let quarter = words.len() / 4;
    let streams: [&[[u64; 8]]; 4] = std::array::from_fn(|i| &words[i * quarter..(i + 1) * quarter]);
    let mut acc = [[0u64; 8]; 4];
    for i in 0..quarter {
        for (acc, stream) in acc.iter_mut().zip(streams) {
            acc.iter_mut().zip(stream[i]).for_each(|(a, w)| *a = a.wrapping_add(w));
        }
    }
    acc.iter().flatten().fold(0, |a, b| a.wrapping_add(*b))
}

/// One launch's arguments, for all workers.
struct Call {
    kernel: KernelFn,
    args: *const *mut u8,
    symbols: *const i64,
    scratch: *mut u8,
    scratch_size: usize,
}

// Tiles of one launch write different bytes, and each worker has its own scratch.
unsafe impl Sync for Call {}

impl Call {
    fn run(&self, begin: i64, end: i64, worker: usize) {
        unsafe {
            (self.kernel)(
                self.args,
                self.symbols,
                begin,
                end,
                self.scratch.add(worker * self.scratch_size),
            )
        }
    }
}

/// Working memory of a call.
struct Layout {
    /// Of the slots in the arena.
    offsets: Vec<usize>,
    arena: usize,
    /// Of one thread.
    scratch: usize,
}

/// The arena: slots one after the other, each as large as its largest tenant.
fn layout(e: &Entry, values: &Sizes) -> Option<Layout> {
    let (mut offsets, mut arena, mut scratch) = (vec![], 0i64, 0i64);
    for slot in &e.slots {
        let mut largest = 0;
        for size in slot {
            largest = largest.max(eval(size, values)?);
        }
        offsets.push(arena as usize);
        arena = arena.checked_add(largest).and_then(|n| n.checked_add(64 + 63))? & !63;
    }
    for launch in &e.launches {
        scratch = scratch.max(eval(&launch.scratch, values)?);
    }
    Some(Layout {
        offsets,
        arena: arena as usize,
        scratch: (scratch as usize).next_multiple_of(64) + 64,
    })
}

fn eval(size: &Size, values: &Sizes) -> Option<i64> {
    size.syms
        .iter()
        .try_fold(size.coef, |acc, s| acc.checked_mul(*values.get(s)?))
}

fn elements(shape: &[Size], values: &Sizes) -> Option<i64> {
    shape.iter().try_fold(1i64, |acc, s| acc.checked_mul(eval(s, values)?))
}

fn grown(memory: &mut Option<Memory>, len: usize) -> Result<*mut u8, RuntimeError> {
    match memory {
        Some(m) if m.len() >= len => Ok(m.mut_ptr()),
        _ => {
            // The old one goes first: never both.
            *memory = None;
            Ok(memory.insert(Memory::zeroed(len)?).mut_ptr())
        }
    }
}

impl Input<'_> {
    /// In the port's type, in memory of its own.
    fn stored(&self, port: &Port, values: &Sizes) -> Result<Memory, String> {
        let wanted = elements(&port.shape, values).ok_or("a size is unknown")?;
        let (len, name) = match self {
            Input::I32(v) => (v.len(), "i32"),
            Input::F32(v) => (v.len(), "f32"),
        };
        let fits = matches!(
            (self, port.dtype),
            (Input::I32(_), DType::I32) | (Input::F32(_), DType::F32)
        );
        if len as i64 != wanted || !fits {
            return Err(format!(
                "input `{}` has {len} {name} elements, wants {wanted} of {:?}",
                port.name, port.dtype
            ));
        }
        let memory = Memory::zeroed(4 * len + 64).map_err(|e| e.to_string())?;
        let source = match self {
            Input::I32(v) => v.as_ptr() as *const u8,
            Input::F32(v) => v.as_ptr() as *const u8,
        };
        unsafe { std::ptr::copy_nonoverlapping(source, memory.mut_ptr(), 4 * len) };
        Ok(memory)
    }
}

fn widened(memory: &Memory, n: usize, dtype: DType) -> Vec<f32> {
    let halves = || unsafe { std::slice::from_raw_parts(memory.ptr() as *const u16, n) };
    match dtype {
        DType::F32 => unsafe { std::slice::from_raw_parts(memory.ptr() as *const f32, n) }.to_vec(),
        DType::BF16 => halves().iter().map(|b| bf16::from_bits(*b).to_f32()).collect(),
        DType::F16 => halves().iter().map(|b| f16::from_bits(*b).to_f32()).collect(),
        DType::I32 => unsafe { std::slice::from_raw_parts(memory.ptr() as *const i32, n) }
            .iter()
            .map(|x| *x as f32)
            .collect(),
        DType::I1 => unsafe { std::slice::from_raw_parts(memory.ptr(), n) }
            .iter()
            .map(|x| f32::from(*x))
            .collect(),
    }
}
