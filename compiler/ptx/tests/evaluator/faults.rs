//! Every kind of fault, provoked once, with its place.

use ptx::{Fault, FaultKind, Launch, Machine, Module, Param};

use super::support::*;

fn fault_of(module: &Module, launch: Launch) -> Box<Fault> {
    match try_run(module, launch, 64) {
        Ok(_) => panic!("no fault"),
        Err(f) => f,
    }
}

fn fault(body: &str, threads: u32) -> Box<Fault> {
    fault_of(&simple(body), Launch::new([1, 1, 1], threads))
}

macro_rules! assert_fault {
    ($fault:expr, $kind:pat, $text:expr, $thread:expr) => {{
        let fault = $fault;
        assert!(matches!(fault.kind, $kind), "{fault}");
        assert!(fault.text.starts_with($text), "{fault}");
        assert_eq!(fault.thread, Some($thread), "{fault}");
        fault
    }};
}

#[test]
fn accesses_outside_and_askew() {
    let f = fault(
        "mul.wide.u32 %rd1, %r0, 4;\nadd.s64 %rd1, %rd0, %rd1;\nst.global.b32 [%rd1], 1;",
        65,
    );
    let f = assert_fault!(f, FaultKind::OutOfBounds { .. }, "st.global", 64);
    assert_eq!(f.block, Some([0, 0, 0]));
    assert!(f.to_string().contains("256 bytes"), "{f}");
    assert_fault!(
        fault("ld.global.b32 %r1, [%rd0+-4];", 1),
        FaultKind::OutOfBounds { .. },
        "ld.global",
        0
    );
    assert_fault!(
        fault("ld.global.b32 %r1, [4];", 1),
        FaultKind::OutOfBounds { .. },
        "ld.global",
        0
    );
    assert_fault!(
        fault("ld.global.v2.b32 {%r1, %r2}, [%rd0+4];", 1),
        FaultKind::Misaligned { .. },
        "ld.global",
        0
    );
    let shared = ".shared .align 16 .b8 s[64];\nmov.b32 %r1, s;\n";
    let body = format!("{shared}shl.b32 %r2, %r0, 2;\nadd.s32 %r1, %r1, %r2;\nst.shared.b32 [%r1+4], 0;");
    assert_fault!(fault(&body, 16), FaultKind::OutOfBounds { .. }, "st.shared", 15);
    assert_fault!(
        fault("ld.shared.b32 %r1, [0];", 1),
        FaultKind::OutOfBounds { .. },
        "ld.shared",
        0
    );
    assert_fault!(
        fault(".local .b8 l[8];\nmov.b32 %r1, l;\nld.local.b32 %r2, [%r1+8];", 1),
        FaultKind::OutOfBounds { .. },
        "ld.local",
        0
    );
    assert_fault!(
        fault("ld.param.b32 %r1, [out+8];", 1),
        FaultKind::OutOfBounds { .. },
        "ld.param",
        0
    );
}

#[test]
fn reads_of_what_nobody_wrote() {
    let body = ".shared .align 16 .b8 s[8];\nmov.b32 %r1, s;\nst.shared.b32 [%r1], 0;\nld.shared.b64 %rd1, [%r1];";
    let f = assert_fault!(fault(body, 1), FaultKind::Unwritten { first: 4, .. }, "ld.shared", 0);
    assert_eq!(f.line, 16, "{f}");
    let mut launch = Launch::new([1, 1, 1], 1);
    launch.checks_reads = false;
    try_run(&simple(body), launch, 1).unwrap();
    // Global memory: only where it was asked for.
    let module = simple("ld.global.b32 %r1, [%rd0];");
    let mut machine = Machine::strict();
    let at = machine.alloc(4);
    let launch = Launch::new([1, 1, 1], 1);
    let f = machine.launch(&module, "k", launch, &[Param::Pointer(at)]).unwrap_err();
    assert!(matches!(f.kind, FaultKind::Unwritten { .. }), "{f}");
    machine.write(at, &[0; 4]).unwrap();
    machine.launch(&module, "k", launch, &[Param::Pointer(at)]).unwrap();
}

#[test]
fn waits_that_never_end() {
    let f = fault("setp.lt.s32 %p1, %r0, 32;\n@%p1 bar.sync 1, 64;", 64);
    let f = assert_fault!(f, FaultKind::Deadlock(_), "@%p1 bar.sync", 0);
    assert!(f.to_string().contains("32 of 64 threads"), "{f}");
    let body = ".shared .align 8 .b8 b[8];\nmov.b32 %r1, b;\nmbarrier.init.shared.b64 [%r1], 2;\nmbarrier.arrive.shared.b64 %rd1, [%r1];
        $w:\nmbarrier.try_wait.parity.shared.b64 %p1, [%r1], 0;\n@!%p1 bra $w;";
    let f = assert_fault!(fault(body, 1), FaultKind::Deadlock(_), "mbarrier.try_wait", 0);
    assert!(f.to_string().contains("1 of 2 arrivals"), "{f}");
    let f = fault(
        "$w:\nld.acquire.gpu.global.b32 %r1, [%rd0];\nsetp.eq.s32 %p1, %r1, 0;\n@%p1 bra $w;",
        1,
    );
    assert!(matches!(f.kind, FaultKind::Livelock(_)), "{f}");
    let mut launch = Launch::new([1, 1, 1], 1);
    launch.limit = 10_000;
    let f = fault_of(&simple("$w:\nadd.s32 %r1, %r1, 1;\nbra $w;"), launch);
    assert!(matches!(f.kind, FaultKind::Limit(10_000)), "{f}");
}

#[test]
fn collectives_of_a_part_of_their_warp() {
    // A lane has ended.
    let body = "setp.eq.s32 %p1, %r0, 3;\n@%p1 ret;\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;";
    assert_fault!(fault(body, 32), FaultKind::Partial { .. }, "shfl", 0);
    // Two halves at two different ones.
    let body = "setp.lt.s32 %p1, %r0, 16;\n@%p1 bra $a;\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;\nbra $e;\n$a:\nshfl.sync.bfly.b32 %r1, %r0, 2, 31, -1;\n$e:";
    let f = fault(body, 32);
    assert!(matches!(f.kind, FaultKind::Partial { .. }), "{f}");
    // Out of its own mask, and reading a lane outside the mask.
    assert_fault!(
        fault("vote.sync.any.pred %p1, %p1, 0xff;", 32),
        FaultKind::Partial { .. },
        "vote",
        0
    );
    let body = "setp.ge.s32 %p1, %r0, 8;\n@%p1 ret;\nshfl.sync.idx.b32 %r1, %r0, 9, 31, 0xff;";
    assert_fault!(fault(body, 32), FaultKind::Partial { .. }, "shfl", 0);
    // A whole warp is needed where there are 16 lanes.
    let body = "movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r2;";
    assert_fault!(fault(body, 16), FaultKind::Partial { .. }, "movmatrix", 0);
}

#[test]
fn barriers_that_do_not_fit() {
    let body = "setp.lt.s32 %p1, %r0, 32;\n@%p1 bar.sync 1, 64;\n@!%p1 bar.sync 1, 96;";
    assert_fault!(fault(body, 64), FaultKind::Barrier { id: 1, .. }, "@!%p1 bar.sync", 32);
    assert_fault!(
        fault("bar.sync 16;", 32),
        FaultKind::Barrier { id: 16, .. },
        "bar.sync",
        0
    );
    assert_fault!(fault("bar.sync 0, 40;", 64), FaultKind::Barrier { .. }, "bar.sync", 0);
}

#[test]
fn mbarriers_misused() {
    let start = ".shared .align 16 .b8 b[16];\nmov.b32 %r1, b;\n";
    let with = |rest: &str| fault(&format!("{start}mbarrier.init.shared.b64 [%r1], 1;\n{rest}"), 1);
    assert_fault!(
        with("mbarrier.arrive.shared.b64 %rd1, [%r1], 2;"),
        FaultKind::Mbarrier { .. },
        "mbarrier.arrive",
        0
    );
    let f = with("mbarrier.arrive.expect_tx.shared.b64 %rd1, [%r1], 1048576;");
    assert_fault!(f, FaultKind::Mbarrier { .. }, "mbarrier.arrive.expect_tx", 0);
    assert_fault!(
        with("ld.shared.b64 %rd1, [%r1];"),
        FaultKind::Mbarrier { .. },
        "ld.shared",
        0
    );
    assert_fault!(
        with("st.shared.b32 [%r1+4], 0;"),
        FaultKind::Mbarrier { .. },
        "st.shared",
        0
    );
    let f = with("mbarrier.inval.shared.b64 [%r1];\nmbarrier.arrive.shared.b64 %rd1, [%r1];");
    assert_fault!(f, FaultKind::Mbarrier { .. }, "mbarrier.arrive", 0);
    assert_fault!(
        with("mbarrier.init.shared.b64 [%r1+4], 1;"),
        FaultKind::Misaligned { .. },
        "mbarrier.init",
        0
    );
}

/// A warpgroup with 16 KiB of zeros in shared memory; `%rd10` is a descriptor of them without swizzle.
fn group(body: &str) -> String {
    format!(
        ".shared .align 1024 .b8 s[4096];
         mov.b32 %r1, s;
         shl.b32 %r2, %r0, 5;
         add.s32 %r2, %r2, %r1;
         st.shared.v4.b32 [%r2], {{0, 0, 0, 0}};
         st.shared.v4.b32 [%r2+16], {{0, 0, 0, 0}};
         fence.proxy.async;
         bar.sync 0;
         shr.u32 %r3, %r1, 4;
         cvt.u64.u32 %rd10, %r3;
         add.s64 %rd10, %rd10, 0x0000001000080000;
         setp.ne.s32 %p1, %r0, %r0;
         shr.u32 %r4, %r0, 5;
         setp.eq.s32 %p2, %r4, 2;
         {body}"
    )
}

const MMA: &str =
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd10, %rd10, %p1, 1, 1, 0, 0;";

#[test]
fn wgmma_misused() {
    let good = group(&format!(
        "{MMA}\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nst.global.b32 [%rd0], %f0;"
    ));
    assert_eq!(try_run(&simple(&good), Launch::new([1, 1, 1], 128), 1).unwrap().0, [0]);
    // Accumulators before the wait, through a copy as well. The last warp at the barrier goes on first.
    let early = group(&format!(
        "{MMA}\nwgmma.commit_group.sync.aligned;\nmov.b32 %f9, %f3;\nst.global.b32 [%rd0], %f9;"
    ));
    assert_fault!(fault(&early, 128), FaultKind::Wgmma(_), "st.global", 96);
    // A group that the wait leaves.
    let early = group(&format!(
        "{MMA}\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\nst.global.b32 [%rd0], %f0;"
    ));
    assert_fault!(fault(&early, 128), FaultKind::Wgmma(_), "st.global", 96);
    // One warp does not take part.
    let f = fault(&group(&format!("@%p2 bra $e;\n{MMA}\n$e:")), 128);
    assert!(matches!(f.kind, FaultKind::Wgmma(_)), "{f}");
    assert_eq!(f.thread.map(|t| t / 32), Some(2), "{f}");
    let f = fault(&group(&format!("@%p2 bra $b;\n{MMA}\nbra $e;\n$b:\n{MMA}\n$e:")), 128);
    assert!(f.to_string().contains("another warp of the warpgroup"), "{f}");
    // A descriptor whose start spills over, and one that names what nobody wrote.
    let f = fault(&group(&format!("or.b64 %rd10, %rd10, 0x8000;\n{MMA}")), 128);
    assert_fault!(f, FaultKind::Wgmma(_), "wgmma.mma_async", 96);
    let f = fault(&group(&format!("add.s64 %rd10, %rd10, 240;\n{MMA}")), 128);
    assert_fault!(f, FaultKind::OutOfBounds { .. }, "wgmma.mma_async", 96);
}

#[test]
fn copies_misused() {
    let start = ".shared .align 128 .b8 s[128];\nmov.b32 %r1, s;\n";
    let f = fault(&format!("{start}cp.async.ca.shared.global [%r1+2], [%rd0], 4;"), 1);
    assert_fault!(f, FaultKind::Copy(_), "cp.async", 0);
    let body = format!(
        "{start}st.shared.v4.b32 [%r1], {{1, 2, 3, 4}};\nfence.proxy.async;\ncp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r1], 16;\ncp.async.bulk.commit_group;"
    );
    assert_fault!(fault(&body, 1), FaultKind::Copy(_), "ret", 0);
    let waits = format!("{body}\ncp.async.bulk.wait_group.read 0;");
    assert_eq!(
        try_run(&simple(&waits), Launch::new([1, 1, 1], 1), 4).unwrap().0,
        [1, 2, 3, 4]
    );
    // A tensor map that is none.
    let body = format!(
        "{start}and.b64 %rd1, %rd0, -64;\ncp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%rd1, {{0}}], [%r1];"
    );
    assert_fault!(fault(&body, 1), FaultKind::TensorMap(_), "cp.async.bulk.tensor", 0);
}

#[test]
fn launches_that_do_not_fit() {
    let module = simple("trap;");
    let launch = Launch::new([1, 1, 1], 32);
    assert_fault!(fault_of(&module, launch), FaultKind::Trap, "trap", 0);
    let refused = |l: Launch| matches!(fault_of(&module, l).kind, FaultKind::Launch(_));
    assert!(refused(Launch::new([1, 1, 1], 1025)));
    assert!(refused(Launch::new([3, 1, 1], 32).cluster(2)));
    assert!(refused(launch.shared(ptx::SHARED_LIMIT + 1)));
    let mut machine = Machine::new();
    for params in [vec![], vec![Param::U32(1)]] {
        let f = machine.launch(&module, "k", launch, &params).unwrap_err();
        assert!(matches!(f.kind, FaultKind::Launch(_)), "{f}");
    }
    let f = machine.launch(&module, "other", launch, &[]).unwrap_err();
    assert!(matches!(f.kind, FaultKind::Launch(_)), "{f}");
    let f = fault("frobnicate.b32 %r1, %r2;", 1);
    assert!(matches!(f.kind, FaultKind::Unsupported(_)), "{f}");
}
