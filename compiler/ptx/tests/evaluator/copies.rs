//! mbarriers, bulk lines and cp.async: pipelines that wait as they should, and clusters that share what they copy.

use half::bf16;
use ptx::{FaultKind, Launch, Machine, Param, Swizzle, Timing};

use super::boxes::map2;
use super::support::*;

/// A 64 x 64 x 256 product: a producer warp loads stages by TMA, a warpgroup multiplies, full and empty mbarriers between them.
/// `wait` is what the consumer does before it reads a stage, `release` what it does after.
fn pipeline(wait: &str, release: &str) -> String {
    let regs = (0..32).map(|i| format!("%f{i}")).collect::<Vec<_>>().join(", ");
    let store: String = (0..16)
        .map(|i| {
            let place = i % 2 * 8 * 256 + i / 2 * 32;
            format!("st.global.v2.b32 [%rd5+{place}], {{%f{}, %f{}}};\n", 2 * i, 2 * i + 1)
        })
        .collect();
    let steps: String = (0..4)
        .map(|i| {
            format!(
                "add.s64 %rd12, %rd10, {by};\nadd.s64 %rd13, %rd11, {by};
                 wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{regs}}}, %rd12, %rd13, %p4, 1, 1, 0, 0;
                 setp.eq.s32 %p4, %r0, %r0;\n",
                by = 2 * i
            )
        })
        .collect();
    // Shared memory: 3 stages of A (8 KiB) and B (8 KiB), then full[3] and empty[3].
    kernel(
        ".param .align 64 .b8 a[128], .param .align 64 .b8 b[128], .param .u64 out",
        &format!(
            ".extern .shared .align 1024 .b8 s[];
             mov.u32 %r0, %tid.x;
             ld.param.b64 %rd2, [out];
             mov.b32 %r1, s;
             add.s32 %r2, %r1, 49152;
             setp.ne.s32 %p1, %r0, 0;
             @%p1 bra $ready;
             mbarrier.init.shared::cta.b64 [%r2], 1;
             mbarrier.init.shared::cta.b64 [%r2+8], 1;
             mbarrier.init.shared::cta.b64 [%r2+16], 1;
             mbarrier.init.shared::cta.b64 [%r2+24], 128;
             mbarrier.init.shared::cta.b64 [%r2+32], 128;
             mbarrier.init.shared::cta.b64 [%r2+40], 128;
             fence.mbarrier_init.release.cluster;
             $ready:
             bar.sync 0;
             mov.b32 %r3, 0;
             mov.b32 %r4, 0;
             mov.b32 %r5, 0;
             setp.lt.u32 %p2, %r0, 128;
             @%p2 bra $consumer;
             setp.ne.s32 %p3, %r0, 128;
             @%p3 bra $end;
             mov.b64 %rd0, a;
             cvta.param.u64 %rd0, %rd0;
             mov.b64 %rd1, b;
             cvta.param.u64 %rd1, %rd1;
             $produce:
             mad.lo.s32 %r6, %r4, 8, %r2;
             xor.b32 %r8, %r5, 1;
             // begin inline asm
             {{ .reg .pred P1; LAB_WAIT: mbarrier.try_wait.parity.shared::cta.b64 P1, [%r6+24], %r8; @P1 bra DONE; bra LAB_WAIT; DONE: }}
             // end inline asm
             mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], 16384;
             mad.lo.s32 %r7, %r4, 16384, %r1;
             shl.b32 %r9, %r3, 6;
             cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r7], [%rd0, {{%r9, 0}}], [%r6];
             add.s32 %r7, %r7, 8192;
             cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r7], [%rd1, {{%r9, 0}}], [%r6];
             add.s32 %r3, %r3, 1;
             add.s32 %r4, %r4, 1;
             setp.eq.s32 %p5, %r4, 3;
             @%p5 mov.b32 %r4, 0;
             @%p5 xor.b32 %r5, %r5, 1;
             setp.lt.s32 %p6, %r3, 4;
             @%p6 bra $produce;
             bra.uni $end;
             $consumer:
             setp.ne.s32 %p4, %r0, %r0;
             $consume:
             mad.lo.s32 %r6, %r4, 8, %r2;
             {wait}
             mad.lo.s32 %r7, %r4, 16384, %r1;
             shr.u32 %r8, %r7, 4;
             and.b32 %r8, %r8, 0x3fff;
             cvt.u64.u32 %rd10, %r8;
             add.s64 %rd10, %rd10, 0x4000004000010000;
             add.s64 %rd11, %rd10, 512;
             wgmma.fence.sync.aligned;
             {steps}
             wgmma.commit_group.sync.aligned;
             {release}
             add.s32 %r3, %r3, 1;
             add.s32 %r4, %r4, 1;
             setp.eq.s32 %p5, %r4, 3;
             @%p5 mov.b32 %r4, 0;
             @%p5 xor.b32 %r5, %r5, 1;
             setp.lt.s32 %p6, %r3, 4;
             @%p6 bra $consume;
             shr.u32 %r10, %r0, 5;
             shl.b32 %r10, %r10, 4;
             and.b32 %r11, %r0, 31;
             shr.u32 %r11, %r11, 2;
             add.s32 %r10, %r10, %r11;
             shl.b32 %r10, %r10, 8;
             and.b32 %r11, %r0, 3;
             shl.b32 %r11, %r11, 3;
             add.s32 %r10, %r10, %r11;
             cvt.u64.u32 %rd5, %r10;
             add.s64 %rd5, %rd5, %rd2;
             {store}
             $end:"
        ),
    )
}

const RELEASE: &str = "wgmma.wait_group.sync.aligned 0;\nmbarrier.arrive.shared::cta.b64 _, [%r6+24];";
const WAIT: &str = "{ .reg .pred P1; LAB_WAIT: mbarrier.try_wait.parity.shared::cta.b64 P1, [%r6], %r5; @P1 bra DONE; bra LAB_WAIT; DONE: }";

fn run_pipeline(wait: &str, release: &str, timing: Timing) -> Result<(Vec<f32>, Vec<f32>), Box<ptx::Fault>> {
    let mut random = noise(7);
    let mut some = |n: usize| -> Vec<f32> { (0..n).map(|_| (random() * 8.0).round()).collect() };
    let (a, b) = (some(64 * 256), some(64 * 256));
    let mut machine = Machine::new();
    let mut put = |x: &[f32]| upload(&mut machine, &bytes(x, |x| bf16::from_f32(x).to_le_bytes()));
    let maps = [put(&a), put(&b)].map(|at| Param::TensorMap(map2(at, [256, 64], 512, [64, 64], Swizzle::B128)));
    let out = machine.alloc(64 * 64 * 4);
    let [a_map, b_map] = maps;
    let mut launch = Launch::new([1, 1, 1], 160).shared(49152 + 48);
    launch.timing = timing;
    machine.launch(
        &parse(&pipeline(wait, release)),
        "k",
        launch,
        &[a_map, b_map, Param::Pointer(out)],
    )?;
    let dot = |x: usize| (0..256).map(|k| a[x / 64 * 256 + k] * b[x % 64 * 256 + k]).sum();
    Ok(((0..64 * 64).map(dot).collect(), floats(&machine, out, 64 * 64)))
}

#[test]
fn a_pipeline_of_tensor_copies_feeds_wgmma() {
    for timing in [Timing::Late, Timing::Eager] {
        let (wanted, got) = run_pipeline(WAIT, RELEASE, timing).unwrap_or_else(|f| panic!("{f}"));
        assert!(wanted == got, "{timing:?}");
    }
}

#[test]
fn a_consumer_that_does_not_wait_reads_what_is_not_there_yet() {
    let fault = run_pipeline("", RELEASE, Timing::Late).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Unwritten { .. }), "{fault}");
    assert!(fault.text.starts_with("wgmma"), "{fault}");
}

#[test]
fn a_stage_that_is_given_back_before_its_wgmma_are_done_is_a_race() {
    let early = "mbarrier.arrive.shared::cta.b64 _, [%r6+24];\nwgmma.wait_group.sync.aligned 0;";
    let fault = run_pipeline(WAIT, early, Timing::Late).unwrap_err();
    assert!(
        matches!(
            fault.kind,
            FaultKind::Race {
                now: "written",
                before: "read",
                ..
            }
        ),
        "{fault}"
    );
    assert!(fault.to_string().contains("wgmma of warp"), "{fault}");
}

#[test]
fn data_that_is_there_by_luck_is_a_race() {
    // Every stage waits for the third one's load: the loads before it happen to be done by then, and nothing says so.
    let wait = WAIT.replace("[%r6]", "[%r2+16]");
    let fault = run_pipeline(&wait, RELEASE, Timing::Late).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Race { now: "read", .. }), "{fault}");
    assert!(fault.to_string().contains("a bulk load"), "{fault}");
}

#[test]
fn a_consumer_with_the_wrong_parity_is_found() {
    let fault = run_pipeline(&WAIT.replace("%r5", "1"), RELEASE, Timing::Late).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Unwritten { .. }), "{fault}");
    // Of four loads into three stages parity 0 is right for three; the consumer takes old data for the fourth, and ends before it comes.
    let fault = run_pipeline(&WAIT.replace("%r5", "0"), RELEASE, Timing::Late).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Copy(_)), "{fault}");
}

/// Block 0 of a cluster of two sends a line to both; each also writes into the other's memory and arrives there.
#[test]
fn clusters_share_copies_and_memory() {
    let text = kernel(
        ".param .u64 in, .param .u64 out",
        ".shared .align 128 .b8 s[128];
         .shared .align 8 .b8 bar[16];
         mov.u32 %r0, %cluster_ctarank;
         ld.param.b64 %rd0, [in];
         ld.param.b64 %rd1, [out];
         mov.b32 %r1, s;
         mov.b32 %r2, bar;
         mbarrier.init.shared::cta.b64 [%r2], 1;
         mbarrier.init.shared::cta.b64 [%r2+8], 1;
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 64;
         fence.mbarrier_init.release.cluster;
         barrier.cluster.arrive.release.aligned;
         barrier.cluster.wait.acquire.aligned;
         setp.ne.s32 %p1, %r0, 0;
         mov.b16 %rs1, 3;
         @!%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r1], [%rd0], 64, [%r2], %rs1;
         xor.b32 %r3, %r0, 1;
         mapa.shared::cluster.u32 %r4, %r1, %r3;
         add.s32 %r5, %r0, 100;
         st.shared::cluster.b32 [%r4+64], %r5;
         mapa.shared::cluster.u32 %r6, %r2, %r3;
         mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r6+8];
         $first:
         mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
         @!%p2 bra $first;
         $second:
         mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r2+8], 0;
         @!%p2 bra $second;
         ld.shared.b32 %r7, [%r1+60];
         ld.shared.b32 %r8, [%r1+64];
         mov.u32 %r9, %ctaid.x;
         mul.wide.u32 %rd2, %r9, 8;
         add.s64 %rd1, %rd1, %rd2;
         st.global.v2.b32 [%rd1], {%r7, %r8};",
    );
    let mut machine = Machine::new();
    let data: Vec<u32> = (0..16).collect();
    let (input, out) = (upload(&mut machine, &bytes(&data, u32::to_le_bytes)), machine.alloc(32));
    let launch = Launch::new([4, 1, 1], 1).cluster(2);
    machine
        .launch(
            &parse(&text),
            "k",
            launch,
            &[Param::Pointer(input), Param::Pointer(out)],
        )
        .unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(words(&machine, out, 8), [15, 101, 15, 100, 15, 101, 15, 100]);
}

/// cp.async in two groups: the older is there after a wait that leaves one, the newer is not; sizes below 16 fill with zeros.
#[test]
fn copies_of_a_thread_come_by_groups() {
    let body = |last: &str| {
        kernel(
            ".param .u64 in, .param .u64 out",
            &format!(
                ".shared .align 16 .b8 s[32];
                 ld.param.b64 %rd0, [in];
                 ld.param.b64 %rd1, [out];
                 mov.b32 %r1, s;
                 mov.b32 %r2, 4;
                 cp.async.cg.shared.global [%r1], [%rd0], 16;
                 cp.async.commit_group;
                 cp.async.ca.shared.global [%r1+16], [%rd0], 8, %r2;
                 cp.async.commit_group;
                 cp.async.wait_group 1;
                 ld.shared.v2.b32 {{%r3, %r4}}, [%r1+8];
                 {last}
                 ld.shared.v2.b32 {{%r5, %r6}}, [%r1+16];
                 st.global.v4.b32 [%rd1], {{%r3, %r4, %r5, %r6}};"
            ),
        )
    };
    let run = |last: &str| {
        let mut machine = Machine::new();
        let (input, out) = (
            upload(&mut machine, &bytes(&[1u32, 2, 3, 4], u32::to_le_bytes)),
            machine.alloc(16),
        );
        let params = [Param::Pointer(input), Param::Pointer(out)];
        machine.launch(&parse(&body(last)), "k", Launch::new([1, 1, 1], 1), &params)?;
        Ok::<_, Box<ptx::Fault>>(words(&machine, out, 4))
    };
    assert_eq!(run("cp.async.wait_all;").unwrap(), [3, 4, 1, 0]);
    assert!(matches!(run("").unwrap_err().kind, FaultKind::Unwritten { .. }));
}

/// Copies of 32 threads arrive on an mbarrier; another warp waits for it and reads.
#[test]
fn copies_of_threads_arrive_on_mbarriers() {
    for noinc in [".noinc", ""] {
        // Without .noinc the arrivals do not count among those that init announced.
        let count = if noinc.is_empty() { 1 } else { 33 };
        let text = kernel(
            ".param .u64 in, .param .u64 out",
            &format!(
                ".shared .align 16 .b8 s[512];
                 .shared .align 8 .b8 bar[8];
                 mov.u32 %r0, %tid.x;
                 ld.param.b64 %rd0, [in];
                 ld.param.b64 %rd1, [out];
                 mov.b32 %r1, s;
                 mov.b32 %r2, bar;
                 setp.eq.s32 %p1, %r0, 0;
                 @%p1 mbarrier.init.shared::cta.b64 [%r2], {count};
                 bar.sync 0;
                 setp.ge.s32 %p2, %r0, 32;
                 @%p2 bra $reader;
                 mul.wide.u32 %rd2, %r0, 16;
                 add.s64 %rd0, %rd0, %rd2;
                 shl.b32 %r3, %r0, 4;
                 add.s32 %r3, %r1, %r3;
                 cp.async.cg.shared.global [%r3], [%rd0], 16;
                 cp.async.mbarrier.arrive{noinc}.shared::cta.b64 [%r2];
                 @%p1 mbarrier.arrive.shared::cta.b64 _, [%r2];
                 bra $end;
                 $reader:
                 $w:
                 mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], 0;
                 @!%p3 bra $w;
                 sub.s32 %r4, %r0, 32;
                 shl.b32 %r4, %r4, 4;
                 add.s32 %r5, %r1, %r4;
                 ld.shared.v4.b32 {{%r6, %r7, %r8, %r9}}, [%r5];
                 cvt.u64.u32 %rd3, %r4;
                 add.s64 %rd1, %rd1, %rd3;
                 st.global.v4.b32 [%rd1], {{%r6, %r7, %r8, %r9}};
                 $end:"
            ),
        );
        let mut machine = Machine::new();
        let data: Vec<u32> = (0..128).collect();
        let (input, out) = (
            upload(&mut machine, &bytes(&data, u32::to_le_bytes)),
            machine.alloc(512),
        );
        let params = [input, out].map(Param::Pointer);
        machine
            .launch(&parse(&text), "k", Launch::new([1, 1, 1], 64), &params)
            .unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(words(&machine, out, 128), data, "{noinc}");
    }
}
