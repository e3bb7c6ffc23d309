//! Rows that one kernel walks whole and another in halves: a rotation, and what stands around it.

use super::*;

impl Hand {
    /// A column and the one half a row further, turned together: (a, b) becomes (a - b, b + a).
    fn rotate(&mut self, to: &View, x: &View) {
        let axis = to.shape.len() - 1;
        let half = to.shape[axis].coef / 2;
        let part = |v: &View, begin: i64| v.sliced(axis, begin, Size::from(half)).unwrap();
        let mut k = KernelBuilder::keeping_columns("rotate", &part(to, 0).shape);
        let (a, b) = (k.load_broadcast(&part(x, 0)), k.load_broadcast(&part(x, half)));
        for (begin, op, pair) in [(0, Binary::Sub, [a, b]), (half, Binary::Add, [b, a])] {
            let value = k.binary(op, pair[0], pair[1]);
            k.store(&part(to, begin), value);
        }
        self.launch(k);
    }
}

/// y - x * sum(x * y), of y and x.
fn norm_backward(k: &mut KernelBuilder, x: &[ExprId]) -> ExprId {
    let product = times(k, x);
    let sum = k.reduce(Reduction::Sum, product);
    let along = times(k, &[x[1], sum]);
    k.binary(Binary::Sub, x[0], along)
}

fn count_stores(kernel: &Kernel) -> usize {
    kernel.stages.len() - count_reductions(kernel)
}

/// Heads and tokens, rotated, through a norm's backward, to tokens and heads. The last reader has all heads' columns for one row.
#[test]
fn a_rotation_between_whole_rows_is_one_kernel_over_halves() {
    let mut h = Hand::new();
    let (d, w) = (h.input("d", &[2, 4, 16, 64]), h.input("w", &[64]));
    let x = h.input("x", &[2, 16, 4, 64]);
    let [t, r] = ["t", "r"].map(|n| h.temporary(n, F32, &[2, 4, 16, 64]));
    let u = h.temporary("u", F32, &[2, 16, 4, 64]);
    let out = h.output("out", &[2, 16, 256]);
    h.map(&t, &[&d, &w], times);
    h.rotate(&r, &t);
    h.map(&u, &[&r.transposed(&[0, 2, 1, 3]), &x], norm_backward);
    h.map(&out, &[&u.reshaped(&out.shape).unwrap()], |k, x| {
        let column = k.index(2);
        let column = k.unary(Unary::ToFloat, column);
        times(k, &[x[0], column])
    });
    let plan = h.merged();
    let kernel = only(&plan);
    assert_eq!(kernel.cols.as_const(), Some(32), "{plan}");
    assert_eq!((count_reductions(kernel), count_stores(kernel)), (1, 2), "{plan}");
    assert_eq!(plan.buffers.len(), 4, "no temporary is left: {plan}");
}

/// The rotated columns are the sum's points: each has two sums. Positions in the upper half are half a row further.
#[test]
fn a_sum_over_rotated_rows_is_two() {
    let mut h = Hand::new();
    let x = h.input("x", &[32, 64]);
    let [t, r] = ["t", "r"].map(|n| h.temporary(n, F32, &[32, 64]));
    let out = h.output("out", &[64]);
    h.map(&t, &[&x], |k, x| {
        let column = k.index(1);
        let column = k.unary(Unary::ToFloat, column);
        times(k, &[x[0], column])
    });
    h.rotate(&r, &t);
    h.sum(&out, &r, &[1, 0]);
    let plan = h.merged();
    let kernel = only(&plan);
    assert_eq!((count_reductions(kernel), count_stores(kernel)), (2, 2), "{plan}");
    assert_eq!(kernel.cols.as_const(), Some(32), "{plan}");
}

/// The larger of two halves' largest; a logarithm of a sum is not made of two numbers that one expression gives.
#[test]
fn halves_are_reduced_together_where_two_numbers_are_one() {
    for (op, launches) in [(Reduction::Max, 1), (Reduction::LogSumExp, 2)] {
        let mut h = Hand::new();
        let x = h.input("x", &[32, 64]);
        let r = h.temporary("r", F32, &[32, 64]);
        let out = h.output("out", &[32, 64]);
        h.rotate(&r, &x);
        h.map(&out, &[&r], |k, x| {
            let all = k.reduce(op, x[0]);
            k.binary(Binary::Sub, x[0], all)
        });
        assert_eq!(h.merged().launches.len(), launches);
    }
}

/// What reduces is not computed again but handed on, rounded; a row's sum is stored once.
#[test]
fn whole_rows_are_handed_on_in_halves() {
    let mut h = Hand::new();
    let x = h.input("x", &[32, 64]);
    let t = h.temporary("t", BF16, &[32, 64]);
    let (sums, out) = (h.output("sums", &[32]), h.output("out", &[32, 64]));
    let mut k = KernelBuilder::keeping_columns("norm", &x.shape);
    let value = k.load_broadcast(&x);
    let sum = k.reduce(Reduction::Sum, value);
    k.store_at(&sums, &[1, 0].map(Size::from), None, sum, None);
    let scaled = k.binary(Binary::Div, value, sum);
    k.store(&t, scaled);
    h.launch(k);
    h.rotate(&out, &t);
    let plan = h.merged();
    let kernel = only(&plan);
    assert_eq!((count_reductions(kernel), count_stores(kernel)), (1, 3), "{plan}");
}

/// A number of each row, and the rows in halves: nothing but the rows' columns says what is half.
#[test]
fn a_rows_number_is_handed_to_halves() {
    let mut h = Hand::new();
    let (x, y) = (h.input("x", &[32, 64]), h.input("y", &[32, 64]));
    let [r, u] = ["r", "u"].map(|n| h.temporary(n, F32, &[32, 64]));
    let s = h.temporary("s", F32, &[32]);
    let out = h.output("out", &[32, 64]);
    let column = View {
        shape: [32i64, 1].map(Size::from).to_vec(),
        strides: [1i64, 0].map(Size::from).to_vec(),
        ..s.clone()
    };
    h.sum(&s, &x, &[0, 1]);
    h.rotate(&r, &y);
    h.map(&u, &[&r, &x], norm_backward);
    h.map(&out, &[&u, &column], times);
    let plan = h.merged();
    assert_eq!(count_reductions(only(&plan)), 2, "{plan}");
}

/// Only a part of the rows is rotated: what computes them has no halves for the rest.
#[test]
fn a_rotation_of_a_part_keeps_whole_rows() {
    for n in [96, 128] {
        let mut h = Hand::new();
        let x = h.input("x", &[32, n]);
        let t = h.temporary("t", F32, &[32, n]);
        let out = h.output("out", &[32, 64]);
        h.map(&t, &[&x], half);
        h.rotate(&out, &t.sliced(1, 0, Size::from(64)).unwrap());
        assert_eq!(h.merged().launches.len(), 2);
    }
}

/// Halves that could not be one with what rotates them are whole again.
#[test]
fn what_stays_apart_stays_whole() {
    let mut h = Hand::new();
    let s = h.state("s", &[32, 64]);
    let out = h.output("out", &[32, 64]);
    h.map(&s, &[&s], half);
    h.rotate(&out, &s);
    let plan = h.merged();
    let columns: Vec<_> = plan.kernels.iter().map(|k| k.cols.as_const()).collect();
    assert_eq!(columns, [Some(64), Some(32)], "{plan}");
}
