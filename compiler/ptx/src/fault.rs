//! What can go wrong in a kernel, and where it did.

use std::fmt;

use crate::text::ParseError;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    #[error("{bytes} bytes at {address} are outside {what}")]
    OutOfBounds { address: Place, bytes: u64, what: String },
    #[error("{bytes} bytes at {address}, which is no multiple of {align}")]
    Misaligned { address: Place, bytes: u64, align: u64 },
    #[error("{bytes} bytes at {address} are read, but byte {first} of them was never written")]
    Unwritten { address: Place, bytes: u64, first: u64 },
    #[error("all that is left of the launch waits: {0}")]
    Deadlock(String),
    #[error("threads only ask and nothing changes: {0}")]
    Livelock(String),
    #[error("more than {0} instructions of warps were executed")]
    Limit(u64),
    #[error("executed by lanes {arrived:#010x} where {wanted:#010x} must: {why}")]
    Partial { arrived: u32, wanted: u32, why: String },
    #[error("barrier {id}: {what}")]
    Barrier { id: u64, what: String },
    #[error("mbarrier at {address}: {what}")]
    Mbarrier { address: Place, what: String },
    #[error("wgmma: {0}")]
    Wgmma(String),
    #[error(
        "{address} was written by thread {writer} without a fence.proxy.async before it is read by the asynchronous proxy"
    )]
    Proxy { address: Place, writer: u32 },
    #[error("{address} is {now} by thread {thread} while thread {other} has {before} it, and nothing orders the two")]
    Race {
        address: Place,
        now: &'static str,
        thread: u32,
        before: &'static str,
        other: u32,
    },
    #[error("tensor map: {0}")]
    TensorMap(String),
    #[error("copy: {0}")]
    Copy(String),
    #[error("trap")]
    Trap,
    #[error("{0}")]
    Launch(String),
    #[error("cannot be decoded: {0}")]
    Unsupported(String),
}

/// An address with its state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Global(u64),
    /// Within the shared memory of the block with this rank in its cluster.
    Shared(u32, u32),
    Local(u64),
    Param(u64),
    Unmapped(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::Global(a) => write!(f, "global {a:#x}"),
            Place::Shared(0, a) => write!(f, "shared {a:#x}"),
            Place::Shared(rank, a) => write!(f, "shared {a:#x} of block {rank} of the cluster"),
            Place::Local(a) => write!(f, "local {a:#x}"),
            Place::Param(a) => write!(f, "parameter byte {a:#x}"),
            Place::Unmapped(a) => write!(f, "{a:#x}"),
        }
    }
}

/// A kind with the lane it concerns, before it is known where.
#[derive(Clone, Debug)]
pub struct Problem {
    pub kind: FaultKind,
    pub lane: Option<u32>,
}

impl From<FaultKind> for Box<Problem> {
    fn from(kind: FaultKind) -> Self {
        Box::new(Problem { kind, lane: None })
    }
}

pub type Step<T> = Result<T, Box<Problem>>;

/// Names the lane of a problem that has none yet.
pub fn at_lane<T>(result: Step<T>, lane: usize) -> Step<T> {
    result.map_err(|mut p| {
        p.lane.get_or_insert(lane as u32);
        p
    })
}

/// A kernel that did something wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kernel: String,
    pub block: Option<[u32; 3]>,
    /// In its block, counted through all three axes.
    pub thread: Option<u32>,
    /// Line of the PTX text and the instruction there.
    pub line: u32,
    pub text: String,
    pub kind: FaultKind,
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "kernel {}", self.kernel)?;
        if let Some([x, y, z]) = self.block {
            write!(f, ", block ({x}, {y}, {z})")?;
        }
        if let Some(t) = self.thread {
            write!(f, ", thread {t}")?;
        }
        if !self.text.is_empty() {
            write!(f, ", line {}: `{}`", self.line, self.text)?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl Fault {
    /// One that concerns no thread.
    pub fn launch(kernel: &str, kind: FaultKind) -> Box<Fault> {
        Box::new(Fault {
            kernel: kernel.to_owned(),
            block: None,
            thread: None,
            line: 0,
            text: String::new(),
            kind,
        })
    }

    pub fn undecodable(kernel: &str, e: ParseError) -> Box<Fault> {
        let mut fault = Fault::launch(kernel, FaultKind::Unsupported(e.what));
        fault.line = e.line;
        fault
    }
}
