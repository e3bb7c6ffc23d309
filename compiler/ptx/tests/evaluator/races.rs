//! Accesses to shared memory that nothing orders, and proxy fences that are missing.

use ptx::{Fault, FaultKind, Launch};

use super::support::*;

fn run(body: &str, threads: u32) -> Result<Vec<u32>, Box<Fault>> {
    try_run(&simple(body), Launch::new([1, 1, 1], threads), 64).map(|r| r.0)
}

/// Each of two warps writes 128 bytes and reads the other's.
fn exchange(between: &str, after: &str) -> String {
    format!(
        ".shared .align 16 .b8 s[256];
         mov.b32 %r1, s;
         shl.b32 %r2, %r0, 2;
         add.s32 %r3, %r1, %r2;
         xor.b32 %r4, %r2, 128;
         add.s32 %r4, %r1, %r4;
         st.shared.b32 [%r3], %r0;
         {between}
         ld.shared.b32 %r5, [%r4];
         {after}
         st.shared.b32 [%r3], 0;
         mul.wide.u32 %rd1, %r0, 4;
         add.s64 %rd1, %rd0, %rd1;
         st.global.b32 [%rd1], %r5;"
    )
}

#[test]
fn barriers_order_reads_behind_writes_and_writes_behind_reads() {
    let out = run(&exchange("bar.sync 0;", "bar.sync 0;"), 64).unwrap_or_else(|f| panic!("{f}"));
    assert!(out.iter().enumerate().all(|(t, x)| *x == t as u32 ^ 32));
    let f = run(&exchange("bar.sync 0;", ""), 64).unwrap_err();
    // Which of the two comes first is the schedule's choice.
    assert!(matches!(f.kind, FaultKind::Race { .. }), "{f}");
    // Without the first, memory that nobody wrote is read, or a race is found once it is written.
    let before = exchange("", "bar.sync 0;").replace(
        "st.shared.b32 [%r3], %r0;",
        "st.shared.b32 [%r3], 1;\nbar.sync 0;\nst.shared.b32 [%r3], %r0;",
    );
    let f = run(&before, 64).unwrap_err();
    assert!(matches!(f.kind, FaultKind::Race { .. }), "{f}");
    assert!(f.to_string().contains("warp"), "{f}");
    let mut launch = Launch::new([1, 1, 1], 64);
    launch.checks_races = false;
    try_run(&simple(&before), launch, 64).unwrap_or_else(|f| panic!("{f}"));
}

#[test]
fn a_barrier_of_others_orders_nothing() {
    // Warps 0 and 1 meet at barrier 1, warp 2 reads what they wrote.
    let body = ".shared .align 4 .b8 s[4];
        mov.b32 %r1, s;
        setp.ge.s32 %p1, %r0, 64;
        @%p1 bra $reader;
        setp.eq.s32 %p2, %r0, 0;
        @%p2 st.shared.b32 [%r1], 5;
        bar.sync 1, 64;
        WAIT
        bra $end;
        $reader:
        WAIT
        ld.shared.b32 %r2, [%r1];
        $end:";
    let f = run(&body.replace("WAIT", ""), 96).unwrap_err();
    assert!(
        matches!(
            f.kind,
            FaultKind::Race {
                now: "read",
                before: "written",
                ..
            } | FaultKind::Unwritten { .. }
        ),
        "{f}"
    );
    run(&body.replace("WAIT", "bar.sync 0;"), 96).unwrap_or_else(|f| panic!("{f}"));
}

/// Threads write a line, one of them stores it in bulk.
fn bulk_store(writer: &str, issuer: &str) -> String {
    format!(
        ".shared .align 128 .b8 s[256];
         mov.b32 %r1, s;
         shl.b32 %r2, %r0, 2;
         add.s32 %r2, %r1, %r2;
         st.shared.b32 [%r2], %r0;
         {writer}
         bar.sync 0;
         setp.ne.s32 %p1, %r0, 0;
         @%p1 bra $end;
         {issuer}
         cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r1], 256;
         cp.async.bulk.commit_group;
         cp.async.bulk.wait_group.read 0;
         $end:"
    )
}

#[test]
fn what_threads_write_needs_a_fence_before_the_bulk_engine_reads_it() {
    let fence = "fence.proxy.async.shared::cta;";
    for (writer, issuer) in [(fence, ""), ("", fence)] {
        let out = run(&bulk_store(writer, issuer), 64).unwrap_or_else(|f| panic!("{f}"));
        assert!(out.iter().enumerate().all(|(t, x)| *x == t as u32));
    }
    let f = run(&bulk_store("", ""), 64).unwrap_err();
    assert!(matches!(f.kind, FaultKind::Proxy { .. }), "{f}");
    assert!(f.text.starts_with("cp.async.bulk.global"), "{f}");
    // A fence of one warp does not cover what another writes later.
    let f = run(
        &bulk_store("setp.lt.s32 %p2, %r0, 32;\n@%p2 fence.proxy.async.shared::cta;", ""),
        64,
    )
    .unwrap_err();
    assert!(matches!(f.kind, FaultKind::Proxy { .. }), "{f}");
}

#[test]
fn memory_under_a_bulk_store_may_not_be_written() {
    let body = |wait: &str| {
        format!(
            ".shared .align 128 .b8 s[16];
             mov.b32 %r1, s;
             st.shared.v4.b32 [%r1], {{1, 2, 3, 4}};
             fence.proxy.async;
             cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r1], 16;
             cp.async.bulk.commit_group;
             {wait}
             st.shared.b32 [%r1], 9;
             cp.async.bulk.wait_group 0;"
        )
    };
    assert_eq!(
        run(&body("cp.async.bulk.wait_group.read 0;"), 1).unwrap()[..4],
        [1, 2, 3, 4]
    );
    let f = run(&body(""), 1).unwrap_err();
    assert!(
        matches!(
            f.kind,
            FaultKind::Race {
                now: "written",
                before: "read",
                ..
            }
        ),
        "{f}"
    );
}
