//! What a consumer does with a block: its products, each under way while the other's result is worked on.
//!
//!     s = q k of this block                          `wgmma`, queries and keys in shared memory
//!     o = o + p v of the block before                behind it, p in registers
//!     masks, softmax                                 while o runs
//!     o = o * 2^(max before - max)                   only where a maximum has risen by much

use super::super::flash::turn;
use super::super::walk::{HALF, KEYS, Part, Visit};
use super::{Acc, Consumer, Keys, Pending, State, Walk};
use crate::gpu::hopper::{self, Left, Step};
use crate::gpu::ptx::I32;
use crate::mlir::emit::{Emit, Val};

impl Consumer<'_, '_> {
    /// A block's scores and weights; the weights before meet their values.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn visit(&self, e: &mut Emit, w: &Walk, s: &mut State, v: &Visit, at: Val, checks: Keys, last: bool) {
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
        if !self.b.plan.paired {
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
        let all = hopper::finish(e, 0, &all);
        acc.o = all[..acc.o.len()].to_vec();
        if p.last {
            let (stage, _) = self.b.stage(e, p.count);
            let empty = self.b.ring_barrier(e, stage, true, true);
            self.release(e, empty);
        }
        all[acc.o.len()..].to_vec()
    }

    pub(super) fn flush(&self, e: &mut Emit, s: &mut State) {
        if let Some(p) = s.pending.take() {
            s.acc.o = self.weigh(e, &s.acc.o, &p);
            self.weighed(e, &mut s.acc, &p, &[]);
        }
    }
}
