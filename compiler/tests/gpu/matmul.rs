//! Products of bf16 weights by many rows: every shape of the table, and what a GPU would choose.

use ir::plan::eval::{round, run_kernel};
use ir::plan::{Access, Arg, Binary, Contraction, Expr, Kernel, Reduction, Rhs, Stage, Unary};
use ir::{DType, Size, Sizes};
use proptest::prelude::*;

use crate::harness::{Compiled, compile, compile_ways};

/// What becomes of the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// bf16.
    Plain,
    /// To f32 that is there.
    Residual,
    /// Of two weights, by the rows' norm.
    SwiGlu,
    /// By the rows' norm; bf16 beside f32.
    Norm,
    /// Of two weights that lie as matrices; the first's sums beside it.
    Twins,
    /// The logarithm of each row's sum of exponentials: a product apart from its stages.
    Sums,
    /// The same, and the sums.
    Logits,
}

#[derive(Clone, Debug)]
struct Case {
    rows: i64,
    cols: i64,
    k: i64,
    a: DType,
    ending: Ending,
}

impl Case {
    fn kernel(&self) -> Kernel {
        // 0: a, 1: the weight, 2: another, 3: what is added, 4: bf16 out, 5: f32 out.
        let dtypes = [self.a, DType::BF16, DType::BF16, DType::F32, DType::BF16, DType::F32];
        let access = |arg: usize, width: i64| Access {
            arg,
            offset: Size::from(0),
            strides: vec![Size::from(width), Size::one()],
            indirect: None,
        };
        let store = |arg: usize, value: usize| Stage::Store {
            to: access(arg, self.cols),
            value,
            when: None,
        };
        let by_column = store;
        let lies = |arg: usize| Rhs::KContiguous {
            arg,
            offset: Size::from(0),
            strides: vec![Size::from(self.k)],
        };
        let (first, second) = match self.ending {
            Ending::Twins => (lies(1), Some(lies(2))),
            Ending::SwiGlu => (Rhs::Packed { arg: 1 }, Some(Rhs::Packed { arg: 2 })),
            _ => (Rhs::Packed { arg: 1 }, None),
        };
        let (exprs, stages) = match self.ending {
            Ending::Plain => (vec![Expr::Acc], vec![store(4, 0)]),
            Ending::Residual => (
                vec![
                    Expr::Load(access(3, self.cols)),
                    Expr::Acc,
                    Expr::Binary(Binary::Add, 0, 1),
                ],
                vec![store(5, 2)],
            ),
            Ending::SwiGlu => (
                vec![
                    Expr::Acc,
                    Expr::AccAlso,
                    Expr::RowSquares,
                    Expr::Unary(Unary::Rsqrt, 2),
                    Expr::Binary(Binary::Mul, 0, 3),
                    Expr::Binary(Binary::Mul, 1, 3),
                    Expr::Unary(Unary::Silu, 4),
                    Expr::Binary(Binary::Mul, 6, 5),
                ],
                vec![store(4, 7)],
            ),
            Ending::Norm => (
                vec![
                    Expr::Acc,
                    Expr::RowSquares,
                    Expr::Unary(Unary::Rsqrt, 1),
                    Expr::Binary(Binary::Mul, 0, 2),
                ],
                vec![store(4, 3), store(5, 3)],
            ),
            Ending::Twins => (
                vec![
                    Expr::Acc,
                    Expr::AccAlso,
                    Expr::Unary(Unary::Silu, 0),
                    Expr::Binary(Binary::Mul, 2, 1),
                ],
                vec![store(4, 3), store(5, 0)],
            ),
            Ending::Sums | Ending::Logits => {
                let stores_sums = self.ending == Ending::Logits;
                let to = Access {
                    strides: vec![Size::one(), Size::from(0)],
                    ..access(if stores_sums { 4 } else { 5 }, 0)
                };
                let reduce = Stage::Reduce {
                    op: Reduction::LogSumExp,
                    value: 0,
                };
                let store = Stage::Store {
                    to,
                    value: 1,
                    when: None,
                };
                let mut stages = vec![reduce, store];
                stages.extend(stores_sums.then(|| by_column(5, 0)));
                (vec![Expr::Acc, Expr::Reduced(0)], stages)
            }
        };
        Kernel {
            name: "product".into(),
            args: (dtypes.iter().enumerate())
                .map(|(i, dtype)| Arg {
                    dtype: *dtype,
                    written: i > 3,
                })
                .collect(),
            outer: vec![Size::sym("T")],
            ordered: 0,
            panels: false,
            cols: self.cols.into(),
            contraction: Some(Contraction {
                batch: 0,
                k: self.k.into(),
                a: access(0, self.k),
                packed_a: false,
                b: first,
                also: second,
            }),
            sweep: None,
            sweep_gradient: None,
            exprs,
            stages,
        }
    }

    /// Random inputs; what is written is poisoned.
    fn arguments(&self) -> Vec<Vec<f64>> {
        let mut seed = 7u32;
        let mut random = || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            f64::from(seed >> 8) / f64::from(1 << 23) - 1.0
        };
        let (a, w, c) = (self.rows * self.k, self.cols * self.k, self.rows * self.cols);
        let sizes = [(a, self.a), (w, DType::BF16), (w, DType::BF16), (c, DType::F32)];
        let mut all: Vec<Vec<f64>> = (sizes.iter())
            .map(|(n, dtype)| (0..*n).map(|_| round(random(), *dtype)).collect())
            .collect();
        all.extend([vec![f64::NAN; c as usize], vec![f64::NAN; c as usize]]);
        all
    }

    /// Every variant, on this many multiprocessors: blocks walk several tiles where there are few.
    fn check(&self, compiled: &Compiled, multiprocessors: u64) {
        let sizes = Sizes::from([("T".to_string(), self.rows)]);
        let before = self.arguments();
        let mut wanted = before.clone();
        run_kernel(&self.kernel(), &sizes, &mut wanted).expect("it runs");
        for (v, variant) in compiled.gpu.variants.iter().enumerate() {
            let name = variant.steps.last().map_or("", |s| s.function.as_str());
            if !name.contains("product_") || variant.at_most.as_ref().is_some_and(|(_, n)| self.rows > *n) {
                continue;
            }
            let mine = compiled.run(variant, &before, &sizes, multiprocessors);
            for (i, (mine, wanted)) in mine.iter().zip(&wanted).enumerate() {
                let scale = wanted.iter().fold(0.1f64, |m, x| m.max(x.abs()));
                for (at, (x, y)) in mine.iter().zip(wanted).enumerate() {
                    let same = (x - y).abs() / scale < 1e-2 || x.is_nan() && y.is_nan();
                    let at = (at as i64 / self.cols, at as i64 % self.cols);
                    assert!(
                        same,
                        "{self:?} {multiprocessors} variant {v} {name}: argument {i} at {at:?} is {x}, wants {y}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_shape() {
    let cases = [
        (300, 320, 136, DType::BF16, Ending::Plain),
        (129, 264, 64, DType::BF16, Ending::Residual),
        (140, 200, 72, DType::F32, Ending::SwiGlu),
        (1, 40, 8, DType::F32, Ending::Norm),
        (150, 136, 72, DType::BF16, Ending::Twins),
    ];
    for (rows, cols, k, a, ending) in cases {
        let case = Case {
            rows,
            cols,
            k,
            a,
            ending,
        };
        let compiled = compile_ways(&case.kernel());
        assert!(!compiled.gpu.variants.is_empty());
        for multiprocessors in [1, 132] {
            case.check(&compiled, multiprocessors);
        }
    }
}

/// What a GPU would choose by its rows.
#[test]
fn chosen_shapes() {
    for (ending, a) in [
        (Ending::Norm, DType::F32),
        (Ending::Sums, DType::F32),
        (Ending::Logits, DType::BF16),
    ] {
        let case = Case {
            rows: 70,
            cols: 328,
            k: 64,
            a,
            ending,
        };
        case.check(&compile(&case.kernel()), 132);
        // Smaller tiles, by turns, as waves have it.
        let known = Kernel {
            outer: vec![Size::from(case.rows)],
            ..case.kernel()
        };
        case.check(&compile(&known), 3);
    }
}

/// More steps of k than stages, and many tiles for each block: the ring goes round, turns are taken.
#[test]
fn long_walks() {
    let case = Case {
        rows: 400,
        cols: 328,
        k: 520,
        a: DType::BF16,
        ending: Ending::Residual,
    };
    let compiled = compile_ways(&case.kernel());
    case.check(&compiled, 2);
}

fn cases() -> impl Strategy<Value = Case> {
    let ending = prop_oneof![
        Just(Ending::Plain),
        Just(Ending::Residual),
        Just(Ending::SwiGlu),
        Just(Ending::Norm)
    ];
    let sizes = (1i64..300, 1i64..50, 1i64..20);
    (sizes, any::<bool>(), ending).prop_map(|((rows, cols, k), f32, ending)| Case {
        rows,
        // Pairs of columns, and eights.
        cols: if cols % 3 == 0 { 2 * cols } else { 8 * cols },
        k: 8 * k,
        a: if f32 { DType::F32 } else { DType::BF16 },
        ending,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, ..ProptestConfig::default() })]

    #[test]
    fn any_sizes(case in cases(), multiprocessors in 1u64..8) {
        case.check(&compile_ways(&case.kernel()), multiprocessors);
    }
}
