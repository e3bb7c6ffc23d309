//! Element-wise launches that become a product's end, and those that must not.

use ir::plan::{Contraction, Rhs};

use super::*;

const ROWS: i64 = 256;
const COLS: i64 = 16;
const K: i64 = 8;

impl Hand {
    /// to[.., j] = sum over k of a[.., k] * b[j, k].
    fn product(&mut self, to: &View, a: &View, b: &View) {
        let mut k = KernelBuilder::keeping_all("matmul", &to.shape);
        let rows = k.access(a, &a.strides, None, false);
        let arg = k.arg(b.buffer, b.dtype, false);
        k.contraction = Some(Contraction {
            batch: 0,
            k: Size::from(K),
            a: rows,
            packed_a: false,
            b: Rhs::KContiguous {
                arg,
                offset: Size::from(0),
                strides: vec![Size::from(K)],
            },
            also: None,
        });
        let acc = k.expr(Expr::Acc);
        k.store(to, acc);
        self.launch(k);
    }

    /// a of so many rows, and b.
    fn matrices(&mut self, rows: i64) -> (View, View) {
        (self.input("a", &[rows, K]), self.input("b", &[COLS, K]))
    }

    /// The same, where 16 rows of a stand behind each 64 that are multiplied.
    fn matrices_apart(&mut self) -> (View, View) {
        let a = self.input("a", &[4, 80, K]);
        (a.sliced(1, 0, Size::from(64)).unwrap(), self.input("b", &[COLS, K]))
    }
}

fn silu_times(k: &mut KernelBuilder, x: &[ExprId]) -> ExprId {
    let silu = k.unary(Unary::Silu, x[0]);
    k.binary(Binary::Mul, silu, x[1])
}

fn column_of(rows: &View, n: i64) -> View {
    View {
        shape: [n, 1].map(Size::from).to_vec(),
        strides: [1i64, 0].map(Size::from).to_vec(),
        ..rows.clone()
    }
}

/// The last of two products ends with what is made of both; the rows of the other are others, and two dimensions.
#[test]
fn a_chain_of_two_products_ends_the_last() {
    for dtype in [F32, BF16] {
        let mut h = Hand::new();
        let (a, b) = h.matrices(ROWS);
        let (c, d) = (h.input("c", &[COLS, K]), h.input("d", &[ROWS, K]));
        let [gate, up] = ["gate", "up"].map(|n| h.temporary(n, dtype, &[ROWS, COLS]));
        let out = h.buffer("out", BF16, &[4, 64, COLS], BufferKind::Output("out".to_string()));
        h.product(&gate, &a, &b);
        h.product(&up, &d, &c);
        let [gate, up] = [gate, up].map(|v| v.reshaped(&out.shape).unwrap());
        h.map(&out, &[&gate, &up], silu_times);
        let plan = h.merged();
        assert_eq!(plan.launches.len(), 2, "{plan}");
        let last = &plan.kernels[plan.launches[1].kernel];
        assert_eq!((last.outer.len(), last.accesses().count()), (1, 2), "{plan}");
        assert!(last.contraction.is_some(), "{plan}");
    }
}

/// The product's rows are two dimensions; beside a number of each row and one of each column; the product's result stays for another reader.
#[test]
fn a_result_that_others_read_stays() {
    let mut h = Hand::new();
    let (a, b) = h.matrices_apart();
    let (row, bias) = (h.input("row", &[ROWS]), h.input("bias", &[COLS]));
    let t = h.temporary("t", F32, &[4, 64, COLS]);
    let (out, sums) = (h.output("out", &[ROWS, COLS]), h.output("sums", &[COLS]));
    h.product(&t, &a, &b);
    let flat = t.reshaped(&out.shape).unwrap();
    h.map(&out, &[&flat, &column_of(&row, ROWS), &bias], |k, x| {
        let scaled = times(k, x);
        plus(k, &[scaled, x[2]])
    });
    h.sum(&sums, &flat, &[1, 0]);
    let plan = h.merged();
    assert_eq!(plan.launches.len(), 2, "{plan}");
    let product = &plan.kernels[plan.launches[0].kernel];
    assert_eq!(product.outer.len(), 2, "{plan}");
    assert_eq!(product.args.iter().filter(|a| a.written).count(), 2, "{plan}");
}

/// One launch after the other, the second in place.
#[test]
fn an_epilogue_gets_longer() {
    let mut h = Hand::new();
    let (a, b) = h.matrices(ROWS);
    let s = h.state("s", &[ROWS, COLS]);
    let t = h.temporary("t", F32, &[ROWS, COLS]);
    let u = h.temporary("u", F32, &[ROWS, COLS]);
    let out = h.output("out", &[ROWS, COLS]);
    h.product(&t, &a, &b);
    h.map(&u, &[&t], |k, x| k.unary(Unary::Silu, x[0]));
    h.map(&s, &[&s, &u], plus);
    h.map(&out, &[&s, &u], times);
    only(&h.merged());
}

/// How many launches are left of what `make` makes of a product's result, a and b.
fn launches(make: impl FnOnce(&mut Hand, &View, &View, &View)) -> usize {
    let mut h = Hand::new();
    let (a, b) = h.matrices(ROWS);
    let t = h.temporary("t", F32, &[ROWS, COLS]);
    make(&mut h, &t, &a, &b);
    h.merged().launches.len()
}

/// The state is wanted as it is after a launch that wants the product first.
#[test]
fn an_input_that_is_written_between_keeps_both_apart() {
    let found = launches(|h, t, a, b| {
        let s = h.state("s", &[COLS]);
        let out = h.output("out", &[ROWS, COLS]);
        h.product(t, a, b);
        h.sum(&s, t, &[1, 0]);
        h.map(&out, &[t, &s], times);
    });
    assert_eq!(found, 3);
}

/// Other tiles of the product may still read it.
#[test]
fn what_is_multiplied_is_not_stored() {
    let mut h = Hand::new();
    let s = h.state("s", &[ROWS, K + COLS]);
    let [a, to] = [K, COLS].map(|n| s.sliced(1, 0, Size::from(n)).unwrap());
    let (b, t) = (h.input("b", &[COLS, K]), h.temporary("t", F32, &[ROWS, COLS]));
    h.product(&t, &a, &b);
    h.map(&to, &[&t], half);
    assert_eq!(h.merged().launches.len(), 2);
}

/// A turned copy, half of the columns, and a row's number for each 64 rows: no product's thread has these at hand.
#[test]
fn another_space_keeps_both_apart() {
    let turned = launches(|h, t, a, b| {
        let out = h.output("out", &[COLS, ROWS]);
        h.product(t, a, b);
        h.map(&out, &[&t.transposed(&[1, 0])], half);
    });
    let part = launches(|h, t, a, b| {
        let out = h.output("out", &[ROWS, COLS / 2]);
        h.product(t, a, b);
        h.map(&out, &[&t.sliced(1, 0, Size::from(COLS / 2)).unwrap()], half);
    });
    let again = launches(|h, t, a, b| {
        let (x, out) = (h.input("x", &[64, COLS]), h.output("out", &[4, 64, COLS]));
        h.product(t, a, b);
        h.map(&out, &[&t.reshaped(&out.shape).unwrap(), &x], times);
    });
    assert_eq!((turned, part, again), (2, 2, 2));
}

/// The product has 4 times 64 rows here, as those of a are apart; x has 64.
#[test]
fn rows_that_come_again_keep_both_apart() {
    let mut h = Hand::new();
    let (a, b) = h.matrices_apart();
    let (t, x) = (h.temporary("t", F32, &[4, 64, COLS]), h.input("x", &[64, COLS]));
    let out = h.output("out", &[4, 64, COLS]);
    h.product(&t, &a, &b);
    h.map(&out, &[&t, &x], times);
    assert_eq!(h.merged().launches.len(), 2);
}

/// Five inputs, and rows that begin at odd places.
#[test]
fn a_product_keeps_its_registers_and_vectors() {
    let many = launches(|h, t, a, b| {
        let all = ["x0", "x1", "x2", "x3", "x4"].map(|n| h.input(n, &[ROWS, COLS]));
        let out = h.output("out", &[ROWS, COLS]);
        h.product(t, a, b);
        let from: Vec<&View> = std::iter::once(t).chain(&all).collect();
        h.map(&out, &from, |k, x| {
            let add = |sum: ExprId, x: &ExprId| k.binary(Binary::Add, sum, *x);
            x[1..].iter().fold(x[0], add)
        });
    });
    let odd = launches(|h, t, a, b| {
        let x = h.input("x", &[ROWS, COLS + 1]);
        let out = h.output("out", &[ROWS, COLS]);
        h.product(t, a, b);
        h.map(&out, &[t, &x.sliced(1, 0, Size::from(COLS)).unwrap()], times);
    });
    assert_eq!((many, odd), (2, 2));
}

/// Few rows, or rows that nobody knows: an inference's products stay as they are.
#[test]
fn few_and_unknown_rows_get_no_epilogue() {
    for rows in [Size::from(255), Size::sym("T")] {
        let mut h = Hand::new();
        let sized = |h: &mut Hand, name: &str, cols: i64, kind: BufferKind| {
            let view = h.buffer(name, F32, &[1, cols], kind);
            h.0.buffers[view.buffer].shape[0] = rows.clone();
            View::whole(view.buffer, F32, vec![rows.clone(), Size::from(cols)])
        };
        let a = sized(&mut h, "a", K, BufferKind::Input("a".to_string()));
        let t = sized(&mut h, "t", COLS, BufferKind::Temp { slot: 0 });
        let out = sized(&mut h, "out", COLS, BufferKind::Output("out".to_string()));
        let b = h.input("b", &[COLS, K]);
        h.product(&t, &a, &b);
        h.map(&out, &[&t], half);
        let mut plan = h.0;
        merge(&mut plan);
        assert_eq!(plan.launches.len(), 2, "{plan}");
    }
}
