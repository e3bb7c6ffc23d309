//! One typed function per instruction of Hopper's asynchronous units (sm_90a): barriers in shared memory, the copy engine both ways, `wgmma`,
//! and the registers' redistribution. Knows no tile and no kernel. Addresses of shared memory are i32.

use super::ptx::{F32, I32, asm};
use crate::mlir::emit::{Emit, Val};

/// A barrier for so many arrivals (8 bytes at `at`).
pub fn init_barrier(e: &mut Emit, at: Val, arrivals: i64) {
    let text = format!("mbarrier.init.shared::cta.b64 [$0], {arrivals};");
    asm(e, &text, "r,~{memory}", &[at], &[]);
}

/// What was initialised is seen by the asynchronous units; a barrier of the block must follow.
pub fn publish_barriers(e: &mut Emit) {
    asm(e, "fence.mbarrier_init.release.cluster;", "~{memory}", &[], &[]);
    asm(e, "fence.proxy.async;", "~{memory}", &[], &[]);
}

/// One arrival, and so many bytes that the phase waits for.
pub fn expect_bytes(e: &mut Emit, barrier: Val, bytes: i64) {
    let text = format!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {bytes};");
    asm(e, &text, "r,~{memory}", &[barrier], &[]);
}

pub fn arrive(e: &mut Emit, barrier: Val) {
    asm(
        e,
        "mbarrier.arrive.shared::cta.b64 _, [$0];",
        "r,~{memory}",
        &[barrier],
        &[],
    );
}

/// At the barrier in the same place of another block of the cluster, by its rank (i32). Who arrives has read by `wgmma`, and need not publish
/// what it wrote: a release to the whole cluster would wait for all of the thread's stores, each time.
pub fn arrive_in(e: &mut Emit, barrier: Val, rank: Val) {
    let text =
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, $0, $1; mbarrier.arrive.shared::cluster.b64 _, [there]; }";
    asm(e, text, "r,r,~{memory}", &[barrier, rank], &[]);
}

/// The block's number in its cluster, i32.
pub fn rank(e: &mut Emit) -> Val {
    asm(e, "mov.u32 $0, %cluster_ctarank;", "=r", &[], &[I32])[0]
}

/// All threads of the cluster meet.
pub fn meet_cluster(e: &mut Emit) {
    let text = "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;";
    asm(e, text, "~{memory}", &[], &[]);
}

/// Until the phase of this parity (i32) is complete.
pub fn wait(e: &mut Emit, barrier: Val, parity: Val) {
    let text =
        "{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; @p bra done; bra again; done: }";
    asm(e, text, "r,r,~{memory}", &[barrier, parity], &[]);
}

/// A box of a tensor to shared memory; `at` innermost first, i32. What lies outside is zero, and counts.
pub fn copy_box(e: &mut Emit, to: Val, map: Val, at: &[Val], barrier: Val) {
    let rank = at.len();
    let list: Vec<String> = (0..rank).map(|i| format!("${}", i + 3)).collect();
    let text = format!(
        "cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [$0], [$1, {{{}}}], [$2];",
        list.join(", ")
    );
    let constraints = format!("r,l,r,{}~{{memory}}", "r,".repeat(rank));
    let operands: Vec<Val> = [to, map, barrier].iter().chain(at).copied().collect();
    asm(e, &text, &constraints, &operands, &[]);
}

/// As `copy_box` of a matrix, to the same place in each block of the cluster whose bit is in `blocks`; it completes at each one's barrier.
pub fn copy_box_to_all(e: &mut Emit, to: Val, map: Val, [x, y]: [Val; 2], barrier: Val, blocks: i64) {
    let text = format!(
        "{{ .reg .b16 all; mov.b16 all, {blocks}; cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes\
         .multicast::cluster [$0], [$1, {{$3, $4}}], [$2], all; }}"
    );
    asm(e, &text, "r,l,r,r,r,~{memory}", &[to, map, barrier, x, y], &[]);
}

pub fn prefetch_map(e: &mut Emit, map: Val) {
    asm(e, "prefetch.tensormap [$0];", "l,~{memory}", &[map], &[]);
}

/// So many threads meet at a barrier of the block by its number (i32); the number 0 is everybody's.
pub fn meet(e: &mut Emit, barrier: Val, threads: i64) {
    asm(
        e,
        &format!("barrier.sync.aligned $0, {threads};"),
        "r,~{memory}",
        &[barrier],
        &[],
    );
}

/// As `meet`, without waiting.
pub fn signal(e: &mut Emit, barrier: Val, threads: i64) {
    asm(
        e,
        &format!("barrier.arrive.aligned $0, {threads};"),
        "r,~{memory}",
        &[barrier],
        &[],
    );
}

/// All warps of a warp group: registers of a thread from now on.
pub fn more_registers(e: &mut Emit, n: i64) {
    asm(
        e,
        &format!("setmaxnreg.inc.sync.aligned.u32 {n};"),
        "~{memory}",
        &[],
        &[],
    );
}

pub fn fewer_registers(e: &mut Emit, n: i64) {
    asm(
        e,
        &format!("setmaxnreg.dec.sync.aligned.u32 {n};"),
        "~{memory}",
        &[],
        &[],
    );
}

pub fn warp_barrier(e: &mut Emit) {
    asm(e, "bar.warp.sync 0xffffffff;", "~{memory}", &[], &[]);
}

/// How a matrix lies in shared memory, for `wgmma`: PTX ISA, "Matrix descriptor".
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Bytes of the swizzle's row: 128, 64 or 32.
    pub swizzle: i64,
    /// Bytes between groups of 8 rows.
    pub stride: i64,
    /// Bytes between panels of `swizzle` bytes, where rows are the sum's dimension.
    pub leading: i64,
    /// The sum's dimension is its rows, not what is contiguous.
    pub turned: bool,
}

impl Matrix {
    /// The lower half of the descriptor of a matrix at `address` (i32); what is known when compiling is the upper.
    pub fn at(self, e: &mut Emit, address: Val) -> Val {
        // In a cluster an address has its block's number above; the field for it here is 14 bits wide.
        let mask = e.int(0x3ffff, I32);
        let address = e.and(address, mask);
        let address = e.shr(address, 4);
        let leading = e.int((self.leading >> 4) << 16, I32);
        e.or(address, leading)
    }

    fn upper(self) -> i64 {
        let mode = match self.swizzle {
            128 => 1,
            64 => 2,
            _ => 3,
        };
        mode << 30 | self.stride >> 4
    }
}

/// Where one product's right side (and left side, if in shared memory) begin, in bytes behind the descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub a: i64,
    pub b: i64,
}

/// The left side of a product: 64 rows.
pub enum Left<'a> {
    /// How it lies, and its descriptor.
    Shared(Matrix, Val),
    /// Four i32 a step: the fragments of the PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16".
    Registers(&'a [Val]),
}

/// `acc + sum over steps of a b` for bf16, 64 rows by `columns`, as one group that is not waited for. `acc`: none where it begins.
pub fn multiply(
    e: &mut Emit,
    columns: i64,
    left: Left,
    (right, b): (Matrix, Val),
    steps: &[Step],
    acc: Option<&[Val]>,
) -> Vec<Val> {
    let n = columns as usize / 2;
    let outputs = (0..n).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ");
    let mut operands: Vec<Val> = vec![];
    let mut constraints = vec!["=f".to_string(); n];
    if let Some(acc) = acc {
        operands.extend(acc);
        constraints.extend((0..n).map(|i| i.to_string()));
    }
    let mut place = constraints.len();
    let mut operand = |v: Val, kind: &str| {
        operands.push(v);
        constraints.push(kind.to_string());
        place += 1;
        format!("${}", place - 1)
    };
    let b = operand(b, "r");
    let (a, fragments): (Option<(Matrix, String)>, Vec<String>) = match left {
        Left::Shared(how, a) => (Some((how, operand(a, "r"))), vec![]),
        Left::Registers(list) => (None, list.iter().map(|v| operand(*v, "r")).collect()),
    };
    let mut text = "{ .reg .pred keep; .reg .b32 l; .reg .b64 x, y; wgmma.fence.sync.aligned; ".to_string();
    let descriptor = |name: &str, how: Matrix, base: &str, bytes: i64| {
        format!(
            "add.s32 l, {base}, {}; mov.b64 {name}, {{l, {}}}; ",
            bytes >> 4,
            how.upper()
        )
    };
    for (i, step) in steps.iter().enumerate() {
        let keep = i64::from(i > 0 || acc.is_some());
        text += &format!("setp.ne.b32 keep, {keep}, 0; ");
        text += &descriptor("y", right, &b, step.b);
        let shape = format!("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16");
        let turned = i64::from(right.turned);
        if let Some((how, a)) = &a {
            text += &descriptor("x", *how, a, step.a);
            let left = i64::from(how.turned);
            text += &format!("{shape} {{{outputs}}}, x, y, keep, 1, 1, {left}, {turned}; ");
        } else {
            let a = fragments[4 * i..4 * i + 4].join(", ");
            text += &format!("{shape} {{{outputs}}}, {{{a}}}, y, keep, 1, 1, {turned}; ");
        }
    }
    text += "wgmma.commit_group.sync.aligned; }";
    constraints.push("~{memory}".to_string());
    asm(e, &text, &constraints.join(","), &operands, &vec![F32; n])
}

/// Waits until at most so many groups are on their way; `acc` are sums of one that has ended.
pub fn finish(e: &mut Emit, groups: i64, acc: &[Val]) -> Vec<Val> {
    let n = acc.len();
    let mut constraints = vec!["=f".to_string(); n];
    constraints.extend((0..n).map(|i| i.to_string()));
    constraints.push("~{memory}".to_string());
    let text = format!("wgmma.wait_group.sync.aligned {groups};");
    asm(e, &text, &constraints.join(","), acc, &vec![F32; n])
}

/// Two f32 as bf16 in one i32, the first in the lower half. Not by LLVM's intrinsic: it would carry the f32 through loops instead.
pub fn pack_bf16(e: &mut Emit, low: Val, high: Val) -> Val {
    let text = "llvm.inline_asm asm_dialect = att \"cvt.rn.bf16x2.f32 $0, $1, $2;\", \"=r,f,f\"";
    e.op(I32, &format!("{text} {high}, {low} : (f32, f32) -> i32"))
}

/// Adds one to a counter in global memory; gives what was there, i32. What this thread wrote or saw before is seen by who counts after it, on
/// the whole GPU; and the other way round. It waits for all copies and prefetches that the multiprocessor has under way, whoever asked for
/// them: about 800 clocks, or as long as they take.
pub fn count(e: &mut Emit, counter: Val) -> Val {
    asm(
        e,
        "atom.acq_rel.gpu.global.add.u32 $0, [$1], 1;",
        "=r,l,~{memory}",
        &[counter],
        &[I32],
    )[0]
}

/// So many bytes of memory to the second cache, if they are not there; address and count (i32) are multiples of 16.
pub fn prefetch(e: &mut Emit, at: Val, bytes: Val) {
    let text = "cp.async.bulk.prefetch.L2.global [$0], $1;";
    asm(e, text, "l,r", &[at, bytes], &[]);
}

/// The larger, in one instruction.
pub fn max(e: &mut Emit, a: Val, b: Val) -> Val {
    e.op(F32, &format!("llvm.intr.maxnum({a}, {b}) : (f32, f32) -> f32"))
}

/// Does it hold in any thread of the warp?
pub fn any(e: &mut Emit, x: Val) -> Val {
    let all = e.int(-1, I32);
    e.op(
        x.ty,
        &format!("llvm.call_intrinsic \"llvm.nvvm.vote.any.sync\"({all}, {x}) : (i32, i1) -> i1"),
    )
}

/// A descriptor so many bytes (i32) further on.
pub fn advance(e: &mut Emit, descriptor: Val, bytes: Val) -> Val {
    let bytes = e.shr(bytes, 4);
    e.add(descriptor, bytes)
}

/// Four 8 x 8 matrices of 16-bit elements to shared memory, as `ptx::load_matrices` has them.
pub fn store_matrices(e: &mut Emit, at: Val, values: &[Val]) {
    let text = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0], {$1, $2, $3, $4};";
    let operands: Vec<Val> = [at].iter().chain(values).copied().collect();
    asm(e, text, "r,r,r,r,r,~{memory}", &operands, &[]);
}

/// What the thread wrote to shared memory is seen by the asynchronous units.
pub fn fence_shared(e: &mut Emit) {
    asm(e, "fence.proxy.async.shared::cta;", "~{memory}", &[], &[]);
}

/// What the thread wrote, and what it has seen of others, is seen by the asynchronous units.
pub fn fence_async(e: &mut Emit) {
    asm(e, "fence.proxy.async;", "~{memory}", &[], &[]);
}

/// A box from shared memory to a tensor, or added to it, as part of the next group of stores; elements outside are left out.
pub fn store_box(e: &mut Emit, map: Val, at: &[Val], from: Val, adds: bool) {
    let rank = at.len();
    let list: Vec<String> = (0..rank).map(|i| format!("${}", i + 2)).collect();
    let (what, how) = if adds { ("cp.reduce", ".add") } else { ("cp", "") };
    let text = format!(
        "{what}.async.bulk.tensor.{rank}d.global.shared::cta{how}.tile.bulk_group [$0, {{{}}}], [$1];",
        list.join(", ")
    );
    let constraints = format!("l,r,{}~{{memory}}", "r,".repeat(rank));
    let operands: Vec<Val> = [map, from].iter().chain(at).copied().collect();
    asm(e, &text, &constraints, &operands, &[]);
}

pub fn commit_stores(e: &mut Emit) {
    asm(e, "cp.async.bulk.commit_group;", "~{memory}", &[], &[]);
}

/// Until the thread's stores have read their source, or are there.
pub fn wait_stores(e: &mut Emit, source: bool) {
    let read = if source { ".read" } else { "" };
    asm(e, &format!("cp.async.bulk.wait_group{read} 0;"), "~{memory}", &[], &[]);
}

/// Until a u32 in global memory is `n`; what its writer did before is seen then.
pub fn wait_for_count(e: &mut Emit, at: Val, n: Val) {
    let text =
        "{ .reg .pred p; .reg .b32 x; again: ld.acquire.gpu.global.b32 x, [$0]; setp.ne.b32 p, x, $1; @p bra again; }";
    asm(e, text, "l,r,~{memory}", &[at, n], &[]);
}

pub fn publish_count(e: &mut Emit, at: Val, n: Val) {
    asm(e, "st.release.gpu.global.b32 [$0], $1;", "l,r,~{memory}", &[at, n], &[]);
}

/// The same value, of which the compiler knows nothing: what depends on it is computed here, not in front of a loop.
pub fn opaque(e: &mut Emit, x: Val) -> Val {
    asm(e, "", "=r,0", &[x], &[x.ty])[0]
}
