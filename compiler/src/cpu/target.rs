//! The CPUs we compile for.

use super::CodeError;

/// A CPU level, by what its kernels use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: &'static str,
    /// LLVM's name of the CPU whose scheduling is taken.
    pub cpu: &'static str,
    /// By the names of `is_x86_feature_detected!`.
    features: &'static [&'static str],
    /// f32 lanes of a vector register.
    pub lanes: usize,
    /// `vdpbf16ps`
    pub bf16_dot: bool,
}

const V3: &[&str] = &["avx2", "fma", "f16c", "bmi2"];
const V4: &[&str] = &[
    "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl",
];
const V4_BF16: &[&str] = &[
    "avx2",
    "fma",
    "f16c",
    "bmi2",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512bf16",
];

impl Target {
    /// From the least to the most capable.
    pub const ALL: &[Target] = &[
        Target {
            name: "x86-64-v3",
            cpu: "x86-64-v3",
            features: V3,
            lanes: 8,
            bf16_dot: false,
        },
        Target {
            name: "x86-64-v4",
            cpu: "x86-64-v4",
            features: V4,
            lanes: 16,
            bf16_dot: false,
        },
        Target {
            name: "x86-64-v4+bf16",
            cpu: "x86-64-v4",
            features: V4_BF16,
            lanes: 16,
            bf16_dot: true,
        },
    ];

    /// The best level that this machine runs.
    pub fn native() -> Result<Target, CodeError> {
        let runs = |t: &&Target| runtime::container::missing_features(&t.required_features()).is_empty();
        Target::ALL.iter().rev().find(runs).cloned().ok_or_else(|| {
            CodeError("this CPU has no AVX2 and FMA, which every target needs; name one with --target to compile for another machine".into())
        })
    }

    pub fn required_features(&self) -> Vec<String> {
        self.features.iter().map(|f| f.to_string()).collect()
    }

    /// As LLVM wants them.
    pub fn llvm_features(&self) -> String {
        self.features
            .iter()
            .map(|f| format!("+{f}"))
            .collect::<Vec<_>>()
            .join(",")
    }
}
