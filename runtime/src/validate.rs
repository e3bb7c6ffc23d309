//! Is a header sound? Every index in range, every size non-negative: what the engine then relies on.

use crate::artefact::{Buffer, Entry, Header, Layout, SYMBOLS, Size, Source, Weight};
use crate::container::Artefact;

/// Bytes of one weight, or elements of a shape, are below this: sums of many cannot overflow.
const LARGEST: i64 = 1 << 44;

pub fn validate(artefact: &Artefact) -> Result<(), String> {
    let header = &artefact.header;
    if header.max_context < 1 || header.codes.is_empty() {
        return Err("it has no context or no machine code".to_string());
    }
    for code in &header.codes {
        let end = code.offset.checked_add(code.len);
        if end.is_none_or(|end| end > artefact.payload.len() as u64) {
            return Err(format!("the code for {} lies outside the file", code.target));
        }
    }
    for (i, weight) in header.weights.iter().enumerate() {
        sound_weight(weight).map_err(|e| format!("weight {i}: {e}"))?;
    }
    for state in &header.states {
        state
            .shape
            .iter()
            .try_for_each(sound_size)
            .map_err(|e| format!("state {}: {e}", state.name))?;
    }
    header
        .entries
        .iter()
        .try_for_each(|entry| sound_entry(header, entry).map_err(|e| format!("entry point {}: {e}", entry.name)))
}

fn sound_size(size: &Size) -> Result<(), String> {
    match size.syms.iter().find(|s| !SYMBOLS.contains(&s.as_str())) {
        Some(s) => Err(format!("unknown symbol {s}")),
        None if !(0..LARGEST).contains(&size.coef) || size.syms.len() > 8 => Err("a size is out of range".to_string()),
        None => Ok(()),
    }
}

fn sound_weight(weight: &Weight) -> Result<(), String> {
    let product = |dims: &[i64]| {
        dims.iter().try_fold(1i64, |acc, n| {
            if *n < 0 {
                None
            } else {
                acc.checked_mul(*n).filter(|n| *n < LARGEST)
            }
        })
    };
    match &weight.source {
        Source::RopeTable { rows, dim, .. } => {
            product(&[*rows, *dim])
                .filter(|_| *rows > 0 && *dim > 0)
                .ok_or("a rotary table out of range")?;
        }
        Source::Tensors(parts) => {
            let Some(first) = parts.first() else {
                return Err("it has no tensors".to_string());
            };
            for part in parts {
                product(&part.shape).ok_or(format!("{} is out of range", part.name))?;
                if part.shape.get(1..) != first.shape.get(1..) {
                    return Err(format!("{} does not stack on {}", part.name, first.name));
                }
            }
            if matches!(weight.layout, Layout::Panels { .. }) && first.shape.len() != 2 {
                return Err(format!("{} is packed but no matrix", first.name));
            }
        }
    }
    match weight.layout {
        Layout::Panels { pair } if !(1..=2).contains(&pair) => Err(format!("panels of {pair} side by side")),
        _ => Ok(()),
    }
}

fn sound_entry(header: &Header, entry: &Entry) -> Result<(), String> {
    let range = |what: &str, index: u32, len: usize| match (index as usize) < len {
        true => Ok(()),
        false => Err(format!("{what} {index} of {len}")),
    };
    entry.slots.iter().flatten().try_for_each(sound_size)?;
    for buffer in &entry.buffers {
        match buffer {
            Buffer::Slot(i) => range("slot", *i, entry.slots.len())?,
            Buffer::Weight(i) => range("weight", *i, header.weights.len())?,
            Buffer::State(i) => range("state", *i, header.states.len())?,
            Buffer::Input(i) => range("input", *i, entry.inputs.len())?,
            Buffer::Output(i) => range("output", *i, entry.outputs.len())?,
        }
    }
    for port in entry.inputs.iter().chain(&entry.outputs) {
        range("buffer", port.buffer, entry.buffers.len())?;
        port.shape.iter().try_for_each(sound_size)?;
    }
    for launch in &entry.launches {
        launch
            .buffers
            .iter()
            .try_for_each(|b| range("buffer", *b, entry.buffers.len()))?;
        sound_size(&launch.scratch)?;
        for (size, block) in &launch.tiles {
            sound_size(size)?;
            if *block < 1 {
                return Err(format!("kernel {}: blocks of {block}", launch.kernel));
            }
        }
    }
    Ok(())
}
