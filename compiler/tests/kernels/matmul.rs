//! Matmul kernels of every target this machine runs, against the plan's interpreter.
//!
//! Elements are eighths in [-1, 1]: every product and sum is exact in f32, so results must be equal, not close.

use compiler::cpu::{Target, compile_kernels, scratch_bytes};
use half::bf16;
use ir::plan::{Access, Arg, Binary, Contraction, Expr, Kernel, Rhs, Stage, eval};
use ir::{DType, Size, Sizes};
use proptest::prelude::*;
use runtime::artefact::{PANEL, SYMBOLS};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Right {
    Packed,
    KContiguous,
    NContiguous,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    right: Right,
    dtype: DType,
    batch: i64,
    m: i64,
    k: i64,
    n: i64,
    /// n and k are run-time sizes.
    symbolic: bool,
}

/// Behind every buffer: what a kernel must neither use nor change.
const GUARD: usize = 64;

impl Case {
    fn sizes(&self) -> Sizes {
        [("B", self.batch), ("T", self.m), ("S", self.n), ("C", self.k)]
            .map(|(s, v)| (s.to_string(), v))
            .into()
    }

    /// out[b, m, n] = 2 * sum_k a[b, m, k] * w + bias[n]; rows are given by a symbol.
    fn kernel(&self) -> Kernel {
        let fixed = |symbol: &str, value: i64| {
            if self.symbolic {
                Size::sym(symbol)
            } else {
                Size::from(value)
            }
        };
        let (n, k, m) = (fixed("S", self.n), fixed("C", self.k), Size::sym("T"));
        let (zero, one) = (Size::from(0), Size::one());
        let access = |arg, strides| Access {
            arg,
            offset: Size::from(0),
            strides,
            indirect: None,
        };
        let b = match self.right {
            Right::Packed => Rhs::Packed { arg: 1 },
            Right::KContiguous => Rhs::KContiguous {
                arg: 1,
                offset: zero.clone(),
                strides: vec![&n * &k, k.clone()],
            },
            Right::NContiguous => Rhs::NContiguous {
                arg: 1,
                offset: zero.clone(),
                strides: vec![&n * &k, n.clone()],
            },
        };
        let read = |dtype| Arg { dtype, written: false };
        Kernel {
            name: "matmul".to_string(),
            args: vec![
                read(self.dtype),
                read(self.dtype),
                read(DType::F32),
                Arg {
                    dtype: DType::F32,
                    written: true,
                },
            ],
            outer: vec![Size::sym("B"), m.clone()],
            ordered: 0,
            panels: false,
            sweep_gradient: None,
            cols: n.clone(),
            sweep: None,
            contraction: Some(Contraction {
                batch: if self.right == Right::Packed { 0 } else { 1 },
                k: k.clone(),
                a: access(0, vec![&m * &k, k.clone(), one.clone()]),
                packed_a: false,
                b,
                also: None,
            }),
            exprs: vec![
                Expr::Acc,
                Expr::Float(2f32.to_bits()),
                Expr::Binary(Binary::Mul, 0, 1),
                Expr::Load(access(2, vec![zero.clone(), zero, one.clone()])),
                Expr::Binary(Binary::Add, 2, 3),
            ],
            stages: vec![Stage::Store {
                to: access(3, vec![&m * &n, n.clone(), one]),
                value: 4,
                when: None,
            }],
        }
    }

    fn rights(&self) -> usize {
        let each = (self.n * self.k) as usize;
        if self.right == Right::Packed {
            each
        } else {
            each * self.batch as usize
        }
    }
}

fn eighths(len: usize, seed: u32) -> Vec<f64> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(1664525).wrapping_add(1013904223);
        f64::from((x >> 16) % 17) / 8.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Bytes of the elements, at an address aligned to 64; NaN behind them.
fn bytes(values: &[f64], dtype: DType) -> Vec<u64> {
    let padded = values.iter().copied().chain([f64::NAN; GUARD]);
    let raw: Vec<u8> = match dtype {
        DType::BF16 => padded.flat_map(|x| bf16::from_f64(x).to_bits().to_le_bytes()).collect(),
        _ => padded.flat_map(|x| (x as f32).to_le_bytes()).collect(),
    };
    raw.chunks(8)
        .map(|c| c.iter().rev().fold(0, |acc, b| acc << 8 | u64::from(*b)))
        .collect()
}

/// `Layout::Panels`, written from its description.
fn panels(w: &[f64], n: usize, k: usize, pair: usize) -> Vec<f64> {
    let p = PANEL as usize;
    let mut out = vec![0.0; n.div_ceil(p) * p * k.div_ceil(pair) * pair];
    for i in 0..n {
        for j in 0..k {
            out[((i / p) * k.div_ceil(pair) + j / pair) * p * pair + (i % p) * pair + j % pair] = w[i * k + j];
        }
    }
    out
}

fn check(target: &Target, case: Case) {
    let kernel = case.kernel();
    let errors = ir::plan::verify::verify_kernel(&kernel);
    assert!(errors.is_empty(), "{errors:?}");
    let sizes = case.sizes();
    let out = (case.batch * case.m * case.n) as usize;
    let a = eighths((case.batch * case.m * case.k) as usize, 1);
    let b = eighths(case.rights(), 2);
    let bias = eighths(case.n as usize, 3);
    let mut plain = vec![a.clone(), b.clone(), bias.clone(), vec![0.0; out]];
    eval::run_kernel(&kernel, &sizes, &mut plain).expect("the interpreter runs it");

    let pair = if case.dtype == DType::BF16 { 2 } else { 1 };
    let b = if case.right == Right::Packed {
        panels(&b, case.n as usize, case.k as usize, pair)
    } else {
        b
    };
    let mut buffers = [
        bytes(&a, case.dtype),
        bytes(&b, case.dtype),
        bytes(&bias, DType::F32),
        bytes(&vec![0.0; out], DType::F32),
    ];
    let pointers: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
    let symbols = SYMBOLS.map(|s| sizes[s]);
    let compiled = compile_kernels(std::slice::from_ref(&kernel), target, false).expect("it compiles");
    let code = runtime::elf::Code::load(&compiled.code).expect("it loads");
    let run = code.kernel("matmul").expect("it is there");
    let tiles: i64 = kernel
        .tiles()
        .iter()
        .map(|(s, block)| (s.eval(&sizes).expect("known") + block - 1) / block)
        .product();
    // Uneven ranges, the later one first: tiles are independent.
    let cut = tiles / 3;
    for (begin, end) in [(cut, tiles), (0, cut)] {
        let mut scratch = vec![[0xffu8; 64]; scratch_bytes(&kernel) as usize / 64 + 2];
        let start = scratch.as_mut_ptr().cast::<u8>();
        let start = start.wrapping_add(start.align_offset(64));
        // SAFETY: all buffers are as large as the kernel's sizes say.
        unsafe { run(pointers.as_ptr(), symbols.as_ptr(), begin, end, start) };
    }
    let found: Vec<f32> = buffers[3]
        .iter()
        .flat_map(|w| [*w as u32, (*w >> 32) as u32])
        .map(f32::from_bits)
        .collect();
    for (i, (found, wanted)) in found.iter().zip(&plain[3]).enumerate() {
        let (row, col) = (i as i64 / case.n, i as i64 % case.n);
        assert_eq!(
            f64::from(*found),
            *wanted,
            "{} {case:?}: row {row}, column {col}",
            target.name
        );
    }
    assert!(
        found[out..out + GUARD].iter().all(|x| x.is_nan()),
        "{} {case:?}: wrote behind its output",
        target.name
    );
}

fn targets() -> Vec<Target> {
    let runs = |t: &&Target| runtime::container::missing_features(&t.required_features()).is_empty();
    Target::ALL.iter().filter(runs).cloned().collect()
}

/// (m, k, n): single elements, the edges of register tiles, panels, vectors and pairs, and several row blocks.
const SHAPES: &[(i64, i64, i64)] = &[
    (1, 1, 1),
    (1, 64, 64),
    (1, 7, 65),
    (2, 128, 63),
    (3, 16, 17),
    (6, 33, 64),
    (7, 8, 130),
    (8, 15, 1),
    (9, 129, 100),
    (65, 32, 48),
    (385, 10, 65),
    (1160, 3, 70),
];

#[test]
fn edges() {
    for target in targets() {
        for &(m, k, n) in SHAPES {
            for dtype in [DType::F32, DType::BF16] {
                for right in [Right::Packed, Right::KContiguous, Right::NContiguous] {
                    let batch = if right == Right::Packed { 1 } else { 2 };
                    check(
                        &target,
                        Case {
                            right,
                            dtype,
                            batch,
                            m,
                            k,
                            n,
                            symbolic: right != Right::Packed && n % 2 == 0,
                        },
                    );
                }
            }
        }
    }
}

/// The kernel that packs a matrix `[k, n]`, or `[n, k]` if `transposed`, before a matmul by it.
fn packing(n: i64, k: i64, transposed: bool, dtype: DType) -> Kernel {
    use ir::{Function, Module, Param, TensorType};
    let mut f = Function::new("main");
    let shape = if transposed { [n, k] } else { [k, n] };
    let a = TensorType::new(["B".into(), "T".into(), ir::Dim::from(k)], dtype);
    let a = f.param("a", a, Param::Input("a".into()));
    let b = f.param("b", TensorType::new(shape, dtype), Param::Input("b".into()));
    let out = f.matmul(a, b, transposed, DType::F32);
    f.returns("out", out);
    let module = Module { functions: vec![f] };
    let plan = passes::schedule(&module, "main", &passes::Scheduling::FUSED).expect("it is scheduled");
    let packing = plan.kernels.into_iter().find(|k| k.panels);
    packing.unwrap_or_else(|| panic!("nothing is packed for {n} x {k}, transposed {transposed}"))
}

#[test]
fn panels_that_a_kernel_fills() {
    for target in targets() {
        for (n, k) in [
            (1, 1),
            (1, 9),
            (2, 1),
            (7, 1),
            (64, 1),
            (100, 1),
            (17, 2),
            (65, 3),
            (5, 40),
            (130, 33),
        ] {
            for (dtype, transposed) in [DType::F32, DType::BF16]
                .into_iter()
                .flat_map(|d| [(d, false), (d, true)])
            {
                let kernel = packing(n, k, transposed, dtype);
                let (n, k, pair) = (n as usize, k as usize, if dtype == DType::BF16 { 2 } else { 1 });
                let w = eighths(n * k, 5);
                let given: Vec<f64> = if transposed {
                    w.clone()
                } else {
                    (0..k * n).map(|i| w[i % n * k + i / n]).collect()
                };
                let wanted = panels(&w, n, k, pair);
                let to = kernel.args.iter().position(|a| a.written).expect("it writes");
                let mut buffers = [bytes(&given, dtype), bytes(&given, dtype)];
                buffers[to] = bytes(&vec![0.0; wanted.len()], dtype);
                let pointers: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
                let symbols = SYMBOLS.map(|_| 1);
                let compiled = compile_kernels(std::slice::from_ref(&kernel), &target, false).expect("it compiles");
                let code = runtime::elf::Code::load(&compiled.code).expect("it loads");
                let run = code.kernel(&kernel.name).expect("it is there");
                let tiles = kernel
                    .tiles()
                    .iter()
                    .map(|(s, block)| (s.coef + block - 1) / block)
                    .product();
                let mut scratch = vec![[0u8; 64]; scratch_bytes(&kernel) as usize / 64 + 2];
                let scratch = scratch.as_mut_ptr().cast::<u8>();
                // SAFETY: the panels have the room that the plan gives them, and the matrix all its elements.
                unsafe {
                    run(
                        pointers.as_ptr(),
                        symbols.as_ptr(),
                        0,
                        tiles,
                        scratch.wrapping_add(scratch.align_offset(64)),
                    )
                };
                let found: Vec<f64> = match dtype {
                    DType::BF16 => {
                        let words = buffers[to]
                            .iter()
                            .flat_map(|w| (0..4).map(move |i| (w >> (16 * i)) as u16));
                        words.map(|b| bf16::from_bits(b).to_f64()).collect()
                    }
                    _ => {
                        let words = buffers[to].iter().flat_map(|w| [*w as u32, (*w >> 32) as u32]);
                        words.map(|b| f64::from(f32::from_bits(b))).collect()
                    }
                };
                for (at, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                    // Columns behind the last n hold anything.
                    let panel = PANEL as usize * k.div_ceil(pair) * pair;
                    let column = at / panel * PANEL as usize + at / pair % PANEL as usize;
                    assert!(
                        column >= n || found == wanted,
                        "{} {n} x {k} {dtype:?}, transposed {transposed}: {found} at {at}, wanted {wanted}",
                        target.name
                    );
                }
                let guard = &found[wanted.len()..wanted.len() + GUARD];
                assert!(guard.iter().all(|x| x.is_nan()), "wrote behind the panels");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_shapes(
        right in prop::sample::select(vec![Right::Packed, Right::KContiguous, Right::NContiguous]),
        dtype in prop::sample::select(vec![DType::F32, DType::BF16]),
        (batch, m, k, n) in (1i64..4, 1i64..40, 1i64..150, 1i64..200),
        symbolic in any::<bool>(),
    ) {
        for target in targets() {
            check(&target, Case { right, dtype, batch, m, k, n, symbolic: symbolic && right != Right::Packed });
        }
    }
}
