//! An entry as one function (`artefact::Persistent`): what it is told, in memory of the device. Which entries can be run so is the compiler's
//! business.

use std::sync::Arc;

use super::driver::{Context, Held};
use super::memory::DeviceMemory;
use super::module::{Function, Grid, Module};
use crate::artefact::{Buffer, Entry, Matrices, Persistent, Sizes, Task, Units};
use crate::engine::sizes::eval;
use crate::error::RuntimeError;

/// Bytes of a bf16.
const ELEMENT: u64 = 2;

/// A persistent function that is loaded, with the list of units of its weights, which stay where they are.
pub struct Resident {
    pub how: Persistent,
    pub function: Function,
    list: DeviceMemory,
}

impl Resident {
    /// `weight`: the address of the artefact's weight of that number.
    pub fn load(
        context: &Arc<Context>,
        module: &Module,
        how: &Persistent,
        entry: &Entry,
        weight: impl Fn(usize) -> u64,
    ) -> Result<Resident, RuntimeError> {
        let matrix = |buffer: u32| match entry.buffers[buffer as usize] {
            Buffer::Weight(i) => Ok(weight(i as usize)),
            _ => Err(RuntimeError::Code(format!(
                "function `{}` streams a matrix that is no weight",
                how.function
            ))),
        };
        let mut streams = vec![];
        for task in &how.tasks {
            let buffers = buffers(entry, task);
            if let Some(m) = &task.matrices {
                let at: Result<Vec<u64>, _> = m.args.iter().map(|a| matrix(buffers[*a as usize])).collect();
                streams.push((m, at?));
            }
        }
        let list = list(&streams, how.units, context.multiprocessors.into());
        Ok(Resident {
            how: how.clone(),
            function: module.function(&how.function, how.shared, 1)?,
            list: upload(context, &list)?,
        })
    }

    pub fn takes(&self, values: &Sizes) -> bool {
        let (size, most) = &self.how.at_most;
        eval(size, values).is_some_and(|n| n <= *most)
    }

    pub fn grid(&self, context: &Context) -> Grid {
        Grid {
            blocks: context.multiprocessors,
            threads: self.how.threads,
            shared: self.how.shared,
            cluster: 1,
            overlap: false,
            together: true,
        }
    }

    /// The table of a call's tasks, and the function's pointers. `of`: the address of each of the entry's buffers.
    pub fn pointers(
        &self,
        context: &Arc<Context>,
        entry: &Entry,
        of: &[u64],
        [workspace, counters]: [u64; 2],
    ) -> Result<(DeviceMemory, Vec<u64>), RuntimeError> {
        let table = upload(context, &table(&self.how, entry, of))?;
        let pointers = vec![table.address(), self.list.address(), workspace, counters];
        Ok((table, pointers))
    }
}

fn upload(context: &Arc<Context>, words: &[u64]) -> Result<DeviceMemory, RuntimeError> {
    let memory = DeviceMemory::new(context, 8 * words.len(), Held::Work)?;
    unsafe { context.copy_in(memory.address(), words.as_ptr().cast(), 8 * words.len()) }?;
    context.wait()?;
    Ok(memory)
}

/// The task's buffers, one launch after the other.
fn buffers(entry: &Entry, task: &Task) -> Vec<u32> {
    let launches = &entry.launches[task.first as usize..(task.first + task.count) as usize];
    launches.iter().flat_map(|l| l.buffers.iter().copied()).collect()
}

fn table(how: &Persistent, entry: &Entry, of: &[u64]) -> Vec<u64> {
    let row = |task: &Task| {
        let mut row = vec![2 * u64::from(task.body) + u64::from(task.beside)];
        row.extend(buffers(entry, task).iter().map(|b| of[*b as usize]));
        row.resize(how.row as usize, 0);
        row
    };
    how.tasks.iter().flat_map(row).collect()
}

/// The units of all blocks; matrices with their addresses.
fn list(streams: &[(&Matrices, Vec<u64>)], units: Units, blocks: u64) -> Vec<u64> {
    let all: Vec<Vec<[u64; 2]>> = (0..blocks).map(|b| of_block(streams, units, b, blocks)).collect();
    let longest = all.iter().map(Vec::len).max().unwrap_or(0);
    let mut list: Vec<u64> = all.iter().flat_map(|units| [units.len() as u64, 0]).collect();
    for number in 0..=longest {
        for units in &all {
            list.extend(units.get(number).copied().unwrap_or_default());
        }
    }
    list
}

/// As entries of the list.
fn of_block(streams: &[(&Matrices, Vec<u64>)], units: Units, block: u64, blocks: u64) -> Vec<[u64; 2]> {
    let (height, depth) = (units.rows as u64, units.depth as u64);
    let mut all = vec![];
    for (m, addresses) in streams {
        let (tiles, columns) = (m.rows as u64 / height, m.columns as u64);
        for tile in block * tiles / blocks..(block + 1) * tiles / blocks {
            for address in addresses {
                for left in (0..columns).step_by(depth as usize) {
                    let at = address + ELEMENT * (tile * height * columns + left);
                    let (bytes, pitch) = (ELEMENT * depth.min(columns - left), ELEMENT * columns);
                    all.push([at, bytes | pitch << 32]);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_of_every_matrix_once() {
        let units = Units {
            rows: 8,
            depth: 1024,
        };
        let wide = Matrices {
            args: vec![0, 1],
            rows: 40,
            columns: 1536,
        };
        let narrow = Matrices {
            args: vec![0],
            rows: 24,
            columns: 64,
        };
        let streams = [(&wide, vec![1 << 20, 2 << 20]), (&narrow, vec![3 << 20])];
        let mut seen = std::collections::BTreeSet::new();
        for block in 0..7 {
            for [at, how] in of_block(&streams, units, block, 7) {
                let (bytes, pitch) = (how & 0xffff_ffff, how >> 32);
                for row in 0..8 {
                    for byte in 0..bytes {
                        assert!(seen.insert(at + row * pitch + byte));
                    }
                }
            }
        }
        let matrix = |at: u64, rows: u64, columns: u64| at..at + 2 * rows * columns;
        let wanted = matrix(1 << 20, 40, 1536).chain(matrix(2 << 20, 40, 1536));
        assert!(seen.into_iter().eq(wanted.chain(matrix(3 << 20, 24, 64))));
    }

    #[test]
    fn a_block_has_so_many_units_and_zeros_behind_them() {
        let units = Units {
            rows: 8,
            depth: 1024,
        };
        let m = Matrices {
            args: vec![0],
            rows: 24,
            columns: 64,
        };
        // Three tiles of two blocks: one and two.
        let list = list(&[(&m, vec![4096])], units, 2);
        let entry = |unit: usize, block: usize| [list[2 * (2 * unit + block)], list[2 * (2 * unit + block) + 1]];
        assert_eq!(list.len(), 2 * 2 * 4);
        assert_eq!((entry(0, 0), entry(0, 1)), ([1, 0], [2, 0]));
        assert_eq!(entry(1, 0), [4096, 128 | 128 << 32]);
        assert_eq!(entry(1, 1), [4096 + 1024, 128 | 128 << 32]);
        assert_eq!(entry(2, 1), [4096 + 2048, 128 | 128 << 32]);
        assert!([entry(2, 0), entry(3, 0), entry(3, 1)].iter().all(|e| *e == [0, 0]));
    }
}
