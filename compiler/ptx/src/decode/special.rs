//! Special registers by name (PTX ISA 10).

use crate::op::{Constant, Special};

/// The register's meaning, if it does not change during a launch.
pub fn special(name: &str) -> Option<Constant> {
    use Special::*;
    if name == "WARP_SZ" {
        return Some(Constant::Bits(32));
    }
    let (name, axis) = match name.strip_prefix('%')?.split_once('.') {
        Some((name, "x")) => (name, Some(0)),
        Some((name, "y")) => (name, Some(1)),
        Some((name, "z")) => (name, Some(2)),
        Some(_) => return None,
        None => (name.strip_prefix('%')?, None),
    };
    Some(Constant::Special(match (name, axis) {
        ("tid", Some(i)) => Tid(i),
        ("ntid", Some(i)) => Ntid(i),
        ("ctaid", Some(i)) => Ctaid(i),
        ("nctaid", Some(i)) => Nctaid(i),
        ("clusterid", Some(i)) => Clusterid(i),
        ("nclusterid", Some(i)) => Nclusterid(i),
        ("cluster_ctaid", Some(i)) => ClusterCtaid(i),
        ("cluster_nctaid", Some(i)) => ClusterNctaid(i),
        ("cluster_ctarank", None) => ClusterCtarank,
        ("cluster_nctarank", None) => ClusterNctarank,
        ("laneid", None) => Laneid,
        ("warpid", None) => Warpid,
        ("nwarpid", None) => Nwarpid,
        ("smid", None) => Smid,
        ("nsmid", None) => Nsmid,
        ("lanemask_eq", None) => LanemaskEq,
        ("lanemask_lt", None) => LanemaskLt,
        ("lanemask_le", None) => LanemaskLe,
        ("lanemask_gt", None) => LanemaskGt,
        ("lanemask_ge", None) => LanemaskGe,
        ("dynamic_smem_size", None) => DynamicShared,
        ("total_smem_size", None) => TotalShared,
        _ => return None,
    }))
}
