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
//! A thread holds two rows, 8 apart: of each 8 columns two. Scores are in units of log2 once scaled.

// Rows g and g + 8 of a fragment: their number places them in several lists at once.
#![allow(clippy::needless_range_loop)]

use super::super::super::hopper::{self, Left, Matrix, Step};
use super::super::super::math;
use super::super::super::ptx::{self, F32, I32};
use super::flash::{Block, Panels, Reach, Stream, turn};
use super::walk::{HALF, Item, KEYS, Part, Visit, items};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};

/// A maximum may lag behind by so much (in units of log2): exponentials stay below 2^8, and most blocks need no rescaling.
const LAG: f32 = 8.0;

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

    /// The items from here on; gives the accumulator and the blocks taken.
    fn walk(&self, e: &mut Emit, w: &Walk, items: &[Item], mut s: State) -> (Acc, Val) {
        let Some((item, rest)) = items.split_first() else {
            self.flush(e, &mut s);
            return (s.acc, s.count);
        };
        match item {
            Item::Cut { segment } => {
                self.flush(e, &mut s);
                s.acc = self.whole(e, s.acc);
                self.park(e, w.stream.segments[*segment], &s.acc);
                self.walk(e, w, rest, s)
            }
            Item::Visit(_) | Item::Skip { .. } => {
                let block = item.block().unwrap_or(0);
                if block < s.least {
                    let at = e.int(block, I32);
                    match item {
                        Item::Visit(v) => self.visit(e, w, &mut s, v, at, Keys::Checked, self.gives_back(v, rest)),
                        _ => self.skip(e, &mut s),
                    }
                    return self.walk(e, w, rest, s);
                }
                self.where_there(e, w, items, block, s)
            }
            Item::Run { from, .. } if *from >= s.least => self.where_there(e, w, items, *from, s),
            Item::Run { from, to, segment } => self.run_of(e, w, rest, *from, *to, *segment, s),
        }
    }

    /// All items if there is such a block, else those that need none so far back.
    fn where_there(&self, e: &mut Emit, w: &Walk, items: &[Item], block: i64, s: State) -> (Acc, Val) {
        let at = e.int(block, I32);
        let there = e.cmp(Cmp::Lt, at, w.reach.blocks);
        let less: Vec<Item> = items
            .iter()
            .filter(|i| i.block().is_none_or(|b| b < block))
            .cloned()
            .collect();
        let more = State {
            least: block + 1,
            ..s.clone()
        };
        let all = e.if_else(
            there,
            &self.flat_types(),
            |e| {
                let (acc, count) = self.walk(e, w, items, more);
                self.flat(e, acc, count)
            },
            |e| {
                let (acc, count) = self.walk(e, w, &less, s);
                self.flat(e, acc, count)
            },
        );
        self.unflat(&all)
    }

    /// Is this visit the block's last?
    fn gives_back(&self, v: &Visit, rest: &[Item]) -> bool {
        let next = rest.iter().find(|i| !matches!(i, Item::Cut { .. }));
        !matches!(next, Some(Item::Visit(n)) if n.again && n.block == v.block)
    }

    #[allow(clippy::too_many_arguments)]
    fn run_of(
        &self,
        e: &mut Emit,
        w: &Walk,
        rest: &[Item],
        from: i64,
        to: Option<i64>,
        segment: usize,
        mut s: State,
    ) -> (Acc, Val) {
        let end = match to {
            None => w.reach.whole,
            Some(to) => {
                let to = e.int(to, I32);
                e.min(to, w.reach.whole)
            }
        };
        let whole = Visit {
            block: from,
            segment,
            halves: [Part::All; 2],
            scored: [true; 2],
            again: false,
        };
        let checks = if self.b.plan.bounded {
            Keys::Checked
        } else {
            Keys::There
        };
        let first = e.int(from, I32);
        let even = s.pending.as_ref().is_some_and(Pending::is_whole) || !self.b.plan.sums;
        if even {
            let s = self.blocks(e, w, &whole, first, end, checks, s);
            return self.behind_run(e, w, rest, from, to, segment, s);
        }
        // The first block takes along what is not a whole block's weights.
        let some = e.cmp(Cmp::Lt, first, end);
        let without = s.clone();
        let all = e.if_else(
            some,
            &self.flat_types(),
            |e| {
                self.visit(e, w, &mut s, &whole, first, checks, true);
                let second = e.int(from + 1, I32);
                let s = self.blocks(e, w, &whole, second, end, checks, s);
                let (acc, count) = self.behind_run(e, w, rest, from, to, segment, s);
                self.flat(e, acc, count)
            },
            |e| {
                let (acc, count) = self.behind_run(e, w, rest, from, to, segment, without);
                self.flat(e, acc, count)
            },
        );
        self.unflat(&all)
    }

    /// A loop over whole blocks.
    #[allow(clippy::too_many_arguments)]
    fn blocks(&self, e: &mut Emit, w: &Walk, whole: &Visit, from: Val, to: Val, checks: Keys, s: State) -> State {
        let acc = self.whole(e, s.acc.clone());
        let mut init = self.flat(e, acc, s.count);
        let n = init.len();
        let pending = s.pending.clone();
        if let Some(p) = &pending {
            init.extend(&p.weights);
        }
        let unpack = |values: &[Val], s: &State| {
            let (acc, count) = self.unflat(&values[..n]);
            State {
                fresh: false,
                acc,
                count,
                pending: pending.as_ref().map(|p| Pending {
                    weights: values[n..].to_vec(),
                    ..p.clone()
                }),
                ..s.clone()
            }
        };
        let last = e.for_loop(from, to, 1, &init, |e, at, values| {
            let mut s = unpack(values, &s);
            self.counted(e, &mut s);
            self.visit(e, w, &mut s, whole, at, checks, true);
            let mut out = self.flat(e, s.acc, s.count);
            if let Some(p) = s.pending {
                out.extend(p.weights);
            }
            out
        });
        let mut s = unpack(&last, &s);
        self.counted(e, &mut s);
        s
    }

    /// Weights that came through a loop belong to the block before.
    fn counted(&self, e: &mut Emit, s: &mut State) {
        let one = e.int(1, I32);
        let before = e.sub(s.count, one);
        if let Some(p) = &mut s.pending {
            p.count = before;
        }
    }

    /// The oldest block, if not all of its keys are there and it lies in this run; then nothing else comes. Else the rest.
    #[allow(clippy::too_many_arguments)]
    fn behind_run(
        &self,
        e: &mut Emit,
        w: &Walk,
        rest: &[Item],
        from: i64,
        to: Option<i64>,
        segment: usize,
        s: State,
    ) -> (Acc, Val) {
        // Pairs of heads stand at multiples of 64 tokens, else tiles are 128.
        if self.b.plan.aligned && !self.b.plan.paired {
            return self.walk(e, w, rest, s);
        }
        let least = e.int(from, I32);
        let broken = e.cmp(Cmp::Lt, w.reach.whole, w.reach.blocks);
        let inside = e.cmp(Cmp::Le, least, w.reach.whole);
        let mut here = e.and(broken, inside);
        if let Some(to) = to {
            let to = e.int(to, I32);
            let inside = e.cmp(Cmp::Lt, w.reach.whole, to);
            here = e.and(here, inside);
        }
        let all = e.if_else(
            here,
            &self.flat_types(),
            |e| {
                let mut s = s.clone();
                let (halves, checks) = if self.b.plan.aligned {
                    ([Part::None, Part::All], Keys::There)
                } else {
                    ([Part::All; 2], Keys::Checked)
                };
                let visit = Visit {
                    block: from,
                    segment,
                    halves,
                    scored: halves.map(|h| h != Part::None),
                    again: false,
                };
                self.visit(e, w, &mut s, &visit, w.reach.whole, checks, true);
                let older = |b: i64| to.is_none_or(|to| b >= to);
                let rest: Vec<Item> = rest.iter().filter(|i| !i.block().is_some_and(older)).cloned().collect();
                let (acc, count) = self.walk(e, w, &rest, s);
                self.flat(e, acc, count)
            },
            |e| {
                let (acc, count) = self.walk(e, w, rest, s.clone());
                self.flat(e, acc, count)
            },
        );
        self.unflat(&all)
    }

    fn skip(&self, e: &mut Emit, s: &mut State) {
        let (stage, parity) = self.b.stage(e, s.count);
        for values in [false, true].into_iter().filter(|v| !v || self.b.plan.sums) {
            let full = self.b.ring_barrier(e, stage, values, false);
            hopper::wait(e, full, parity);
            let empty = self.b.ring_barrier(e, stage, values, true);
            self.release(e, empty);
        }
        let one = e.int(1, I32);
        s.count = e.add(s.count, one);
    }

    /// A block's scores and weights; the weights before meet their values.
    #[allow(clippy::too_many_arguments)]
    fn visit(&self, e: &mut Emit, w: &Walk, s: &mut State, v: &Visit, at: Val, checks: Keys, last: bool) {
        let sides: Vec<i64> = (0..2).filter(|h| v.scored[*h as usize]).collect();
        let pending = s.pending.take();
        let waiting = pending.is_some();
        if !v.again {
            let (stage, parity) = self.b.stage(e, s.count);
            let full = self.b.ring_barrier(e, stage, false, false);
            hopper::wait(e, full, parity);
            self.turn(e, |e| {
                let scores = self.scores(e, stage, &sides);
                if let Some(p) = &pending {
                    s.acc.o = self.weigh(e, &s.acc.o, p);
                }
                s.scores = scores;
            });
            s.scores = hopper::finish(e, i64::from(waiting), &s.scores);
            let empty = self.b.ring_barrier(e, stage, false, true);
            self.release(e, empty);
            if checks == Keys::Checked {
                s.scores = self.checked(e, w, &s.scores, &sides, at);
            }
            let one = e.int(1, I32);
            s.count = e.add(s.count, one);
        }
        // Columns of this segment alone.
        let own: Vec<i64> = (0..2).filter(|h| v.halves[*h as usize] != Part::None).collect();
        let mut scores = vec![];
        for half in &own {
            let from = ((half - sides[0]) * 32) as usize;
            scores.extend(self.masked(e, w, &s.scores[from..from + 32], v, *half));
        }
        let is_first = std::mem::take(&mut s.fresh);
        let hard = checks == Keys::Checked || v.halves.contains(&Part::Edge);
        let weights = self.softmax(e, w.stream.scale, &mut s.acc, scores, is_first, hard);
        let mut raw = weights.raw;
        if let Some(p) = &pending {
            raw = self.weighed(e, &mut s.acc, p, &raw);
        }
        if let (Some(risen), false) = (weights.risen, s.acc.o.is_empty()) {
            let factors = weights.factors;
            s.acc.o = e.if_then(risen, &s.acc.o.clone(), |e| {
                let o = s.acc.o.iter().enumerate();
                o.map(|(i, x)| e.mul(*x, factors[i / 2 % 2])).collect()
            });
        }
        if self.b.plan.sums {
            let one = e.int(1, I32);
            s.pending = Some(Pending {
                weights: raw.chunks(2).map(|p| hopper::pack_bf16(e, p[0], p[1])).collect(),
                first: own[0] * HALF / 16,
                count: e.sub(s.count, one),
                last,
            });
        }
    }

    /// Issues what is asked for in this consumer's turn.
    fn turn(&self, e: &mut Emit, f: impl FnOnce(&mut Emit)) {
        if !self.b.plan.paired || flag("NOTURN") {
            return f(e);
        }
        let mine = turn(e, self.number);
        hopper::meet(e, mine, 256);
        f(e);
        let one = e.int(1, I32);
        let other = e.sub(one, self.number);
        let other = turn(e, other);
        hopper::signal(e, other, 256);
    }

    /// q k for these halves of the stage's keys.
    fn scores(&self, e: &mut Emit, stage: Val, sides: &[i64]) -> Vec<Val> {
        let panels = self.b.plan.keys;
        let size = e.int(self.b.plan.key_bytes(), I32);
        let at = e.mul(stage, size);
        let keys = (self.keys.0, hopper::advance(e, self.keys.1, at));
        let rows = sides[0] * HALF * panels.swizzle();
        let steps: Vec<Step> = (0..panels.columns / 16)
            .map(|i| {
                let (panel, inside) = (i * 16 / panels.width, i * 16 % panels.width * 2);
                Step {
                    a: panel * panels.bytes(HALF) + inside,
                    b: panel * panels.bytes(KEYS) + rows + inside,
                }
            })
            .collect();
        let columns = HALF * sides.len() as i64;
        let (how, queries) = self.queries;
        hopper::multiply(e, columns, Left::Shared(how, queries), keys, &steps, None)
    }

    /// o + weights * values, on its way.
    fn weigh(&self, e: &mut Emit, o: &[Val], p: &Pending) -> Vec<Val> {
        let plan = self.b.plan;
        let (stage, parity) = self.b.stage(e, p.count);
        let full = self.b.ring_barrier(e, stage, true, false);
        hopper::wait(e, full, parity);
        let size = e.int(plan.value_bytes(), I32);
        let at = e.mul(stage, size);
        let values = (self.values.0, hopper::advance(e, self.values.1, at));
        let steps: Vec<Step> = (0..p.weights.len() as i64 / 4)
            .map(|i| Step {
                a: 0,
                b: (p.first + i) * 16 * plan.values.swizzle(),
            })
            .collect();
        let acc = (!o.is_empty()).then_some(o);
        hopper::multiply(e, plan.cols(), Left::Registers(&p.weights), values, &steps, acc)
    }

    /// Waits for it, and gives the stage back. The next weights (f32) are ready then, but not packed before: the registers of those that the
    /// product reads must not be written while it runs.
    fn weighed(&self, e: &mut Emit, acc: &mut Acc, p: &Pending, next: &[Val]) -> Vec<Val> {
        let all: Vec<Val> = acc.o.iter().chain(next).copied().collect();
        if flag("SPIN") && !next.is_empty() {
            let (stage, parity) = self.b.stage(e, p.count);
            let full = self.b.ring_barrier(e, stage, true, false);
            hopper::wait(e, full, parity);
        }
        let all = hopper::finish(e, 0, &all);
        acc.o = all[..acc.o.len()].to_vec();
        if p.last {
            let (stage, _) = self.b.stage(e, p.count);
            let empty = self.b.ring_barrier(e, stage, true, true);
            self.release(e, empty);
        }
        all[acc.o.len()..].to_vec()
    }

    fn flush(&self, e: &mut Emit, s: &mut State) {
        if let Some(p) = s.pending.take() {
            s.acc.o = self.weigh(e, &s.acc.o, &p);
            self.weighed(e, &mut s.acc, &p, &[]);
        }
    }

    /// Scores of keys that are not there (before the first, behind the last) to nothing; seldom.
    fn checked(&self, e: &mut Emit, w: &Walk, scores: &[Val], sides: &[i64], at: Val) -> Vec<Val> {
        let (one, size, zero) = (e.int(1, I32), e.int(KEYS, I32), e.int(0, I32));
        let next = e.add(at, one);
        let back = e.mul(next, size);
        let key = e.sub(w.reach.top, back);
        let mut some = e.cmp(Cmp::Lt, key, zero);
        let count = self.b.plan.bounded.then(|| {
            let keys = &self.b.plan.sweep.segments[w.stream.segments[0]].keys;
            let keys = self.b.body.size(e, keys);
            e.truncate_int(keys, Elem::I32)
        });
        if let Some(count) = count {
            let end = e.add(key, size);
            let behind = e.cmp(Cmp::Gt, end, count);
            some = e.or(some, behind);
        }
        e.if_then(some, scores, |e| {
            let quad = e.int(3, I32);
            let column = e.and(self.lane, quad);
            let column = e.shl(column, 1);
            let first = e.add(key, column);
            let nothing = e.f32(f32::NEG_INFINITY, F32);
            let mut out = vec![];
            for (i, x) in scores.iter().enumerate() {
                let column = sides[0] * HALF + (i as i64) / 4 * 8 + i as i64 % 2;
                let column = e.int(column, I32);
                let key = e.add(first, column);
                let mut there = e.cmp(Cmp::Le, zero, key);
                if let Some(count) = count {
                    let inside = e.cmp(Cmp::Lt, key, count);
                    there = e.and(there, inside);
                }
                out.push(e.select(there, *x, nothing));
            }
            out
        })
    }

    /// Scores that the segment does not see to nothing: by their distances.
    fn masked(&self, e: &mut Emit, w: &Walk, scores: &[Val], v: &Visit, half: i64) -> Vec<Val> {
        if v.halves[half as usize] != Part::Edge {
            return scores.to_vec();
        }
        let bounds = w.stream.bounds[v.segment];
        let d = super::walk::halves(v.block, self.shift)[half as usize];
        let nothing = e.f32(f32::NEG_INFINITY, F32);
        let mut out = vec![];
        for (i, x) in scores.iter().enumerate() {
            // distance = 64 d + row - column; row - column = lead + 8 (second row) - what is known of the column.
            let i = i as i64;
            let known = HALF * d + 8 * (i / 2 % 2) - (i / 4 * 8 + i % 2);
            let mut x = *x;
            if HALF * d - HALF + 1 < bounds.near {
                let least = e.int(bounds.near - known, I32);
                let far_enough = e.cmp(Cmp::Le, least, self.lead);
                x = e.select(far_enough, x, nothing);
            }
            if let Some(far) = bounds.far.filter(|far| HALF * d + HALF > *far) {
                let end = e.int(far - known, I32);
                let close = e.cmp(Cmp::Lt, self.lead, end);
                x = e.select(close, x, nothing);
            }
            out.push(x);
        }
        out
    }

    /// Weights of a block; maxima and masses follow. `first`: nothing was seen before. `hard`: a row may see nothing.
    fn softmax(&self, e: &mut Emit, scale: f32, acc: &mut Acc, scores: Vec<Val>, first: bool, hard: bool) -> Weights {
        let scale = e.f32(scale * std::f32::consts::LOG2_E, F32);
        let mut highest = [0, 1].map(|row| {
            let own: Vec<Val> = scores
                .iter()
                .enumerate()
                .filter(|(i, _)| i / 2 % 2 == row)
                .map(|(_, x)| *x)
                .collect();
            let mut most = tree(e, &own, hopper::max);
            for bits in [1, 2] {
                let other = ptx::shuffle_xor(e, most, bits);
                most = hopper::max(e, most, other);
            }
            most
        });
        let mut risen = None;
        let mut factors = [scale; 2];
        if !first {
            let lag = e.f32(if flag("NOLAG") { 0.0 } else { LAG }, F32);
            let mut some = None;
            for row in 0..2 {
                highest[row] = hopper::max(e, acc.max[row], highest[row]);
                let rise = e.sub(highest[row], acc.max[row]);
                let rise = e.mul(rise, scale);
                let much = e.cmp(Cmp::Gt, rise, lag);
                some = Some(some.map_or(much, |s| e.or(s, much)));
            }
            let some = hopper::any(e, some.expect("two rows"));
            for row in 0..2 {
                highest[row] = e.select(some, highest[row], acc.max[row]);
            }
            risen = Some(some);
        }
        let mut shifts = [scale; 2];
        for row in 0..2 {
            let minus = e.f32(-1.0, F32);
            let shift = e.mul(highest[row], scale);
            let mut shift = e.mul(shift, minus);
            if hard {
                let (end, zero) = (e.f32(f32::INFINITY, F32), e.f32(0.0, F32));
                let none = e.cmp(Cmp::Eq, shift, end);
                shift = e.select(none, zero, shift);
            }
            shifts[row] = shift;
            if !first {
                let fall = e.fma(acc.max[row], scale, shift);
                factors[row] = math::exp2(e, fall);
            }
        }
        let weights: Vec<Val> = (scores.iter().enumerate())
            .map(|(i, x)| {
                let x = e.fma(*x, scale, shifts[i / 2 % 2]);
                math::exp2(e, x)
            })
            .collect();
        for row in 0..2 {
            let own: Vec<Val> = weights
                .iter()
                .enumerate()
                .filter(|(i, _)| i / 2 % 2 == row)
                .map(|(_, x)| *x)
                .collect();
            let sum = tree(e, &own, Emit::add);
            acc.mass[row] = if first {
                sum
            } else {
                e.fma(acc.mass[row], factors[row], sum)
            };
            acc.max[row] = highest[row];
        }
        let raw = weights;
        Weights { raw, risen, factors }
    }
}

struct Weights {
    raw: Vec<Val>,
    /// Must what was there be scaled, i1, and by what?
    risen: Option<Val>,
    factors: [Val; 2],
}

/// May a visited block hold keys that are not there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    There,
    Checked,
}

/// Four chains, then pairwise.
fn tree(e: &mut Emit, values: &[Val], f: fn(&mut Emit, Val, Val) -> Val) -> Val {
    let mut sums: Vec<Val> = values[..4].to_vec();
    for (i, x) in values[4..].iter().enumerate() {
        sums[i % 4] = f(e, sums[i % 4], *x);
    }
    let (a, b) = (f(e, sums[0], sums[1]), f(e, sums[2], sums[3]));
    f(e, a, b)
}

pub fn flag(name: &str) -> bool {
    std::env::var(name).is_ok()
}
