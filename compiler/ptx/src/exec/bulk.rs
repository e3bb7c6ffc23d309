//! Copies that finish later: tensor maps and lines by the bulk engine, and `cp.async`.

use super::access::{At, combine};
use super::*;
use crate::memory::{GLOBAL_WINDOW, PARAM_WINDOW};
use crate::op::{AtomicOp, Bulk, CopyAsync};
use crate::tensor::{Element, TensorMap};
use crate::types::Type;

/// Which instruction of which thread began a copy.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub pc: u32,
    pub rank: usize,
    pub thread: u32,
}

#[derive(Clone, Debug)]
pub enum What {
    TensorLoad {
        map: TensorMap,
        at: Vec<i64>,
        to: u32,
    },
    Load {
        from: At,
        to: u32,
        bytes: u32,
    },
    TensorStore {
        map: TensorMap,
        at: Vec<i64>,
        from: u32,
        reduce: Option<AtomicOp>,
    },
    Store {
        from: u32,
        to: u64,
        bytes: u32,
        reduce: Option<(AtomicOp, Type)>,
    },
}

/// A copy of the bulk engine.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub what: What,
    /// Of loads: the mbarrier, and the blocks of the cluster that receive.
    mbarrier: u32,
    receivers: Vec<u32>,
    pub origin: Origin,
}

/// One `cp.async`.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    to: u32,
    from: u64,
    bytes: u32,
    source: u32,
}

fn wrong<T>(what: impl Into<String>) -> Step<T> {
    Err(FaultKind::Copy(what.into()).into())
}

fn type_of(element: Element) -> Type {
    match element {
        Element::U8 => Type::U8,
        Element::U16 => Type::U16,
        Element::U32 => Type::U32,
        Element::S32 => Type::S32,
        Element::U64 => Type::U64,
        Element::S64 => Type::S64,
        Element::F16 => Type::F16,
        Element::BF16 => Type::BF16,
        Element::F32 => Type::F32,
        Element::F64 => Type::F64,
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |x, b| x << 8 | *b as u64)
}

/// Rows of a box: each one's number and first element.
fn rows(map: &TensorMap, at: &[i64]) -> Vec<Vec<i64>> {
    let rows: u32 = map.box_dims[1..].iter().product();
    (0..rows)
        .map(|mut row| {
            let mut first = at.to_vec();
            for (axis, &n) in map.box_dims.iter().enumerate().skip(1) {
                first[axis] += (row % n) as i64;
                row /= n;
            }
            first
        })
        .collect()
}

impl Machinery<'_> {
    fn tensor_map(&self, warp: &Warp, address: u64, lane: usize) -> Step<TensorMap> {
        let at = match address >> 32 {
            w if w == PARAM_WINDOW >> 32 => At::Param(address as u32 as usize),
            _ if address >= GLOBAL_WINDOW => At::Global(address),
            _ => {
                let what = format!("at {address:#x}, which is neither a parameter nor global memory");
                return Err(FaultKind::TensorMap(what).into());
            }
        };
        if !address.is_multiple_of(64) {
            return Err(FaultKind::TensorMap(format!("at {address:#x}, which is no multiple of 64")).into());
        }
        let bytes = self.bytes(warp, lane, at, 128)?;
        TensorMap::decode(bytes).map_err(|what| FaultKind::TensorMap(what).into())
    }

    pub fn bulk(&mut self, warp: &mut Warp, op: &Bulk, mask: u32, pc: u32) -> Step<()> {
        lanes(mask).try_for_each(|lane| at_lane(self.bulk_lane(warp, op, lane, pc), lane))
    }

    fn bulk_lane(&mut self, warp: &mut Warp, op: &Bulk, lane: usize, pc: u32) -> Step<()> {
        let origin = Origin {
            pc,
            rank: warp.rank,
            thread: warp.index * 32 + lane as u32,
        };
        let coordinates = |w: &Warp, all: &[u32]| all.iter().map(|r| w.get(*r, lane) as i32 as i64).collect();
        // A mask of blocks makes a copy to each, at the same offset in each.
        let receivers = |w: &Warp, multicast: &Option<u32>, to: u32| match multicast {
            None => vec![to >> 24],
            Some(r) => lanes(w.get(*r, lane) as u16 as u32).map(|b| b as u32).collect(),
        };
        match op {
            Bulk::TensorLoad {
                to,
                map,
                coordinates: at,
                mbarrier,
                multicast,
            } => {
                let map = self.tensor_map(warp, warp.address(*map, lane), lane)?;
                let to = warp.address(*to, lane) as u32;
                if map.dims.len() != at.len() {
                    return wrong(format!("{} coordinates for a map of rank {}", at.len(), map.dims.len()));
                }
                if to % 128 != 0 {
                    return wrong(format!("shared address {to:#x} is no multiple of 128"));
                }
                let receivers = receivers(warp, multicast, to);
                let mbarrier = warp.address(*mbarrier, lane) as u32;
                let what = What::TensorLoad {
                    map,
                    at: coordinates(warp, at),
                    to,
                };
                self.start_load(what, mbarrier, receivers, origin)
            }
            Bulk::Load {
                to,
                from,
                bytes,
                mbarrier,
                multicast,
                shared,
            } => {
                let (to, from) = (warp.address(*to, lane) as u32, warp.address(*from, lane));
                let bytes = warp.get(*bytes, lane) as u32;
                if to % 16 != 0 || from % 16 != 0 || bytes % 16 != 0 {
                    return wrong(format!(
                        "{bytes} bytes from {from:#x} to {to:#x}: not all are multiples of 16"
                    ));
                }
                let receivers = receivers(warp, multicast, to);
                let mbarrier = warp.address(*mbarrier, lane) as u32;
                let from = if *shared {
                    At::Shared(from as u32)
                } else {
                    At::Global(from)
                };
                self.start_load(What::Load { from, to, bytes }, mbarrier, receivers, origin)
            }
            Bulk::TensorStore {
                map,
                coordinates: at,
                from,
                reduce,
            } => {
                let map = self.tensor_map(warp, warp.address(*map, lane), lane)?;
                let from = warp.address(*from, lane) as u32;
                if map.dims.len() != at.len() {
                    return wrong(format!("{} coordinates for a map of rank {}", at.len(), map.dims.len()));
                }
                if from % 128 != 0 {
                    return wrong(format!("shared address {from:#x} is no multiple of 128"));
                }
                let what = What::TensorStore {
                    map,
                    at: coordinates(warp, at),
                    from,
                    reduce: *reduce,
                };
                self.start_store(warp, lane, what, origin)
            }
            Bulk::Store {
                to,
                from,
                bytes,
                reduce,
            } => {
                let (to, from) = (warp.address(*to, lane), warp.address(*from, lane) as u32);
                let bytes = warp.get(*bytes, lane) as u32;
                if to % 16 != 0 || from % 16 != 0 || bytes % 16 != 0 {
                    return wrong(format!(
                        "{bytes} bytes from {from:#x} to {to:#x}: not all are multiples of 16"
                    ));
                }
                let what = What::Store {
                    from,
                    to,
                    bytes,
                    reduce: *reduce,
                };
                self.start_store(warp, lane, what, origin)
            }
            Bulk::Commit => {
                warp.store_groups[lane] += 1;
                Ok(())
            }
            Bulk::Wait { pending } => {
                let done = warp.store_groups[lane].saturating_sub(*pending as u64);
                self.finish_stores(warp, lane, done)
            }
        }
    }

    fn start_load(&mut self, what: What, mbarrier: u32, receivers: Vec<u32>, origin: Origin) -> Step<()> {
        let transfer = Transfer {
            what,
            mbarrier,
            receivers,
            origin,
        };
        match self.timing {
            Timing::Late => {
                self.loads.push_back(transfer);
                Ok(())
            }
            Timing::Eager => self.load_now(&transfer),
        }
    }

    fn start_store(&mut self, warp: &mut Warp, lane: usize, what: What, origin: Origin) -> Step<()> {
        let transfer = Transfer {
            what,
            mbarrier: 0,
            receivers: vec![],
            origin,
        };
        if self.timing == Timing::Eager {
            self.store_now(&transfer.what)?;
        }
        warp.stores.push_back((lane as u8, warp.store_groups[lane], transfer));
        Ok(())
    }

    /// Stores of the lane's groups before `done`.
    fn finish_stores(&mut self, warp: &mut Warp, lane: usize, done: u64) -> Step<()> {
        let mut i = 0;
        while i < warp.stores.len() {
            if warp.stores[i].0 as usize != lane || warp.stores[i].1 >= done {
                i += 1;
            } else if let Some((_, _, transfer)) = warp.stores.remove(i)
                && self.timing == Timing::Late
            {
                self.store_now(&transfer.what)?;
            }
        }
        Ok(())
    }

    /// Executes the load that was started first, if there is one.
    pub fn next_load(&mut self) -> Result<bool, (Box<crate::fault::Problem>, Origin)> {
        match self.loads.pop_front() {
            None => Ok(false),
            Some(t) => self.load_now(&t).map(|()| true).map_err(|p| (p, t.origin)),
        }
    }

    fn load_now(&mut self, transfer: &Transfer) -> Step<()> {
        for &rank in &transfer.receivers {
            let there = |address: u32| rank << 24 | address & 0xff_ffff;
            let bytes = match &transfer.what {
                What::TensorLoad { map, at, to } => {
                    self.load_box(map, at, there(*to))?;
                    map.box_bytes()
                }
                What::Load { from, to, bytes } => {
                    let data = match *from {
                        At::Shared(a) => self.shared(a)?.read(a & 0xff_ffff, *bytes)?.to_vec(),
                        At::Global(a) => self.memory.read(a, *bytes as u64)?.to_vec(),
                        At::Local(_) | At::Param(_) => return wrong("from the thread's own memory"),
                    };
                    let to = there(*to);
                    self.shared(to)?.write(to & 0xff_ffff, *bytes)?.copy_from_slice(&data);
                    *bytes
                }
                What::TensorStore { .. } | What::Store { .. } => 0,
            };
            self.complete_bytes(there(transfer.mbarrier), bytes)?;
        }
        Ok(())
    }

    /// Elements outside the tensor are zero.
    fn load_box(&mut self, map: &TensorMap, at: &[i64], to: u32) -> Step<()> {
        let each = map.element.bytes() as usize;
        let inner = map.box_dims[0] as usize;
        let mut row = vec![0u8; inner * each];
        for (n, first) in rows(map, at).into_iter().enumerate() {
            row.fill(0);
            let outside = first
                .iter()
                .zip(&map.dims)
                .skip(1)
                .any(|(i, n)| *i < 0 || *i as u64 >= *n);
            let begin = (-first[0]).clamp(0, inner as i64) as usize;
            let end = (map.dims[0] as i64 - first[0]).clamp(begin as i64, inner as i64) as usize;
            let mut from = first.clone();
            from[0] += begin as i64;
            if !outside
                && begin < end
                && let Some(address) = map.element_at(&from)
            {
                let bytes = (end - begin) * each;
                row[begin * each..end * each].copy_from_slice(self.memory.read(address, bytes as u64)?);
            }
            for (chunk, data) in row.chunks_exact(16).enumerate() {
                let address = map.swizzle.apply(to + (n * inner * each + chunk * 16) as u32);
                self.shared(address)?
                    .write(address & 0xff_ffff, 16)?
                    .copy_from_slice(data);
            }
        }
        Ok(())
    }

    fn store_now(&mut self, what: &What) -> Step<()> {
        self.changes += 1;
        match what {
            What::TensorStore { map, at, from, reduce } => {
                let each = map.element.bytes();
                let inner = map.box_dims[0];
                for (n, first) in rows(map, at).into_iter().enumerate() {
                    for i in 0..inner {
                        let mut at = first.clone();
                        at[0] += i as i64;
                        let offset = from + n as u32 * inner * each + i * each;
                        let address = map.swizzle.apply(offset);
                        let data = self.shared(address)?.read(address & 0xff_ffff, each)?.to_vec();
                        if let Some(to) = map.element_at(&at) {
                            self.put(to, &data, reduce.map(|op| (op, type_of(map.element))))?;
                        }
                    }
                }
            }
            What::Store {
                from,
                to,
                bytes,
                reduce,
            } => {
                let data = self.shared(*from)?.read(from & 0xff_ffff, *bytes)?.to_vec();
                match reduce {
                    None => self.put(*to, &data, None)?,
                    Some((op, ty)) => {
                        let each = (ty.bits() / 8) as usize;
                        for (i, element) in data.chunks_exact(each).enumerate() {
                            self.put(to + (i * each) as u64, element, Some((*op, *ty)))?;
                        }
                    }
                }
            }
            What::TensorLoad { .. } | What::Load { .. } => {}
        }
        Ok(())
    }

    /// Bytes to global memory, or one element combined with what is there.
    fn put(&mut self, to: u64, data: &[u8], reduce: Option<(AtomicOp, Type)>) -> Step<()> {
        let bytes = data.len() as u64;
        match reduce {
            None => self.memory.write(to, bytes)?.copy_from_slice(data),
            Some((op, ty)) => {
                let old = word(self.memory.read(to, bytes)?);
                let new = combine(op, ty, old, word(data), 0)?;
                self.memory
                    .write(to, bytes)?
                    .copy_from_slice(&new.to_le_bytes()[..data.len()]);
            }
        }
        Ok(())
    }

    pub fn copy_async(&mut self, warp: &mut Warp, op: &CopyAsync, mask: u32) -> Step<()> {
        for lane in lanes(mask) {
            let result = match op {
                CopyAsync::Copy {
                    to,
                    from,
                    bytes,
                    source,
                    ignore,
                } => {
                    let bytes = *bytes as u32;
                    let mut taken = source.map_or(bytes, |r| warp.get(r, lane) as u32);
                    if ignore.is_some_and(|r| warp.get(r, lane) != 0) {
                        taken = 0;
                    }
                    let copy = Copy {
                        to: warp.address(*to, lane) as u32,
                        from: warp.address(*from, lane),
                        bytes,
                        source: taken,
                    };
                    if taken > bytes {
                        wrong(format!("{taken} bytes to read for a copy of {bytes}"))
                    } else if copy.to % bytes != 0 || copy.from % bytes as u64 != 0 {
                        wrong(format!(
                            "{bytes} bytes from {:#x} to {:#x}: not aligned",
                            copy.from, copy.to
                        ))
                    } else if self.timing == Timing::Eager {
                        self.copy_now(copy)
                    } else {
                        warp.copies.push_back((lane as u8, warp.copy_groups[lane], copy));
                        Ok(())
                    }
                }
                CopyAsync::Commit => {
                    warp.copy_groups[lane] += 1;
                    Ok(())
                }
                CopyAsync::Wait { pending } => {
                    let done = pending.map(|n| warp.copy_groups[lane].saturating_sub(n as u64));
                    self.finish_copies(warp, lane, done)
                }
            };
            at_lane(result, lane)?;
        }
        Ok(())
    }

    /// Copies of the lane's groups before `done`; all of them without it.
    pub fn finish_copies(&mut self, warp: &mut Warp, lane: usize, done: Option<u64>) -> Step<()> {
        let mut i = 0;
        while i < warp.copies.len() {
            let (owner, group, copy) = warp.copies[i];
            if owner as usize != lane || done.is_some_and(|d| group >= d) {
                i += 1;
            } else {
                warp.copies.remove(i);
                self.copy_now(copy)?;
            }
        }
        Ok(())
    }

    fn copy_now(&mut self, copy: Copy) -> Step<()> {
        let mut data = [0; 16];
        // Nothing is read of a copy that is all zeros: its source may be anywhere.
        if copy.source > 0 {
            let from = self.memory.read(copy.from, copy.source as u64)?;
            data[..copy.source as usize].copy_from_slice(from);
        }
        let to = self.shared(copy.to)?.write(copy.to & 0xff_ffff, copy.bytes)?;
        to.copy_from_slice(&data[..copy.bytes as usize]);
        Ok(())
    }

    /// Lanes end: their bulk stores must have been waited for, since shared memory goes with the block.
    pub fn finish_lanes(&mut self, warp: &mut Warp, mask: u32) -> Step<()> {
        if let Some((lane, _, t)) = warp.stores.iter().find(|s| mask >> s.0 & 1 == 1) {
            let what = format!(
                "the thread ends without a wait for its store of `{}`",
                self.text(t.origin.pc)
            );
            return at_lane(wrong(what), *lane as usize);
        }
        lanes(mask).try_for_each(|lane| self.finish_copies(warp, lane, None))
    }
}
