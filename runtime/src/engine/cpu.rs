//! The CPU as a device: kernels linked from object code, weights as `pack` makes them, launches in order over the pool.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::profile::{Ran, Recorder};
use super::{Call, sizes, widened};
use crate::artefact::{self, Buffer, Entry, Header, KernelFn, SYMBOLS, Sizes};
use crate::elf::Code;
use crate::error::RuntimeError;
use crate::memory::Memory;
use crate::pack::{self, WeightBuffer};
use crate::threads::Pool;
use crate::weights::Checkpoint;

/// A slot, an input, an output is followed by so many bytes that a vector may read.
const SLACK: usize = 64;

pub struct Cpu {
    // Fields drop in order: the pool's threads stop before the code they run goes.
    pool: Pool,
    /// Of each entry's launches.
    kernels: Vec<Vec<KernelFn>>,
    weights: Vec<WeightBuffer>,
    work: Mutex<Work>,
    _code: Code,
}

/// Memory that calls reuse.
#[derive(Default)]
struct Work {
    arena: Option<Memory>,
    scratch: Option<Memory>,
}

impl Cpu {
    pub fn load(
        header: &Header,
        code: &artefact::Code,
        payload: &[u8],
        checkpoint: &Checkpoint,
        threads: usize,
    ) -> Result<Cpu, RuntimeError> {
        let code = Code::load(&payload[code.offset as usize..(code.offset + code.len) as usize])?;
        let mut kernels = vec![];
        for entry in &header.entries {
            let of_launch = |l: &artefact::Launch| {
                code.kernel(&l.kernel)
                    .ok_or_else(|| RuntimeError::Code(format!("it has no kernel `{}`", l.kernel)))
            };
            kernels.push(entry.launches.iter().map(of_launch).collect::<Result<_, _>>()?);
        }
        Ok(Cpu {
            weights: pack::load(&header.weights, checkpoint, threads)?,
            pool: Pool::new(threads),
            kernels,
            work: Mutex::default(),
            _code: code,
        })
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub fn new_state(&self, lengths: &[usize]) -> Result<Vec<Memory>, RuntimeError> {
        lengths.iter().map(|n| Memory::zeroed(*n)).collect()
    }

    /// Bytes of weights that are not the checkpoint's own, and of working memory.
    pub fn usage(&self) -> (usize, usize) {
        let own = |w: &WeightBuffer| if let WeightBuffer::Own(m) = w { m.len() } else { 0 };
        let work = self.work.lock().unwrap_or_else(|p| p.into_inner());
        let len = |m: &Option<Memory>| m.as_ref().map_or(0, Memory::len);
        (
            self.weights.iter().map(own).sum(),
            len(&work.arena) + len(&work.scratch),
        )
    }

    /// Bytes of all weights, and of working memory at these sizes.
    pub fn planned(&self, entries: &[Entry], values: &Sizes) -> Option<usize> {
        let mut work = 0;
        for entry in entries {
            let (_, arena) = sizes::arena(entry, values, 64, SLACK)?;
            work = work.max(arena + scratch(entry, values)? * self.pool.threads());
        }
        Some(work + self.weights.iter().map(WeightBuffer::bytes).sum::<usize>())
    }

    /// See `Engine::read_weights`.
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

    /// Runs an entry; gives those of its outputs that are wanted, in the order of its ports.
    pub fn run(
        &self,
        call: &Call,
        state: Option<&[Memory]>,
        recorder: &mut Recorder,
    ) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let (e, values) = (call.entry, &call.values);
        let unknown = || call.unknown();
        let mut work = self.work.lock().unwrap_or_else(|p| p.into_inner());
        let (offsets, arena) = sizes::arena(e, values, 64, SLACK).ok_or_else(unknown)?;
        let scratch_size = scratch(e, values).ok_or_else(unknown)?;
        let arena = grown(&mut work.arena, arena)?;
        let scratch = grown(&mut work.scratch, scratch_size * self.pool.threads())?;

        // Inputs and outputs in memory of this call.
        let mut inputs = vec![];
        for bytes in &call.inputs {
            let memory = Memory::zeroed(bytes.len() + SLACK)?;
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.mut_ptr(), bytes.len()) };
            inputs.push(memory);
        }
        let mut outputs = vec![];
        for port in &e.outputs {
            let n = sizes::bytes(port.dtype, &port.shape, values).ok_or_else(unknown)?;
            outputs.push(Memory::zeroed(n + SLACK)?);
        }
        let mut pointers: Vec<*mut u8> = vec![];
        for buffer in &e.buffers {
            pointers.push(match buffer {
                Buffer::Slot(i) => unsafe { arena.add(offsets[*i as usize]) },
                Buffer::Weight(i) => self.weights[*i as usize].ptr() as *mut u8,
                Buffer::State(i) => match state {
                    Some(s) => s[*i as usize].mut_ptr(),
                    None => return Err(call.failed("it needs caches".to_string())),
                },
                Buffer::Input(i) => inputs[*i as usize].mut_ptr(),
                Buffer::Output(i) => outputs[*i as usize].mut_ptr(),
            });
        }
        let symbols: Vec<i64> = SYMBOLS.iter().map(|s| values.get(*s).copied().unwrap_or(0)).collect();
        let mut args: Vec<*mut u8> = vec![];
        for (at, (launch, kernel)) in e.launches.iter().zip(&self.kernels[call.index]).enumerate() {
            args.clear();
            args.extend(launch.buffers.iter().map(|b| pointers[*b as usize]));
            let tiles = sizes::tiles(&launch.tiles, values).ok_or_else(unknown)?;
            let start = recorder.is_on().then(Instant::now);
            let one = OneLaunch {
                kernel: *kernel,
                args: args.as_ptr(),
                symbols: symbols.as_ptr(),
                scratch,
                scratch_size,
            };
            self.pool.run(tiles, &|begin, end, worker| one.run(begin, end, worker));
            if let Some(start) = start {
                recorder.note(&e.name, &Ran::whole(&launch.kernel, at), start, start.elapsed());
            }
        }
        let mut results = vec![];
        for (port, memory) in e
            .outputs
            .iter()
            .zip(&outputs)
            .filter(|(port, _)| call.wants(&port.name))
        {
            let n = sizes::elements(&port.shape, values).ok_or_else(unknown)?;
            results.push(widened(memory.ptr(), n as usize, port.dtype));
        }
        Ok(results)
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
struct OneLaunch {
    kernel: KernelFn,
    args: *const *mut u8,
    symbols: *const i64,
    scratch: *mut u8,
    scratch_size: usize,
}

// Tiles of one launch write different bytes, and each worker has its own scratch.
unsafe impl Sync for OneLaunch {}

impl OneLaunch {
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

/// Scratch bytes of one thread.
fn scratch(e: &Entry, values: &Sizes) -> Option<usize> {
    let mut most = 0i64;
    for launch in &e.launches {
        most = most.max(sizes::eval(&launch.scratch, values)?);
    }
    Some(usize::try_from(most).ok()?.next_multiple_of(64) + 64)
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
