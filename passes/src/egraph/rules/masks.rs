//! Masks move outwards through element-wise ops until they restrict a reduction's domain.

use super::{Rule, When::*};

pub const RULES: &[Rule] = &[
    Rule {
        name: "where-add",
        left: "(add (where ?d ?x #-inf) ?y)",
        right: "(where ?d (add ?x ?y) #-inf)",
        when: &[Finite("?y")],
        why: "-inf plus a finite number stays -inf",
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
        name: "where-div",
        left: "(div (where ?d ?x #0) ?y)",
        right: "(where ?d (div ?x ?y) #0)",
        when: &[],
        why: "0 divided by anything stays 0 (0 / 0 is 0 here)",
    },
    Rule {
        name: "where-where",
        left: "(where ?d (where ?e ?x ?c) ?c)",
        right: "(where (and ?d ?e) ?x ?c)",
        when: &[],
        why: "two masks with one filling are one mask",
    },
    Rule {
        name: "add-where",
        left: "(add (where ?d ?x #0) (where ?d ?y #0))",
        right: "(where ?d (add ?x ?y) #0)",
        when: &[],
        why: "sums under one mask",
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
