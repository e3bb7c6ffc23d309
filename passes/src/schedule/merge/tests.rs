//! Small plans by hand: what merges, to what, and what must not. Each runs merged and unmerged, and the results must be equal.
//!
//! Here is how such a plan is made, run and compared; the plans are in files by what they show.

use ir::plan::eval::{allocate, round, run};
use ir::plan::{Binary, Buffer, BufferKind, Expr, ExprId, Kernel, Plan, Reduction, Stage, Unary, verify::verify};
use ir::testing::Rng;
use ir::{DType, Size, Sizes};

use super::super::build::KernelBuilder;
use super::super::slots;
use super::super::view::View;
use super::{NEAR, merge};

mod apart;
mod epilogue;
mod halves;
mod joined;
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
