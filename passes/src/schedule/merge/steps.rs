//! The launches of a plan as steps that can be moved and replaced, and back.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use ir::plan::{Buffer, BufferKind, Expr, Kernel, Launch, Plan};
use ir::{DType, Sizes};

use super::body::{close, open, reads, writes};
use crate::schedule::slots::typical;

/// One launch.
#[derive(Clone, Default)]
pub struct Step {
    /// The kernel with buffers for arguments, where it is one that may merge.
    pub body: Option<Rc<Kernel>>,
    /// The same of a product: it may get an epilogue.
    pub product: Option<Rc<Kernel>>,
    /// The same of a sweep.
    pub sweep: Option<Rc<Kernel>>,
    /// As it was scheduled, unless it is new.
    launch: Option<Launch>,
    pub reads: BTreeSet<usize>,
    pub writes: BTreeSet<usize>,
    pub cost: Cost,
}

/// Of one launch, at typical sizes.
#[derive(Clone, Copy, Default)]
pub struct Cost {
    pub bytes: f64,
    pub scalars: f64,
}

impl Step {
    /// What may merge: a product or not.
    pub fn kernel(&self) -> Option<&Rc<Kernel>> {
        self.body.as_ref().or(self.product.as_ref()).or(self.sweep.as_ref())
    }
}

pub struct Steps {
    pub list: Vec<Step>,
    pub buffers: Vec<Buffer>,
    kernels: Vec<Kernel>,
    sizes: Sizes,
    /// How many steps read and write each buffer.
    readers: Vec<usize>,
    writers: Vec<usize>,
}

impl Steps {
    pub fn of(plan: &Plan) -> Steps {
        let mut steps = Steps {
            list: vec![],
            buffers: plan.buffers.clone(),
            kernels: plan.kernels.clone(),
            sizes: typical(),
            readers: vec![0; plan.buffers.len()],
            writers: vec![0; plan.buffers.len()],
        };
        for launch in &plan.launches {
            let step = steps.scheduled(launch);
            steps.count(&step, true);
            steps.list.push(step);
        }
        steps
    }

    fn scheduled(&self, launch: &Launch) -> Step {
        let kernel = &self.kernels[launch.kernel];
        let body = (is_plain(kernel) || is_product(kernel) || is_sweep(kernel)).then(|| Kernel {
            name: base(&kernel.name).to_string(),
            ..open(kernel, &launch.args)
        });
        let step = body.and_then(|body| self.step(body)).unwrap_or_default();
        let launch = Some(launch.clone());
        if step.kernel().is_some() {
            return Step { launch, ..step };
        }
        let args = || kernel.args.iter().zip(launch.iter().flat_map(|l| &l.args));
        Step {
            // What is written may be read too: sums go on from what is there.
            reads: args().map(|(_, b)| *b).collect(),
            writes: args().filter(|(a, _)| a.written).map(|(_, b)| *b).collect(),
            launch,
            ..step
        }
    }

    /// A step of a merged body. `None` where nobody knows its cost.
    pub fn step(&self, body: Kernel) -> Option<Step> {
        let work = close(&body, &self.buffers).0.work(&self.sizes)?;
        let (reads, writes) = (reads(&body), writes(&body));
        let (is_product, is_sweep) = (body.contraction.is_some(), body.sweep.is_some());
        let body = Rc::new(body);
        Some(Step {
            reads,
            writes,
            product: is_product.then(|| body.clone()),
            sweep: is_sweep.then(|| body.clone()),
            body: (!is_product && !is_sweep).then_some(body),
            launch: None,
            cost: Cost {
                bytes: work.bytes,
                scalars: work.scalars,
            },
        })
    }

    /// A buffer of another type for the same elements.
    pub fn temporary_like(&mut self, buffer: usize, dtype: DType) -> usize {
        self.buffers.push(Buffer {
            name: format!("t{}", self.buffers.len()),
            dtype,
            kind: BufferKind::Temp { slot: 0 },
            ..self.buffers[buffer].clone()
        });
        self.readers.push(0);
        self.writers.push(0);
        self.buffers.len() - 1
    }

    fn count(&mut self, step: &Step, more: bool) {
        let change = |n: &mut usize| *n = if more { *n + 1 } else { *n - 1 };
        step.reads.iter().for_each(|b| change(&mut self.readers[*b]));
        step.writes.iter().for_each(|b| change(&mut self.writers[*b]));
    }

    pub fn replace(&mut self, at: usize, step: Step) {
        let old = std::mem::replace(&mut self.list[at], step.clone());
        self.count(&old, false);
        self.count(&step, true);
    }

    pub fn remove(&mut self, at: usize) {
        let old = self.list.remove(at);
        self.count(&old, false);
    }

    pub fn readers(&self, buffer: usize) -> usize {
        self.readers[buffer]
    }

    pub fn writers(&self, buffer: usize) -> usize {
        self.writers[buffer]
    }

    pub fn is_temporary(&self, buffer: usize) -> bool {
        matches!(self.buffers[buffer].kind, BufferKind::Temp { .. })
    }

    pub fn bytes(&self, buffer: usize) -> f64 {
        let b = &self.buffers[buffer];
        let elements = ir::Size::product(&b.shape).eval(&self.sizes).unwrap_or(i64::MAX);
        elements as f64 * b.dtype.bytes() as f64
    }

    /// The size of a dimension, or much.
    pub fn extent(&self, size: &ir::Size) -> i64 {
        size.eval(&self.sizes).unwrap_or(i64::MAX)
    }

    /// Back to a plan: equal bodies once, buffers that nobody touches left out.
    pub fn into_plan(self, plan: &mut Plan) {
        let mut known: HashMap<Kernel, usize> = HashMap::new();
        let mut named: HashMap<String, usize> = HashMap::new();
        plan.kernels.clear();
        plan.launches.clear();
        plan.buffers.clone_from(&self.buffers);
        for step in &self.list {
            let (mut kernel, args) = match (&step.launch, step.kernel()) {
                (Some(launch), _) => (self.kernels[launch.kernel].clone(), launch.args.clone()),
                (None, Some(body)) => close(body, &self.buffers),
                (None, None) => unreachable!("a step is scheduled or merged"),
            };
            let name = base(&std::mem::take(&mut kernel.name)).to_string();
            let kernel = *known.entry(kernel).or_insert_with_key(|body| {
                let count = named.entry(name.clone()).or_insert(0);
                *count += 1;
                let name = if *count == 1 { name } else { format!("{name}.{count}") };
                plan.kernels.push(Kernel { name, ..body.clone() });
                plan.kernels.len() - 1
            });
            plan.launches.push(Launch { kernel, args });
        }
        drop_unused(plan);
    }
}

/// The name without the number that makes it unique.
fn base(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

fn is_plain(kernel: &Kernel) -> bool {
    let made = |e: &Expr| matches!(e, Expr::Acc | Expr::AccAlso | Expr::RowSquares);
    kernel.contraction.is_none() && walks_once(kernel) && !kernel.exprs.iter().any(made)
}

fn is_product(kernel: &Kernel) -> bool {
    kernel.contraction.is_some() && walks_once(kernel)
}

fn is_sweep(kernel: &Kernel) -> bool {
    kernel.sweep.is_some() && kernel.ordered == 0
}

/// Without sweeps, orders and panels.
fn walks_once(kernel: &Kernel) -> bool {
    let swept = |e: &Expr| matches!(e, Expr::Swept(_) | Expr::Lse(_));
    let sweeps = kernel.sweep.is_some() || kernel.sweep_gradient.is_some() || kernel.exprs.iter().any(swept);
    !sweeps && kernel.ordered == 0 && !kernel.panels
}

/// Temporaries that no launch has left.
fn drop_unused(plan: &mut Plan) {
    let mut used: Vec<bool> = (plan.buffers.iter())
        .map(|b| !matches!(b.kind, BufferKind::Temp { .. }))
        .collect();
    plan.launches.iter().flat_map(|l| &l.args).for_each(|b| used[*b] = true);
    let mut now = vec![0; used.len()];
    let mut kept = 0;
    for (b, used) in used.iter().enumerate() {
        now[b] = kept;
        kept += usize::from(*used);
    }
    let mut used = used.into_iter();
    plan.buffers.retain(|_| used.next().unwrap_or(true));
    plan.launches
        .iter_mut()
        .flat_map(|l| &mut l.args)
        .for_each(|b| *b = now[*b]);
}
