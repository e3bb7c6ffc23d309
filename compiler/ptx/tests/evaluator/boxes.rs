//! Boxes of the copy engine: every rank, swizzles, what lies outside, stores and sums.

use ptx::{Element, FaultKind, Launch, Machine, Param, Swizzle, TensorMap};

use super::support::*;

pub fn map2(address: u64, dims: [u64; 2], pitch: u64, box_dims: [u32; 2], swizzle: Swizzle) -> TensorMap {
    TensorMap {
        address,
        element: Element::BF16,
        dims: dims.to_vec(),
        strides: vec![pitch],
        box_dims: box_dims.to_vec(),
        swizzle,
    }
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
                let chunk = (w / 4) ^ ((r * span / 128) % (span / 16));
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
