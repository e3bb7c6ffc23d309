//! Runs a plan's kernel as a GPU would: PTX evaluated on the CPU, every argument an allocation of its own.

use std::collections::HashMap;

use compiler::{cpu, gpu};
use half::{bf16, f16};
use ir::plan::Kernel;
use ir::{DType, Sizes};
use ptx::{Element, Launch, Machine, Module, Param, Swizzle, TensorMap};
use runtime::artefact::{self, GpuKernel, MapSource, SYMBOLS, Variant, taken};

pub struct Compiled {
    code: Code,
    pub gpu: GpuKernel,
    args: Vec<DType>,
}

/// For Hopper.
pub fn compile(kernel: &Kernel) -> Compiled {
    compile_for(kernel, "sm_90a")
}

pub fn compile_for(kernel: &Kernel, target: &str) -> Compiled {
    compile_by(kernel, target, gpu::compile_kernels)
}

/// A product for Hopper, with a variant for every way.
pub fn compile_ways(kernel: &Kernel) -> Compiled {
    compile_by(kernel, "sm_90a", gpu::compile_ways)
}

type Compile = fn(&[Kernel], &gpu::Target, bool) -> Result<(cpu::Compiled, Vec<GpuKernel>), cpu::CodeError>;

fn compile_by(kernel: &Kernel, name: &str, by: Compile) -> Compiled {
    let (compiled, mut how) = by(std::slice::from_ref(kernel), &target(name), false).expect("it compiles");
    Compiled {
        code: Code::read(compiled.code),
        gpu: how.remove(0),
        args: kernel.args.iter().map(|a| a.dtype).collect(),
    }
}

pub fn target(name: &str) -> gpu::Target {
    match compiler::Target::by_name(name).expect("a target") {
        compiler::Target::Gpu(target) => target,
        compiler::Target::Cpu(_) => panic!("{name} is no GPU"),
    }
}

impl Compiled {
    /// See `Code::run`.
    pub fn run(&self, variant: &Variant, args: &[Vec<f64>], sizes: &Sizes, multiprocessors: u64) -> Vec<Vec<f64>> {
        let own: Vec<usize> = (0..args.len()).collect();
        self.code.run(variant, (&self.args, &own), args, sizes, multiprocessors)
    }
}

/// A module of PTX, and the module as text.
pub struct Code {
    module: Module,
    pub text: String,
}

impl Code {
    pub fn read(code: Vec<u8>) -> Code {
        let text = String::from_utf8(code).expect("PTX is text");
        Code {
            module: Module::parse(&text).expect("PTX that is read"),
            text,
        }
    }

    /// Launches a variant; `multiprocessors`: blocks that walk tiles are so many at most. The arguments are as the kernel leaves them.
    /// Arguments of one buffer (numbers, beside the types) are one memory, which begins as the first of them.
    pub fn run(
        &self,
        variant: &Variant,
        (types, buffers): (&[DType], &[usize]),
        args: &[Vec<f64>],
        sizes: &Sizes,
        multiprocessors: u64,
    ) -> Vec<Vec<f64>> {
        let mut machine = Machine::new();
        let mut alloc = |bytes: Vec<u8>| {
            let at = machine.alloc(bytes.len() as u64);
            machine.write(at, &bytes).expect("it is there");
            at
        };
        let pairs: Vec<(&Vec<f64>, DType)> = args.iter().zip(types.iter().copied()).collect();
        let mut places = HashMap::new();
        let buffers: Vec<u64> = (pairs.iter().zip(buffers))
            .map(|((x, t), b)| *places.entry(*b).or_insert_with(|| alloc(bytes(x, *t))))
            .collect();
        // What an earlier kernel left there is noise.
        let spaces: Vec<u64> = (variant.workspaces.iter())
            .map(|s| alloc(vec![0xff; size(s, sizes) as usize]))
            .collect();
        let counters = (variant.counters > 0).then(|| alloc(vec![0; 4 * variant.counters as usize]));
        for step in &variant.steps {
            let buffers = taken(&step.buffers, &buffers).expect("they are there");
            let spaces = taken(&step.workspaces, &spaces).expect("they are there");
            let pointers = buffers.iter().chain(&spaces).chain(&counters);
            let mut params: Vec<Param> = pointers.map(|p| Param::Pointer(*p)).collect();
            params.extend(SYMBOLS.map(|s| Param::I32(sizes.get(s).copied().unwrap_or(1) as i32)));
            params.extend(
                step.maps
                    .iter()
                    .map(|m| Param::TensorMap(tensor_map(m, sizes, &buffers, &spaces))),
            );
            let grids = std::iter::once(&step.tiles).chain(&step.more_tiles);
            let mut blocks: u64 = grids
                .map(|g| {
                    g.iter()
                        .map(|(s, n)| size(s, sizes).div_ceil(*n as u64))
                        .product::<u64>()
                })
                .sum();
            if step.per_multiprocessor > 0 {
                blocks = blocks.min(u64::from(step.per_multiprocessor) * multiprocessors);
            }
            let cluster = step.cluster.max(1);
            let blocks = blocks.next_multiple_of(cluster.into()) as u32;
            let launch = Launch::new([blocks, 1, 1], step.threads)
                .shared(step.shared)
                .cluster(cluster);
            if let Err(fault) = machine.launch(&self.module, &step.function, launch, &params) {
                panic!("{fault}");
            }
        }
        if let Some(at) = counters {
            let left = machine.read(at, 4 * u64::from(variant.counters)).expect("it is there");
            assert!(left.iter().all(|b| *b == 0), "counters are left at zero");
        }
        (buffers.iter().zip(&pairs))
            .map(|(at, (x, t))| {
                values(
                    &machine.read(*at, (x.len() * width(*t)) as u64).expect("it is there"),
                    *t,
                )
            })
            .collect()
    }
}

pub fn size(s: &artefact::Size, sizes: &Sizes) -> u64 {
    (s.coef
        * s.syms
            .iter()
            .map(|s| sizes.get(s).copied().unwrap_or(1))
            .product::<i64>()) as u64
}

fn tensor_map(m: &artefact::TensorMap, sizes: &Sizes, buffers: &[u64], spaces: &[u64]) -> TensorMap {
    let element = match m.dtype {
        artefact::DType::F32 => Element::F32,
        artefact::DType::BF16 => Element::BF16,
        artefact::DType::F16 => Element::F16,
        artefact::DType::I32 => Element::S32,
        artefact::DType::I1 => Element::U8,
    };
    let width = element.bytes() as u64;
    let base = match m.source {
        MapSource::Buffer(n) => buffers[n as usize],
        MapSource::Workspace(n) => spaces[n as usize],
    };
    TensorMap {
        address: base + size(&m.offset, sizes) * width,
        element,
        dims: m.dims.iter().map(|s| size(s, sizes)).collect(),
        strides: m.strides.iter().map(|s| size(s, sizes) * width).collect(),
        box_dims: m.r#box.clone(),
        swizzle: match m.swizzle {
            32 => Swizzle::B32,
            64 => Swizzle::B64,
            128 => Swizzle::B128,
            _ => Swizzle::None,
        },
    }
}

fn width(dtype: DType) -> usize {
    match dtype {
        DType::F32 | DType::I32 => 4,
        DType::BF16 | DType::F16 => 2,
        DType::I1 => 1,
    }
}

fn bytes(x: &[f64], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => x.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        DType::BF16 => x.iter().flat_map(|x| bf16::from_f64(*x).to_le_bytes()).collect(),
        DType::F16 => x.iter().flat_map(|x| f16::from_f64(*x).to_le_bytes()).collect(),
        DType::I32 => x.iter().flat_map(|x| (*x as i32).to_le_bytes()).collect(),
        DType::I1 => x.iter().map(|x| *x as u8).collect(),
    }
}

fn values(bytes: &[u8], dtype: DType) -> Vec<f64> {
    let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match dtype {
        DType::F32 => bytes.chunks(4).map(|b| f32::from_bits(word(b)).into()).collect(),
        DType::I32 => bytes.chunks(4).map(|b| (word(b) as i32).into()).collect(),
        DType::BF16 => bytes.chunks(2).map(|b| bf16::from_bits(half(b)).to_f64()).collect(),
        DType::F16 => bytes.chunks(2).map(|b| f16::from_bits(half(b)).to_f64()).collect(),
        DType::I1 => bytes.iter().map(|b| f64::from(*b)).collect(),
    }
}
