//! One thread's instructions.

use ptx::{Launch, Machine, Param};

use super::support::*;

/// What LLVM makes of a kernel with a call, a table of targets, its own memory, constants, atomics and divisions.
#[test]
fn a_kernel_from_llvm_computes_what_its_source_says() {
    let module = parse(include_str!("../fixtures/scalar.ptx"));
    module.check().unwrap();
    let (n, s, m) = (32u32, 0.75f32, 1u64 << 40 | 12345);
    let mut random = noise(1);
    let q: Vec<f32> = (0..4 * 64).map(|_| random()).collect();
    for threads in [32, 64] {
        let mut machine = Machine::new();
        let p = machine.alloc(4096);
        let q_at = upload(&mut machine, &bytes(&q, f32::to_le_bytes));
        let params = [
            Param::Pointer(p),
            Param::Pointer(q_at),
            Param::U32(n),
            Param::F32(s),
            Param::U64(m),
        ];
        let launch = Launch::new([1, 1, 1], threads).shared(64);
        let result = machine.launch(&module, "k", launch, &params);
        // Lane 0 divides by zero in the source; PTX defines no result, and no fault either.
        let stats = result.unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(stats.warps("shfl"), 1);
        assert_eq!(stats.threads("call"), 32);
        let counter = machine.variable(&module, "ctr").unwrap();
        assert_eq!(words(&machine, counter, 1), [32]);
        // Rows from 16 on are not overwritten by the end of the kernel.
        let got = machine.read(p + 2 * 8, 2 * 24).unwrap();
        for t in 8..32usize {
            let from = t ^ 16;
            let x = (q[4 * from] * from as f32 + q[4 * from + 1]).max(s).sqrt() / s;
            let bits = u16::from_le_bytes([got[2 * (t - 8)], got[2 * (t - 8) + 1]]);
            assert_eq!(bits, half::bf16::from_f32(x).to_bits(), "thread {t}");
        }
    }
}

fn one(body: &str) -> u32 {
    run(&simple(&format!("{body}\nst.global.b32 [%rd0], %r1;")), 1, 1)[0]
}

#[test]
fn integer_instructions() {
    let cases: &[(&str, u32)] = &[
        ("add.s32 %r1, 7, -9;", -2i32 as u32),
        ("mov.b32 %r2, -5;\nshr.s32 %r1, %r2, 1;", -3i32 as u32),
        ("mov.b32 %r2, -5;\nshr.u32 %r1, %r2, 28;", 15),
        ("mov.b32 %r2, -5;\nshr.s32 %r1, %r2, 40;", u32::MAX),
        ("mov.b32 %r2, 1;\nshl.b32 %r1, %r2, 32;", 0),
        ("mul.hi.u32 %r1, -1, -1;", 0xffff_fffe),
        ("mul.hi.s32 %r1, -1, -1;", 0),
        (
            "mul.wide.s32 %rd1, -3, 5;\nshr.s64 %rd1, %rd1, 1;\ncvt.u32.u64 %r1, %rd1;",
            -8i32 as u32,
        ),
        ("mad.lo.s32 %r1, 3, 4, 5;", 17),
        ("div.s32 %r1, -7, 2;", -3i32 as u32),
        ("rem.s32 %r1, -7, 2;", -1i32 as u32),
        ("div.u32 %r1, -7, 2;", 0x7fff_fffc),
        ("bfe.u32 %r1, 0x12345678, 8, 8;", 0x56),
        ("bfe.s32 %r1, 0x12345678, 3, 4;", -1i32 as u32),
        ("bfi.b32 %r1, 0xff, 0x12345678, 8, 4;", 0x1234_5f78),
        ("prmt.b32 %r1, 0x33221100, 0x77665544, 0x7531;", 0x7755_3311),
        ("prmt.b32 %r1, 0x80, 0, 0x0008;", 0x8080_80ff),
        ("lop3.b32 %r1, 0xf0, 0xcc, 0xaa, 0x96;", 0xf0 ^ 0xcc ^ 0xaa),
        ("popc.b32 %r1, 0xf0f0;", 8),
        ("clz.b32 %r1, 0x0000ffff;", 16),
        ("brev.b32 %r1, 1;", 0x8000_0000),
        ("shf.l.wrap.b32 %r1, 0x80000000, 1, 1;", 3),
        ("shf.r.wrap.b32 %r1, 0x80000000, 1, 31;", 3),
        ("min.s32 %r1, -1, 1;", u32::MAX),
        ("min.u32 %r1, -1, 1;", 1),
        ("min.relu.s32 %r1, -16, 9;", 0),
        ("min.relu.s32 %r1, 16, 9;", 9),
        ("max.relu.s32 %r1, -16, -3;", 0),
        ("max.relu.s32 %r1, -16, 3;", 3),
        ("add.cc.u32 %r2, -1, 1;\naddc.u32 %r1, 5, 6;", 12),
        ("sub.cc.u32 %r2, 0, 1;\nsubc.u32 %r1, 5, 1;", 3),
        (
            "mov.b64 %rd1, {7, 9};\nmov.b64 {%r2, %r3}, %rd1;\nsub.s32 %r1, %r3, %r2;",
            2,
        ),
        ("cvt.s32.s8 %r1, 0x80;", -128i32 as u32),
        ("cvt.u32.u8 %r1, 0x180;", 0x80),
        (
            "setp.lt.s32 %p1, -1, 1;\nsetp.lo.and.u32 %p2|%p3, 2, 1, %p1;\nselp.b32 %r2, 10, 20, %p2;\nselp.b32 %r3, 1, 2, %p3;\nadd.s32 %r1, %r2, %r3;",
            21,
        ),
        (
            "setp.eq.s32 %p1, 1, 1;\nmov.b32 %r1, 1;\n@!%p1 mov.b32 %r1, 2;\n@%p1 add.s32 %r1, %r1, 5;",
            6,
        ),
    ];
    for (body, wanted) in cases {
        assert_eq!(one(body), *wanted, "{body}");
    }
}

#[test]
fn float_instructions() {
    let near = |x: f32| x.to_bits();
    let cases: &[(&str, u32)] = &[
        ("add.rn.f32 %r1, 0f3F800000, 0f40000000;", near(3.0)),
        ("fma.rn.f32 %r1, 0f40000000, 0f40400000, 0fBF800000;", near(5.0)),
        ("max.f32 %r1, 0f7FC00000, 0fBF800000;", near(-1.0)),
        ("max.NaN.f32 %r1, 0f7FC00000, 0fBF800000;", 0x7fff_ffff),
        ("min.f32 %r1, 0f00000000, 0f80000000;", 0x8000_0000),
        ("mul.ftz.f32 %r1, 0f00000001, 0f4F000000;", 0),
        (
            "mul.f32 %r1, 0f00000001, 0f4F000000;",
            near(f32::from_bits(1) * 2f32.powi(31)),
        ),
        ("add.sat.f32 %r1, 0f3F800000, 0f40000000;", near(1.0)),
        ("ex2.approx.ftz.f32 %r1, 0f40400000;", near(8.0)),
        ("lg2.approx.f32 %r1, 0f41000000;", near(3.0)),
        ("rsqrt.approx.f32 %r1, 0f40800000;", near(0.5)),
        ("rcp.approx.ftz.f32 %r1, 0f40800000;", near(0.25)),
        ("sqrt.rn.f32 %r1, 0f41100000;", near(3.0)),
        ("div.full.f32 %r1, 0f3F800000, 0f41000000;", near(0.125)),
        ("copysign.f32 %r1, 0fBF800000, 0f40000000;", near(-2.0)),
        ("cvt.rn.f32.s32 %r1, -3;", near(-3.0)),
        ("cvt.rzi.s32.f32 %r1, 0fC0200000;", -2i32 as u32),
        ("cvt.rni.f32.f32 %r1, 0f40200000;", near(2.0)),
        ("cvt.rpi.f32.f32 %r1, 0f40200000;", near(3.0)),
        ("cvt.rn.bf16x2.f32 %r1, 0f3F800000, 0f40000000;", 0x3f80_4000),
        ("cvt.rn.f16x2.f32 %r1, 0f3F800000, 0f40000000;", 0x3c00_4000),
        ("cvt.rn.bf16.f32 %rs1, 0f3F808000;\ncvt.u32.u16 %r1, %rs1;", 0x3f80),
        ("mov.b16 %rs1, 0x3F80;\ncvt.f32.bf16 %r1, %rs1;", near(1.0)),
        ("fma.rn.bf16x2 %r1, 0x3f804000, 0x40004000, 0x3f803f80;", 0x4040_40a0),
        ("add.rn.f16x2 %r1, 0x3c004000, 0x3c003c00;", 0x4000_4200),
        ("neg.bf16x2 %r1, 0x3f80bf80;", 0xbf80_3f80),
        (
            "mov.b64 %rd1, {0f3F800000, 0f40000000};\nadd.rn.f32x2 %rd1, %rd1, %rd1;\nmov.b64 {%r2, %r1}, %rd1;",
            near(4.0),
        ),
        (
            "setp.ltu.f32 %p1, 0f7FC00000, 0f3F800000;\nsetp.lt.f32 %p2, 0f7FC00000, 0f3F800000;\nselp.b32 %r1, 1, 0, %p1;\n@%p2 mov.b32 %r1, 9;",
            1,
        ),
        (
            "cvt.f64.f32 %rd1, 0f3F800000;\nadd.rn.f64 %rd1, %rd1, 0d3FE0000000000000;\ncvt.rn.f32.f64 %r1, %rd1;",
            near(1.5),
        ),
        ("cvt.rna.tf32.f32 %r1, 0f3F801000;", 0x3f80_2000),
    ];
    for (body, wanted) in cases {
        assert_eq!(one(body), *wanted, "{body}: {:x}", one(body));
    }
}

#[test]
fn memory_by_vectors_bytes_and_generic_addresses() {
    let module = simple(
        ".shared .align 16 .b8 s[64];
         .local .align 8 .b8 l[16];
         mov.b32 %r1, s;
         st.shared.v4.b32 [%r1+16], {1, 2, 3, -4};
         ld.shared.s8 %r2, [%r1+28];
         st.global.b32 [%rd0], %r2;
         ld.shared.u16 %r2, [%r1+28];
         st.global.b32 [%rd0+4], %r2;
         cvt.u64.u32 %rd1, %r1;
         cvta.shared.u64 %rd2, %rd1;
         ld.v2.b32 {%r3, %r4}, [%rd2+16];
         st.global.v2.b32 [%rd0+8], {%r3, %r4};
         mov.b64 %rd3, l;
         cvta.local.u64 %rd4, %rd3;
         st.b64 [%rd4+8], 77;
         ld.local.b64 %rd5, [%rd3+8];
         st.global.b64 [%rd0+16], %rd5;",
    );
    assert_eq!(run(&module, 1, 6), [-4i32 as u32, 0xfffc, 1, 2, 77, 0]);
}

#[test]
fn atomics_of_a_block_add_up() {
    let module = simple(
        "atom.global.add.u32 %r1, [%rd0], 1;
         cvt.rn.f32.u32 %r2, %r0;
         red.global.add.f32 [%rd0+4], %r2;
         atom.global.max.s32 %r3, [%rd0+8], %r0;
         atom.global.add.noftz.bf16x2 %r4, [%rd0+12], 0x3f804000;
         atom.global.cas.b32 %r5, [%rd0+16], 0, %r1;
         red.global.inc.u32 [%rd0+20], 9;",
    );
    let out = run(&module, 64, 6);
    assert_eq!(out[..3], [64, 2016f32.to_bits(), 63]);
    assert_eq!(out[3], 0x4280_4300, "64 and 128 in bf16");
    // The first zero is replaced by a zero, that one by a one, which stays.
    assert_eq!(out[4..], [1, 4]);
}
