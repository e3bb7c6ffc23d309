//! Sums are linear: what does not depend on the index leaves them.

use super::{Rule, When::*};

pub const RULES: &[Rule] = &[
    Rule {
        name: "div-mul",
        left: "(mul (div ?x ?y) ?z)",
        right: "(div (mul ?x ?z) ?y)",
        when: &[],
        why: "a quotient times a factor",
    },
    Rule {
        name: "mul-div",
        left: "(mul ?z (div ?x ?y))",
        right: "(div (mul ?z ?x) ?y)",
        when: &[],
        why: "a factor times a quotient",
    },
    Rule {
        name: "sum-div",
        left: "(sum ?j ?d (div ?x ?y))",
        right: "(div (sum ?j ?d ?x) ?y)",
        when: &[Independent("?y", "?j")],
        why: "a divisor that the index does not change divides the sum",
    },
    Rule {
        name: "sum-mul",
        left: "(sum ?j ?d (mul ?x ?y))",
        right: "(mul (sum ?j ?d ?x) ?y)",
        when: &[Independent("?y", "?j")],
        why: "a factor that the index does not change multiplies the sum",
    },
    Rule {
        name: "sum-mul-left",
        left: "(sum ?j ?d (mul ?y ?x))",
        right: "(mul ?y (sum ?j ?d ?x))",
        when: &[Independent("?y", "?j")],
        why: "the same from the left",
    },
];
