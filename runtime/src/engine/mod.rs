//! Runs entry points on a device: takes the code that the device runs, checks what callers feed, hands the call on.
//!
//! The devices are `cpu` (threads and machine code) and `crate::cuda`; both give the same `Engine`. Knows no model: names, sizes and bytes.

mod cpu;
pub mod device;
pub mod profile;
pub(crate) mod sizes;
mod state;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use half::{bf16, f16};

pub use self::device::Device;
use self::profile::Recorder;
pub use self::profile::{Ran, Row, Span};
use self::state::Buffers;
pub use self::state::State;
use crate::artefact::{Code, DType, Entry, Port, Sizes, State as StateSpec};
use crate::container::{Artefact, missing_features};
use crate::error::RuntimeError;
use crate::weights::Checkpoint;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub device: Device,
    /// Of the CPU; on a GPU they bring the weights up.
    pub threads: usize,
    /// On a GPU: wait for each kernel, so that an error names the one that made it. Slow.
    pub one_by_one: bool,
}

impl Options {
    pub fn cpu(threads: usize) -> Options {
        Options::on(Device::Cpu, threads)
    }

    pub fn on(device: Device, threads: usize) -> Options {
        Options {
            device,
            threads,
            one_by_one: false,
        }
    }
}

/// A model, ready to run.
pub struct Engine {
    machine: Machine,
    entries: Vec<Entry>,
    states: Vec<StateSpec>,
    recorder: Mutex<Recorder>,
    target: String,
}

enum Machine {
    Cpu(Box<cpu::Cpu>),
    #[cfg(feature = "cuda")]
    Cuda(Box<crate::cuda::Cuda>),
}

/// What a caller feeds; row-major. Floats are rounded to the port's type, and i32 may be a port's i1.
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

/// A call whose sizes and inputs are sound.
pub(crate) struct Call<'a> {
    pub index: usize,
    pub entry: &'a Entry,
    pub values: Sizes,
    /// In the order and the types of the entry's ports.
    pub inputs: Vec<Cow<'a, [u8]>>,
    /// Which of the entry's results the caller looks at; none: all.
    pub wanted: Option<&'a [&'a str]>,
}

impl Call<'_> {
    pub fn wants(&self, result: &str) -> bool {
        self.wanted.is_none_or(|names| names.contains(&result))
    }

    pub fn failed(&self, reason: String) -> RuntimeError {
        failed(&self.entry.name, reason)
    }

    pub fn unknown(&self) -> RuntimeError {
        self.failed(format!("a size is unknown or too large; given are {:?}", self.values))
    }
}

fn failed(entry: &str, reason: String) -> RuntimeError {
    RuntimeError::Call {
        entry: entry.to_string(),
        reason,
    }
}

impl Engine {
    /// Takes the best code that the device runs, links it and makes the weights.
    pub fn load(artefact: &Artefact, checkpoint: &Checkpoint, options: Options) -> Result<Engine, RuntimeError> {
        let header = &artefact.header;
        let code = choose(&header.codes, options.device)?;
        let machine = match options.device {
            Device::Cpu => {
                let cpu = cpu::Cpu::load(header, code, &artefact.payload, checkpoint, options.threads)?;
                Machine::Cpu(Box::new(cpu))
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(number) => {
                let cuda = crate::cuda::Cuda::load(header, code, &artefact.payload, checkpoint, number, &options)?;
                Machine::Cuda(Box::new(cuda))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => return Err(device::absent()),
        };
        Ok(Engine {
            machine,
            entries: header.entries.clone(),
            states: header.states.clone(),
            recorder: Mutex::default(),
            target: code.target.clone(),
        })
    }

    /// The target whose code runs.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// What runs it, for people.
    pub fn machine(&self) -> String {
        match &self.machine {
            Machine::Cpu(m) => format!("{} threads", m.threads()),
            #[cfg(feature = "cuda")]
            Machine::Cuda(m) => m.name().to_string(),
        }
    }

    pub fn has_entry(&self, name: &str) -> bool {
        self.entries.iter().any(|e| e.name == name)
    }

    /// Has the entry a result of this name?
    pub fn gives(&self, entry: &str, result: &str) -> bool {
        let mut results = self.entries.iter().filter(|e| e.name == entry).flat_map(|e| &e.outputs);
        results.any(|port| port.name == result)
    }

    /// The number of keys to give decoding that is to see `keys` of them, in caches for `capacity`.
    ///
    /// A GPU replays what it recorded for the same sizes, so it wants few different ones: up to 255 more. Only for entry points whose S
    /// bounds what is looked at and whose masks go by position.
    pub fn keys(&self, keys: i64, capacity: i64) -> i64 {
        let replays = !matches!(self.machine, Machine::Cpu(_));
        if replays {
            sizes::rounded_keys(keys, capacity)
        } else {
            keys
        }
    }

    /// Zeroed caches.
    pub fn new_state(&self, batch: i64, capacity: i64) -> Result<State, RuntimeError> {
        let sizes = Sizes::from([("B".to_string(), batch), ("C".to_string(), capacity)]);
        let mut lengths = vec![];
        for s in &self.states {
            let n = sizes::bytes(s.dtype, &s.shape, &sizes);
            lengths.push(n.ok_or(RuntimeError::OutOfMemory { bytes: usize::MAX })?);
        }
        let buffers = match &self.machine {
            Machine::Cpu(m) => Buffers::Cpu(m.new_state(&lengths)?),
            #[cfg(feature = "cuda")]
            Machine::Cuda(m) => Buffers::Cuda(m.new_state(&lengths)?),
        };
        Ok(State::new(batch, capacity, self.states.clone(), buffers))
    }

    pub fn usage(&self) -> Usage {
        let (weights, arena) = match &self.machine {
            Machine::Cpu(m) => m.usage(),
            #[cfg(feature = "cuda")]
            Machine::Cuda(m) => m.usage(),
        };
        Usage { weights, arena }
    }

    /// Bytes of all weights and of working memory, if every entry point runs at these sizes.
    pub fn planned(&self, sizes: &[(&str, i64)]) -> Option<usize> {
        let values: Sizes = sizes.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        match &self.machine {
            Machine::Cpu(m) => m.planned(&self.entries, &values),
            #[cfg(feature = "cuda")]
            Machine::Cuda(m) => m.planned(&self.entries, &values),
        }
    }

    /// (bytes, time) of moving memory and nothing else, what decoding cannot beat: on the CPU every weight is read once over the pool; a
    /// GPU copies a large buffer, and both reading and writing count.
    pub fn read_weights(&self) -> (usize, Duration) {
        match &self.machine {
            Machine::Cpu(m) => m.read_weights(),
            #[cfg(feature = "cuda")]
            Machine::Cuda(m) => m.copy_rate(),
        }
    }

    /// Starts (true) or ends counting time by function; returns what was counted, the dearest first.
    pub fn profile(&self, on: bool) -> Vec<Row> {
        self.recorder.lock().unwrap_or_else(|p| p.into_inner()).profile(on)
    }

    /// Starts (true) or ends writing down every kernel's run; returns what was written.
    pub fn trace(&self, on: bool) -> Vec<Span> {
        self.recorder.lock().unwrap_or_else(|p| p.into_inner()).trace(on)
    }

    /// Runs an entry point. `sizes` gives B and T (and S for decoding); C follows from the state.
    pub fn call(
        &self,
        entry: &str,
        sizes: &[(&str, i64)],
        inputs: &[(&str, Input)],
        state: Option<&mut State>,
    ) -> Result<HashMap<String, Output>, RuntimeError> {
        let call = self.prepared(entry, sizes, inputs, state.as_deref())?;
        self.run(call, state)
    }

    /// As `call`, but only these results come back: the others are neither copied nor widened.
    pub fn call_for(
        &self,
        wanted: &[&str],
        entry: &str,
        sizes: &[(&str, i64)],
        inputs: &[(&str, Input)],
        state: Option<&mut State>,
    ) -> Result<HashMap<String, Output>, RuntimeError> {
        let call = self.prepared(entry, sizes, inputs, state.as_deref())?;
        let wanted = Some(wanted);
        self.run(Call { wanted, ..call }, state)
    }

    fn run(&self, call: Call, state: Option<&mut State>) -> Result<HashMap<String, Output>, RuntimeError> {
        let mut recorder = self.recorder.lock().unwrap_or_else(|p| p.into_inner());
        let data = match (&self.machine, state.as_deref().map(|s| &s.buffers)) {
            (Machine::Cpu(m), None) => m.run(&call, None, &mut recorder)?,
            (Machine::Cpu(m), Some(Buffers::Cpu(s))) => m.run(&call, Some(s), &mut recorder)?,
            #[cfg(feature = "cuda")]
            (Machine::Cuda(m), None) => m.run(&call, None, &mut recorder)?,
            #[cfg(feature = "cuda")]
            (Machine::Cuda(m), Some(Buffers::Cuda(s))) => m.run(&call, Some(s), &mut recorder)?,
            #[cfg(feature = "cuda")]
            _ => return Err(call.failed("its caches are another device's".to_string())),
        };
        let mut outputs = HashMap::new();
        let wanted = call.entry.outputs.iter().filter(|port| call.wants(&port.name));
        for (port, data) in wanted.zip(data) {
            let shape: Option<Vec<i64>> = port.shape.iter().map(|s| sizes::eval(s, &call.values)).collect();
            let shape = shape.ok_or_else(|| call.unknown())?;
            outputs.insert(port.name.clone(), Output { shape, data });
        }
        Ok(outputs)
    }

    fn prepared<'a>(
        &'a self,
        entry: &str,
        sizes: &[(&str, i64)],
        inputs: &[(&str, Input<'a>)],
        state: Option<&State>,
    ) -> Result<Call<'a>, RuntimeError> {
        let Some(index) = self.entries.iter().position(|e| e.name == entry) else {
            let known: Vec<&str> = self.entries.iter().map(|e| e.name.as_str()).collect();
            return Err(RuntimeError::NoEntry {
                entry: entry.to_string(),
                known: known.join(", "),
            });
        };
        let mut call = Call {
            index,
            entry: &self.entries[index],
            values: sizes.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
            inputs: vec![],
            wanted: None,
        };
        if let Some(s) = state {
            call.values.insert("C".to_string(), s.capacity);
            let batch = call.values.get("B");
            if s.is_batched() && batch != Some(&s.batch) {
                return Err(call.failed(format!("{batch:?} sequences with caches for {}", s.batch)));
            }
        }
        if call.values.values().any(|v| !(1..1 << 31).contains(v)) {
            return Err(call.failed(format!("sizes {:?} are out of range", call.values)));
        }
        for port in &call.entry.inputs {
            let Some((_, input)) = inputs.iter().find(|(name, _)| *name == port.name) else {
                return Err(call.failed(format!("input `{}` is missing", port.name)));
            };
            let bytes = input.stored(port, &call.values).map_err(|e| call.failed(e))?;
            call.inputs.push(bytes);
        }
        Ok(call)
    }
}

/// The best of an artefact's codes for a device, or what it was compiled for and the way out.
fn choose(codes: &[Code], device: Device) -> Result<&Code, RuntimeError> {
    let (gpus, cpus): (Vec<&Code>, Vec<&Code>) = codes.iter().partition(|c| device::is_gpu(&c.target));
    let compiled = codes.iter().map(|c| c.target.as_str()).collect::<Vec<_>>().join(", ");
    match device {
        Device::Cpu => {
            let runs = |c: &&&Code| missing_features(&c.features).is_empty();
            let best = cpus.iter().filter(runs).max_by_key(|c| c.features.len());
            best.copied().ok_or_else(|| match cpus.first() {
                Some(first) => RuntimeError::Foreign {
                    compiled,
                    missing: missing_features(&first.features).join(", "),
                },
                None => RuntimeError::OtherDevice {
                    compiled,
                    device: "a CPU".to_string(),
                    way: "run it with --device cuda, or compile it again with --target native".to_string(),
                },
            })
        }
        Device::Cuda(number) => {
            let gpu = device::gpu(number)?;
            let runs = |c: &&&Code| device::runs(&c.target, gpu.capability);
            // Of two that run here, the one for this generation alone is the better one.
            let best = gpus.iter().filter(runs).max_by_key(|c| (c.target.len(), &c.target));
            best.copied().ok_or_else(|| {
                let (major, minor) = gpu.capability;
                let way = match (gpu.target(), cpus.is_empty()) {
                    (Some(target), true) => format!("compile it again with --target {target}"),
                    (Some(target), false) => {
                        format!("run it with --device cpu, or compile it again with --target {target}")
                    }
                    (None, _) => "loopc runs on GPUs from compute capability 8.0 on; use --device cpu".to_string(),
                };
                RuntimeError::OtherDevice {
                    compiled,
                    device: format!("{device} ({}, compute capability {major}.{minor})", gpu.name),
                    way,
                }
            })
        }
    }
}

impl<'a> Input<'a> {
    /// In the port's type.
    fn stored(&self, port: &Port, values: &Sizes) -> Result<Cow<'a, [u8]>, String> {
        let wanted = sizes::elements(&port.shape, values).ok_or("a size is unknown")?;
        let (len, name) = match self {
            Input::I32(v) => (v.len(), "i32"),
            Input::F32(v) => (v.len(), "f32"),
        };
        let stored = match (self, port.dtype) {
            // A slice of plain numbers as its bytes.
            (Input::I32(v), DType::I32) => unsafe { std::slice::from_raw_parts(v.as_ptr().cast(), 4 * v.len()) }.into(),
            (Input::I32(v), DType::I1) => v.iter().map(|x| u8::from(*x != 0)).collect::<Vec<u8>>().into(),
            (Input::F32(v), DType::F32 | DType::BF16 | DType::F16) => state::narrowed(v, port.dtype),
            _ => Cow::default(),
        };
        if len as i64 != wanted || stored.len() != len * sizes::width(port.dtype) as usize {
            return Err(format!(
                "input `{}` has {len} {name} elements, wants {wanted} of {:?}",
                port.name, port.dtype
            ));
        }
        Ok(stored)
    }
}

/// `n` elements at `ptr`, which is aligned for them.
pub(crate) fn widened(ptr: *const u8, n: usize, dtype: DType) -> Vec<f32> {
    let halves = || unsafe { std::slice::from_raw_parts(ptr as *const u16, n) };
    match dtype {
        DType::F32 => unsafe { std::slice::from_raw_parts(ptr as *const f32, n) }.to_vec(),
        DType::BF16 => halves().iter().map(|b| bf16::from_bits(*b).to_f32()).collect(),
        DType::F16 => halves().iter().map(|b| f16::from_bits(*b).to_f32()).collect(),
        DType::I32 => unsafe { std::slice::from_raw_parts(ptr as *const i32, n) }
            .iter()
            .map(|x| *x as f32)
            .collect(),
        DType::I1 => unsafe { std::slice::from_raw_parts(ptr, n) }
            .iter()
            .map(|x| f32::from(*x))
            .collect(),
    }
}
