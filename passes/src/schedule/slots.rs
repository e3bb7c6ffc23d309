//! Memory: temporaries whose lives do not overlap share a slot of the arena.

use std::collections::HashMap;

use ir::plan::{Buffer, BufferKind, Launch, Plan};
use ir::{Size, Sizes};

/// Gives every temporary its slot, in one walk over the launches.
pub fn assign(plan: &mut Plan) {
    let Plan { buffers, launches, .. } = plan;
    let lives = lives(buffers, launches);
    let typical = typical();
    let mut starts: Vec<(usize, usize, usize)> = lives.iter().map(|(b, (from, to))| (*from, *to, *b)).collect();
    starts.sort();
    // Per slot: its last launch, its largest tenant.
    let mut slots: Vec<(usize, i64)> = vec![];
    for (from, to, b) in starts {
        let buffer = &buffers[b];
        let bytes = Size::product(&buffer.shape)
            .eval(&typical)
            .unwrap_or(i64::MAX / 8)
            .saturating_mul(buffer.dtype.bytes());
        let free = || slots.iter().enumerate().filter(|(_, (last, _))| *last < from);
        let fitting = free()
            .filter(|(_, (_, size))| *size >= bytes)
            .min_by_key(|(_, (_, size))| *size);
        let slot = fitting
            .or_else(|| free().max_by_key(|(_, (_, size))| *size))
            .map(|(i, _)| i);
        let slot = slot.unwrap_or_else(|| {
            slots.push((0, 0));
            slots.len() - 1
        });
        slots[slot] = (to, slots[slot].1.max(bytes));
        buffers[b].kind = BufferKind::Temp { slot: slot as u32 };
    }
}

/// Typical sizes, only to compare what has unlike symbols.
pub fn typical() -> Sizes {
    [("B", 1), ("T", 512), ("S", 1024), ("C", 4096)]
        .map(|(k, v)| (k.to_string(), v))
        .into()
}

/// First and last launch of every temporary that is used.
fn lives(buffers: &[Buffer], launches: &[Launch]) -> HashMap<usize, (usize, usize)> {
    let mut lives: HashMap<usize, (usize, usize)> = HashMap::new();
    for (i, launch) in launches.iter().enumerate() {
        for &b in &launch.args {
            if matches!(buffers[b].kind, BufferKind::Temp { .. }) {
                lives.entry(b).or_insert((i, i)).1 = i;
            }
        }
    }
    lives
}
