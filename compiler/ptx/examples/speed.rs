//! How fast kernels are evaluated: a scalar loop, and wgmma, in instructions a second.

use std::time::Instant;

use ptx::{Launch, Machine, Module, Param};

fn time(what: &str, body: &str, blocks: u32) {
    let text = format!(
        ".visible .entry k(.param .u64 out)\n{{\n.reg .pred %p<9>;\n.reg .b32 %r<99>;\n.reg .b32 %f<129>;\n.reg .b64 %rd<9>;\n\
         .shared .align 1024 .b8 s[65536];\nld.param.b64 %rd0, [out];\nmov.u32 %r0, %tid.x;\nmov.b32 %r9, s;\n{body}\nret;\n}}"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut machine = Machine::new();
    let out = machine.alloc(4096);
    let begin = Instant::now();
    let mut launch = Launch::new([blocks, 1, 1], 128);
    launch.checks_reads = false;
    let stats = machine
        .launch(&module, "k", launch, &[Param::Pointer(out)])
        .unwrap_or_else(|f| panic!("{f}"));
    let seconds = begin.elapsed().as_secs_f64();
    let threads = stats.threads("") as f64;
    println!(
        "{what}: {:.1} million instructions of threads a second, {seconds:.2} s",
        threads / seconds / 1e6
    );
}

fn main() {
    let memory = "and.b32 %r1, %r0, 127;\nmad.lo.s32 %r2, %r1, 4, %r9;\nmov.b32 %r3, 0;\nst.shared.b32 [%r2], %r3;
        $l:\nld.shared.b32 %f0, [%r2];\nfma.rn.f32 %f1, %f0, %f0, %f1;\nadd.rn.f32 %f0, %f1, %f0;\nst.shared.b32 [%r2], %f0;
        add.s32 %r3, %r3, 1;\nsetp.lt.s32 %p1, %r3, 2000;\n@%p1 bra $l;";
    time("scalar and shared", memory, 20);
    let part = "and.b32 %r4, %r0, 31;\nmov.b32 %r3, 0;\nsetp.ne.s32 %p2, %r4, 0;\n$l:\n@%p2 bra $n;\nfma.rn.f32 %f1, %f0, %f0, %f1;
        add.rn.f32 %f1, %f0, %f0;\n$n:\nadd.s32 %r3, %r3, 1;\nsetp.lt.s32 %p1, %r3, 2000;\n@%p1 bra $l;";
    time("paths that part", part, 20);
    let regs: Vec<String> = (0..128).map(|i| format!("%f{i}")).collect();
    let wgmma = format!(
        "shr.u32 %r1, %r9, 4;\ncvt.u64.u32 %rd1, %r1;\nadd.s64 %rd1, %rd1, 0x4000004000010000;\nsetp.eq.s32 %p1, %r0, %r0;\nmov.b32 %r3, 0;
         $l:\nwgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {{{}}}, %rd1, %rd1, %p1, 1, 1, 0, 0;
         add.s32 %r3, %r3, 1;\nsetp.lt.s32 %p2, %r3, 100;\n@%p2 bra $l;",
        regs.join(", ")
    );
    let begin = Instant::now();
    time("wgmma m64n256k16", &wgmma, 4);
    let flops = 4.0 * 100.0 * 2.0 * 64.0 * 256.0 * 16.0;
    println!("  {:.2} GFLOP/s", flops / begin.elapsed().as_secs_f64() / 1e9);
}
