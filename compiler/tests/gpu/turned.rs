//! Products of two matrices as they lie: either side by lines of k or, turned, by lines of rows. On both targets, in bf16 and f32.

use ir::plan::eval::{round, run_kernel};
use ir::plan::{Access, Arg, Binary, Contraction, Expr, Kernel, Rhs, Stage};
use ir::{DType, Size, Sizes};
use proptest::prelude::*;

use crate::harness::{Compiled, compile_for, compile_ways};

#[derive(Clone, Debug)]
struct Case {
    rows: i64,
    cols: i64,
    k: i64,
    /// Of the left side and of the right one.
    turned: [bool; 2],
    dtype: DType,
    /// Elements in front of each matrix, and behind each of its lines.
    gap: i64,
    /// A second right side, by lines of k: the first one's memory, so many elements further.
    twin: Option<i64>,
}

impl Case {
    /// From line to line of a side that has so many rows.
    fn pitch(&self, side: usize, rows: i64) -> i64 {
        self.gap + if self.turned[side] { rows } else { self.k }
    }

    fn kernel(&self) -> Kernel {
        let (left, right) = (self.pitch(0, self.rows), self.pitch(1, self.cols));
        let strides = if self.turned[0] { [1, left] } else { [left, 1] };
        let (arg, offset, strides_of_b) = (1, Size::from(self.gap), vec![Size::from(right)]);
        let access = |arg: usize, offset: i64, strides: [i64; 2]| Access {
            arg,
            offset: Size::from(offset),
            strides: strides.map(Size::from).to_vec(),
            indirect: None,
        };
        let also = self.twin.map(|more| Rhs::KContiguous {
            arg,
            offset: Size::from(self.gap + more),
            strides: strides_of_b.clone(),
        });
        let b = if self.turned[1] {
            Rhs::NContiguous {
                arg,
                offset,
                strides: strides_of_b,
            }
        } else {
            Rhs::KContiguous {
                arg,
                offset,
                strides: strides_of_b,
            }
        };
        // Sums, or the second ones less twice the first ones.
        let exprs = match also {
            None => vec![Expr::Acc],
            Some(_) => vec![
                Expr::Acc,
                Expr::Binary(Binary::Add, 0, 0),
                Expr::AccAlso,
                Expr::Binary(Binary::Sub, 2, 1),
            ],
        };
        let arg = |dtype, written| Arg { dtype, written };
        Kernel {
            name: "product".into(),
            args: vec![arg(self.dtype, false), arg(self.dtype, false), arg(DType::F32, true)],
            outer: vec![self.rows.into()],
            ordered: 0,
            panels: false,
            cols: self.cols.into(),
            contraction: Some(Contraction {
                batch: 0,
                k: self.k.into(),
                a: access(0, self.gap, strides),
                packed_a: false,
                b,
                also,
            }),
            sweep: None,
            sweep_gradient: None,
            stages: vec![Stage::Store {
                to: access(2, 0, [self.cols, 1]),
                value: exprs.len() - 1,
                when: None,
            }],
            exprs,
        }
    }

    fn arguments(&self) -> Vec<Vec<f64>> {
        let mut seed = 7u32;
        let mut random = || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            round(f64::from(seed >> 8) / f64::from(1 << 23) - 1.0, self.dtype)
        };
        let mut side = |i: usize, rows: i64| {
            let lines = if self.turned[i] { self.k } else { rows };
            let n = self.gap + lines * self.pitch(i, rows);
            (0..n).map(|_| random()).collect::<Vec<f64>>()
        };
        let (a, b) = (side(0, self.rows), side(1, self.cols));
        vec![a, b, vec![f64::NAN; (self.rows * self.cols) as usize]]
    }

    fn check(&self, compiled: &Compiled, multiprocessors: u64) {
        let errors = ir::plan::verify::verify_kernel(&self.kernel());
        assert!(errors.is_empty(), "{errors:?}");
        let sizes = Sizes::from([]);
        let before = self.arguments();
        let mut wanted = before.clone();
        run_kernel(&self.kernel(), &sizes, &mut wanted).expect("it runs");
        for variant in &compiled.gpu.variants {
            let name = variant.steps.last().map_or("", |s| s.function.as_str());
            let mine = compiled.run(variant, &before, &sizes, multiprocessors);
            let scale = wanted[2].iter().fold(0.1f64, |m, x| m.max(x.abs()));
            for (at, (x, y)) in mine[2].iter().zip(&wanted[2]).enumerate() {
                let at = (at as i64 / self.cols, at as i64 % self.cols);
                assert!(
                    (x - y).abs() / scale < 1e-4,
                    "{self:?} {name}: {at:?} is {x}, wants {y}"
                );
            }
        }
    }
}

const SIDES: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

/// Every shape of tiles, every way to lie; odd rests of rows, columns and k.
#[test]
fn by_wgmma() {
    for turned in SIDES {
        let case = Case {
            rows: 328,
            cols: 264,
            k: 136,
            turned,
            dtype: DType::BF16,
            gap: 8,
            twin: None,
        };
        let compiled = compile_ways(&case.kernel());
        assert!(
            compiled.gpu.variants.len() > 5,
            "{turned:?}: {}",
            compiled.gpu.variants.len()
        );
        for multiprocessors in [2, 132] {
            case.check(&compiled, multiprocessors);
        }
    }
}

/// What is no number of eights in k where lines are rows.
#[test]
fn an_odd_sum() {
    let case = Case {
        rows: 72,
        cols: 40,
        k: 77,
        turned: [true, true],
        dtype: DType::BF16,
        gap: 0,
        twin: None,
    };
    case.check(&compile_ways(&case.kernel()), 132);
}

/// Two right sides: every shape of tiles, `mma.sync`, and plainly.
#[test]
fn twins() {
    for dtype in [DType::BF16, DType::F32] {
        let case = Case {
            rows: 136,
            cols: 200,
            k: 72,
            turned: [false, false],
            dtype,
            gap: 8,
            twin: Some(8),
        };
        case.check(&compile_ways(&case.kernel()), 3);
        case.check(&compile_for(&case.kernel(), "sm_80"), 132);
    }
}

#[test]
fn by_mma_and_plainly() {
    for turned in SIDES {
        for (dtype, target) in [(DType::BF16, "sm_80"), (DType::F32, "sm_80"), (DType::F32, "sm_90a")] {
            let case = Case {
                rows: 136,
                cols: 72,
                k: 40,
                turned,
                dtype,
                gap: 8,
                twin: None,
            };
            case.check(&compile_for(&case.kernel(), target), 132);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    #[test]
    fn any_sizes(
        (rows, cols, k) in (1i64..30, 1i64..30, 1i64..200),
        sides in 0usize..4,
        odd in any::<bool>(),
        target in prop_oneof![Just("sm_80"), Just("sm_90a")],
        f32 in any::<bool>(),
    ) {
        // Odd sizes are for the plain way.
        let (rows, cols, k, gap) = if odd { (rows, cols, k.max(2), 1) } else { (8 * rows, 8 * cols, 8 * k, 0) };
        let dtype = if f32 { DType::F32 } else { DType::BF16 };
        // One row that is turned is a row.
        let case = Case { rows: rows.max(2), cols: cols.max(2), k, turned: SIDES[sides], dtype, gap, twin: None };
        case.check(&compile_for(&case.kernel(), target), 3);
    }
}
