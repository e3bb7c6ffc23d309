//! The compact form of instructions that the evaluator runs: registers are numbers, names and literals are gone.
//!
//! Immediates, addresses of variables and special registers that do not change during a launch are registers too, filled when a warp
//! starts (`Constant`), so that an operand is always one register.

use crate::lane::convert::Convert;
use crate::lane::{F1, F2, F3};
use crate::types::Type;

pub type Reg = u32;

/// What a register holds before a kernel's first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    Bits(u64),
    /// Offset in the block's shared memory.
    Shared(u32),
    /// The module's variable with this number, and an offset.
    Global(usize, i64),
    Special(Special),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    Smid,
    Nsmid,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    DynamicShared,
    TotalShared,
}

/// Special registers that change while a kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    Clock,
    Activemask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// `[base + offset]`
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub base: Reg,
    pub offset: i64,
}

/// A load or a store of one or more elements side by side.
#[derive(Clone, Debug)]
pub struct Access {
    pub space: Space,
    pub at: Address,
    pub regs: Box<[Reg]>,
    /// Bytes of one element.
    pub bytes: u8,
    pub signed: bool,
    /// Volatile, relaxed or acquire: others may change what it reads while it loops.
    pub polls: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// `atom` (with a destination) and `red`; `regs` holds a vector's elements.
#[derive(Clone, Debug)]
pub struct Atomic {
    pub op: AtomicOp,
    pub ty: Type,
    pub space: Space,
    pub at: Address,
    pub d: Option<Box<[Reg]>>,
    pub a: Box<[Reg]>,
    pub b: Reg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShuffleMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// The tiles of `mma.sync` that are known: all are row.col with f32 accumulators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmaKind {
    M16N8K16(Type),
    M16N8K8(Type),
}

/// Instructions that lanes of a warp execute together.
#[derive(Clone, Debug)]
pub enum WarpOp {
    Sync,
    Shuffle {
        mode: ShuffleMode,
        d: Reg,
        p: Option<Reg>,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    Vote {
        mode: VoteMode,
        d: Reg,
        a: Reg,
        negated: bool,
    },
    Match {
        all: bool,
        d: Reg,
        p: Option<Reg>,
        a: Reg,
        bits: u32,
    },
    Redux {
        op: AtomicOp,
        ty: Type,
        d: Reg,
        a: Reg,
    },
    Elect {
        d: Reg,
        p: Reg,
    },
    Ldmatrix {
        d: Box<[Reg]>,
        at: Address,
        transposed: bool,
        space: Space,
    },
    Stmatrix {
        a: Box<[Reg]>,
        at: Address,
        transposed: bool,
        space: Space,
    },
    Movmatrix {
        d: Reg,
        a: Reg,
    },
    Mma {
        kind: MmaKind,
        d: Box<[Reg]>,
        a: Box<[Reg]>,
        b: Box<[Reg]>,
        c: Box<[Reg]>,
    },
    Wgmma(Box<Wgmma>),
}

#[derive(Clone, Debug)]
pub enum WgmmaA {
    Descriptor(Reg),
    Registers(Box<[Reg]>),
}

/// `wgmma.mma_async` with f32 accumulators.
#[derive(Clone, Debug)]
pub struct Wgmma {
    pub n: u32,
    pub ty: Type,
    pub d: Box<[Reg]>,
    pub a: WgmmaA,
    pub b: Reg,
    pub scale_d: Reg,
    pub negate_a: bool,
    pub negate_b: bool,
    pub transpose_a: bool,
    pub transpose_b: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    Popc,
    And,
    Or,
}

/// `bar` and `barrier.cta`.
#[derive(Clone, Debug)]
pub struct Barrier {
    pub id: Reg,
    pub count: Option<Reg>,
    /// `bar.arrive`: does not wait.
    pub arrive: bool,
    pub aligned: bool,
    /// `bar.red`: operation, destination, predicate, whether the predicate is negated.
    pub reduce: Option<(Reduce, Reg, Reg, bool)>,
}

#[derive(Clone, Debug)]
pub enum Mbarrier {
    Init {
        count: Reg,
    },
    Inval,
    /// `arrive`, `arrive.expect_tx` and their `_drop` forms; `expect` is added to the phase's bytes first.
    Arrive {
        d: Option<Reg>,
        count: Option<Reg>,
        expect: Option<Reg>,
        drop: bool,
    },
    ExpectTx {
        bytes: Reg,
    },
    CompleteTx {
        bytes: Reg,
    },
    /// `try_wait` blocks, `test_wait` asks. `phase` is a parity or a state that `arrive` gave.
    Wait {
        p: Reg,
        phase: Reg,
        parity: bool,
        blocks: bool,
    },
    PendingCount {
        d: Reg,
        state: Reg,
    },
    /// `cp.async.mbarrier.arrive`.
    CopyArrive {
        noinc: bool,
    },
}

/// Copies of the bulk engine.
#[derive(Clone, Debug)]
pub enum Bulk {
    TensorLoad {
        to: Address,
        map: Address,
        coordinates: Box<[Reg]>,
        mbarrier: Address,
        multicast: Option<Reg>,
    },
    TensorStore {
        map: Address,
        coordinates: Box<[Reg]>,
        from: Address,
        reduce: Option<AtomicOp>,
    },
    Load {
        to: Address,
        from: Address,
        bytes: Reg,
        mbarrier: Address,
        multicast: Option<Reg>,
        /// From the block's own shared memory to the cluster's instead of from global memory.
        shared: bool,
    },
    Store {
        to: Address,
        from: Address,
        bytes: Reg,
        reduce: Option<(AtomicOp, Type)>,
    },
    Commit,
    /// With or without `.read`: reading and writing are one here.
    Wait {
        pending: u32,
    },
}

#[derive(Clone, Debug)]
pub enum CopyAsync {
    Copy {
        to: Address,
        from: Address,
        bytes: u8,
        /// Bytes read; the rest is zero.
        source: Option<Reg>,
        /// A predicate that, when set, makes all of it zero.
        ignore: Option<Reg>,
    },
    Commit,
    /// All but the newest `pending` groups; `None` also for what is in no group.
    Wait {
        pending: Option<u32>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarryOp {
    Add,
    Sub,
    MadLo,
    MadHi,
}

pub enum Op {
    Nop,
    Lane1 {
        f: F1,
        d: Reg,
        a: Reg,
    },
    Lane2 {
        f: F2,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    Lane3 {
        f: F3,
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    Mov {
        d: Reg,
        a: Reg,
    },
    /// `f` on both parts of `bits` bits of packed registers.
    Packed1 {
        f: F1,
        bits: u32,
        d: Reg,
        a: Reg,
    },
    Packed2 {
        f: F2,
        bits: u32,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    Packed {
        f: F3,
        bits: u32,
        d: Reg,
        s: [Reg; 3],
    },
    /// Functions with a fourth operand: `bfi` and `lop3`.
    Lane4 {
        f: fn(u64, u64, u64, u64) -> u64,
        d: Reg,
        s: [Reg; 4],
    },
    Convert {
        how: Box<Convert>,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    Carry {
        op: CarryOp,
        bits: u32,
        d: Reg,
        s: [Reg; 3],
        reads: bool,
        writes: bool,
        flag: Reg,
    },
    Moving {
        d: Reg,
        what: Moving,
    },
    Pack {
        d: Reg,
        parts: Box<[Reg]>,
        bits: u32,
    },
    Unpack {
        parts: Box<[Reg]>,
        a: Reg,
        bits: u32,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic(Box<Atomic>),
    /// Within the thread's own memory: arguments and results of calls.
    CopyLocal {
        from: u32,
        to: u32,
        bytes: u32,
    },
    Branch(u32),
    Indexed {
        a: Reg,
        targets: Box<[u32]>,
    },
    /// Functions are not recursive: the address to return to is a register of the function.
    Call {
        target: u32,
        link: Reg,
    },
    Return(Option<Reg>),
    Exit,
    Trap,
    Warp {
        op: Box<WarpOp>,
        /// The member mask; without one the whole warp is meant.
        mask: Option<Reg>,
    },
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait(u32),
    Barrier(Box<Barrier>),
    ClusterArrive,
    ClusterWait,
    Mbarrier {
        op: Box<Mbarrier>,
        at: Address,
        space: Space,
    },
    Bulk(Box<Bulk>),
    CopyAsync(Box<CopyAsync>),
    /// `fence.proxy.async`; other fences do nothing here.
    FenceProxy,
    /// The address of this shared variable in another block of the cluster.
    Mapa {
        d: Reg,
        a: Reg,
        rank: Reg,
        generic: bool,
    },
    /// `nanosleep`: another warp's turn.
    Sleep,
}
