//! mbarriers, tensor copies, bulk lines and cp.async: pipelines that wait as they should, and what comes of boxes at edges.

use half::bf16;
use ptx::{Element, FaultKind, Launch, Machine, Param, Swizzle, TensorMap, Timing};

use super::support::*;

/// A 64 x 64 x 256 product: a producer warp loads stages by TMA, a warpgroup multiplies, full and empty mbarriers between them.
/// `wait` is what the consumer does before it reads a stage.
fn pipeline(wait: &str) -> String {
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
             wgmma.wait_group.sync.aligned 0;
             mbarrier.arrive.shared::cta.b64 _, [%r6+24];
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

const WAIT: &str = "{ .reg .pred P1; LAB_WAIT: mbarrier.try_wait.parity.shared::cta.b64 P1, [%r6], %r5; @P1 bra DONE; bra LAB_WAIT; DONE: }";

fn map2(address: u64, dims: [u64; 2], pitch: u64, box_dims: [u32; 2], swizzle: Swizzle) -> TensorMap {
    TensorMap {
        address,
        element: Element::BF16,
        dims: dims.to_vec(),
        strides: vec![pitch],
        box_dims: box_dims.to_vec(),
        swizzle,
    }
}

fn run_pipeline(wait: &str, timing: Timing) -> Result<(Vec<f32>, Vec<f32>), Box<ptx::Fault>> {
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
        &parse(&pipeline(wait)),
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
        let (wanted, got) = run_pipeline(WAIT, timing).unwrap_or_else(|f| panic!("{f}"));
        assert!(wanted == got, "{timing:?}");
    }
}

#[test]
fn a_consumer_that_does_not_wait_reads_what_is_not_there_yet() {
    let fault = run_pipeline("", Timing::Late).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Unwritten { .. }), "{fault}");
    assert!(fault.text.starts_with("wgmma"), "{fault}");
}

#[test]
fn a_consumer_with_the_wrong_parity_is_found() {
    let fault = run_pipeline(&WAIT.replace("%r5", "1"), Timing::Late).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Unwritten { .. }), "{fault}");
    // Of four loads into three stages parity 0 is right for three; the consumer takes old data for the fourth, and ends before it comes.
    let fault = run_pipeline(&WAIT.replace("%r5", "0"), Timing::Late).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Copy(_)), "{fault}");
}

/// Loads a box by TMA and returns the shared memory it fills, word by word.
fn run_box(machine: &mut Machine, map: TensorMap, at: &[i32], words: usize) -> Vec<u32> {
    let rank = at.len();
    let coordinates: Vec<String> = at.iter().map(i32::to_string).collect();
    let text = kernel(
        ".param .align 64 .b8 map[128], .param .u64 out",
        &format!(
            ".shared .align 8 .b8 bar[8];
             .extern .shared .align 1024 .b8 s[];
             ld.param.b64 %rd2, [out];
             mov.b32 %r1, s;
             mov.b32 %r2, bar;
             mov.b64 %rd0, map;
             cvta.param.u64 %rd0, %rd0;
             mbarrier.init.shared::cta.b64 [%r2], 1;
             mbarrier.arrive.expect_tx.shared::cta.b64 %rd9, [%r2], {bytes};
             cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0, {{{coordinates}}}], [%r2];
             $wait:
             mbarrier.test_wait.shared::cta.b64 %p1, [%r2], %rd9;
             @!%p1 bra $wait;
             mov.b32 %r3, 0;
             $copy:
             ld.shared.b32 %r4, [%r1];
             st.global.b32 [%rd2], %r4;
             add.s32 %r1, %r1, 4;
             add.s64 %rd2, %rd2, 4;
             add.s32 %r3, %r3, 1;
             setp.lt.s32 %p2, %r3, {words};
             @%p2 bra $copy;",
            bytes = map.box_bytes(),
            coordinates = coordinates.join(", "),
        ),
    );
    let out = machine.alloc(4 * words as u64);
    let launch = Launch::new([1, 1, 1], 1).shared(4 * words as u32);
    machine
        .launch(
            &parse(&text),
            "k",
            launch,
            &[Param::TensorMap(map), Param::Pointer(out)],
        )
        .unwrap_or_else(|f| panic!("{f}"));
    super::support::words(machine, out, words)
}

#[test]
fn boxes_of_every_rank_and_zeros_outside() {
    for rank in 1..=5usize {
        let mut machine = Machine::new();
        // Extents 12, 3, 4, 3, 3 of u32: the inner axis has 48 bytes.
        let dims: Vec<u64> = [12, 3, 4, 3, 3][..rank].to_vec();
        let total: u64 = dims.iter().product();
        let data: Vec<u32> = (1..=total as u32).collect();
        let address = upload(&mut machine, &bytes(&data, u32::to_le_bytes));
        let strides: Vec<u64> = (1..rank).map(|i| 4 * dims[..i].iter().product::<u64>()).collect();
        let box_dims: Vec<u32> = [8, 2, 3, 2, 2][..rank].to_vec();
        let map = TensorMap {
            address,
            element: Element::U32,
            dims: dims.clone(),
            strides,
            box_dims: box_dims.clone(),
            swizzle: Swizzle::None,
        };
        // Begins before the tensor on one axis, and ends behind it on others.
        let at: Vec<i32> = [-2, 2, 2, -1, 1][..rank].to_vec();
        let n = box_dims.iter().product::<u32>() as usize;
        let got = run_box(&mut machine, map, &at, n);
        for (i, got) in got.iter().enumerate() {
            let (mut rest, mut index, mut scale, mut inside) = (i, 0, 1, true);
            for axis in 0..rank {
                let x = (rest % box_dims[axis] as usize) as i64 + at[axis] as i64;
                rest /= box_dims[axis] as usize;
                inside &= x >= 0 && x < dims[axis] as i64;
                index += x * scale;
                scale *= dims[axis] as i64;
            }
            let wanted = if inside { data[index as usize] } else { 0 };
            assert_eq!(*got, wanted, "rank {rank}, element {i}");
        }
    }
}

#[test]
fn swizzled_boxes_lie_as_the_pattern_says() {
    for (swizzle, span) in [(Swizzle::B32, 32usize), (Swizzle::B64, 64), (Swizzle::B128, 128)] {
        let mut machine = Machine::new();
        let rows = 16usize;
        let data: Vec<u32> = (0..(rows * span / 4) as u32).collect();
        let map = TensorMap {
            address: upload(&mut machine, &bytes(&data, u32::to_le_bytes)),
            element: Element::F32,
            dims: vec![span as u64 / 4, rows as u64],
            strides: vec![span as u64],
            box_dims: vec![span as u32 / 4, rows as u32],
            swizzle,
        };
        let got = run_box(&mut machine, map, &[0, 0], data.len());
        for r in 0..rows {
            for w in 0..span / 4 {
                let chunk = (w / 4) ^ (r * span / 128) % (span / 16);
                assert_eq!(
                    got[r * span / 4 + chunk * 4 + w % 4],
                    data[r * span / 4 + w],
                    "{swizzle:?} row {r} word {w}"
                );
            }
        }
    }
}

#[test]
fn maps_that_the_driver_would_refuse_are_refused() {
    let good = map2(0x1000, [64, 64], 128, [64, 64], Swizzle::B128);
    good.check().unwrap();
    let bad = [
        map2(0x1008, [64, 64], 128, [64, 64], Swizzle::B128),
        map2(0x1000, [64, 64], 120, [64, 64], Swizzle::B128),
        map2(0x1000, [64, 512], 128, [64, 512], Swizzle::B128),
        map2(0x1000, [256, 64], 512, [128, 64], Swizzle::B128),
        map2(0x1000, [64, 64], 128, [4, 64], Swizzle::None),
    ];
    for map in bad {
        assert!(map.check().is_err(), "{map:?}");
    }
    let module = parse(&kernel(".param .align 64 .b8 map[128]", ""));
    let map = Param::TensorMap(map2(0x1008, [64, 64], 128, [64, 64], Swizzle::B128));
    let fault = Machine::new()
        .launch(&module, "k", Launch::new([1, 1, 1], 32), &[map])
        .unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Launch(_)), "{fault}");
}

/// A tile made by threads is stored by TMA, clipped at the tensor's edge, then added once more.
#[test]
fn tensor_stores_clip_and_add() {
    let text = kernel(
        ".param .align 64 .b8 map[128]",
        ".shared .align 128 .b8 s[128];
         mov.u32 %r0, %tid.x;
         mov.b32 %r1, s;
         shl.b32 %r2, %r0, 2;
         add.s32 %r1, %r1, %r2;
         cvt.rn.f32.u32 %f0, %r0;
         st.shared.b32 [%r1], %f0;
         fence.proxy.async.shared::cta;
         bar.sync 0;
         mov.b64 %rd0, map;
         cvta.param.u64 %rd0, %rd0;
         mov.b32 %r1, s;
         setp.ne.s32 %p1, %r0, 0;
         @%p1 bra $end;
         cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd0, {4, 2}], [%r1];
         cp.async.bulk.commit_group;
         cp.async.bulk.wait_group 0;
         cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%rd0, {4, 2}], [%r1];
         cp.async.bulk.commit_group;
         cp.async.bulk.wait_group.read 0;
         $end:",
    );
    let mut machine = Machine::new();
    let address = machine.alloc(8 * 4 * 4);
    let map = TensorMap {
        address,
        element: Element::F32,
        dims: vec![8, 4],
        strides: vec![32],
        box_dims: vec![8, 4],
        swizzle: Swizzle::None,
    };
    let stats = machine
        .launch(&parse(&text), "k", Launch::new([1, 1, 1], 32), &[Param::TensorMap(map)])
        .unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(stats.threads("cp.reduce"), 1);
    let got = floats(&machine, address, 32);
    for (i, x) in got.iter().enumerate() {
        let (column, row) = (i % 8, i / 8);
        let wanted = if column >= 4 && row >= 2 {
            2 * ((row - 2) * 8 + column - 4)
        } else {
            0
        };
        assert_eq!(*x, wanted as f32, "element {i}");
    }
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
