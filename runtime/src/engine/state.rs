//! What outlives a call, on the device that uses it; read and written from here as f32.

use half::{bf16, f16};

use super::{Output, sizes, widened};
use crate::artefact::{DType, Sizes, State as StateSpec};
use crate::error::RuntimeError;
use crate::memory::Memory;

/// By the artefact's states: caches of `batch` sequences with room for `capacity` tokens each, or the tensors that are trained.
pub struct State {
    pub batch: i64,
    pub capacity: i64,
    specs: Vec<StateSpec>,
    pub(super) buffers: Buffers,
}

/// One for each state.
pub(super) enum Buffers {
    Cpu(Vec<Memory>),
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::States),
}

impl State {
    pub(super) fn new(batch: i64, capacity: i64, specs: Vec<StateSpec>, buffers: Buffers) -> State {
        State {
            batch,
            capacity,
            specs,
            buffers,
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.specs.iter().map(|s| s.name.as_str())
    }

    /// Memory of all states.
    pub fn bytes(&self) -> usize {
        match &self.buffers {
            Buffers::Cpu(all) => all.iter().map(Memory::len).sum(),
            #[cfg(feature = "cuda")]
            Buffers::Cuda(all) => all.bytes(),
        }
    }

    fn sizes(&self) -> Sizes {
        Sizes::from([("B".to_string(), self.batch), ("C".to_string(), self.capacity)])
    }

    /// Does any state have a place per sequence?
    pub(super) fn is_batched(&self) -> bool {
        self.specs.iter().any(|s| s.shape.iter().any(|n| !n.syms.is_empty()))
    }

    /// Of a state, for this batch and capacity.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let spec = self.specs.iter().find(|s| s.name == name)?;
        let sizes = self.sizes();
        spec.shape.iter().map(|n| sizes::eval(n, &sizes)).collect()
    }

    /// A whole state, widened to f32.
    pub fn values(&self, name: &str) -> Result<Output, RuntimeError> {
        let shape = self.shape(name).ok_or_else(|| no_such(name))?;
        let mut data = vec![0.0; shape.iter().product::<i64>() as usize];
        self.read(name, 0, &mut data)?;
        Ok(Output { shape, data })
    }

    /// Numbers of a state from `first` on, widened to f32, as many as `out` has. In pieces, so that a large state is not held twice.
    pub fn read(&self, name: &str, first: usize, out: &mut [f32]) -> Result<(), RuntimeError> {
        let (at, dtype, begin) = self.place(name, first, out.len())?;
        let values = match &self.buffers {
            // They are there, as was checked.
            Buffers::Cpu(all) => widened(unsafe { all[at].ptr().add(begin) }, out.len(), dtype),
            #[cfg(feature = "cuda")]
            Buffers::Cuda(all) => {
                let memory = Memory::zeroed(out.len() * sizes::width(dtype) as usize)?;
                all.read(at, begin, &memory)?;
                widened(memory.ptr(), out.len(), dtype)
            }
        };
        out.copy_from_slice(&values);
        Ok(())
    }

    /// Replaces numbers of a state from `first` on, rounded to its type.
    pub fn write(&mut self, name: &str, first: usize, values: &[f32]) -> Result<(), RuntimeError> {
        let (at, dtype, begin) = self.place(name, first, values.len())?;
        let bytes = narrowed(values, dtype);
        match &mut self.buffers {
            // The buffer is ours alone, of this type, and has the room, as was checked.
            Buffers::Cpu(all) => unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), all[at].mut_ptr().add(begin), bytes.len())
            },
            #[cfg(feature = "cuda")]
            Buffers::Cuda(all) => all.write(at, begin, &bytes)?,
        }
        Ok(())
    }

    /// Which buffer has `count` numbers of a state from `first` on, their type, and at which byte they begin.
    fn place(&self, name: &str, first: usize, count: usize) -> Result<(usize, DType, usize), RuntimeError> {
        let (at, spec) = self.find(name)?;
        let there = sizes::elements(&spec.shape, &self.sizes()).and_then(|n| usize::try_from(n).ok());
        let end = first.checked_add(count);
        if end.is_none_or(|end| there.is_none_or(|n| end > n)) {
            let reason = format!(
                "{count} values from {first} on do not fit {:?} {:?}",
                spec.dtype, spec.shape
            );
            return Err(RuntimeError::Tensor {
                name: name.to_string(),
                reason,
            });
        }
        Ok((at, spec.dtype, first * sizes::width(spec.dtype) as usize))
    }

    fn find(&self, name: &str) -> Result<(usize, &StateSpec), RuntimeError> {
        let at = self.specs.iter().position(|s| s.name == name);
        let at = at.ok_or_else(|| no_such(name))?;
        Ok((at, &self.specs[at]))
    }
}

fn no_such(name: &str) -> RuntimeError {
    RuntimeError::Tensor {
        name: name.to_string(),
        reason: "is no state of the code".to_string(),
    }
}

/// Numbers in memory of a type.
pub(super) fn narrowed(values: &[f32], dtype: DType) -> std::borrow::Cow<'_, [u8]> {
    let halves =
        |round: &dyn Fn(f32) -> u16| -> Vec<u8> { values.iter().flat_map(|x| round(*x).to_ne_bytes()).collect() };
    match dtype {
        // A slice of plain numbers as its bytes.
        DType::F32 => unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), 4 * values.len()) }.into(),
        DType::BF16 => halves(&|x| bf16::from_f32(x).to_bits()).into(),
        DType::F16 => halves(&|x| f16::from_f32(x).to_bits()).into(),
        DType::I32 => (values
            .iter()
            .flat_map(|x| (*x as i32).to_ne_bytes())
            .collect::<Vec<u8>>())
        .into(),
        DType::I1 => (values.iter().map(|x| u8::from(*x != 0.0)).collect::<Vec<u8>>()).into(),
    }
}
