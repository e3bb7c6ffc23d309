//! Which registers an instruction reads.

use crate::op::{Address, Bulk, CopyAsync, Mbarrier, Op, Reg, WarpOp, WgmmaA};

impl Op {
    /// Every register it reads, guards apart.
    pub fn reads(&self, f: &mut impl FnMut(Reg)) {
        let mut all = |regs: &[Reg]| regs.iter().for_each(|r| f(*r));
        match self {
            Op::Lane1 { a, .. }
            | Op::Mov { a, .. }
            | Op::Packed1 { a, .. }
            | Op::Unpack { a, .. }
            | Op::Indexed { a, .. } => all(&[*a]),
            Op::Lane2 { a, b, .. } | Op::Packed2 { a, b, .. } | Op::Convert { a, b, .. } => all(&[*a, *b]),
            Op::Lane3 { a, b, c, .. } => all(&[*a, *b, *c]),
            Op::Packed { s, .. } | Op::Carry { s, .. } => all(s),
            Op::Lane4 { s, .. } => all(s),
            Op::Pack { parts, .. } => all(parts),
            Op::Load(x) => all(&[x.at.base]),
            Op::Store(x) => {
                all(&x.regs);
                all(&[x.at.base]);
            }
            Op::Atomic(x) => {
                all(&x.a);
                all(&[x.b, x.at.base]);
            }
            Op::Return(Some(link)) => all(&[*link]),
            Op::Mapa { a, rank, .. } => all(&[*a, *rank]),
            Op::Barrier(b) => {
                all(&[b.id]);
                b.count.iter().for_each(|r| all(&[*r]));
                b.reduce.iter().for_each(|r| all(&[r.2]));
            }
            Op::Warp { op, mask } => {
                mask.iter().for_each(|r| all(&[*r]));
                warp(op, &mut all);
            }
            Op::Mbarrier { op, at, .. } => {
                all(&[at.base]);
                match **op {
                    Mbarrier::Init { count } => all(&[count]),
                    Mbarrier::Arrive { count, expect, .. } => count.iter().chain(&expect).for_each(|r| all(&[*r])),
                    Mbarrier::ExpectTx { bytes } | Mbarrier::CompleteTx { bytes } => all(&[bytes]),
                    Mbarrier::Wait { phase, .. } => all(&[phase]),
                    Mbarrier::PendingCount { state, .. } => all(&[state]),
                    Mbarrier::Inval | Mbarrier::CopyArrive { .. } => {}
                }
            }
            Op::Bulk(op) => bulk(op, &mut all),
            Op::CopyAsync(op) => {
                if let CopyAsync::Copy {
                    to,
                    from,
                    source,
                    ignore,
                    ..
                } = &**op
                {
                    all(&[to.base, from.base]);
                    source.iter().chain(ignore).for_each(|r| all(&[*r]));
                }
            }
            Op::Nop
            | Op::Moving { .. }
            | Op::CopyLocal { .. }
            | Op::Branch(_)
            | Op::Call { .. }
            | Op::Return(None)
            | Op::Exit
            | Op::Trap
            | Op::WgmmaFence
            | Op::WgmmaCommit
            | Op::WgmmaWait(_)
            | Op::ClusterArrive
            | Op::ClusterWait
            | Op::FenceProxy
            | Op::Sleep => {}
        }
    }
}

fn warp(op: &WarpOp, all: &mut impl FnMut(&[Reg])) {
    match op {
        WarpOp::Sync | WarpOp::Elect { .. } => {}
        WarpOp::Shuffle { a, b, c, .. } => all(&[*a, *b, *c]),
        WarpOp::Vote { a, .. } | WarpOp::Match { a, .. } | WarpOp::Redux { a, .. } | WarpOp::Movmatrix { a, .. } => {
            all(&[*a])
        }
        WarpOp::Ldmatrix { at, .. } => all(&[at.base]),
        WarpOp::Stmatrix { a, at, .. } => {
            all(a);
            all(&[at.base]);
        }
        WarpOp::Mma { a, b, c, .. } => {
            all(a);
            all(b);
            all(c);
        }
        WarpOp::Wgmma(w) => {
            all(&w.d);
            all(&[w.b, w.scale_d]);
            match &w.a {
                WgmmaA::Descriptor(r) => all(&[*r]),
                WgmmaA::Registers(r) => all(r),
            }
        }
    }
}

fn bulk(op: &Bulk, all: &mut impl FnMut(&[Reg])) {
    let bases = |places: &[&Address], all: &mut dyn FnMut(&[Reg])| places.iter().for_each(|p| all(&[p.base]));
    match op {
        Bulk::TensorLoad {
            to,
            map,
            coordinates,
            mbarrier,
            multicast,
        } => {
            bases(&[to, map, mbarrier], all);
            all(coordinates);
            multicast.iter().for_each(|r| all(&[*r]));
        }
        Bulk::TensorStore {
            map, coordinates, from, ..
        } => {
            bases(&[map, from], all);
            all(coordinates);
        }
        Bulk::Load {
            to,
            from,
            bytes,
            mbarrier,
            multicast,
            ..
        } => {
            bases(&[to, from, mbarrier], all);
            all(&[*bytes]);
            multicast.iter().for_each(|r| all(&[*r]));
        }
        Bulk::Store { to, from, bytes, .. } => {
            bases(&[to, from], all);
            all(&[*bytes]);
        }
        Bulk::Commit | Bulk::Wait { .. } => {}
    }
}
