//! Sweep kernels of every target this machine runs, against the plan's interpreter.

use compiler::cpu::{Target, compile_kernels, scratch_bytes};
use half::bf16;
use ir::plan::{Access, Arg, Binary, Expr, Kernel, Reduction, Rows, Segment, Stage, Sweep, Unary, eval};
use ir::{DType, Size, Sizes};
use proptest::prelude::*;
use runtime::artefact::SYMBOLS;

/// near, far, the segment it continues, whether it reads the second keys and values.
type Range = (i64, Option<i64>, Option<usize>, bool);

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    batch: i64,
    groups: i64,
    /// None: one token, at `start`.
    tokens: Option<i64>,
    keys: i64,
    depth: i64,
    cols: i64,
    start: i64,
    ranges: Vec<Range>,
}

/// Behind every buffer: what a kernel must neither use nor change.
const GUARD: usize = 64;

impl Case {
    fn rows(&self) -> i64 {
        self.tokens.unwrap_or(1)
    }

    fn sizes(&self) -> Sizes {
        [("B", self.batch), ("T", self.rows()), ("S", self.keys), ("C", 1)]
            .map(|(s, v)| (s.to_string(), v))
            .into()
    }

    /// args: q, k, v, k2, v2, w, start, out. g = sigmoid(sum over d of q * w); out = g * last + (1 - g) * first.
    fn kernel(&self) -> Kernel {
        let (t, s) = (Size::sym("T"), Size::sym("S"));
        let n = Size::from;
        let mut outer = vec![Size::sym("B"), n(self.groups)];
        if self.tokens.is_some() {
            outer.push(t.clone());
        }
        // Rows by (batch, group, token); with one token the last stride is left out.
        let row = |width: i64, last: Size| {
            let rows = if self.tokens.is_some() { t.clone() } else { n(1) };
            let mut strides = vec![&n(self.groups * width) * &rows, &n(width) * &rows];
            if self.tokens.is_some() {
                strides.push(n(width));
            }
            strides.push(last);
            strides
        };
        let access = |arg, strides| Access {
            arg,
            offset: n(0),
            strides,
            indirect: None,
        };
        let rank = outer.len();
        let mut by_batch = vec![n(0); rank + 1];
        by_batch[0] = n(1);
        let mut by_column = vec![n(0); rank + 1];
        by_column[rank] = n(1);
        // Keys and values lie side by side in rows of depth + cols + 3.
        let pitch = self.depth + self.cols + 3;
        let matrix = |arg| Rows {
            arg,
            offset: n(0),
            strides: vec![&n(pitch) * &s, n(pitch)],
        };
        let last = self.ranges.len() - 1;
        let read = |dtype| Arg { dtype, written: false };
        let q = |width| access(0, row(self.depth, width));
        let mut exprs = vec![
            Expr::Load(access(6, by_batch)),
            Expr::Load(q(n(1))),
            Expr::Load(access(5, by_column)),
            Expr::Binary(Binary::Mul, 1, 2),
            Expr::Reduced(0),
            Expr::Unary(Unary::Sigmoid, 4),
            Expr::Swept(last),
            Expr::Binary(Binary::Mul, 5, 6),
            Expr::Float(1f32.to_bits()),
            Expr::Binary(Binary::Sub, 8, 5),
            Expr::Swept(0),
            Expr::Binary(Binary::Mul, 9, 10),
            Expr::Binary(Binary::Add, 7, 11),
        ];
        if self.depth < self.cols {
            // The gate's row would be shorter than the kernel's: it is w's alone.
            exprs[3] = Expr::Binary(Binary::Mul, 2, 2);
        }
        Kernel {
            name: "sweep".to_string(),
            args: vec![
                read(self.dtype),
                read(self.dtype),
                read(self.dtype),
                read(self.dtype),
                read(self.dtype),
                read(DType::F32),
                read(DType::I32),
                Arg {
                    dtype: DType::F32,
                    written: true,
                },
            ],
            outer,
            ordered: 0,
            panels: false,
            sweep_gradient: None,
            cols: n(self.cols),
            contraction: None,
            sweep: Some(Sweep {
                batch: 1,
                q: q(n(1)),
                depth: self.depth,
                tokens: self.tokens.is_some(),
                start: Some(0),
                segments: self
                    .ranges
                    .iter()
                    .map(|(near, far, after, second)| Segment {
                        k: matrix(if *second { 3 } else { 1 }),
                        v: matrix(if *second { 4 } else { 2 }),
                        keys: s.clone(),
                        scale: (0.7 / (self.depth as f32).sqrt()).to_bits(),
                        near: *near,
                        far: *far,
                        after: *after,
                    })
                    .collect(),
            }),
            exprs,
            stages: vec![
                Stage::Reduce {
                    op: Reduction::Sum,
                    value: 3,
                },
                Stage::Store {
                    to: access(7, row(self.cols, n(1))),
                    value: 12,
                    when: None,
                },
            ],
        }
    }
}

fn random(len: usize, seed: u32, dtype: DType) -> Vec<f64> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(1664525).wrapping_add(1013904223);
        eval::round(f64::from(x >> 8) / f64::from(1 << 22) - 2.0, dtype)
    };
    (0..len).map(|_| next()).collect()
}

fn bytes(values: &[f64], dtype: DType) -> Vec<u64> {
    let padded = values.iter().copied().chain([f64::NAN; GUARD]);
    let raw: Vec<u8> = match dtype {
        DType::BF16 => padded.flat_map(|x| bf16::from_f64(x).to_bits().to_le_bytes()).collect(),
        DType::I32 => padded.flat_map(|x| (x as i32).to_le_bytes()).collect(),
        _ => padded.flat_map(|x| (x as f32).to_le_bytes()).collect(),
    };
    raw.chunks(8)
        .map(|c| c.iter().rev().fold(0, |acc, b| acc << 8 | u64::from(*b)))
        .collect()
}

fn check(target: &Target, case: &Case) -> Result<(), String> {
    check_sizes(target, case, &[case.tokens])
}

/// One compilation, many token counts; there are as many keys as tokens if tokens change.
fn check_sizes(target: &Target, case: &Case, tokens: &[Option<i64>]) -> Result<(), String> {
    let kernel = case.kernel();
    let compiled = compile_kernels(std::slice::from_ref(&kernel), target, false).map_err(|e| e.to_string())?;
    let code = runtime::elf::Code::load(&compiled.code).map_err(|e| e.to_string())?;
    let one = |t: &Option<i64>| {
        let keys = if tokens.len() > 1 {
            t.unwrap_or(case.keys)
        } else {
            case.keys
        };
        let case = Case {
            tokens: *t,
            keys,
            ..case.clone()
        };
        check_compiled(target, &case, &code)
    };
    tokens.iter().try_for_each(one)
}

fn check_compiled(target: &Target, case: &Case, code: &runtime::elf::Code) -> Result<(), String> {
    let kernel = case.kernel();
    let errors = ir::plan::verify::verify_kernel(&kernel);
    assert!(errors.is_empty(), "{errors:?}");
    let sizes = case.sizes();
    let rows = (case.batch * case.groups * case.rows()) as usize;
    let matrix = (case.batch * case.keys * (case.depth + case.cols + 3)) as usize;
    let types: Vec<DType> = kernel.args.iter().map(|a| a.dtype).collect();
    let wide = case.depth.max(case.cols) as usize;
    let mut plain: Vec<Vec<f64>> = vec![
        // The gate reads as many of a row's elements as there are columns.
        random(rows * case.depth as usize + wide, 1, case.dtype),
        random(matrix, 2, case.dtype),
        random(matrix, 3, case.dtype),
        random(matrix, 4, case.dtype),
        random(matrix, 5, case.dtype),
        random(wide, 6, DType::F32),
        vec![case.start as f64; case.batch as usize],
        vec![0.0; rows * case.cols as usize],
    ];
    let mut buffers: Vec<Vec<u64>> = plain.iter().zip(&types).map(|(v, t)| bytes(v, *t)).collect();
    eval::run_kernel(&kernel, &sizes, &mut plain).map_err(|e| e.to_string())?;
    let pointers: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
    let symbols = SYMBOLS.map(|s| sizes[s]);
    let run = code.kernel("sweep").ok_or("no kernel")?;
    let tiles: i64 = kernel
        .tiles()
        .iter()
        .map(|(s, block)| (s.eval(&sizes).expect("known") + block - 1) / block)
        .product();
    let cut = tiles / 3;
    for (begin, end) in [(cut, tiles), (0, cut)] {
        let mut scratch = vec![[0xffu8; 64]; scratch_bytes(&kernel) as usize / 64 + 3];
        let start = scratch.as_mut_ptr().cast::<u8>();
        let start = start.wrapping_add(start.align_offset(64));
        let used = scratch_bytes(&kernel) as usize;
        // SAFETY: all buffers are as large as the kernel's sizes say.
        unsafe { run(pointers.as_ptr(), symbols.as_ptr(), begin, end, start) };
        let behind = unsafe { std::slice::from_raw_parts(start.add(used), 64) };
        if behind.iter().any(|b| *b != 0xff) {
            return Err(format!("{} {case:?}: wrote behind its scratch", target.name));
        }
    }
    let found: Vec<f32> = buffers[7]
        .iter()
        .flat_map(|w| [*w as u32, (*w >> 32) as u32])
        .map(f32::from_bits)
        .collect();
    let wanted = &plain[7];
    let tolerance = if case.dtype == DType::BF16 { 2e-2 } else { 2e-5 };
    for (i, (x, y)) in found.iter().zip(wanted).enumerate() {
        let off = (f64::from(*x) - y).abs();
        if off.is_nan() || off > tolerance {
            return Err(format!("{} {case:?}: element {i} is {x}, wants {y}", target.name));
        }
    }
    if !found[wanted.len()..wanted.len() + GUARD].iter().all(|x| x.is_nan()) {
        return Err(format!("{} {case:?}: wrote behind its output", target.name));
    }
    Ok(())
}

fn targets() -> Vec<Target> {
    let runs = |t: &&Target| runtime::container::missing_features(&t.required_features()).is_empty();
    Target::ALL.iter().filter(runs).cloned().collect()
}

/// A window and what lies beyond it, as one chain.
fn window(w: i64) -> Vec<Range> {
    vec![(0, Some(w), None, false), (w, None, Some(0), false)]
}

#[test]
fn edges_of_tiles_and_windows() {
    let mut failures = vec![];
    for target in targets() {
        for dtype in [DType::F32, DType::BF16] {
            for w in [1, 63, 64, 65, 300] {
                let case = Case {
                    dtype,
                    batch: 1,
                    groups: 2,
                    tokens: Some(1),
                    keys: 1,
                    depth: 16,
                    cols: 16,
                    start: 0,
                    ranges: window(w),
                };
                let tokens = [1, 2, 63, 64, 65, 127, 128, 129, 200].map(Some);
                failures.extend(check_sizes(&target, &case, &tokens).err());
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} fail, the first: {}",
        failures.len(),
        failures[0]
    );
}

#[test]
fn decoding_reads_where_it_stands() {
    for target in targets() {
        for dtype in [DType::F32, DType::BF16] {
            for (start, keys) in [(0, 1), (63, 64), (64, 65), (200, 201), (10, 40)] {
                for groups in [1, 2, 9] {
                    let case = Case {
                        dtype,
                        batch: 2,
                        groups,
                        tokens: None,
                        keys,
                        depth: 128,
                        cols: 128,
                        start,
                        ranges: window(17),
                    };
                    check(&target, &case).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_row_without_keys_is_zero() {
    for target in targets() {
        let case = Case {
            dtype: DType::F32,
            batch: 1,
            groups: 1,
            tokens: Some(5),
            keys: 5,
            depth: 8,
            cols: 8,
            start: 0,
            ranges: vec![(3, None, None, false)],
        };
        check(&target, &case).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_sweeps(
        dtype in prop::sample::select(vec![DType::F32, DType::BF16]),
        (batch, groups, tokens) in (1i64..3, 1i64..4, prop::option::of(1i64..150)),
        (more, start) in (0i64..70, 0i64..70),
        head in prop::sample::select(vec![(1, 1), (7, 7), (16, 16), (17, 33), (64, 64), (80, 80), (128, 128), (96, 100)]),
        (w, u) in (1i64..100, 1i64..100),
        kind in 0..4,
    ) {
        let ranges = match kind {
            0 => vec![(0, None, None, false)],
            1 => window(w),
            2 => vec![(0, Some(w), None, true), (0, None, None, false)],
            // A fork: two segments continue the first.
            _ => vec![(0, Some(w), None, false), (w, Some(w + u), Some(0), false), (w, None, Some(0), false)],
        };
        let keys = start + tokens.unwrap_or(1) + more;
        let case = Case { dtype, batch, groups, tokens, keys, depth: head.0, cols: head.1, start, ranges };
        for target in targets() {
            check(&target, &case).map_err(TestCaseError::fail)?;
        }
    }
}
