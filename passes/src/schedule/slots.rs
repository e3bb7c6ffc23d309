//! Memory: temporaries whose lives do not overlap share a slot of the arena.
//!
//! The largest come first (Pisarchyk and Lee, arXiv 2001.03288, "greedy by size"): a small value that lives long, as what is kept for a
//! backward does, then has a slot of its size, and not one that a large value has just left.

use std::cmp::Reverse;
use std::collections::HashMap;

use ir::plan::{BufferKind, Plan};
use ir::{Size, Sizes};

/// First and last launch, both included.
type Life = (usize, usize);

/// Gives every temporary its slot. Slots are numbered by their first use.
pub fn assign(plan: &mut Plan) {
    let lives = lives(plan);
    let Plan { buffers, .. } = plan;
    let typical = typical();
    let bytes = |b: usize| {
        Size::product(&buffers[b].shape)
            .eval(&typical)
            .unwrap_or(i64::MAX / 8)
            .saturating_mul(buffers[b].dtype.bytes())
    };
    let mut temporaries: Vec<(usize, Life, i64)> = lives.into_iter().map(|(b, life)| (b, life, bytes(b))).collect();
    temporaries.sort_by_key(|(b, life, bytes)| (Reverse(*bytes), *life, *b));
    // Slots in the order of their sizes, and who lives there when.
    let mut slots: Vec<Vec<(Life, usize)>> = vec![];
    for (b, life, _) in temporaries {
        let apart = |(other, _): &(Life, usize)| life.1 < other.0 || other.1 < life.0;
        // The last one that is free is the smallest.
        match slots.iter_mut().rev().find(|tenants| tenants.iter().all(apart)) {
            Some(tenants) => tenants.push((life, b)),
            None => slots.push(vec![(life, b)]),
        }
    }
    slots.sort_by_key(|tenants| tenants.iter().min().copied());
    for (slot, tenants) in slots.iter().enumerate() {
        for (_, b) in tenants {
            buffers[*b].kind = BufferKind::Temp { slot: slot as u32 };
        }
    }
}

/// Typical sizes, only to compare what has unlike symbols.
pub fn typical() -> Sizes {
    [("B", 1), ("T", 512), ("S", 1024), ("C", 4096)]
        .map(|(k, v)| (k.to_string(), v))
        .into()
}

/// First and last launch of every temporary that is used. What a sweep may do itself is read until the sweep has ended.
fn lives(plan: &Plan) -> HashMap<usize, Life> {
    let mut lives: HashMap<usize, Life> = HashMap::new();
    for (i, launch) in plan.launches.iter().enumerate() {
        let in_front = plan.launches[i - plan.prologue(i).len()..i].iter();
        for &b in in_front.flat_map(|l| &l.args).chain(&launch.args) {
            if matches!(plan.buffers[b].kind, BufferKind::Temp { .. }) {
                lives.entry(b).or_insert((i, i)).1 = i;
            }
        }
    }
    lives
}

#[cfg(test)]
mod tests {
    use ir::DType;
    use ir::plan::{Buffer, Launch};

    use super::*;

    /// A plan of temporaries (elements, first launch, last launch); their slots.
    fn slots(temporaries: &[(i64, usize, usize)]) -> Vec<u32> {
        let buffer = |(i, (n, ..)): (usize, &(i64, usize, usize))| Buffer {
            name: format!("t{i}"),
            dtype: DType::F32,
            shape: vec![Size::from(*n)],
            kind: BufferKind::Temp { slot: u32::MAX },
        };
        let end = temporaries.iter().map(|t| t.2 + 1).max().unwrap_or(0);
        let launch = |at: usize| Launch {
            kernel: 0,
            args: (0..temporaries.len())
                .filter(|t| [temporaries[*t].1, temporaries[*t].2].contains(&at))
                .collect(),
        };
        let mut plan = Plan {
            entry: "main".to_string(),
            buffers: temporaries.iter().enumerate().map(buffer).collect(),
            kernels: vec![],
            launches: (0..end).map(launch).collect(),
        };
        assign(&mut plan);
        let slot = |b: &Buffer| match b.kind {
            BufferKind::Temp { slot } => slot,
            _ => u32::MAX,
        };
        plan.buffers.iter().map(slot).collect()
    }

    #[test]
    fn a_chain_takes_turns() {
        assert_eq!(slots(&[(8, 0, 1), (8, 1, 2), (8, 2, 3), (8, 3, 4)]), [0, 1, 0, 1]);
    }

    /// 10 MB of each layer are kept, 100 MB are not: three layers take 100 + 3 x 10.
    #[test]
    fn what_is_kept_takes_no_room_of_what_is_larger() {
        let layer = |l: usize| [(100, 2 * l, 2 * l + 1), (10, 2 * l + 1, 9)];
        let all: Vec<(i64, usize, usize)> = (0..3).flat_map(layer).collect();
        assert_eq!(slots(&all), [0, 1, 0, 2, 0, 3]);
    }

    #[test]
    fn lives_that_touch_overlap() {
        assert_eq!(slots(&[(8, 0, 2), (8, 2, 2), (8, 3, 3)]), [0, 1, 1]);
    }
}
