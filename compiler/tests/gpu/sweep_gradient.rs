//! Attention's backward, each way that a GPU runs it.

use ir::plan::eval::{round, run_kernel};
use ir::plan::{Arg, Kernel, Range, Rows, SweepGradient};
use ir::{DType, Size, Sizes};
use proptest::prelude::*;

use crate::harness::{Compiled, compile};

#[derive(Clone, Debug)]
struct Case {
    batch: i64,
    heads: i64,
    groups: i64,
    tokens: i64,
    depth: i64,
    dtype: DType,
    ranges: Vec<(i64, Option<i64>)>,
}

impl Case {
    fn elements(&self) -> Vec<(DType, i64, bool)> {
        let keys = self.batch * self.heads * self.tokens * self.depth;
        let numbers = self.batch * self.heads * self.groups * self.tokens;
        let rows = numbers * self.depth;
        let mut all = vec![];
        for _ in &self.ranges {
            all.extend([
                (self.dtype, rows, false),
                (DType::F32, numbers, false),
                (DType::F32, numbers, false),
            ]);
        }
        all.extend([
            (self.dtype, rows, false),
            (self.dtype, keys, false),
            (self.dtype, keys, false),
        ]);
        all.extend([
            (DType::F32, rows, true),
            (DType::F32, keys, true),
            (DType::F32, keys, true),
        ]);
        all
    }

    fn kernel(&self) -> Kernel {
        let (kv, g, t, d) = (self.heads, self.groups, self.tokens, self.depth);
        let rows = |arg: usize, strides: &[i64]| Rows {
            arg,
            offset: Size::from(0),
            strides: strides.iter().map(|s| Size::from(*s)).collect(),
        };
        let by_row = |arg: usize, width: i64| rows(arg, &[kv * g * t * width, g * t * width, t * width, width]);
        let by_key = |arg: usize| rows(arg, &[kv * t * d, t * d, d]);
        let n = 3 * self.ranges.len();
        Kernel {
            name: "sweep_gradient".into(),
            args: (self.elements().iter())
                .map(|(dtype, _, written)| Arg {
                    dtype: *dtype,
                    written: *written,
                })
                .collect(),
            outer: vec![self.batch.into(), kv.into()],
            ordered: 0,
            panels: false,
            cols: d.into(),
            contraction: None,
            sweep: None,
            sweep_gradient: Some(SweepGradient {
                groups: g,
                tokens: t.into(),
                keys: t.into(),
                depth: d,
                scale: (1.0 / (d as f32).sqrt()).to_bits(),
                q: by_row(n, d),
                k: by_key(n + 1),
                // Values stand beside each other's heads, as projections leave them.
                v: rows(n + 2, &[kv * t * d, d, kv * d]),
                ranges: (self.ranges.iter().enumerate())
                    .map(|(i, (near, far))| Range {
                        near: *near,
                        far: *far,
                        d: by_row(3 * i, d),
                        z: by_row(3 * i + 1, 1),
                        lse: by_row(3 * i + 2, 1),
                    })
                    .collect(),
                dq: Some(by_row(n + 3, d)),
                dk: Some(by_key(n + 4)),
                dv: Some(by_key(n + 5)),
            }),
            exprs: vec![],
            stages: vec![],
        }
    }

    /// Random inputs; what is written is poisoned.
    fn arguments(&self) -> Vec<Vec<f64>> {
        let mut seed = 7u32;
        let mut random = || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            f64::from(seed >> 8) / f64::from(1 << 23) - 1.0
        };
        let lse = |i: usize| i < 3 * self.ranges.len() && i % 3 == 2;
        (self.elements().iter().enumerate())
            .map(|(i, (dtype, n, written))| {
                let one = |_| match (*written, lse(i)) {
                    (true, _) => f64::NAN,
                    (_, true) => round(3.0 + random(), *dtype),
                    _ => round(2.0 * random(), *dtype),
                };
                (0..*n).map(one).collect()
            })
            .collect()
    }

    fn check(&self, compiled: &Compiled) {
        let sizes = Sizes::new();
        let before = self.arguments();
        let mut wanted = before.clone();
        run_kernel(&self.kernel(), &sizes, &mut wanted).expect("it runs");
        let tolerance = if self.dtype == DType::BF16 { 1e-2 } else { 1e-5 };
        for (v, variant) in compiled.gpu.variants.iter().enumerate() {
            let mine = compiled.run(variant, &before, &sizes, 132);
            for (i, (mine, wanted)) in mine.iter().zip(&wanted).enumerate() {
                let scale = wanted.iter().fold(0.1f64, |m, x| m.max(x.abs()));
                for (at, (x, y)) in mine.iter().zip(wanted).enumerate() {
                    let off = (x - y).abs() / scale;
                    assert!(
                        off < tolerance,
                        "{self:?} variant {v}: argument {i} element {at} is {x}, wants {y}"
                    );
                }
            }
        }
    }
}

fn layer(groups: i64, tokens: i64, depth: i64, window: i64) -> Case {
    Case {
        batch: 1,
        heads: 2,
        groups,
        tokens,
        depth,
        dtype: DType::BF16,
        ranges: vec![(window, None), (0, Some(window))],
    }
}

/// For `subjects`, with the elements of each argument: both ways, heads of 64 and 128.
pub fn kernels() -> Vec<(Kernel, Vec<Size>)> {
    let plain = Case {
        dtype: DType::F32,
        ..layer(2, 24, 20, 10)
    };
    let all = [
        ("gradient_64", layer(1, 70, 64, 24)),
        ("gradient_128", layer(2, 40, 128, 24)),
        ("gradient_plain", plain),
    ];
    let one = |(name, case): (&str, Case)| {
        let lengths = case.elements().iter().map(|e| Size::from(e.1)).collect();
        let kernel = Kernel {
            name: name.to_string(),
            ..case.kernel()
        };
        (kernel, lengths)
    };
    all.map(one).to_vec()
}

#[test]
fn window_and_rest() {
    // Of ranges that lie in each other the order is another one.
    let nested = Case {
        ranges: vec![(0, None), (0, Some(40))],
        ..layer(1, 200, 64, 40)
    };
    for case in [layer(2, 200, 128, 64), layer(1, 320, 64, 40), nested] {
        let compiled = compile(&case.kernel());
        assert!(compiled.gpu.variants[0].steps[0].function.ends_with("_flash"));
        case.check(&compiled);
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let ranges = (0i64..3, 1i64..150, 1i64..150, any::<bool>()).prop_map(|(n, a, b, open)| {
        let ends = [a, a + b];
        let mut near = 0;
        let mut all = vec![];
        for end in &ends[..n as usize] {
            all.push((near, Some(*end)));
            near = *end;
        }
        if open || all.is_empty() {
            all.push((near, None));
        }
        all.reverse();
        all
    });
    let shape = (1i64..3, 1i64..3, 1i64..4, 1i64..180);
    let depth = prop_oneof![Just(128i64), Just(64), Just(20)];
    (
        shape,
        depth,
        ranges,
        prop_oneof![3 => Just(DType::BF16), 1 => Just(DType::F32)],
    )
        .prop_map(|((batch, heads, groups, tokens), depth, ranges, dtype)| Case {
            batch,
            heads,
            groups,
            tokens,
            depth,
            dtype,
            ranges,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn any_ranges(case in cases()) {
        case.check(&compile(&case.kernel()));
    }
}

/// More points than a round has: those of the second one walk backwards.
#[test]
fn two_rounds() {
    let case = Case {
        heads: 68,
        ..layer(1, 132, 64, 40)
    };
    let compiled = compile(&case.kernel());
    assert!(compiled.gpu.variants[0].steps[0].function.ends_with("_flash"));
    case.check(&compiled);
}
