//! Warps and blocks: shuffles, votes, divergence, barriers, barriers of a grid.

use ptx::Launch;

use super::support::*;

#[test]
fn a_block_sums_by_shuffles_and_shared_memory() {
    let module = simple(
        ".shared .align 4 .b8 s[32];
         mov.b32 %r1, %r0;
         shfl.sync.bfly.b32 %r2, %r1, 16, 31, -1;
         add.s32 %r1, %r1, %r2;
         shfl.sync.down.b32 %r2, %r1, 8, 31, -1;
         add.s32 %r1, %r1, %r2;
         shfl.sync.bfly.b32 %r2, %r1, 4, 31, -1;
         add.s32 %r1, %r1, %r2;
         shfl.sync.bfly.b32 %r2, %r1, 2, 31, -1;
         add.s32 %r1, %r1, %r2;
         shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;
         add.s32 %r1, %r1, %r2;
         and.b32 %r3, %r0, 31;
         shr.u32 %r4, %r0, 5;
         shl.b32 %r5, %r4, 2;
         mov.b32 %r6, s;
         add.s32 %r6, %r6, %r5;
         setp.eq.s32 %p1, %r3, 0;
         @%p1 st.shared.b32 [%r6], %r1;
         bar.sync 0;
         setp.ne.s32 %p2, %r0, 0;
         @%p2 bra $done;
         mov.b32 %r7, 0;
         mov.b32 %r8, s;
         mov.b32 %r9, 0;
         $loop:
         ld.shared.b32 %r10, [%r8];
         add.s32 %r7, %r7, %r10;
         add.s32 %r8, %r8, 4;
         add.s32 %r9, %r9, 1;
         setp.lt.s32 %p3, %r9, 4;
         @%p3 bra $loop;
         st.global.b32 [%rd0], %r7;
         $done:",
    );
    assert_eq!(run(&module, 128, 1), [127 * 64]);
}

#[test]
fn votes_matches_and_reductions() {
    let module = simple(
        "and.b32 %r1, %r0, 3;
         setp.eq.s32 %p1, %r1, 0;
         vote.sync.ballot.b32 %r2, %p1, -1;
         vote.sync.any.pred %p2, %p1, -1;
         vote.sync.all.pred %p3, !%p1, -1;
         selp.b32 %r3, 1, 0, %p2;
         selp.b32 %r4, 1, 0, %p3;
         match.any.sync.b32 %r5, %r1, -1;
         redux.sync.add.s32 %r6, %r0, -1;
         redux.sync.max.u32 %r7, %r0, -1;
         elect.sync %r8|%p4, -1;
         @%p4 st.global.v4.b32 [%rd0], {%r2, %r3, %r4, %r5};
         @%p4 st.global.v2.b32 [%rd0+16], {%r6, %r7};
         @%p4 st.global.b32 [%rd0+24], %r0;",
    );
    assert_eq!(run(&module, 32, 7), [0x1111_1111, 1, 0, 0x1111_1111, 496, 31, 0]);
}

#[test]
fn paths_of_a_warp_part_and_meet() {
    // Each lane loops as often as its index says; then all shuffle.
    let module = simple(
        "mov.b32 %r1, 0;
         mov.b32 %r2, 0;
         $loop:
         setp.ge.s32 %p1, %r2, %r0;
         @%p1 bra $out;
         add.s32 %r1, %r1, %r2;
         add.s32 %r2, %r2, 1;
         bra.uni $loop;
         $out:
         shfl.sync.idx.b32 %r3, %r1, 31, 31, -1;
         mul.wide.u32 %rd1, %r0, 4;
         add.s64 %rd1, %rd0, %rd1;
         add.s32 %r3, %r3, %r1;
         st.global.b32 [%rd1], %r3;",
    );
    let out = run(&module, 32, 32);
    for (t, got) in out.iter().enumerate() {
        let sum = |n: usize| n * n.saturating_sub(1) / 2;
        assert_eq!(*got as usize, sum(t) + sum(31));
    }
}

#[test]
fn named_barriers_let_two_warps_take_turns() {
    // Warp 0 writes i, warp 1 doubles it, 100 times: barriers 1 (full) and 2 (empty) of 64 threads.
    let module = simple(
        ".shared .align 4 .b8 s[4];
         mov.b32 %r5, s;
         shr.u32 %r1, %r0, 5;
         and.b32 %r2, %r0, 31;
         setp.eq.s32 %p1, %r1, 1;
         setp.eq.s32 %p2, %r2, 0;
         mov.b32 %r3, 0;
         @%p1 bra $consumer;
         $produce:
         @%p2 st.shared.b32 [%r5], %r3;
         bar.arrive 1, 64;
         bar.sync 2, 64;
         add.s32 %r3, %r3, 1;
         setp.lt.s32 %p3, %r3, 100;
         @%p3 bra $produce;
         bra.uni $end;
         $consumer:
         mov.b32 %r4, 0;
         $consume:
         bar.sync 1, 64;
         ld.shared.b32 %r6, [%r5];
         add.s32 %r4, %r4, %r6;
         bar.arrive 2, 64;
         add.s32 %r3, %r3, 1;
         setp.lt.s32 %p3, %r3, 100;
         @%p3 bra $consume;
         @%p2 st.global.b32 [%rd0], %r4;
         $end:",
    );
    assert_eq!(run(&module, 64, 1), [4950]);
}

#[test]
fn a_barrier_of_the_grid_lets_every_block_see_every_other() {
    // Each block adds its index, all wait for all, and each writes the sum.
    let module = simple(
        "mov.u32 %r1, %ctaid.x;
         mov.u32 %r2, %nctaid.x;
         setp.ne.s32 %p1, %r0, 0;
         @%p1 bra $wait;
         red.global.add.u32 [%rd0], %r1;
         fence.acq_rel.gpu;
         red.release.gpu.global.add.u32 [%rd0+4], 1;
         $spin:
         ld.acquire.gpu.global.b32 %r3, [%rd0+4];
         setp.lt.u32 %p2, %r3, %r2;
         @%p2 bra $spin;
         $wait:
         bar.sync 0;
         ld.global.b32 %r4, [%rd0];
         mul.wide.u32 %rd1, %r1, 4;
         add.s64 %rd1, %rd0, %rd1;
         st.global.b32 [%rd1+8], %r4;",
    );
    let (out, stats) = try_run(&module, Launch::new([132, 1, 1], 64), 134).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(out[1], 132);
    assert!(out[2..].iter().all(|x| *x == 131 * 66), "{out:?}");
    assert_eq!(stats.warps("bar.sync"), 264);
}

#[test]
fn lanes_of_a_warp_may_wait_for_one_another() {
    // Lane 31 sets the flag that all others ask for; the one that asks is behind in the text.
    let module = simple(
        "setp.eq.s32 %p1, %r0, 31;
         @%p1 bra $set;
         $spin:
         ld.acquire.gpu.global.b32 %r1, [%rd0];
         setp.eq.s32 %p2, %r1, 0;
         @%p2 bra $spin;
         bra.uni $end;
         $set:
         st.release.gpu.global.b32 [%rd0], 7;
         $end:",
    );
    assert_eq!(run(&module, 32, 1), [7]);
}
