//! Exponentials relative to their own maximum are measures; measures over overlapping domains share their common part.
//!
//! A measure is the triple (m, l, O) of online softmax; continuing one over more keys is its merge. See docs/fusion.md.

use super::{Rule, When::*};

pub const RULES: &[Rule] = &[
    Rule {
        name: "online-f",
        left: "(sum ?j ?d (mul (exp (sub ?x (rmax ?j ?d ?x))) ?f))",
        right: "(acc (st ?j ?d ?x) ?f)",
        when: &[Finite("?x")],
        why: "a sum of exponentials relative to their own maximum needs no second pass",
    },
    Rule {
        name: "online-1",
        left: "(sum ?j ?d (exp (sub ?x (rmax ?j ?d ?x))))",
        right: "(acc (st ?j ?d ?x) #1)",
        when: &[Finite("?x")],
        why: "the same for f = 1",
    },
    Rule {
        name: "online-ratio",
        left: "(div (sum ?j ?d (mul (exp ?x) ?f)) (sum ?j ?d (exp ?x)))",
        right: "(div (acc (st ?j ?d ?x) ?f) (acc (st ?j ?d ?x) #1))",
        when: &[Finite("?x")],
        why: "a mean is the same relative to any maximum, so to none",
    },
    Rule {
        name: "split",
        left: "?a = (st ?j ?c ?x), ?b = (st ?j ?w ?x)",
        right: "(ext (st ?j ?k ?x) ?r)",
        when: &[Splits("?c", "?w")],
        why: "a measure over more keys continues the one over their common part",
    },
];
