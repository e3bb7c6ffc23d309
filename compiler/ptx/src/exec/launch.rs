//! How a kernel is launched and what comes of it: options, arguments, statistics.

use std::collections::BTreeMap;

use super::LIMIT;
use crate::decode::Code;
use crate::tensor::TensorMap;

/// When asynchronous copies are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// As late as they may be: what does not wait for them sees old data.
    #[default]
    Late,
    /// When they are issued.
    Eager,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Blocks per cluster, along x.
    pub cluster: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    pub timing: Timing,
    /// Reads of shared memory that nobody wrote are faults.
    pub checks_reads: bool,
    /// Accesses to shared memory that nothing orders, and missing proxy fences, are faults.
    pub checks_races: bool,
    /// Instructions of warps after which a launch is given up.
    pub limit: u64,
}

impl Launch {
    pub fn new(grid: [u32; 3], block: u32) -> Launch {
        Launch {
            grid,
            block: [block, 1, 1],
            cluster: 1,
            shared: 0,
            timing: Timing::Late,
            checks_reads: true,
            checks_races: true,
            limit: 1_000_000_000,
        }
    }

    pub fn shared(self, bytes: u32) -> Launch {
        Launch { shared: bytes, ..self }
    }

    pub fn cluster(self, blocks: u32) -> Launch {
        Launch {
            cluster: blocks,
            ..self
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    Pointer(u64),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    TensorMap(TensorMap),
    Bytes(Vec<u8>),
}

/// Executions of one instruction or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub warps: u64,
    pub threads: u64,
}

/// What a launch executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// By the instruction's name as written, with all its dots.
    pub by_name: BTreeMap<String, Tally>,
    /// By line of the PTX text.
    pub by_line: BTreeMap<u32, Tally>,
}

impl Stats {
    /// Executions by warps of instructions whose name begins so. A warpgroup's instruction counts for each of its four warps.
    pub fn warps(&self, prefix: &str) -> u64 {
        self.by_name
            .iter()
            .filter(|(n, _)| n.starts_with(prefix))
            .map(|(_, t)| t.warps)
            .sum()
    }

    pub fn threads(&self, prefix: &str) -> u64 {
        self.by_name
            .iter()
            .filter(|(n, _)| n.starts_with(prefix))
            .map(|(_, t)| t.threads)
            .sum()
    }
}

/// What the driver would refuse; else the bytes of the parameters.
pub fn check(code: &Code, launch: &Launch, params: &[Param]) -> Result<Vec<u8>, String> {
    let threads: u32 = launch.block.iter().product();
    let need = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
    need((1..=1024).contains(&threads), format!("{threads} threads in a block"))?;
    need(
        launch.grid.iter().all(|n| *n > 0),
        format!("a grid of {:?}", launch.grid),
    )?;
    need(
        launch.grid[1] < 65536 && launch.grid[2] < 65536,
        format!("a grid of {:?}", launch.grid),
    )?;
    need(
        (1..=16).contains(&launch.cluster),
        format!("clusters of {} blocks", launch.cluster),
    )?;
    need(
        launch.grid[0].is_multiple_of(launch.cluster),
        format!("a grid of {:?} in clusters of {}", launch.grid, launch.cluster),
    )?;
    if let Some(wanted) = code.required_block {
        need(
            wanted == launch.block,
            format!("blocks of {:?}, the kernel wants {wanted:?}", launch.block),
        )?;
    }
    if let Some(most) = code.max_block {
        need(
            threads <= most,
            format!("{threads} threads in a block, the kernel allows {most}"),
        )?;
    }
    if let Some(wanted) = code.required_cluster {
        need(
            wanted == launch.cluster,
            format!("clusters of {}, the kernel wants {wanted}", launch.cluster),
        )?;
    }
    let shared = code.dynamic_shared + launch.shared;
    need(
        shared <= LIMIT,
        format!("{shared} bytes of shared memory, {LIMIT} are there"),
    )?;
    need(
        params.len() == code.parameters.len(),
        format!("{} arguments for {} parameters", params.len(), code.parameters.len()),
    )?;
    let mut bytes = vec![0; code.parameter_bytes as usize];
    for (i, (param, place)) in params.iter().zip(&code.parameters).enumerate() {
        let value = match param {
            Param::Pointer(x) | Param::U64(x) => x.to_le_bytes().to_vec(),
            Param::U32(x) => x.to_le_bytes().to_vec(),
            Param::I32(x) => x.to_le_bytes().to_vec(),
            Param::F32(x) => x.to_le_bytes().to_vec(),
            Param::TensorMap(map) => {
                map.check().map_err(|e| format!("tensor map of argument {i}: {e}"))?;
                need(
                    place.offset.is_multiple_of(64),
                    format!("parameter {i} is a tensor map and not aligned to 64 bytes"),
                )?;
                map.encode().to_vec()
            }
            Param::Bytes(b) => b.clone(),
        };
        need(
            value.len() as u32 == place.bytes,
            format!("argument {i} has {} bytes, the parameter {}", value.len(), place.bytes),
        )?;
        bytes[place.offset as usize..][..value.len()].copy_from_slice(&value);
    }
    Ok(bytes)
}
