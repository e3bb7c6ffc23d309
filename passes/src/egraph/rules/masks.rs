//! Masks move outwards through element-wise ops until they restrict a reduction's domain.

use super::{Rule, When::*};

pub const RULES: &[Rule] = &[
    Rule {
        name: "add-mask",
        left: "(add ?x (where ?d #0 #-inf))",
        right: "(where ?d ?x #-inf)",
        when: &[Below("?x")],
        why: "adding 0 or -inf is a mask",
    },
    Rule {
        name: "mask-add",
        left: "(add (where ?d #0 #-inf) ?x)",
        right: "(where ?d ?x #-inf)",
        when: &[Below("?x")],
        why: "the same from the left",
    },
    Rule {
        name: "where-sub",
        left: "(sub (where ?d ?x #-inf) ?y)",
        right: "(where ?d (sub ?x ?y) #-inf)",
        when: &[Finite("?y")],
        why: "-inf minus a finite number stays -inf",
    },
    Rule {
        name: "where-exp",
        left: "(exp (where ?d ?x #-inf))",
        right: "(where ?d (exp ?x) #0)",
        when: &[],
        why: "e^-inf is 0",
    },
    Rule {
        name: "where-mul",
        left: "(mul (where ?d ?x #0) ?y)",
        right: "(where ?d (mul ?x ?y) #0)",
        when: &[Finite("?y")],
        why: "0 times a finite number stays 0",
    },
    Rule {
        name: "where-where",
        left: "(where ?d (where ?e ?x ?c) ?c)",
        right: "(where (and ?d ?e) ?x ?c)",
        when: &[],
        why: "two masks with one filling are one mask",
    },
    Rule {
        name: "sum-where",
        left: "(sum ?j ?d (where ?e ?x #0))",
        right: "(sum ?j (and ?d ?e) ?x)",
        when: &[Over("?e", "?j")],
        why: "a sum skips zeros",
    },
    Rule {
        name: "max-where",
        left: "(rmax ?j ?d (where ?e ?x #-inf))",
        right: "(rmax ?j (and ?d ?e) ?x)",
        when: &[Over("?e", "?j")],
        why: "a maximum skips -inf",
    },
];
