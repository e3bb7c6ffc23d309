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
        name: "mul-swap",
        left: "(mul ?x ?y)",
        right: "(mul ?y ?x)",
        when: &[],
        why: "factors have no order",
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
        left: "(sum ?j ?d (mul (mul ?x ?y) ?z))",
        right: "(mul (sum ?j ?d (mul ?x ?z)) ?y)",
        when: &[Independent("?y", "?j")],
        why: "a factor that the index does not change multiplies the sum",
    },
    Rule {
        name: "sum-add",
        left: "(sum ?j ?d (mul (add ?x ?y) ?z))",
        right: "(add (sum ?j ?d (mul ?x ?z)) (sum ?j ?d (mul ?y ?z)))",
        when: &[],
        why: "a sum of sums is theirs",
    },
    Rule {
        name: "sum-sub",
        left: "(sum ?j ?d (mul (sub ?x ?y) ?z))",
        right: "(sub (sum ?j ?d (mul ?x ?z)) (sum ?j ?d (mul ?y ?z)))",
        when: &[],
        why: "a sum of differences is theirs",
    },
];
