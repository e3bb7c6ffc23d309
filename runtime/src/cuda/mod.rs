//! NVIDIA GPUs as a device: PTX to machine code by the driver, weights, states and working memory on the device, launches on one stream.
//!
//! A call is: one copy of all inputs, the launches (replayed from a graph once the same call has come before), one copy of all outputs,
//! and the one synchronisation that waits for it. What a step is told is computed in `geometry`, without the driver.
//!
//! Of decoding's results the host takes what it asks for: logits to draw from, or the best token alone.

mod driver;
mod geometry;
mod graphs;
mod launches;
mod memory;
mod module;
pub mod trial;
mod upload;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use self::driver::gpus;
use self::driver::{Context, Held};
use self::geometry::{Addresses, Parameters};
use self::graphs::Key;
use self::launches::Ready;
pub use self::memory::States;
use self::memory::{ALIGN, DeviceMemory, Pinned};
use self::module::{Event, Function, Module};
use self::upload::Weights;
use self::work::{Layout, Work};
use crate::artefact::{Buffer, Code, Entry, GpuKernel, Header, SYMBOLS, Sizes};
use crate::engine::profile::Recorder;
use crate::engine::{Call, Options, Ran, sizes, widened};
use crate::error::RuntimeError;
use crate::memory::Memory;
use crate::weights::Checkpoint;

pub struct Cuda {
    // Fields drop in order: what was recorded and the memory it uses before the code.
    work: Mutex<Work>,
    weights: Weights,
    kernels: Vec<GpuKernel>,
    /// Of each entry.
    launches: Vec<Vec<Launch>>,
    functions: HashMap<String, Function>,
    _module: Module,
    context: Arc<Context>,
    one_by_one: bool,
    states: AtomicU64,
}

/// A launch of an entry, or several that run as one.
struct Launch {
    /// Index into `Cuda::kernels`.
    kernel: usize,
    /// Of the entry.
    buffers: Vec<u32>,
    launches: Range<usize>,
}

impl Cuda {
    pub fn load(
        header: &Header,
        code: &Code,
        payload: &[u8],
        checkpoint: &Checkpoint,
        number: u32,
        options: &Options,
    ) -> Result<Cuda, RuntimeError> {
        let context = Context::open(number)?;
        let ptx = &payload[code.offset as usize..(code.offset + code.len) as usize];
        // The driver assembles in one thread while the weights come up in the others.
        let (module, weights) = std::thread::scope(|s| {
            let module = s.spawn(|| Module::load(&context, ptx));
            let weights = Weights::load(&context, &header.weights, checkpoint, options.threads);
            let module = module.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (module, weights)
        });
        let module = module?;
        let functions = functions(&code.kernels, &module)?;
        let launches = header
            .entries
            .iter()
            .map(|e| launches(e, code))
            .collect::<Result<_, _>>()?;
        let asked = std::env::var_os("CUDA_LAUNCH_BLOCKING").is_some_and(|v| v == "1");
        Ok(Cuda {
            work: Mutex::default(),
            weights: weights?,
            kernels: code.kernels.clone(),
            launches,
            functions,
            _module: module,
            context,
            one_by_one: options.one_by_one || asked,
            // 0 is a call without states.
            states: AtomicU64::new(1),
        })
    }

    pub fn name(&self) -> &str {
        &self.context.name
    }

    pub fn new_state(&self, lengths: &[usize]) -> Result<States, RuntimeError> {
        let id = self.states.fetch_add(1, Ordering::Relaxed);
        States::new(&self.context, lengths, id)
    }

    /// Bytes of weights and of working memory.
    pub fn usage(&self) -> (usize, usize) {
        (self.weights.bytes(), self.context.held(Held::Work))
    }

    pub fn planned(&self, entries: &[Entry], values: &Sizes) -> Option<usize> {
        let mut work = 0;
        for (index, entry) in entries.iter().enumerate() {
            work = work.max(self.layout(index, entry, values)?.bytes());
        }
        Some(work + self.weights.bytes())
    }

    /// See `Engine::read_weights`; (0, 0) where there is no room or the driver fails.
    pub fn copy_rate(&self) -> (usize, Duration) {
        self.measured_copy().unwrap_or_default()
    }

    fn measured_copy(&self) -> Result<(usize, Duration), RuntimeError> {
        // Far more than the cache holds.
        const BYTES: usize = 512 << 20;
        const TIMES: usize = 8;
        let new = || DeviceMemory::new(&self.context, BYTES, Held::Work);
        let (from, to) = (new()?, new()?);
        let (start, end) = (Event::new(&self.context)?, Event::new(&self.context)?);
        self.context.copy(to.address(), from.address(), BYTES)?;
        start.record()?;
        for _ in 0..TIMES {
            self.context.copy(to.address(), from.address(), BYTES)?;
        }
        end.record()?;
        end.wait()?;
        Ok((2 * TIMES * BYTES, Duration::from_secs_f64(end.since(&start)?)))
    }

    /// Runs an entry; gives those of its outputs that are wanted, in the order of its ports.
    pub fn run(
        &self,
        call: &Call,
        state: Option<&States>,
        recorder: &mut Recorder,
    ) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let context = &self.context;
        context.enter()?;
        let mut work = self.work.lock().unwrap_or_else(|p| p.into_inner());
        let work = &mut *work;
        let key = Key {
            entry: call.index,
            symbols: SYMBOLS.map(|s| call.values.get(s).copied().unwrap_or(0)),
            state: state.map_or(0, |s| s.id),
        };
        let place = |e: driver::Failure| {
            let why = "CUDA_LAUNCH_BLOCKING=1 tells which kernel it is";
            call.failed(format!("cuda: a kernel or a copy failed: {e}; {why}"))
        };
        let replays = !recorder.is_on() && !self.one_by_one;
        if replays && let Some((graph, layout)) = work.graphs.find(&key) {
            // Its memory is there still: what moves makes all graphs go.
            let layout = layout.clone();
            self.feed(&work.inputs, &work.staging, call, &layout)?;
            graph.launch().map_err(place)?;
            return self.results(work, call, &layout, &place);
        }
        let layout = self.layout(call.index, call.entry, &call.values);
        let layout = Arc::new(layout.ok_or_else(|| call.unknown())?);
        work.reserve(context, &layout)?;
        self.feed(&work.inputs, &work.staging, call, &layout)?;
        let launches = self.ready(work, call, state, &layout)?;
        if recorder.is_on() {
            launches::timed(context, &launches, &mut work.events, &call.entry.name, recorder)?;
        } else if self.one_by_one {
            launches::one_by_one(context, &launches)?;
        } else if work.graphs.is_known(&key) {
            let graph = context.capture(|| launches::issue_all(context, &launches))?;
            graph.launch().map_err(place)?;
            work.graphs.keep(key, (graph, layout.clone()));
        } else {
            launches::issue_all(context, &launches)?;
        }
        self.results(work, call, &layout, &place)
    }

    fn layout(&self, index: usize, entry: &Entry, values: &Sizes) -> Option<Layout> {
        let (slots, arena) = sizes::arena(entry, values, ALIGN, 0)?;
        let (mut workspaces, mut workspace, mut counters) = (vec![], 0, 0);
        for launch in &self.launches[index] {
            let variant = geometry::variant(&self.kernels[launch.kernel], values)?;
            let (offsets, len) = geometry::workspaces(variant, values)?;
            workspaces.push(offsets);
            workspace = len.max(workspace);
            counters = counters.max(4 * variant.counters as usize);
        }
        let of = |ports: &[crate::artefact::Port]| {
            let lengths: Option<Vec<usize>> = ports.iter().map(|p| sizes::bytes(p.dtype, &p.shape, values)).collect();
            sizes::places(lengths?, ALIGN)
        };
        let ((inputs, input), (outputs, output)) = (of(&entry.inputs)?, of(&entry.outputs)?);
        Some(Layout {
            slots,
            arena,
            workspaces,
            workspace,
            counters,
            inputs,
            input,
            outputs,
            output,
        })
    }

    /// All inputs by one copy.
    fn feed(
        &self,
        to: &Option<DeviceMemory>,
        staging: &Option<Pinned>,
        call: &Call,
        layout: &Layout,
    ) -> Result<(), RuntimeError> {
        let (Some(to), Some(staging)) = (to, staging) else {
            return Ok(());
        };
        for (bytes, offset) in call.inputs.iter().zip(&layout.inputs) {
            // As long as the ports say, which `layout` placed and `reserve` made room for.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), staging.ptr().add(*offset), bytes.len()) };
        }
        if layout.input > 0 {
            unsafe { self.context.copy_in(to.address(), staging.ptr(), layout.input) }?;
        }
        Ok(())
    }

    /// The call's launches, on the memory that is reserved.
    fn ready(
        &self,
        work: &Work,
        call: &Call,
        state: Option<&States>,
        layout: &Layout,
    ) -> Result<Vec<Ready>, RuntimeError> {
        let base = |m: &Option<DeviceMemory>| m.as_ref().map_or(0, DeviceMemory::address);
        let mut addresses = vec![];
        for buffer in &call.entry.buffers {
            addresses.push(match buffer {
                Buffer::Slot(i) => base(&work.arena) + layout.slots[*i as usize] as u64,
                Buffer::Weight(i) => self.weights.address(*i as usize),
                Buffer::State(i) => match state {
                    Some(s) => s.address(*i as usize),
                    None => return Err(call.failed("it needs caches".to_string())),
                },
                Buffer::Input(i) => base(&work.inputs) + layout.inputs[*i as usize] as u64,
                Buffer::Output(i) => base(&work.outputs) + layout.outputs[*i as usize] as u64,
            });
        }
        let mut all = vec![];
        for (launch, offsets) in self.launches[call.index].iter().zip(&layout.workspaces) {
            let variant =
                geometry::variant(&self.kernels[launch.kernel], &call.values).ok_or_else(|| call.unknown())?;
            let (workspace, counters) = (base(&work.workspace), base(&work.counters));
            let at = Addresses::new(&launch.buffers, variant, &addresses, workspace, offsets, counters);
            for step in &variant.steps {
                let failed = |e: String| call.failed(format!("function `{}`: {e}", step.function));
                let Some(grid) = geometry::grid(step, &call.values, self.context.multiprocessors).map_err(failed)?
                else {
                    continue;
                };
                let parameters = Parameters::new(step, &call.values, &at).map_err(failed)?;
                let function = self.functions[&step.function];
                let ran = Ran {
                    kernel: self.kernels[launch.kernel].name.clone(),
                    function: step.function.clone(),
                    launches: launch.launches.clone(),
                };
                all.push(Ready::new(ran, function, grid, parameters)?);
            }
        }
        Ok(all)
    }

    /// The wanted outputs, by one copy if that is all, and the wait for them.
    fn results(
        &self,
        work: &Work,
        call: &Call,
        layout: &Layout,
        place: &dyn Fn(driver::Failure) -> RuntimeError,
    ) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let from = work.outputs.as_ref().map_or(0, DeviceMemory::address);
        let mut ports = vec![];
        for (port, offset) in call.entry.outputs.iter().zip(&layout.outputs) {
            let n = sizes::elements(&port.shape, &call.values);
            let bytes = sizes::bytes(port.dtype, &port.shape, &call.values);
            let (n, bytes) = n.zip(bytes).ok_or_else(|| call.unknown())?;
            ports.push((port, n as usize, (*offset, bytes)));
        }
        let all = ports.len();
        ports.retain(|(port, ..)| call.wants(&port.name));
        let large;
        let to = match &work.staging {
            Some(staging) if layout.output <= staging.len() => staging.ptr(),
            _ => {
                large = Memory::zeroed(layout.output)?;
                large.mut_ptr()
            }
        };
        let copies = match ports.len() == all {
            true => vec![(0, layout.output)],
            false => ports.iter().map(|(.., bytes)| *bytes).collect(),
        };
        for (offset, bytes) in copies.into_iter().filter(|(_, bytes)| *bytes > 0) {
            unsafe { self.context.copy_back(to.add(offset), from + offset as u64, bytes) }.map_err(place)?;
        }
        self.context.wait().map_err(place)?;
        let results = ports
            .into_iter()
            .map(|(port, n, (offset, _))| widened(unsafe { to.add(offset) }, n, port.dtype));
        Ok(results.collect())
    }
}

/// An entry's launches in their order, those that run as one together.
fn launches(entry: &Entry, code: &Code) -> Result<Vec<Launch>, RuntimeError> {
    let mut all = vec![];
    let mut at = 0;
    while let Some(first) = entry.launches.get(at) {
        let join = code
            .joins
            .iter()
            .find(|j| j.entry == entry.name && j.first as usize == at);
        let (name, count) = join.map_or((&first.kernel, 1), |j| (&j.kernel, j.count as usize));
        let kernel = code.kernels.iter().position(|k| k.name == *name);
        let joined = &entry.launches[at..at + count];
        all.push(Launch {
            kernel: kernel.ok_or_else(|| RuntimeError::Code(format!("it has no kernel `{name}`")))?,
            buffers: joined.iter().flat_map(|l| l.buffers.iter().copied()).collect(),
            launches: at..at + count,
        });
        at += count;
    }
    Ok(all)
}

/// By name, each ready for the most shared memory that any step gives it.
fn functions(kernels: &[GpuKernel], module: &Module) -> Result<HashMap<String, Function>, RuntimeError> {
    let mut wanted: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for step in kernels.iter().flat_map(|k| &k.variants).flat_map(|v| &v.steps) {
        let most = wanted.entry(&step.function).or_default();
        *most = (most.0.max(step.shared), most.1.max(step.cluster));
    }
    wanted
        .into_iter()
        .map(|(name, (shared, cluster))| Ok((name.to_string(), module.function(name, shared, cluster)?)))
        .collect()
}
