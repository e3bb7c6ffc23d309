//! A consumer of flash attention: a warp group with 64 rows.
//!
//!     for tile
//!       for stream, for item of its walk            walk.rs; what has no block at these sizes is skipped
//!         s = q k                                    `wgmma` from shared memory; at once behind it, in the other consumer's softmax's time,
//!         o = o + p v                                the values of the block before, p in registers
//!         p = 2^(s - max)                            while both run on
//!         o = o * 2^(max before - max)               only where a maximum has risen by much
//!       results to the kernel's stages               rows.rs
//!
//! A thread holds two rows, 8 apart: of each 8 columns two. Scores are in units of log2 once scaled. Which blocks come is `blocks`', what is done
//! with one is `visit`'s, masks and weights are `softmax`'s.

mod blocks;
mod softmax;
mod visit;

use super::flash::{Block, Reach, turn};
use super::plan::{Panels, Stream};
use super::walk::{KEYS, items};
use crate::gpu::hopper::{self, Matrix};
use crate::gpu::ptx::{self, F32, I32};
use crate::mlir::emit::{Cmp, Emit, Ty, Val};

pub struct Consumer<'b, 'k> {
    pub b: &'b Block<'b, 'k>,
    /// The consumer's number, i32.
    pub number: Val,
    pub shift: i64,
    /// In the warp group, and in the warp, i32.
    pub thread: Val,
    pub lane: Val,
    /// Descriptors of the queries, and of the first stage of keys and values.
    queries: (Matrix, Val),
    keys: (Matrix, Val),
    values: (Matrix, Val),
    /// Row - first column of the thread: what a distance is made of, i32.
    lead: Val,
}

/// What a stream has seen: O (none yet: empty), maxima of raw scores, the thread's parts of the masses.
#[derive(Clone)]
pub struct Acc {
    pub o: Vec<Val>,
    pub max: [Val; 2],
    pub mass: [Val; 2],
}

/// Weights that have not met their values.
#[derive(Clone)]
struct Pending {
    /// Four a step of 16 keys.
    weights: Vec<Val>,
    /// First step.
    first: i64,
    /// The block's number.
    count: Val,
    /// Is the stage given back then?
    last: bool,
}

impl Pending {
    fn is_whole(&self) -> bool {
        self.weights.len() as i64 == KEYS / 16 * 4
    }
}

#[derive(Clone)]
struct State {
    acc: Acc,
    pending: Option<Pending>,
    /// Blocks taken so far, i32.
    count: Val,
    /// Known: there are at least so many blocks.
    least: i64,
    /// Raw scores of the block that was just visited.
    scores: Vec<Val>,
    /// Nothing was seen yet.
    fresh: bool,
}

/// One stream's walk.
struct Walk<'w> {
    stream: &'w Stream,
    reach: Reach,
}

impl<'b, 'k> Consumer<'b, 'k> {
    pub fn new(e: &mut Emit, b: &'b Block<'b, 'k>, number: Val, shift: i64) -> Consumer<'b, 'k> {
        let thread = ptx::thread(e);
        let (group, warp) = (e.int(127, I32), e.int(31, I32));
        let thread = e.and(thread, group);
        let lane = e.and(thread, warp);
        let plan = b.plan;
        let size = e.int(plan.query_bytes(), I32);
        let at = e.mul(number, size);
        let queries = e.add(b.shared, at);
        let along = |p: Panels| Matrix {
            swizzle: p.swizzle(),
            stride: 8 * p.swizzle(),
            leading: 16,
            turned: false,
        };
        let across = Matrix {
            leading: plan.values.bytes(KEYS),
            turned: true,
            ..along(plan.values)
        };
        let [keys, values] = [plan.at_keys(), plan.at_values()].map(|at| b.address(e, at));
        let mut matrix = |how: Matrix, at: Val| (how, how.at(e, at));
        let along = along(plan.keys);
        let (queries, keys, values) = (matrix(along, queries), matrix(along, keys), matrix(across, values));
        let warp = e.shr(thread, 5);
        let first = e.shl(warp, 4);
        let row = e.shr(lane, 2);
        let row = e.add(first, row);
        let quad = e.int(3, I32);
        let column = e.and(lane, quad);
        let column = e.shl(column, 1);
        let lead = e.sub(row, column);
        Consumer {
            b,
            number,
            shift,
            thread,
            lane,
            queries,
            keys,
            values,
            lead,
        }
    }

    pub fn run(&self, e: &mut Emit) {
        let zero = e.int(0, I32);
        if self.b.plan.paired {
            let is_second = e.cmp(Cmp::Ne, self.number, zero);
            e.if_then(is_second, &[], |e| {
                let first = turn(e, zero);
                hopper::signal(e, first, 256);
                vec![]
            });
        }
        self.b.tiles(e, &[zero], |e, number, round, carried| {
            let tile = self.b.tile(e, number);
            let one = e.int(1, I32);
            let parity = e.and(round, one);
            let full = self.own_barrier(e, false);
            hopper::wait(e, full, parity);
            let mut count = carried[0];
            let last = self.b.plan.streams.len() - 1;
            for (i, stream) in self.b.plan.streams.iter().enumerate() {
                let walk = Walk {
                    stream,
                    reach: self.b.reach(e, &tile, stream),
                };
                let state = State {
                    acc: self.nothing(e),
                    pending: None,
                    count,
                    least: 1,
                    scores: vec![],
                    fresh: true,
                };
                let list = items(&stream.bounds, self.shift, self.b.plan.shifts());
                let (acc, next) = self.walk(e, &walk, &list, state);
                count = next;
                let segment = stream.segments[stream.segments.len() - 1];
                if i < last {
                    self.park(e, segment, &acc);
                } else {
                    let empty = self.own_barrier(e, true);
                    self.release(e, empty);
                    self.stages(e, &tile, segment, &acc);
                }
            }
            vec![count]
        });
    }

    /// Full or empty of its queries.
    fn own_barrier(&self, e: &mut Emit, empty: bool) -> Val {
        let first = self.b.query_barrier(e, 0, empty);
        let at = e.shl(self.number, 4);
        e.add(first, at)
    }

    /// One arrival for each warp.
    fn release(&self, e: &mut Emit, barrier: Val) {
        let zero = e.int(0, I32);
        let first = e.cmp(Cmp::Eq, self.lane, zero);
        e.if_then(first, &[], |e| {
            hopper::arrive(e, barrier);
            vec![]
        });
    }

    fn nothing(&self, e: &mut Emit) -> Acc {
        let (end, zero) = (e.f32(f32::NEG_INFINITY, F32), e.f32(0.0, F32));
        Acc {
            o: vec![],
            max: [end; 2],
            mass: [zero; 2],
        }
    }

    fn sums(&self) -> usize {
        if self.b.plan.sums {
            self.b.plan.cols() as usize / 2
        } else {
            0
        }
    }

    /// O, or zeros.
    fn whole(&self, e: &mut Emit, acc: Acc) -> Acc {
        if acc.o.len() == self.sums() {
            return acc;
        }
        let zero = e.f32(0.0, F32);
        Acc {
            o: vec![zero; self.sums()],
            ..acc
        }
    }

    fn flat(&self, e: &mut Emit, acc: Acc, count: Val) -> Vec<Val> {
        let acc = self.whole(e, acc);
        let mut all = acc.o;
        all.extend(acc.max.iter().chain(&acc.mass));
        all.push(count);
        all
    }

    fn unflat(&self, values: &[Val]) -> (Acc, Val) {
        let n = self.sums();
        let acc = Acc {
            o: values[..n].to_vec(),
            max: [values[n], values[n + 1]],
            mass: [values[n + 2], values[n + 3]],
        };
        (acc, values[n + 4])
    }

    fn flat_types(&self) -> Vec<Ty> {
        let mut types = vec![F32; self.sums() + 4];
        types.push(I32);
        types
    }
}

/// May a visited block hold keys that are not there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    There,
    Checked,
}
