//! Small things that tests share: a kernel around a body, arrays in and out.

use ptx::{Fault, Launch, Machine, Module, Param, Stats};

/// A module with one kernel `k`; `%r`, `%rd`, `%f`, `%p`, `%rs` registers are declared.
pub fn kernel(parameters: &str, body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k({parameters})\n{{\n.reg .pred %p<32>;\n.reg .b16 %rs<32>;\n\
         .reg .b32 %r<128>;\n.reg .b32 %f<256>;\n.reg .b64 %rd<64>;\n{body}\nret;\n}}\n"
    )
}

/// A kernel of one pointer, which is in `%rd0`; the thread's index is in `%r0`.
pub fn simple(body: &str) -> Module {
    let start = "ld.param.b64 %rd0, [out];\nmov.u32 %r0, %tid.x;\n";
    parse(&kernel(
        ".param .u64 .ptr .global .align 4 out",
        &format!("{start}{body}"),
    ))
}

pub fn parse(text: &str) -> Module {
    Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

pub fn bytes<const N: usize, T: Copy>(all: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    all.iter().flat_map(|x| to(*x)).collect()
}

pub fn upload(machine: &mut Machine, data: &[u8]) -> u64 {
    let at = machine.alloc(data.len() as u64);
    machine.write(at, data).unwrap();
    at
}

pub fn words(machine: &Machine, at: u64, n: usize) -> Vec<u32> {
    let bytes = machine.read(at, 4 * n as u64).unwrap();
    bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

pub fn floats(machine: &Machine, at: u64, n: usize) -> Vec<f32> {
    words(machine, at, n).into_iter().map(f32::from_bits).collect()
}

/// Runs `simple`'s kernel with one block and `words` words of output.
pub fn try_run(module: &Module, launch: Launch, out: usize) -> Result<(Vec<u32>, Stats), Box<Fault>> {
    let mut machine = Machine::new();
    let at = machine.alloc(4 * out as u64);
    let stats = machine.launch(module, "k", launch, &[Param::Pointer(at)])?;
    Ok((words(&machine, at, out), stats))
}

pub fn run(module: &Module, threads: u32, out: usize) -> Vec<u32> {
    try_run(module, Launch::new([1, 1, 1], threads), out)
        .unwrap_or_else(|f| panic!("{f}"))
        .0
}

/// Numbers that look random: what a test multiplies.
pub fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 32768.0 - 1.0
    }
}
