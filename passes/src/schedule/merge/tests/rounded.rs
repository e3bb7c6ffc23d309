//! Rows that are stored rounded, and those that must not be.

use ir::plan::{Contraction, Rhs};

use super::*;

const ROWS: i64 = 256;
const COLS: i64 = 16;
const K: i64 = 8;

impl Hand {
    /// An output [rows, 16]: x by a bf16 weight of its own. `squares`: by its rows' squares.
    fn by_weight(&mut self, name: &str, x: &View, squares: bool) {
        let weight = format!("w {name}");
        let w = self.buffer(&weight, BF16, &[COLS, K], BufferKind::Input(weight.clone()));
        let to = self.output(name, &[x.shape[0].coef, COLS]);
        let mut k = KernelBuilder::keeping_all("matmul", &to.shape);
        let a = k.access(x, &x.strides, None, false);
        let arg = k.arg(w.buffer, BF16, false);
        k.contraction = Some(Contraction {
            batch: 0,
            k: Size::from(K),
            a,
            packed_a: false,
            b: Rhs::Packed { arg },
            also: None,
        });
        let mut value = k.expr(Expr::Acc);
        if squares {
            let squares = k.expr(Expr::RowSquares);
            value = times(&mut k, &[value, squares]);
        }
        k.store(&to, value);
        self.launch(k);
    }

    /// x by the sum of its row: rows that no reader computes again.
    fn rows(&mut self, to: &View, x: &View) {
        self.map(to, &[x], |k, x| {
            let sum = k.reduce(Reduction::Sum, x[0]);
            times(k, &[x[0], sum])
        });
    }
}

/// The types of what the first launch writes.
fn written(plan: &Plan) -> Vec<DType> {
    let kernel = &plan.kernels[plan.launches[0].kernel];
    kernel.args.iter().filter(|a| a.written).map(|a| a.dtype).collect()
}

/// Three products read them: nothing is left in f32.
#[test]
fn rows_for_products_alone_are_bf16() {
    let mut h = Hand::new();
    let (x, t) = (h.input("x", &[ROWS, K]), h.temporary("t", F32, &[ROWS, K]));
    h.rows(&t, &x);
    ["q", "k", "v"].iter().for_each(|n| h.by_weight(n, &t, false));
    let plan = h.merged();
    assert_eq!(written(&plan), [BF16], "{plan}");
    assert_eq!(plan.launches.len(), 4);
    let each = (2 * ROWS * K + 2 * COLS * K + 4 * ROWS * COLS) as f64;
    let bytes = plan.work(&Sizes::new()).unwrap().bytes;
    assert_eq!(bytes, (6 * ROWS * K) as f64 + 3.0 * each);
}

/// Another reader wants them as they are, which may be a product's end or a product that measures them.
#[test]
fn rows_that_others_read_are_stored_twice() {
    for measured in [false, true] {
        let mut h = Hand::new();
        let (x, t) = (h.input("x", &[ROWS, K]), h.temporary("t", F32, &[ROWS, K]));
        h.rows(&t, &x);
        h.by_weight("q", &t, false);
        if measured {
            h.by_weight("k", &t, true);
        } else {
            let out = h.output("sums", &[K]);
            h.sum(&out, &t, &[1, 0]);
        }
        let plan = h.merged();
        assert_eq!(written(&plan), [F32, BF16], "{plan}");
        let left = |l: &ir::plan::Launch| plan.kernels[l.kernel].contraction.as_ref().map(|c| c.a.arg);
        let types: Vec<DType> = (plan.launches.iter())
            .filter_map(|l| Some(plan.kernels[l.kernel].args[left(l)?].dtype))
            .collect();
        assert_eq!(types, if measured { vec![BF16, F32] } else { vec![BF16] }, "{plan}");
    }
}

/// What a backward wants in bf16 is there already.
#[test]
fn rows_that_are_stored_in_bf16_are_read_there() {
    let mut h = Hand::new();
    let (x, t) = (h.input("x", &[ROWS, K]), h.temporary("t", F32, &[ROWS, K]));
    let kept = h.temporary("kept", BF16, &[ROWS, K]);
    h.rows(&t, &x);
    h.map(&kept, &[&t], |k, x| k.unary(Unary::RoundBf16, x[0]));
    h.by_weight("q", &t, false);
    h.by_weight("k", &kept, false);
    let plan = h.merged();
    assert_eq!(written(&plan), [BF16], "{plan}");
    assert_eq!(plan.launches.len(), 3, "{plan}");
}

/// A product of a product: the first stores bf16.
#[test]
fn a_products_result_is_rounded_too() {
    let mut h = Hand::new();
    let a = h.input("a", &[ROWS, K]);
    let w = h.buffer("w", BF16, &[K, K], BufferKind::Input("w".to_string()));
    let t = h.temporary("t", F32, &[ROWS, K]);
    let mut k = KernelBuilder::keeping_all("matmul", &t.shape);
    let rows = k.access(&a, &a.strides, None, false);
    let arg = k.arg(w.buffer, BF16, false);
    k.contraction = Some(Contraction {
        batch: 0,
        k: Size::from(K),
        a: rows,
        packed_a: false,
        b: Rhs::Packed { arg },
        also: None,
    });
    let acc = k.expr(Expr::Acc);
    k.store(&t, acc);
    h.launch(k);
    h.by_weight("q", &t, false);
    let plan = h.merged();
    assert_eq!(written(&plan), [BF16], "{plan}");
}

/// Few rows; rows that a product measures; rows that two launches make, or that are a state's.
#[test]
fn other_rows_stay_as_they_are() {
    let found = |rows: i64, squares: bool, again: bool| {
        let mut h = Hand::new();
        let (x, t) = (h.input("x", &[rows, K]), h.temporary("t", F32, &[rows, K]));
        h.rows(&t, &x);
        if again {
            let half_of = |v: &View| v.sliced(0, 0, Size::from(rows / 2)).unwrap();
            h.rows(&half_of(&t), &half_of(&x));
        }
        h.by_weight("q", &t, squares);
        written(&h.merged())
    };
    assert_eq!(found(ROWS, false, false), [BF16]);
    assert_eq!(found(ROWS - 1, false, false), [F32]);
    assert_eq!(found(ROWS, true, false), [F32]);
    assert_eq!(found(ROWS, false, true), [F32]);
    let mut h = Hand::new();
    let (x, s) = (h.input("x", &[ROWS, K]), h.state("s", &[ROWS, K]));
    h.rows(&s, &x);
    h.by_weight("q", &s, false);
    assert_eq!(written(&h.merged()), [F32]);
}
