//! What becomes one kernel: values that are computed where they are read, handed on, or read once for two.

use super::*;

/// g' = g * s; m, v and the parameter are updated one after the other. The parameter is stored first: it wants the old m and v.
#[test]
fn an_optimizer_in_place_is_one_kernel() {
    let mut h = Hand::new();
    let g = h.input("g", &[256, 512]);
    let scale = h.input("scale", &[1]);
    let [m, v, p] = ["m", "v", "p"].map(|n| h.state(n, &[256, 512]));
    let scaled = h.temporary("scaled", F32, &[256, 512]);
    h.map(&scaled, &[&g, &scale], times);
    h.map(&m, &[&m, &scaled], |k, x| {
        let old = half(k, &x[..1]);
        plus(k, &[old, x[1]])
    });
    h.map(&v, &[&v, &scaled], |k, x| {
        let (old, square) = (half(k, &x[..1]), times(k, &[x[1], x[1]]));
        plus(k, &[old, square])
    });
    h.map(&p, &[&p, &m, &v], |k, x| {
        let step = k.binary(Binary::Div, x[1], x[2]);
        k.binary(Binary::Sub, x[0], step)
    });
    let plan = h.merged();
    let kernel = only(&plan);
    assert_eq!(kernel.args.iter().filter(|a| a.written).count(), 3);
    let bytes = plan.work(&Sizes::new()).unwrap().bytes;
    assert_eq!(bytes, 7.0 * 4.0 * 256.0 * 512.0 + 4.0, "g, and m, v, p twice");
}

/// What was stored as bf16 is rounded where its readers compute it.
#[test]
fn a_value_keeps_the_roundings_of_its_type() {
    let mut h = Hand::new();
    let (x, y) = (h.input("x", &[256, 512]), h.input("y", &[256, 512]));
    let t = h.temporary("t", BF16, &[256, 512]);
    let (out, sums) = (h.output("out", &[256, 512]), h.output("sums", &[256]));
    h.map(&t, &[&x, &y], times);
    h.map(&out, &[&t, &x], plus);
    h.sum(&sums, &t, &[0, 1]);
    only(&h.merged());
}

/// And where it is handed on: it costs a reduction, so that nobody computes it again.
#[test]
fn a_value_that_is_handed_on_keeps_its_rounding() {
    let mut h = Hand::new();
    let x = h.input("x", &[64, 96]);
    let t = h.temporary("t", BF16, &[64, 96]);
    let out = h.output("out", &[64, 96]);
    h.map(&t, &[&x], |k, x| {
        let sum = k.reduce(Reduction::Sum, x[0]);
        times(k, &[x[0], sum])
    });
    h.map(&out, &[&t, &x], plus);
    only(&h.merged());
}

/// A gate: a sum of each row, a sigmoid of it over the rows, and the row by it. The sigmoid's kernel has the rows for columns.
#[test]
fn what_a_row_has_once_is_computed_once_a_row() {
    let mut h = Hand::new();
    let (x, y) = (h.input("x", &[4, 32, 128]), h.input("y", &[4, 32, 128]));
    let t = h.temporary("t", F32, &[4, 32, 128]);
    let [r, s] = ["r", "s"].map(|n| h.temporary(n, F32, &[4, 32]));
    let out = h.output("out", &[4, 32, 128]);
    h.map(&t, &[&x, &y], times);
    h.sum(&r, &t, &[0, 1, 2]);
    h.map(&s, &[&r], |k, x| k.unary(Unary::Sigmoid, x[0]));
    let column = View {
        shape: [4i64, 32, 1].map(Size::from).to_vec(),
        strides: [32i64, 1, 0].map(Size::from).to_vec(),
        ..s.clone()
    };
    h.map(&out, &[&x, &column], times);
    let plan = h.merged();
    assert_eq!(count_reductions(only(&plan)), 1, "{plan}");
    assert_eq!(plan.buffers.len(), 3, "no temporary is left: {plan}");
}

/// A sum over columns of what stands in rows: the position and all loads turn.
#[test]
fn a_reduction_over_another_axis_computes_what_it_sums() {
    let mut h = Hand::new();
    let (x, w) = (h.input("x", &[8, 16, 32]), h.input("w", &[32]));
    let t = h.temporary("t", F32, &[8, 16, 32]);
    let out = h.output("out", &[8, 32]);
    h.map(&t, &[&x, &w], |k, x| {
        let row = k.index(1);
        let row = k.unary(Unary::ToFloat, row);
        let product = times(k, x);
        plus(k, &[product, row])
    });
    h.sum(&out, &t, &[0, 2, 1]);
    let plan = h.merged();
    let kernel = only(&plan);
    assert_eq!((kernel.outer.len(), kernel.cols.as_const()), (2, Some(16)), "{plan}");
    assert!(
        kernel.exprs.contains(&Expr::Index(2)),
        "the row is the column now: {plan}"
    );
}

/// [8, 4, 2, 32] copied as [8, 32, 8]: the copy's last dimension is two of the value's.
#[test]
fn a_copy_that_turns_computes_what_it_copies() {
    let mut h = Hand::new();
    let (x, y) = (h.input("x", &[8, 4, 2, 16, 32]), h.input("y", &[8, 4, 2, 16, 32]));
    let t = h.temporary("t", BF16, &[8, 4, 2, 16, 32]);
    let out = h.buffer("out", BF16, &[8, 16, 8, 32], BufferKind::Output("out".to_string()));
    h.map(&t, &[&x, &y], |k, x| {
        let head = k.index(1);
        let head = k.unary(Unary::ToFloat, head);
        let product = times(k, x);
        plus(k, &[product, head])
    });
    let shape = [8i64, 8, 16, 32].map(Size::from);
    let turned = t.reshaped(&shape).unwrap().transposed(&[0, 2, 1, 3]);
    h.map(&out, &[&turned], |_, x| x[0]);
    only(&h.merged());
}

/// Its reader is far: the rows lie in memory until then, and so does a number of each. The value itself, as large as the rows, does not.
#[test]
fn a_rows_number_may_wait_beside_its_rows() {
    let mut h = Hand::new();
    let x = h.input("x", &[8, 16, 64]);
    let (d, g) = (h.temporary("d", F32, &[8, 16, 64]), h.temporary("g", F32, &[8, 16]));
    let t = h.temporary("t", F32, &[8, 16, 64]);
    let out = h.output("out", &[16, 64]);
    let column = View {
        shape: [8i64, 16, 1].map(Size::from).to_vec(),
        strides: [16i64, 1, 0].map(Size::from).to_vec(),
        ..g.clone()
    };
    h.map(&d, &[&x], |k, x| {
        let sum = k.reduce(Reduction::Sum, x[0]);
        times(k, &[x[0], sum])
    });
    h.sum(&g, &x, &[0, 1, 2]);
    h.map(&t, &[&d, &column], times);
    for i in 0..2 * NEAR {
        let (from, to) = (h.input(&format!("i{i}"), &[8]), h.output(&format!("o{i}"), &[8]));
        h.map(&to, &[&from], half);
    }
    h.sum(&out, &t, &[1, 2, 0]);
    let plan = h.merged();
    assert!(plan.buffers.iter().all(|b| b.name != "t"), "{plan}");
}

/// A large input is read once; a small one is no reason to wait.
#[test]
fn two_readers_of_a_large_input_are_one() {
    for (n, launches) in [(512, 1), (32, 2)] {
        let mut h = Hand::new();
        let x = h.input("x", &[n, n]);
        let (a, b) = (h.output("a", &[n, n]), h.output("b", &[n, n]));
        h.map(&a, &[&x], half);
        h.map(&b, &[&x], |k, x| k.unary(Unary::Exp, x[0]));
        assert_eq!(h.merged().launches.len(), launches);
    }
}
