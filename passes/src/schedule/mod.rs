//! Graph to plan: which ops share a kernel, and views for what only moves names.
//!
//! Calls are inlined, a layer's launches once per layer; equal kernels are one. With `Scheduling::OP_BY_OP` only chains of
//! element-wise ops join: the honest unfused program that fusion is compared with.
//!
//! Here is what the parts share: the options, what a value is on the way, and how kernels become launches. What is decided for a whole
//! function comes first (`groups`, `layout`); `walk` goes over its ops and asks for kernels, `weights` and `memory` say where a value
//! lies; `merge` and `slots` see the finished plan.

mod arg_max;
mod build;
pub(crate) mod expression;
mod groups;
mod layout;
mod loss;
mod matmul;
mod memory;
mod merge;
mod rotated;
mod rows;
mod slots;
mod sweep;
mod sweep_gradient;
pub mod view;
mod walk;
mod weights;

use std::collections::HashMap;
use std::rc::Rc;

use ir::plan::{BufferKind, Kernel, Launch, Plan};
use ir::{Function, Module, Op, Param, TensorType, ValueId};

use crate::PassError;
use groups::Groups;
use layout::{Layouts, Places};
use view::{View, sizes};

/// What kernels may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// Ops before and after a matmul, a sweep or a reduction join its kernel; else only element-wise chains are one.
    pub epilogues: bool,
    /// Sweeps of the same queries share a kernel.
    pub joined_sweeps: bool,
    /// Values lie as their readers want them.
    pub layouts: bool,
    /// Matrices that no load has packed are packed, and turned, in front of their product: what a CPU wants. A GPU's matrix units read
    /// either way.
    pub panels: bool,
    /// Launches that hand on or share large values become one.
    pub merged: bool,
}

impl Scheduling {
    pub const FUSED: Scheduling = Scheduling {
        epilogues: true,
        joined_sweeps: true,
        layouts: true,
        panels: true,
        merged: true,
    };
    pub const OP_BY_OP: Scheduling = Scheduling {
        epilogues: false,
        joined_sweeps: false,
        layouts: false,
        panels: true,
        merged: false,
    };
}

/// The plan of one entry point.
pub fn schedule(module: &Module, entry: &str, options: &Scheduling) -> Result<Plan, PassError> {
    let f = module
        .function(entry)
        .ok_or_else(|| PassError(format!("the graph has no function @{entry}")))?;
    let plan = Plan {
        entry: entry.to_string(),
        buffers: vec![],
        kernels: vec![],
        launches: vec![],
    };
    let mut s = Scheduler {
        module,
        plan,
        kernels: HashMap::new(),
        named: HashMap::new(),
        shared: HashMap::new(),
        options: *options,
        analysed: HashMap::new(),
    };
    let mut inputs = vec![];
    for (v, param) in &f.params {
        if let Param::Input(name) = param {
            let ty = f.ty(*v);
            let buffer = s.buffer(name, ty, BufferKind::Input(name.clone()));
            inputs.push(View::whole(buffer, ty.dtype, sizes(&ty.shape)));
        }
    }
    let results = s.function(f, 0, &inputs)?;
    for ((name, v), view) in f.returns.iter().zip(results) {
        s.output(name, f.ty(*v), view);
    }
    if options.merged {
        merge::merge(&mut s.plan);
    }
    slots::assign(&mut s.plan);
    Ok(s.plan)
}

/// What a value is while its function is scheduled.
#[derive(Clone)]
pub(crate) enum Def<'f> {
    /// In memory.
    View(View),
    /// A checkpoint tensor nobody has asked for yet: a matmul wants it packed, others as it is.
    /// Several stand one below the other.
    /// Its columns are scaled by `scale`.
    Weight {
        names: Vec<String>,
        scale: Option<String>,
        ty: TensorType,
    },
    /// An op that its readers' kernel will compute.
    Lazy(&'f Op),
}

pub(crate) struct Scheduler<'m> {
    module: &'m Module,
    plan: Plan,
    /// Kernels by body, without their names.
    kernels: HashMap<Kernel, usize>,
    /// How often a kernel name was taken.
    named: HashMap<String, usize>,
    /// Weights and states: one buffer each.
    shared: HashMap<String, usize>,
    options: Scheduling,
    /// By function.
    analysed: HashMap<String, Rc<Analysis>>,
}

/// What is decided for a function before its ops are walked.
pub(crate) struct Analysis {
    groups: Groups,
    layouts: Layouts,
    places: Places,
}

/// One function on the way, with its layer.
pub(crate) struct Frame<'f> {
    f: &'f Function,
    defs: HashMap<ValueId, Def<'f>>,
    analysis: Rc<Analysis>,
    /// Results of `concat` whose parts are being written.
    stacks: HashMap<ValueId, View>,
    /// Matrices that were packed, and their panels.
    panels: Vec<(View, View)>,
}

impl Frame<'_> {
    fn groups(&self) -> &Groups {
        &self.analysis.groups
    }
}

impl Scheduler<'_> {
    /// One launch more; its kernel is there already where an equal one is.
    fn launch(&mut self, kernel: (Kernel, Launch)) {
        let (kernel, launch) = kernel;
        let body = Kernel {
            name: String::new(),
            ..kernel.clone()
        };
        let id = match self.kernels.get(&body) {
            Some(id) => *id,
            None => {
                let count = self.named.entry(kernel.name.clone()).or_insert(0);
                *count += 1;
                let name = if *count == 1 {
                    kernel.name.clone()
                } else {
                    format!("{}.{count}", kernel.name)
                };
                self.plan.kernels.push(Kernel { name, ..kernel });
                self.kernels.insert(body, self.plan.kernels.len() - 1);
                self.plan.kernels.len() - 1
            }
        };
        self.plan.launches.push(Launch {
            kernel: id,
            args: launch.args,
        });
    }
}
