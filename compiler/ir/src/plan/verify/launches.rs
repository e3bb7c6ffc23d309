//! What a plan's launches bind and in which order, and who uses a slot when. Knows of a kernel only what its arguments say.

use std::collections::HashMap;

use super::super::{BufferKind, Plan};
use super::PlanError;

pub(super) fn launches(plan: &Plan, errors: &mut Vec<PlanError>) {
    let mut written: Vec<bool> = plan
        .buffers
        .iter()
        .map(|b| !matches!(b.kind, BufferKind::Temp { .. } | BufferKind::Output(_)))
        .collect();
    for (i, launch) in plan.launches.iter().enumerate() {
        let mut fail = |message: String| {
            errors.push(PlanError {
                place: format!("launch {i}"),
                message,
            })
        };
        let Some(kernel) = plan.kernels.get(launch.kernel) else {
            fail(format!("there is no kernel {}", launch.kernel));
            continue;
        };
        if launch.args.len() != kernel.args.len() {
            fail(format!(
                "{} takes {} buffers, {} given",
                kernel.name,
                kernel.args.len(),
                launch.args.len()
            ));
            continue;
        }
        for (at, (arg, &b)) in kernel.args.iter().zip(&launch.args).enumerate() {
            let Some(buffer) = plan.buffers.get(b) else {
                fail(format!("there is no buffer {b}"));
                continue;
            };
            if buffer.dtype != arg.dtype {
                fail(format!(
                    "{} is {}, argument a{at} of {} is {}",
                    buffer.name, buffer.dtype, kernel.name, arg.dtype
                ));
            }
            if arg.written && matches!(buffer.kind, BufferKind::Input(_) | BufferKind::Weight(_)) {
                fail(format!(
                    "{} writes {}, which is only to be read",
                    kernel.name, buffer.name
                ));
            }
            if !arg.written && !written[b] {
                fail(format!(
                    "{} reads {} before anything is in it",
                    kernel.name, buffer.name
                ));
            }
            if launch
                .args
                .iter()
                .zip(&kernel.args)
                .enumerate()
                .any(|(o, (&x, a))| o != at && x == b && a.written)
            {
                fail(format!(
                    "{} is bound to two arguments of {} and written",
                    buffer.name, kernel.name
                ));
            }
        }
        for (arg, &b) in kernel.args.iter().zip(&launch.args) {
            if arg.written && b < written.len() {
                written[b] = true;
            }
        }
    }
    for (b, buffer) in plan.buffers.iter().enumerate() {
        if matches!(buffer.kind, BufferKind::Output(_)) && !written[b] {
            errors.push(PlanError {
                place: format!("buffer {}", buffer.name),
                message: "nothing writes it".to_string(),
            });
        }
    }
}

/// First and last launch that uses each buffer.
fn lives(plan: &Plan) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; plan.buffers.len()];
    for (i, launch) in plan.launches.iter().enumerate() {
        for &b in &launch.args {
            if let Some(life) = lives.get_mut(b) {
                *life = Some((life.map_or(i, |(first, _)| first), i));
            }
        }
    }
    lives
}

pub(super) fn slots(plan: &Plan, errors: &mut Vec<PlanError>) {
    let lives = lives(plan);
    let mut by_slot: HashMap<u32, Vec<(usize, usize, usize)>> = HashMap::new();
    for (b, buffer) in plan.buffers.iter().enumerate() {
        if let (BufferKind::Temp { slot }, Some((first, last))) = (&buffer.kind, lives[b]) {
            by_slot.entry(*slot).or_default().push((first, last, b));
        }
    }
    let mut slots: Vec<_> = by_slot.into_iter().collect();
    slots.sort();
    for (slot, mut tenants) in slots {
        tenants.sort();
        for pair in tenants.windows(2) {
            let ((_, last, a), (first, _, b)) = (pair[0], pair[1]);
            if first <= last {
                let message = format!(
                    "{} and {} are both in use at launch {first}",
                    plan.buffers[a].name, plan.buffers[b].name
                );
                errors.push(PlanError {
                    place: format!("slot {slot}"),
                    message,
                });
            }
        }
    }
}
