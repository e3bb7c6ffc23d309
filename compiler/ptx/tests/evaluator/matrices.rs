//! mma.sync with ldmatrix, and wgmma with every way its operands may lie, against plain products.
//!
//! Operands are small integers, so every sum is exact and one wrong element shows.

use half::{bf16, f16};
use ptx::{Launch, Machine, Param};

use super::support::*;

/// Small integers that no mistake of layout maps onto themselves.
fn integers(seed: u32, n: usize) -> Vec<f32> {
    let mut random = noise(seed);
    (0..n).map(|_| (random() * 8.0).round()).collect()
}

/// `c[m][n] = sum a[m][k] b[n][k]`
fn product(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let dot = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum();
    (0..m * n).map(|x| dot(x / n, x % n)).collect()
}

fn to_bf16(all: &[f32]) -> Vec<u8> {
    bytes(all, |x| bf16::from_f32(x).to_le_bytes())
}

/// A 16 x 8 x 16 product: both operands in shared memory, K-major with rows of 32 bytes; B also transposed, read with `.trans`.
#[test]
fn ldmatrix_and_mma_multiply() {
    for (ty, transposed) in [("bf16", false), ("f16", false), ("bf16", true)] {
        let (a, b) = (integers(1, 16 * 16), integers(2, 8 * 16));
        let pack = |all: &[f32]| match ty {
            "bf16" => to_bf16(all),
            _ => bytes(all, |x| f16::from_f32(x).to_le_bytes()),
        };
        let stored_b: Vec<f32> = match transposed {
            false => b.clone(),
            true => (0..128).map(|i| b[i % 8 * 16 + i / 8]).collect(),
        };
        let mut machine = Machine::new();
        let image = [pack(&a), pack(&stored_b)].concat();
        let (input, out) = (upload(&mut machine, &image), machine.alloc(16 * 8 * 4));
        // A: matrix i of four is rows 8 (i % 2), columns 8 (i / 2). B: two matrices along k.
        let b_address = match transposed {
            false => {
                "and.b32 %r11, %r0, 7;\nshl.b32 %r11, %r11, 5;\nshr.u32 %r12, %r0, 3;\nand.b32 %r12, %r12, 1;\nshl.b32 %r12, %r12, 4;\nadd.s32 %r11, %r11, %r12;"
            }
            true => "and.b32 %r11, %r0, 15;\nshl.b32 %r11, %r11, 4;",
        };
        let trans = if transposed { ".trans" } else { "" };
        let text = kernel(
            ".param .u64 in, .param .u64 out",
            &format!(
                ".shared .align 16 .b8 s[768];
                 mov.u32 %r0, %tid.x;
                 ld.param.b64 %rd0, [in];
                 ld.param.b64 %rd1, [out];
                 mov.b32 %r1, s;
                 mul.lo.s32 %r2, %r0, 24;
                 cvt.u64.u32 %rd2, %r2;
                 add.s64 %rd2, %rd2, %rd0;
                 add.s32 %r2, %r2, %r1;
                 ld.global.v2.b32 {{%r3, %r4}}, [%rd2];
                 st.shared.v2.b32 [%r2], {{%r3, %r4}};
                 ld.global.v2.b32 {{%r3, %r4}}, [%rd2+8];
                 st.shared.v2.b32 [%r2+8], {{%r3, %r4}};
                 ld.global.v2.b32 {{%r3, %r4}}, [%rd2+16];
                 st.shared.v2.b32 [%r2+16], {{%r3, %r4}};
                 bar.warp.sync -1;
                 and.b32 %r5, %r0, 15;
                 shl.b32 %r5, %r5, 5;
                 shr.u32 %r6, %r0, 4;
                 shl.b32 %r6, %r6, 4;
                 add.s32 %r5, %r5, %r6;
                 add.s32 %r5, %r5, %r1;
                 ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r5];
                 {b_address}
                 add.s32 %r11, %r11, %r1;
                 ldmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 {{%r24, %r25}}, [%r11+512];
                 mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {{%f0, %f1, %f2, %f3}}, {{%r20, %r21, %r22, %r23}}, {{%r24, %r25}}, {{0f3F800000, 0f3F800000, 0f3F800000, 0f3F800000}};
                 shr.u32 %r7, %r0, 2;
                 shl.b32 %r7, %r7, 5;
                 and.b32 %r8, %r0, 3;
                 shl.b32 %r8, %r8, 3;
                 add.s32 %r7, %r7, %r8;
                 cvt.u64.u32 %rd3, %r7;
                 add.s64 %rd3, %rd3, %rd1;
                 st.global.v2.b32 [%rd3], {{%f0, %f1}};
                 st.global.v2.b32 [%rd3+256], {{%f2, %f3}};"
            ),
        );
        let launch = Launch::new([1, 1, 1], 32);
        machine
            .launch(
                &parse(&text),
                "k",
                launch,
                &[Param::Pointer(input), Param::Pointer(out)],
            )
            .unwrap_or_else(|f| panic!("{f}"));
        let wanted: Vec<f32> = product(&a, &b, (16, 8, 16)).iter().map(|x| x + 1.0).collect();
        assert_eq!(floats(&machine, out, 128), wanted, "{ty} {transposed}");
    }
}

/// How a matrix of `rows` x 16 (or 8 of tf32) lies in shared memory, written down apart from the evaluator's own formula.
struct Tile {
    bytes: Vec<u8>,
    /// The descriptor without its start address.
    descriptor: u64,
}

/// `span` is the swizzle's width in bytes, 16 for none.
fn tile(data: &[f32], rows: usize, depth: usize, span: usize, transposed: bool, tf32: bool) -> Tile {
    let each = if tf32 { 4 } else { 2 };
    let per = 16 / each;
    let mode = match span {
        128 => 1u64,
        64 => 2,
        32 => 3,
        _ => 0,
    };
    let mut bytes = vec![0xffu8; (rows.next_multiple_of(64)) * depth.max(span / each) * each + 4096];
    let (leading, stride);
    let place: Box<dyn Fn(usize, usize) -> usize> = match (transposed, mode) {
        (false, 0) => {
            (leading, stride) = (128, 256);
            Box::new(move |r, k| r / 8 * 256 + k / per * 128 + r % 8 * 16 + k % per * each)
        }
        (false, _) => {
            (leading, stride) = (16, 8 * span);
            Box::new(move |r, k| {
                let chunk = k / per ^ (r * span / 128) % (span / 16);
                r * span + chunk * 16 + k % per * each
            })
        }
        (true, 0) => {
            (leading, stride) = (128, 256);
            Box::new(move |r, k| r / per * 256 + k / 8 * 128 + k % 8 * 16 + r % per * each)
        }
        (true, _) => {
            // Atoms of span bytes along the rows by 8 of k; the atoms of one stretch of rows lie together.
            (leading, stride) = (16 * span, 8 * span);
            Box::new(move |r, k| {
                let across = span / each;
                let (atom, within) = (r / across, r % across);
                let chunk = within / per ^ (k % 8 * span / 128) % (span / 16);
                atom * 16 * span + k / 8 * 8 * span + k % 8 * span + chunk * 16 + within % per * each
            })
        }
    };
    for r in 0..rows {
        for k in 0..depth {
            let x = data[r * depth + k];
            let value = if tf32 {
                x.to_le_bytes().to_vec()
            } else {
                bf16::from_f32(x).to_le_bytes().to_vec()
            };
            let at = place(r, k);
            bytes[at..at + each].copy_from_slice(&value);
        }
    }
    let descriptor = (leading as u64 / 16) << 16 | (stride as u64 / 16) << 32 | mode << 62;
    Tile { bytes, descriptor }
}

struct Case {
    n: usize,
    /// `None`: A from registers.
    a: Option<(usize, bool)>,
    b: (usize, bool),
    tf32: bool,
    /// Accumulates on what is there, with A negated.
    on: bool,
}

/// Runs one wgmma and returns what it should give and what it gave.
fn wgmma(case: &Case) -> (Vec<f32>, Vec<f32>) {
    let depth = if case.tf32 { 8 } else { 16 };
    let (a, b) = (integers(3, 64 * depth), integers(4, case.n * depth));
    let (a_span, a_trans) = case.a.unwrap_or((16, false));
    let at = tile(&a, 64, depth, a_span, a_trans, case.tf32);
    let bt = tile(&b, case.n, depth, case.b.0, case.b.1, case.tf32);
    let mut image = at.bytes;
    image.resize(image.len().next_multiple_of(1024), 0);
    let b_start = image.len();
    image.extend(bt.bytes);
    image.resize(image.len().next_multiple_of(512), 0);
    let mut machine = Machine::new();
    let plain: Vec<u8> = if case.tf32 {
        bytes(&a, f32::to_le_bytes)
    } else {
        to_bf16(&a)
    };
    let (input, registers) = (upload(&mut machine, &image), upload(&mut machine, &plain));
    let out = machine.alloc((64 * case.n * 4) as u64);

    let regs: Vec<String> = (0..case.n / 2).map(|i| format!("%f{i}")).collect();
    let start: String = regs.iter().map(|r| format!("mov.b32 {r}, 0f3F800000;\n")).collect();
    let (name, ty) = if case.tf32 { ("k8", "tf32") } else { ("k16", "bf16") };
    let a_operand = if case.a.is_some() {
        "%rd10"
    } else {
        "{%r20, %r21, %r22, %r23}"
    };
    let bits = match (case.tf32, case.a) {
        (true, _) => String::new(),
        (_, Some((_, t))) => format!(", {}, {}", t as u32, case.b.1 as u32),
        (_, None) => format!(", {}", case.b.1 as u32),
    };
    let store: String = (0..case.n / 4)
        .map(|i| {
            let place = (i % 2) * 8 * case.n * 4 + i / 2 * 32;
            format!("st.global.v2.b32 [%rd5+{place}], {{%f{}, %f{}}};\n", 2 * i, 2 * i + 1)
        })
        .collect();
    let row = depth * if case.tf32 { 4 } else { 2 };
    let words = image.len() / 512;
    let text = kernel(
        ".param .u64 in, .param .u64 registers, .param .u64 out",
        &format!(
            ".extern .shared .align 1024 .b8 s[];
             mov.u32 %r0, %tid.x;
             ld.param.b64 %rd0, [in];
             ld.param.b64 %rd1, [registers];
             ld.param.b64 %rd2, [out];
             mov.b32 %r1, s;
             shl.b32 %r2, %r0, 2;
             cvt.u64.u32 %rd3, %r2;
             add.s64 %rd3, %rd3, %rd0;
             add.s32 %r3, %r2, %r1;
             mov.b32 %r4, 0;
             $copy:
             ld.global.b32 %r5, [%rd3];
             st.shared.b32 [%r3], %r5;
             add.s64 %rd3, %rd3, 512;
             add.s32 %r3, %r3, 512;
             add.s32 %r4, %r4, 1;
             setp.lt.s32 %p1, %r4, {words};
             @%p1 bra $copy;
             fence.proxy.async;
             bar.sync 0;
             shr.u32 %r6, %r0, 5;
             shl.b32 %r6, %r6, 4;
             and.b32 %r7, %r0, 31;
             shr.u32 %r7, %r7, 2;
             add.s32 %r6, %r6, %r7;
             and.b32 %r8, %r0, 3;
             mul.lo.s32 %r9, %r6, {row};
             shl.b32 %r10, %r8, 2;
             add.s32 %r9, %r9, %r10;
             cvt.u64.u32 %rd4, %r9;
             add.s64 %rd4, %rd4, %rd1;
             ld.global.b32 %r20, [%rd4];
             ld.global.b32 %r21, [%rd4+{row8}];
             ld.global.b32 %r22, [%rd4+16];
             ld.global.b32 %r23, [%rd4+{row8_16}];
             shr.u32 %r11, %r1, 4;
             cvt.u64.u32 %rd9, %r11;
             add.s64 %rd10, %rd9, {a_descriptor};
             add.s64 %rd11, %rd9, {b_descriptor};
             setp.ne.b32 %p2, {on}, 0;
             {start}
             wgmma.fence.sync.aligned;
             wgmma.mma_async.sync.aligned.m64n{n}{name}.f32.{ty}.{ty} {{{regs}}}, {a_operand}, %rd11, %p2, {sign}, 1{bits};
             wgmma.commit_group.sync.aligned;
             wgmma.wait_group.sync.aligned 0;
             mul.lo.s32 %r12, %r6, {pitch};
             shl.b32 %r13, %r8, 3;
             add.s32 %r12, %r12, %r13;
             cvt.u64.u32 %rd5, %r12;
             add.s64 %rd5, %rd5, %rd2;
             {store}",
            row8 = row * 8,
            row8_16 = row * 8 + 16,
            a_descriptor = at.descriptor as i64,
            b_descriptor = (bt.descriptor + b_start as u64 / 16) as i64,
            on = case.on as u32,
            n = case.n,
            regs = regs.join(", "),
            sign = if case.on { -1 } else { 1 },
            pitch = case.n * 4,
        ),
    );
    let launch = Launch::new([1, 1, 1], 128).shared(image.len() as u32);
    let params = [input, registers, out].map(Param::Pointer);
    let stats = machine
        .launch(&parse(&text), "k", launch, &params)
        .unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(stats.warps("wgmma.mma_async"), 4);
    let sum = |x: &f32| if case.on { 1.0 - x } else { *x };
    let wanted = product(&a, &b, (64, case.n, depth)).iter().map(sum).collect();
    (wanted, floats(&machine, out, 64 * case.n))
}

fn check(case: Case) {
    let (wanted, got) = wgmma(&case);
    let Case { n, a, b, tf32, on } = case;
    assert!(wanted == got, "n {n}, a {a:?}, b {b:?}, tf32 {tf32}, on {on}");
}

#[test]
fn wgmma_of_every_width() {
    for n in (8..=256).step_by(8) {
        check(Case {
            n,
            a: Some((128, false)),
            b: (128, false),
            tf32: false,
            on: n % 16 == 0,
        });
    }
}

#[test]
fn wgmma_of_every_layout() {
    for a_span in [16, 32, 64, 128] {
        for b_span in [16, 32, 64, 128] {
            for which in 0..4 {
                check(Case {
                    n: 128,
                    a: Some((a_span, which & 1 == 1)),
                    b: (b_span, which & 2 == 2),
                    tf32: false,
                    on: false,
                });
            }
        }
    }
}

#[test]
fn wgmma_with_a_from_registers() {
    for (span, transposed) in [(128, false), (128, true), (16, true)] {
        check(Case {
            n: 64,
            a: None,
            b: (span, transposed),
            tf32: false,
            on: true,
        });
    }
}

#[test]
fn wgmma_of_tf32() {
    for a in [Some((128, false)), Some((32, false)), Some((16, false)), None] {
        check(Case {
            n: 40,
            a,
            b: (64, false),
            tf32: true,
            on: true,
        });
    }
}
