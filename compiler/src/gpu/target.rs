//! The GPUs we compile for.

/// A generation of GPUs, by what its kernels use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: &'static str,
    /// The PTX version, by LLVM's feature.
    pub ptx: &'static str,
    /// `wgmma`, the copy engine, `mbarrier`, `setmaxnreg`; without it the floor is `mma.sync` and `cp.async`.
    pub hopper: bool,
}

impl Target {
    /// From the least to the most capable.
    pub const ALL: &[Target] = &[
        Target {
            name: "sm_80",
            ptx: "+ptx80",
            hopper: false,
        },
        Target {
            name: "sm_90a",
            ptx: "+ptx80",
            hopper: true,
        },
    ];
}
