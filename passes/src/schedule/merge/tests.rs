//! Small plans by hand: what merges, to what, and what must not. Each runs merged and unmerged, and the results must be equal.

use ir::plan::eval::{allocate, round, run};
use ir::plan::{Binary, Buffer, BufferKind, Expr, ExprId, Kernel, Plan, Reduction, Stage, Unary, verify::verify};
use ir::testing::Rng;
use ir::{DType, Size, Sizes};

use super::super::build::KernelBuilder;
use super::super::slots;
use super::super::view::View;
use super::{NEAR, merge};

mod epilogue;
mod halves;
mod rounded;
mod twins;

use DType::{BF16, F32, I32};

/// A plan in the making.
struct Hand(Plan);

impl Hand {
    fn new() -> Hand {
        Hand(Plan {
            entry: "hand".to_string(),
            buffers: vec![],
            kernels: vec![],
            launches: vec![],
        })
    }

    fn buffer(&mut self, name: &str, dtype: DType, shape: &[i64], kind: BufferKind) -> View {
        let shape: Vec<Size> = shape.iter().map(|n| Size::from(*n)).collect();
        self.0.buffers.push(Buffer {
            name: name.to_string(),
            dtype,
            shape: shape.clone(),
            kind,
        });
        View::whole(self.0.buffers.len() - 1, dtype, shape)
    }

    fn input(&mut self, name: &str, shape: &[i64]) -> View {
        self.buffer(name, F32, shape, BufferKind::Input(name.to_string()))
    }

    fn output(&mut self, name: &str, shape: &[i64]) -> View {
        self.buffer(name, F32, shape, BufferKind::Output(name.to_string()))
    }

    fn state(&mut self, name: &str, shape: &[i64]) -> View {
        self.buffer(name, F32, shape, BufferKind::State(name.to_string()))
    }

    fn temporary(&mut self, name: &str, dtype: DType, shape: &[i64]) -> View {
        self.buffer(name, dtype, shape, BufferKind::Temp { slot: 0 })
    }

    fn launch(&mut self, k: KernelBuilder) {
        let (mut kernel, mut launch) = k.finish();
        kernel.name = format!("{}.{}", kernel.name, self.0.kernels.len());
        launch.kernel = self.0.kernels.len();
        self.0.kernels.push(kernel);
        self.0.launches.push(launch);
    }

    /// One kernel that stores what `value` makes of what it loads.
    fn map(&mut self, to: &View, from: &[&View], value: impl FnOnce(&mut KernelBuilder, &[ExprId]) -> ExprId) {
        let mut k = KernelBuilder::keeping_columns("map", &to.shape);
        let loaded: Vec<ExprId> = from.iter().map(|v| k.load_broadcast(v)).collect();
        let value = value(&mut k, &loaded);
        k.store(to, value);
        self.launch(k);
    }

    /// to[..] = the sum over an axis of x, walked by `shape`, whose last dimension is that axis.
    fn sum(&mut self, to: &View, x: &View, shape: &[usize]) {
        let sizes: Vec<Size> = shape.iter().map(|d| x.shape[*d].clone()).collect();
        let strides: Vec<Size> = shape.iter().map(|d| x.strides[*d].clone()).collect();
        let mut k = KernelBuilder::keeping_columns("sum", &sizes);
        let value = k.load(x, &strides, None);
        let value = k.reduce(Reduction::Sum, value);
        let mut strides = to.strides.clone();
        strides.push(Size::from(0));
        k.store_at(to, &strides, None, value, None);
        self.launch(k);
    }

    /// The merged plan, after it has run beside the other.
    fn merged(self) -> Plan {
        let (mut before, mut after) = (self.0.clone(), self.0);
        slots::assign(&mut before);
        merge(&mut after);
        slots::assign(&mut after);
        assert_eq!(verify(&before), [], "{before}");
        assert_eq!(verify(&after), [], "{after}");
        for ((name, x), (_, y)) in outcome(&before).iter().zip(outcome(&after)) {
            // Sums in another order, and what is not rounded to f32 between two kernels.
            let near = |x: f64, y: f64| (x - y).abs() <= 1e-6 * x.abs().max(1.0);
            let off = x.iter().zip(&y).position(|(x, y)| !near(*x, *y));
            assert!(off.is_none(), "{name}[{off:?}] differs\n{before}\n{after}");
        }
        after
    }
}

/// Outputs and states after a run on data that depends on the buffers' names.
fn outcome(plan: &Plan) -> Vec<(String, Vec<f64>)> {
    let mut memory = allocate(plan, &Sizes::new()).unwrap();
    for (b, data) in plan.buffers.iter().zip(&mut memory) {
        if matches!(b.kind, BufferKind::Input(_) | BufferKind::State(_)) {
            let mut rng = Rng::new(b.name.bytes().map(u64::from).sum());
            let mut next = || {
                if b.dtype == I32 {
                    rng.below(4) as f64
                } else {
                    rng.unit() + 0.5
                }
            };
            data.iter_mut().for_each(|x| *x = round(next(), b.dtype));
        }
    }
    run(plan, &Sizes::new(), &mut memory).unwrap();
    let kept = |b: &Buffer| matches!(b.kind, BufferKind::Output(_) | BufferKind::State(_));
    let all = plan.buffers.iter().zip(memory).filter(|(b, _)| kept(b));
    let mut all: Vec<(String, Vec<f64>)> = all.map(|(b, data)| (b.name.clone(), data)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn times(k: &mut KernelBuilder, x: &[ExprId]) -> ExprId {
    k.binary(Binary::Mul, x[0], x[1])
}

fn plus(k: &mut KernelBuilder, x: &[ExprId]) -> ExprId {
    k.binary(Binary::Add, x[0], x[1])
}

fn half(k: &mut KernelBuilder, x: &[ExprId]) -> ExprId {
    let half = k.float(0.5);
    k.binary(Binary::Mul, x[0], half)
}

fn only(plan: &Plan) -> &Kernel {
    assert_eq!(plan.launches.len(), 1, "{plan}");
    &plan.kernels[0]
}

fn count_reductions(kernel: &Kernel) -> usize {
    let is = |s: &&Stage| matches!(s, Stage::Reduce { .. });
    kernel.stages.iter().filter(is).count()
}

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
