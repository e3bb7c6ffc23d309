//! A consumer: a warp group that multiplies its rows of a tile, 64 at a time, and stores them.
//!
//!     for tile
//!       for k step 64: a group of `wgmma` for each 64 rows; the stage before is given back while they run
//!       the kernel's stages on the sums                store.rs
//!
//! Where consumers share a tile, one runs ahead of the other by some stages, so that the other multiplies while it stores.

use super::super::hopper::{self, Left, Step};
use super::super::pipeline::{Place, Ring, Turns};
use super::super::ptx::I32;
use super::side::Side;
use super::store::Store;
use super::walk::Walk;
use super::{DEPTH, Shape};
use crate::mlir::emit::{Cmp, Emit, Val};

/// Rows of a `wgmma`.
const ROWS: i64 = 64;
pub struct Consumer<'s> {
    pub shape: Shape,
    pub ring: Ring,
    pub turns: Turns,
    /// 0 or 1.
    pub number: Val,
    /// In the warp.
    pub lane: Val,
    /// Of k.
    pub steps: i64,
    pub left: &'s Side,
    /// The first right side: the second one lies alike, behind it.
    pub right: &'s Side,
    pub store: Store<'s, 's>,
}

impl Consumer<'_> {
    pub fn run(&self, e: &mut Emit, walk: &Walk) {
        let (zero, one) = (e.int(0, I32), e.int(1, I32));
        let place = Place::first(e);
        if !self.shape.turns {
            let rows = e.int(self.shape.height(), I32);
            let below = e.mul(self.number, rows);
            e.for_loop(zero, walk.count, 1, &place.values(), |e, i, place| {
                let (row, column) = walk.tile(e, i);
                let row = e.add(row, below);
                self.store.expect(e, row, column);
                let (sums, place) = self.sums(e, Place::of(place), below, |_| {});
                self.store.run(e, row, column, &sums);
                place.values().to_vec()
            });
            return;
        }
        // The second one's first tile is the second.
        let behind = self.ring.advance(e, place, self.steps);
        let is_first = e.cmp(Cmp::Eq, self.number, zero);
        let [place, behind] = [place.values(), behind.values()];
        let start = [0, 1].map(|i| e.select(is_first, place[i], behind[i]));
        e.for_loop(
            self.number,
            walk.count,
            2,
            &[start[0], start[1], zero],
            |e, i, carried| {
                let (row, column) = walk.tile(e, i);
                self.store.expect(e, row, column);
                let turn = carried[2];
                self.turns.wait(e, self.number, turn);
                let (sums, place) = self.sums(e, Place::of(carried), zero, |e| {
                    self.turns.pass(e, self.number, self.lane);
                });
                self.store.run(e, row, column, &sums);
                // The other one's tile lies between.
                let [stage, parity] = self.ring.advance(e, place, self.steps).values();
                vec![stage, parity, e.add(turn, one)]
            },
        );
    }

    /// The sums of a tile, for each 64 rows as `wgmma` leaves them, and where the ring goes on. `issued`: all products are under way.
    fn sums(&self, e: &mut Emit, place: Place, below: Val, issued: impl FnOnce(&mut Emit)) -> (Vec<Vec<Val>>, Place) {
        let bands = self.shape.height() / ROWS;
        let count = (self.shape.columns / 2) as usize;
        let width = e.int(DEPTH * 2, I32);
        let below = e.mul(below, width);
        let (acc, empty) = self.products(e, place, below, None);
        let place = self.ring.advance(e, place, 1);
        let (begin, end) = (e.int(1, I32), e.int(self.steps, I32));
        let mut carried = vec![empty];
        carried.extend(place.values());
        carried.extend(&acc);
        let carried = e.for_loop(begin, end, 1, &carried, |e, _, carried| {
            let (before, place) = (carried[0], Place::of(&carried[1..]));
            let (acc, empty) = self.products(e, place, below, Some(&carried[3..]));
            // Those of the step before have ended.
            hopper::finish(e, bands, &[]);
            self.ring.release(e, self.lane, before);
            let mut carried = vec![empty];
            carried.extend(self.ring.advance(e, place, 1).values());
            carried.extend(acc);
            carried
        });
        issued(e);
        let acc = hopper::finish(e, 0, &carried[3..]);
        self.ring.release(e, self.lane, carried[0]);
        let sums = acc.chunks(count).map(<[Val]>::to_vec).collect();
        (sums, Place::of(&carried[1..]))
    }

    /// A stage's products, begun: sums, and the barrier to give the stage back at.
    fn products(&self, e: &mut Emit, place: Place, below: Val, acc: Option<&[Val]>) -> (Vec<Val>, Val) {
        let stage = self.ring.stage(e, place);
        stage.wait(e);
        let behind = e.int(self.shape.rows * DEPTH * 2, I32);
        let b = e.add(stage.at, behind);
        let (left, right) = (self.left.matrix(), self.right.matrix());
        let b = (right, right.at(e, b));
        let a = e.add(stage.at, below);
        let step = |i: i64| Step {
            a: i * self.left.step(),
            b: i * self.right.step(),
        };
        let steps: Vec<Step> = (0..DEPTH / 16).map(step).collect();
        let count = (self.shape.columns / 2) as usize;
        let mut all = vec![];
        for band in 0..self.shape.height() / ROWS {
            let down = e.int(band * ROWS * DEPTH * 2, I32);
            let a = e.add(a, down);
            let a = Left::Shared(left, left.at(e, a));
            let acc = acc.map(|acc| &acc[band as usize * count..(band as usize + 1) * count]);
            all.extend(hopper::multiply(e, self.shape.columns, a, b, &steps, acc));
        }
        (all, stage.empty)
    }
}
