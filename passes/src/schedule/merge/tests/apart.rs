//! What must stay apart, or as it is: another thread's values, states on the way, reductions twice, memory read against its order.

use super::*;

/// A value with two readers that is cheap to make twice, and one that costs a reduction and is not.
#[test]
fn a_reduction_is_never_done_twice() {
    let mut h = Hand::new();
    let x = h.input("x", &[64, 128]);
    let r = h.temporary("r", F32, &[64]);
    let (a, b) = (h.output("a", &[64, 64]), h.output("b", &[64, 32]));
    h.sum(&r, &x, &[0, 1]);
    let column = |n: i64| View {
        shape: [64i64, n].map(Size::from).to_vec(),
        strides: [1i64, 0].map(Size::from).to_vec(),
        ..r.clone()
    };
    h.map(&a, &[&column(1)], half);
    h.map(&b, &[&column(1)], half);
    let plan = h.merged();
    assert_eq!(plan.kernels.iter().map(count_reductions).sum::<usize>(), 1, "{plan}");
}

/// The state changes between what would be computed later and its reader.
#[test]
fn an_input_that_is_overwritten_holds_its_reader() {
    let mut h = Hand::new();
    let s = h.state("s", &[64, 64]);
    let t = h.temporary("t", F32, &[64, 64]);
    let (out, sums) = (h.output("out", &[64, 64]), h.temporary("sums", F32, &[64]));
    h.map(&t, &[&s], half);
    // Over the other axis, so that it joins neither; then the state is overwritten by rows of it.
    h.sum(&sums, &s, &[1, 0]);
    h.map(&s, &[&sums], |_, x| x[0]);
    h.map(&out, &[&t], |k, x| k.unary(Unary::Neg, x[0]));
    h.merged();
}

/// Another row of what was stored: another thread may not have stored it yet.
#[test]
fn other_rows_are_not_at_hand() {
    let mut h = Hand::new();
    let x = h.input("x", &[64, 64]);
    let t = h.temporary("t", F32, &[64, 64]);
    let out = h.output("out", &[64, 64]);
    h.map(&t, &[&x], |k, x| {
        let sum = k.reduce(Reduction::Sum, x[0]);
        times(k, &[x[0], sum])
    });
    let turned = t.transposed(&[1, 0]);
    h.map(&out, &[&t, &turned], plus);
    assert_eq!(h.merged().launches.len(), 2);
}

/// Each of two states' new value wants the other's old one.
#[test]
fn states_that_wait_for_each_other_stay_apart() {
    let mut h = Hand::new();
    let [a, b] = ["a", "b"].map(|n| h.state(n, &[64, 64]));
    h.map(&a, &[&a, &b], plus);
    h.map(&b, &[&a, &b], times);
    assert_eq!(h.merged().launches.len(), 2);
}

/// A row's number is loaded by all threads of its row: none may store it meanwhile.
#[test]
fn a_rows_state_is_not_updated_beside_its_readers() {
    let mut h = Hand::new();
    let (x, s) = (h.input("x", &[64, 64]), h.state("s", &[64]));
    let out = h.output("out", &[64, 64]);
    let column = View {
        shape: [64i64, 1].map(Size::from).to_vec(),
        strides: [1i64, 0].map(Size::from).to_vec(),
        ..s.clone()
    };
    h.map(&s, &[&s], half);
    h.map(&out, &[&x, &column], times);
    assert_eq!(h.merged().launches.len(), 2);
}

/// Where nothing was stored, the old value is still there.
#[test]
fn what_is_stored_sometimes_is_not_handed_on() {
    let mut h = Hand::new();
    let (x, s) = (h.input("x", &[64, 64]), h.state("s", &[64, 64]));
    let out = h.output("out", &[64, 64]);
    let mut k = KernelBuilder::new("some", &x.shape);
    let value = k.load_broadcast(&x);
    let (column, few) = (k.index(1), k.int(9));
    let when = k.binary(Binary::Lt, column, few);
    k.store_at(&s, &s.strides.clone(), None, value, Some(when));
    h.launch(k);
    h.map(&out, &[&s], half);
    assert_eq!(h.merged().launches.len(), 2);
}

/// The first and the third share their input; the third needs the second, which needs the first.
#[test]
fn what_stands_on_the_way_keeps_two_apart() {
    let n = 512;
    let mut h = Hand::new();
    let x = h.input("x", &[n, n]);
    let (r, c) = (h.temporary("r", F32, &[n]), h.temporary("c", F32, &[1]));
    let out = h.output("out", &[n, n]);
    h.sum(&r, &x, &[0, 1]);
    let mut k = KernelBuilder::keeping_columns("all", &r.shape);
    let value = k.load_broadcast(&r);
    let value = k.reduce(Reduction::Sum, value);
    k.store_at(&c, &[Size::from(0)], None, value, None);
    h.launch(k);
    h.map(&out, &[&x, &c], times);
    assert_eq!(h.merged().launches.len(), 3);
}

/// Rows that lie along the columns, and a sum whose threads lie along the points: together one of them would jump through memory.
#[test]
fn kernels_that_lie_differently_stay_apart() {
    let mut h = Hand::new();
    let x = h.input("x", &[512, 512]);
    let (a, b) = (h.output("a", &[512, 512]), h.output("b", &[512]));
    h.map(&a, &[&x], half);
    h.sum(&b, &x, &[1, 0]);
    assert_eq!(h.merged().launches.len(), 2);
}

/// A number that many wait for is not made by the kernel of one of them.
#[test]
fn one_number_is_not_put_off() {
    let mut h = Hand::new();
    let (n, x) = (h.input("n", &[1]), h.input("x", &[64]));
    let c = h.temporary("c", F32, &[1]);
    let (a, b) = (h.output("a", &[64]), h.output("b", &[1]));
    h.map(&c, &[&n], half);
    h.map(&a, &[&x, &c], times);
    let mut k = KernelBuilder::keeping_all("ordered", &b.shape);
    k.ordered = 1;
    let value = k.load_broadcast(&c);
    k.store(&b, value);
    h.launch(k);
    assert_eq!(h.merged().launches.len(), 3);
}
