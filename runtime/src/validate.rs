//! Is a header sound? Every index in range, every size non-negative: what the engine then relies on.

use crate::artefact::{
    Buffer, Code, DType, Entry, Header, Join, Launch, Layout, MapSource, SYMBOLS, Size, Source, Step, TensorMap,
    Variant, Weight,
};
use crate::container::Artefact;
use crate::engine::device::is_gpu;

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
        sound_code(header, code).map_err(|e| format!("the code for {}: {e}", code.target))?;
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
    if !matches!(weight.dtype, DType::F32 | DType::BF16 | DType::F16) {
        return Err(format!("{:?} is no type of weights", weight.dtype));
    }
    match &weight.source {
        Source::RopeTable { rows, dim, .. } => {
            product(&[*rows, *dim])
                .filter(|_| *rows > 0 && *dim > 0)
                .ok_or("a rotary table out of range")?;
            if weight.dtype != DType::F32 || weight.layout != Layout::RowMajor {
                return Err("a rotary table that is not f32, row by row".to_string());
            }
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
        sound_tiles(&launch.tiles).map_err(|e| format!("kernel {}: {e}", launch.kernel))?;
    }
    Ok(())
}

fn sound_tiles(tiles: &[(Size, i64)]) -> Result<(), String> {
    for (size, block) in tiles {
        sound_size(size)?;
        if !(1..LARGEST).contains(block) {
            return Err(format!("blocks of {block}"));
        }
    }
    Ok(())
}

/// A GPU's code says how each kernel of the entry points is run.
fn sound_code(header: &Header, code: &Code) -> Result<(), String> {
    if !is_gpu(&code.target) {
        return match code.kernels.is_empty() {
            true => Ok(()),
            false => Err("it is a CPU's, with kernels of a GPU".to_string()),
        };
    }
    let launches: Vec<&Launch> = header.entries.iter().flat_map(|e| &e.launches).collect();
    let names = launches
        .iter()
        .map(|l| &l.kernel)
        .chain(code.joins.iter().map(|j| &j.kernel));
    for name in names {
        if !code.kernels.iter().any(|k| k.name == *name) {
            return Err(format!("it has no kernel {name}"));
        }
    }
    // Kernels and the buffers that they are given.
    let mut given: Vec<(&String, usize)> = launches.iter().map(|l| (&l.kernel, l.buffers.len())).collect();
    for join in &code.joins {
        let joined = sound_join(header, code, join).map_err(|e| format!("what runs as {}: {e}", join.kernel))?;
        given.push((&join.kernel, joined.iter().map(|l| l.buffers.len()).sum()));
    }
    for kernel in &code.kernels {
        let of_kernel = given.iter().filter(|(name, _)| **name == kernel.name);
        // What nothing launches has nothing to be checked against.
        let Some(buffers) = of_kernel.map(|(_, buffers)| *buffers).min() else {
            continue;
        };
        if kernel
            .variants
            .last()
            .is_none_or(|v| v.at_most.is_some() || !v.multiples.is_empty())
        {
            return Err(format!("kernel {}: no variant is for all sizes", kernel.name));
        }
        for variant in &kernel.variants {
            sound_variant(variant, buffers).map_err(|e| format!("kernel {}: {e}", kernel.name))?;
        }
    }
    Ok(())
}

/// Its launches: they are there, and in no other join.
fn sound_join<'a>(header: &'a Header, code: &Code, join: &Join) -> Result<&'a [Launch], String> {
    let entry = header.entries.iter().find(|e| e.name == join.entry);
    let entry = entry.ok_or_else(|| format!("there is no entry point {}", join.entry))?;
    let (first, count, all) = (join.first as usize, join.count as usize, entry.launches.len());
    within("launches", count, 1..=1 << 16)?;
    let joined = first.checked_add(count).and_then(|end| entry.launches.get(first..end));
    let joined = joined.ok_or_else(|| format!("launches {first} to {} of {all}", first.saturating_add(count)))?;
    let meets = |other: &&Join| {
        let (a, b) = (other.first as usize, other.first as usize + other.count as usize);
        other.entry == join.entry && a < first + count && first < b
    };
    match code.joins.iter().filter(meets).count() {
        1 => Ok(joined),
        _ => Err(format!("launches {first} to {} stand in two", first + count)),
    }
}

/// The least and the most that no device and no kernel exceeds.
fn within(what: &str, n: usize, range: std::ops::RangeInclusive<usize>) -> Result<(), String> {
    match range.contains(&n) {
        true => Ok(()),
        false => Err(format!("{n} {what}")),
    }
}

fn sound_variant(variant: &Variant, buffers: usize) -> Result<(), String> {
    if let Some((size, most)) = &variant.at_most {
        sound_size(size)?;
        if !(0..LARGEST).contains(most) {
            return Err(format!("a variant for at most {most}"));
        }
    }
    sound_tiles(&variant.multiples)?;
    variant.workspaces.iter().try_for_each(sound_size)?;
    within("workspaces", variant.workspaces.len(), 0..=16)?;
    within("counters", variant.counters as usize, 0..=1 << 24)?;
    within("steps", variant.steps.len(), 1..=64)?;
    for step in &variant.steps {
        sound_step(step, buffers, variant).map_err(|e| format!("function {}: {e}", step.function))?;
    }
    Ok(())
}

fn sound_step(step: &Step, buffers: usize, variant: &Variant) -> Result<(), String> {
    sound_tiles(&step.tiles)?;
    step.more_tiles.iter().try_for_each(|t| sound_tiles(t))?;
    within("threads", step.threads as usize, 1..=1024)?;
    within("bytes of shared memory", step.shared as usize, 0..=256 << 10)?;
    within("blocks of a cluster", step.cluster as usize, 0..=16)?;
    within("blocks of a multiprocessor", step.per_multiprocessor as usize, 0..=64)?;
    let mut counts = [buffers, variant.workspaces.len()];
    for (count, (what, wanted)) in counts
        .iter_mut()
        .zip([("buffer", &step.buffers), ("workspace", &step.workspaces)])
    {
        let Some(wanted) = wanted else { continue };
        if let Some(i) = wanted.iter().find(|i| **i as usize >= *count) {
            return Err(format!("{what} {i} of {count}"));
        }
        *count = wanted.len();
    }
    let pointers = counts[0] + counts[1] + usize::from(variant.counters > 0);
    // The driver takes 4096 bytes; each map may need padding in front.
    let bytes = 8 * pointers + 4 * SYMBOLS.len() + 64 + 128 * step.maps.len();
    within("bytes of parameters", bytes, 0..=4096)?;
    for (i, map) in step.maps.iter().enumerate() {
        sound_map(map, counts).map_err(|e| format!("tensor map {i}: {e}"))?;
    }
    Ok(())
}

fn sound_map(map: &TensorMap, [buffers, workspaces]: [usize; 2]) -> Result<(), String> {
    let (what, index, count) = match map.source {
        MapSource::Buffer(i) => ("buffer", i as usize, buffers),
        MapSource::Workspace(i) => ("workspace", i as usize, workspaces),
    };
    if index >= count {
        return Err(format!("{what} {index} of {count}"));
    }
    let sizes = map.dims.iter().chain(&map.strides).chain([&map.offset]);
    sizes.into_iter().try_for_each(sound_size)?;
    within("dimensions", map.dims.len(), 1..=5)?;
    if map.strides.len() + 1 != map.dims.len() || map.r#box.len() != map.dims.len() {
        return Err(format!(
            "{} strides and a box of {} for {} dimensions",
            map.strides.len(),
            map.r#box.len(),
            map.dims.len()
        ));
    }
    for n in &map.r#box {
        within("elements of a box", *n as usize, 1..=256)?;
    }
    match map.swizzle {
        0 | 32 | 64 | 128 => Ok(()),
        other => Err(format!("a swizzle of {other}")),
    }
}
