//! What orders a producer and its consumers in shared memory: the only file of products that knows mbarriers and their phases.
//!
//! A `Ring` of stages, each with a barrier that says `full` (all bytes of the stage's copies are there) and one that says `empty` (all
//! consumers have read it). A `Place` in the ring is carried through loops: a stage and the parity of its round (PTX ISA, mbarrier).
//! In a cluster a stage is filled by all of its blocks: it is empty when the consumers of all have read it. `Turns` order two consumers
//! that take whole tiles by turns.

use super::hopper;
use super::ptx::{self, I32};
use crate::mlir::emit::{Cmp, Emit, Val};

/// Bytes in front of the stages that the barriers take.
pub const BARRIERS: i64 = 1024;
/// Where those of the turns stand.
const TURNS: i64 = 512;

#[derive(Clone, Copy)]
pub struct Ring {
    /// Shared addresses, i32.
    barriers: Val,
    stages: Val,
    count: i64,
    /// Of a stage.
    bytes: i64,
    /// Blocks that fill a stage together.
    cluster: i64,
}

/// Where a producer or a consumer stands in the ring.
#[derive(Clone, Copy)]
pub struct Place {
    stage: Val,
    parity: Val,
}

/// One step's stage: where its bytes are and which barriers guard it.
pub struct Stage {
    pub at: Val,
    full: Val,
    pub empty: Val,
    parity: Val,
}

impl Place {
    /// The first stage, in the first round.
    pub fn first(e: &mut Emit) -> Place {
        let zero = e.int(0, I32);
        Place {
            stage: zero,
            parity: zero,
        }
    }

    /// What a loop carries.
    pub fn values(self) -> [Val; 2] {
        [self.stage, self.parity]
    }

    pub fn of(values: &[Val]) -> Place {
        Place {
            stage: values[0],
            parity: values[1],
        }
    }
}

impl Ring {
    /// `shared`: the start of shared memory, where the barriers stand; stages follow after `BARRIERS` bytes.
    pub fn new(e: &mut Emit, shared: Val, count: i64, bytes: i64, cluster: i64) -> Ring {
        let behind = e.int(BARRIERS, I32);
        Ring {
            barriers: shared,
            stages: e.add(shared, behind),
            count,
            bytes,
            cluster,
        }
    }

    /// By one thread, before any other uses the ring: so many arrivals of each block make a stage empty.
    pub fn start(&self, e: &mut Emit, arrivals: i64) {
        for i in 0..self.count {
            for (half, arrivals) in [(0, 1), (8, arrivals * self.cluster)] {
                let at = e.int(16 * i + half, I32);
                let at = e.add(self.barriers, at);
                hopper::init_barrier(e, at, arrivals);
            }
        }
    }

    /// So many steps on.
    pub fn advance(&self, e: &mut Emit, place: Place, steps: i64) -> Place {
        let (rounds, rest) = (steps / self.count, steps % self.count);
        let (more, count) = (e.int(rest, I32), e.int(self.count, I32));
        let stage = e.add(place.stage, more);
        let wraps = e.cmp(Cmp::Le, count, stage);
        let back = e.sub(stage, count);
        let (same, other) = (e.int(rounds & 1, I32), e.int((rounds + 1) & 1, I32));
        let turn = e.select(wraps, other, same);
        Place {
            stage: e.select(wraps, back, stage),
            parity: e.xor(place.parity, turn),
        }
    }

    pub fn stage(&self, e: &mut Emit, place: Place) -> Stage {
        let (size, sixteen, eight) = (e.int(self.bytes, I32), e.int(16, I32), e.int(8, I32));
        let at = e.mul(place.stage, size);
        let barrier = e.mul(place.stage, sixteen);
        let full = e.add(self.barriers, barrier);
        Stage {
            at: e.add(self.stages, at),
            full,
            empty: e.add(full, eight),
            parity: place.parity,
        }
    }

    /// A warp of a consumer has read the stage that this barrier guards: one arrival in each block of the cluster. Each warp tells by
    /// itself: `wgmma` ends warp by warp.
    pub fn release(&self, e: &mut Emit, lane: Val, empty: Val) {
        let blocks = e.int(self.cluster, I32);
        let mine = e.cmp(Cmp::Lt, lane, blocks);
        e.if_then(mine, &[], |e| {
            if self.cluster > 1 {
                hopper::arrive_in(e, empty, lane);
            } else {
                hopper::arrive(e, empty);
            }
            vec![]
        });
    }
}

impl Stage {
    /// The producer waits until the stage may be filled again, and says how many bytes will come. The copies complete at what this gives.
    pub fn fill(&self, e: &mut Emit, bytes: i64) -> Val {
        // The first round finds its stages empty: the phase before the first one counts as over.
        let one = e.int(1, I32);
        let before = e.xor(self.parity, one);
        hopper::wait(e, self.empty, before);
        hopper::expect_bytes(e, self.full, bytes);
        self.full
    }

    /// A consumer waits for the bytes.
    pub fn wait(&self, e: &mut Emit) {
        hopper::wait(e, self.full, self.parity);
    }
}

/// Two consumers: while one stores its tile the other multiplies. A consumer that began before its turn would take a stage's round for
/// another one: parities tell neighbouring rounds apart, no more.
#[derive(Clone, Copy)]
pub struct Turns {
    barriers: Val,
}

impl Turns {
    pub fn new(e: &mut Emit, shared: Val) -> Turns {
        let at = e.int(TURNS, I32);
        Turns {
            barriers: e.add(shared, at),
        }
    }

    /// By one thread, as `Ring::start`.
    pub fn start(&self, e: &mut Emit) {
        let eight = e.int(8, I32);
        let second = e.add(self.barriers, eight);
        for at in [self.barriers, second] {
            // Its warps.
            hopper::init_barrier(e, at, 4);
        }
    }

    fn of(&self, e: &mut Emit, consumer: Val) -> Val {
        let at = e.shl(consumer, 3);
        e.add(self.barriers, at)
    }

    /// Consumer 0 or 1 waits for its turn with this number; the first one begins.
    pub fn wait(&self, e: &mut Emit, consumer: Val, number: Val) {
        let one = e.int(1, I32);
        let parity = e.add(number, consumer);
        let parity = e.add(parity, one);
        let parity = e.and(parity, one);
        let mine = self.of(e, consumer);
        hopper::wait(e, mine, parity);
    }

    /// A warp of the consumer lets the other one go on.
    pub fn pass(&self, e: &mut Emit, consumer: Val, lane: Val) {
        let (zero, one) = (e.int(0, I32), e.int(1, I32));
        let first = e.cmp(Cmp::Eq, lane, zero);
        let other = e.xor(consumer, one);
        let other = self.of(e, other);
        e.if_then(first, &[], |e| {
            hopper::arrive(e, other);
            vec![]
        });
    }
}

/// All barriers are there, for all blocks of the cluster and for the asynchronous units. By all threads; one of them made the barriers.
pub fn publish(e: &mut Emit, first: Val, cluster: i64) {
    e.if_then(first, &[], |e| {
        hopper::publish_barriers(e);
        vec![]
    });
    together(e, cluster);
}

/// All threads of the cluster meet. At the end: nobody's shared memory may go while another block still writes or arrives there.
pub fn together(e: &mut Emit, cluster: i64) {
    if cluster > 1 {
        hopper::meet_cluster(e);
    } else {
        ptx::barrier(e);
    }
}
