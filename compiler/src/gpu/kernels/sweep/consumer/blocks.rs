//! A consumer's walk over a stream's blocks. How many there are is not known when compiling: what has no block is skipped, and runs of whole
//! blocks are loops.

use super::super::walk::{Item, Part, Visit};
use super::{Acc, Consumer, Keys, Pending, State, Walk};
use crate::gpu::hopper;
use crate::gpu::ptx::I32;
use crate::mlir::emit::{Cmp, Emit, Val};

impl Consumer<'_, '_> {
    /// The items from here on; gives the accumulator and the blocks taken.
    pub(super) fn walk(&self, e: &mut Emit, w: &Walk, items: &[Item], mut s: State) -> (Acc, Val) {
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
}
