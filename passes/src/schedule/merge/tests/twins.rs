//! Two products of the same rows that become one, and those that must not.

use ir::plan::{Contraction, Rhs};

use super::*;

const ROWS: i64 = 256;
const COLS: i64 = 16;
const K: i64 = 8;

/// How a right side lies.
#[derive(Clone, Copy, PartialEq)]
enum Lies {
    Packed,
    ByK,
    ByColumn,
}

impl Hand {
    /// to = end(the rows of a by b, the elements of `from`).
    fn product_ending(
        &mut self,
        to: &View,
        (a, b, lies): (&View, &View, Lies),
        from: &[&View],
        end: impl FnOnce(&mut KernelBuilder, &[ExprId]) -> ExprId,
    ) {
        let mut k = KernelBuilder::keeping_all("matmul", &to.shape);
        let rows = k.access(a, &a.strides, None, false);
        let arg = k.arg(b.buffer, b.dtype, false);
        let (offset, strides) = (Size::from(0), vec![b.strides[0].clone()]);
        let b = match lies {
            Lies::Packed => Rhs::Packed { arg },
            Lies::ByK => Rhs::KContiguous { arg, offset, strides },
            Lies::ByColumn => Rhs::NContiguous { arg, offset, strides },
        };
        k.contraction = Some(Contraction {
            batch: 0,
            k: Size::from(K),
            a: rows,
            packed_a: false,
            b,
            also: None,
        });
        let mut values = vec![k.expr(Expr::Acc)];
        values.extend(from.iter().map(|v| k.load_broadcast(v)));
        let value = end(&mut k, &values);
        k.store(to, value);
        self.launch(k);
    }

    /// A gate, and what its end makes of it; the shapes of the right sides are for `lies`.
    fn pair(&mut self, rows: [&View; 2], types: [DType; 2], lies: [Lies; 2]) -> View {
        let [w1, w2] = [("w1", 0), ("w2", 1)].map(|(name, i)| {
            let shape = if lies[i] == Lies::ByColumn {
                [K, COLS]
            } else {
                [COLS, K]
            };
            self.buffer(name, types[i], &shape, BufferKind::Input(name.to_string()))
        });
        let n = rows[0].shape[0].coef;
        let gate = self.temporary("gate", F32, &[n, COLS]);
        let out = self.output("out", &[n, COLS]);
        self.product_ending(&gate, (rows[0], &w1, lies[0]), &[], |_, x| x[0]);
        self.product_ending(&out, (rows[1], &w2, lies[1]), &[&gate], |k, x| {
            let silu = k.unary(Unary::Silu, x[1]);
            k.binary(Binary::Mul, silu, x[0])
        });
        gate
    }
}

fn is_double(kernel: &Kernel) -> bool {
    kernel.contraction.as_ref().is_some_and(|c| c.also.is_some())
}

/// Weights in panels, and matrices as they lie: the gate needs no memory.
#[test]
fn a_gate_is_a_second_sum() {
    for (dtype, lies) in [(F32, Lies::Packed), (BF16, Lies::Packed), (F32, Lies::ByK)] {
        let mut h = Hand::new();
        let a = h.input("a", &[ROWS, K]);
        h.pair([&a, &a], [dtype; 2], [lies; 2]);
        let plan = h.merged();
        let kernel = only(&plan);
        assert!(is_double(kernel) && kernel.accesses().count() == 1, "{plan}");
        let work = plan.work(&Sizes::new()).unwrap();
        let weights = (2 * COLS * K) as f64 * dtype.bytes() as f64;
        assert_eq!(work.bytes, weights + 4.0 * (ROWS * (K + COLS)) as f64, "{plan}");
        assert_eq!(work.products, (2 * 2 * ROWS * COLS * K) as f64);
    }
}

/// What others read of the gate is stored beside the rest.
#[test]
fn a_gate_that_others_read_stays() {
    let mut h = Hand::new();
    let a = h.input("a", &[ROWS, K]);
    let sums = h.output("sums", &[COLS]);
    let gate = h.pair([&a, &a], [F32; 2], [Lies::Packed; 2]);
    h.sum(&sums, &gate, &[1, 0]);
    let plan = h.merged();
    assert_eq!(plan.launches.len(), 2, "{plan}");
    let kernel = &plan.kernels[plan.launches[0].kernel];
    let written = kernel.args.iter().filter(|a| a.written).count();
    assert!(is_double(kernel) && written == 2, "{plan}");
}

/// An element-wise launch first ends the second product.
#[test]
fn a_chain_of_two_products_is_one() {
    let mut h = Hand::new();
    let a = h.input("a", &[ROWS, K]);
    let [w1, w2] = ["w1", "w2"].map(|n| h.input(n, &[COLS, K]));
    let [gate, up] = ["gate", "up"].map(|n| h.temporary(n, F32, &[ROWS, COLS]));
    let out = h.output("out", &[ROWS, COLS]);
    h.product_ending(&gate, (&a, &w1, Lies::Packed), &[], |_, x| x[0]);
    h.product_ending(&up, (&a, &w2, Lies::Packed), &[], |_, x| x[0]);
    h.map(&out, &[&gate, &up], times);
    assert!(is_double(only(&h.merged())));
}

/// Other rows, weights of two types, sides that lie differently, columns that are contiguous, few rows: no kernel multiplies such two at once.
#[test]
fn unlike_products_stay_apart() {
    let left = |rows: i64, same: bool, types: [DType; 2], lies: [Lies; 2]| {
        let mut h = Hand::new();
        let (a, other) = (h.input("a", &[rows, K]), h.input("other", &[rows, K]));
        h.pair([&a, if same { &a } else { &other }], types, lies);
        h.merged().launches.len()
    };
    use Lies::*;
    assert_eq!(left(ROWS, false, [F32; 2], [Packed; 2]), 2);
    assert_eq!(left(ROWS, true, [F32, BF16], [Packed; 2]), 2);
    assert_eq!(left(ROWS, true, [F32; 2], [Packed, ByK]), 2);
    assert_eq!(left(ROWS, true, [F32; 2], [ByColumn; 2]), 2);
    assert_eq!(left(ROWS - 1, true, [F32; 2], [Packed; 2]), 2);
}

/// The second multiplies what the first stores: all of its columns.
#[test]
fn a_product_of_a_product_stays_apart() {
    let mut h = Hand::new();
    let (a, w) = (h.input("a", &[ROWS, K]), h.input("w", &[K, K]));
    let (t, out) = (h.temporary("t", F32, &[ROWS, K]), h.output("out", &[ROWS, K]));
    h.product_ending(&t, (&a, &w, Lies::Packed), &[], |_, x| x[0]);
    h.product_ending(&out, (&t, &w, Lies::Packed), &[&t], times);
    assert_eq!(h.merged().launches.len(), 2);
}

/// Another row of the gate: another thread has it.
#[test]
fn another_place_of_the_gate_keeps_both_apart() {
    let mut h = Hand::new();
    let a = h.input("a", &[ROWS, K]);
    let [w1, w2] = ["w1", "w2"].map(|n| h.input(n, &[ROWS, K]));
    let (gate, out) = (h.temporary("gate", F32, &[ROWS, ROWS]), h.output("out", &[ROWS, ROWS]));
    h.product_ending(&gate, (&a, &w1, Lies::Packed), &[], |_, x| x[0]);
    h.product_ending(&out, (&a, &w2, Lies::Packed), &[&gate.transposed(&[1, 0])], times);
    assert_eq!(h.merged().launches.len(), 2);
}
