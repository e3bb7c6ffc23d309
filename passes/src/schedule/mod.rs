//! Graph to plan: which ops share a kernel, and views for what only moves names.
//!
//! Calls are inlined, a layer's launches once per layer; equal kernels are one. With `Scheduling::OP_BY_OP` only chains of
//! element-wise ops join: the honest unfused program that fusion is compared with.

mod arg_max;
mod build;
pub(crate) mod expression;
mod groups;
mod layout;
mod loss;
mod matmul;
mod merge;
mod rotated;
mod rows;
mod slots;
mod sweep;
mod sweep_gradient;
pub mod view;

use std::collections::HashMap;
use std::rc::Rc;

use ir::plan::{Buffer, BufferKind, Kernel, Launch, Plan, WeightRecipe};
use ir::{Attr, DType, Function, Module, Op, Param, Size, TensorType, ValueId};

use crate::PassError;
use build::KernelBuilder;
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

impl<'m> Scheduler<'m> {
    fn buffer(&mut self, name: &str, ty: &TensorType, kind: BufferKind) -> usize {
        self.plan.buffers.push(Buffer {
            name: name.to_string(),
            dtype: ty.dtype,
            shape: sizes(&ty.shape),
            kind,
        });
        self.plan.buffers.len() - 1
    }

    /// Memory for a value of the function, where and how its reader wants it.
    fn placed(&mut self, frame: &mut Frame, v: ValueId, ty: &TensorType) -> View {
        if let Some(part) = self.part(frame, v, ty) {
            return part;
        }
        let mut view = self.temporary(ty);
        if let Some(order) = frame.analysis.layouts.get(&v) {
            view.strides = layout::strides(&view.shape, order);
            self.plan.buffers[view.buffer].shape = order.iter().map(|d| view.shape[*d].clone()).collect();
        }
        view
    }

    /// The value's part of the `concat` that is its only reader.
    fn part(&mut self, frame: &mut Frame, v: ValueId, ty: &TensorType) -> Option<View> {
        let (stack, i) = *frame.analysis.places.get(&v)?;
        let op = frame.f.ops.iter().find(|op| op.results.first() == Some(&stack))?;
        let axis = int(op, "axis") as usize;
        let whole = match frame.stacks.get(&stack) {
            Some(view) => view.clone(),
            None => self.temporary(frame.f.ty(stack)),
        };
        frame.stacks.insert(stack, whole.clone());
        let extent = |v: &ValueId| frame.f.ty(*v).shape[axis].size().coef;
        let begin: i64 = op.operands[..i].iter().map(extent).sum();
        let part = whole.sliced(axis, begin, Size::from(extent(&op.operands[i])))?;
        part.reshaped(&sizes(&ty.shape))
    }

    /// A new dense temporary; its slot comes last.
    fn temporary(&mut self, ty: &TensorType) -> View {
        let name = format!("t{}", self.plan.buffers.len());
        let buffer = self.buffer(&name, ty, BufferKind::Temp { slot: 0 });
        View::whole(buffer, ty.dtype, sizes(&ty.shape))
    }

    fn shared_buffer(&mut self, key: String, name: &str, ty: &TensorType, kind: BufferKind) -> usize {
        if let Some(b) = self.shared.get(&key) {
            return *b;
        }
        let buffer = self.buffer(name, ty, kind);
        self.shared.insert(key, buffer);
        buffer
    }

    /// A checkpoint tensor in memory, packed or as it is.
    fn weight(&mut self, names: &[String], scale: &Option<String>, ty: &TensorType, packed: bool) -> View {
        let kind = BufferKind::Weight(WeightRecipe::Tensors {
            names: names.to_vec(),
            packed,
            scale: scale.clone(),
        });
        let name = names.join(" | ") + &scale.as_ref().map_or(String::new(), |s| format!(" * {s}"));
        let buffer = self.shared_buffer(format!("{name} {} {packed}", ty.dtype), &name, ty, kind);
        View::whole(buffer, ty.dtype, sizes(&ty.shape))
    }

    fn rope_table(&mut self, rows: i64, dim: i64, theta: f64, sin: bool) -> View {
        let name = if sin { "sin" } else { "cos" };
        let ty = TensorType::new([rows, dim / 2], DType::F32);
        let recipe = WeightRecipe::RopeTable {
            rows,
            dim,
            theta_bits: theta.to_bits(),
            sin,
        };
        let buffer = self.shared_buffer(format!("{recipe:?}"), name, &ty, BufferKind::Weight(recipe));
        View::whole(buffer, DType::F32, sizes(&ty.shape))
    }

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

    /// Results in order; `inputs` in the order of the parameters.
    fn function(&mut self, f: &Function, layer: i64, inputs: &[View]) -> Result<Vec<View>, PassError> {
        let analysis = match self.analysed.get(&f.name) {
            Some(known) => known.clone(),
            None => {
                let layouts = self.options.layouts;
                let made = Rc::new(Analysis {
                    groups: Groups::new(f, &self.options),
                    layouts: if layouts { layout::layouts(f) } else { Layouts::new() },
                    places: if layouts { layout::places(f) } else { Places::new() },
                });
                self.analysed.insert(f.name.clone(), made.clone());
                made
            }
        };
        let mut frame = Frame {
            f,
            defs: HashMap::new(),
            analysis,
            stacks: HashMap::new(),
            panels: vec![],
        };
        let mut inputs = inputs.iter();
        for (v, param) in &f.params {
            let ty = f.ty(*v);
            let at_layer = |name: &String| name.replace("{i}", &layer.to_string());
            let def = match param {
                Param::Input(name) => Def::View(
                    inputs
                        .next()
                        .cloned()
                        .ok_or_else(|| PassError(format!("@{}: no argument for {name}", f.name)))?,
                ),
                Param::Weight(name) => Def::Weight {
                    names: vec![at_layer(name)],
                    scale: None,
                    ty: ty.clone(),
                },
                Param::State(name) => {
                    let name = at_layer(name);
                    let buffer =
                        self.shared_buffer(format!("state {name}"), &name, ty, BufferKind::State(name.clone()));
                    Def::View(View::whole(buffer, ty.dtype, sizes(&ty.shape)))
                }
            };
            frame.defs.insert(*v, def);
        }
        for op in &f.ops {
            self.op(&mut frame, op)
                .map_err(|e| PassError(format!("@{}: {}: {e}", f.name, op.name)))?;
        }
        f.returns.iter().map(|(_, v)| self.view(&mut frame, *v)).collect()
    }

    /// The value in memory; what was lazy is computed now.
    fn view(&mut self, frame: &mut Frame, v: ValueId) -> Result<View, PassError> {
        let view = match frame.defs.get(&v).cloned() {
            Some(Def::View(view)) => return Ok(view),
            // It stays a weight: who multiplies by it later wants it packed.
            Some(Def::Weight { names, scale, ty }) => return Ok(self.weight(&names, &scale, &ty, false)),
            Some(Def::Lazy(op)) => self.kernel(frame, op)?,
            None => return Err(PassError(format!("%{} has no value", frame.f.value_name(v)))),
        };
        frame.defs.insert(v, Def::View(view.clone()));
        Ok(view)
    }

    fn is_state(&self, view: &View) -> bool {
        matches!(self.plan.buffers[view.buffer].kind, BufferKind::State(_))
    }

    /// The same values, dense.
    fn copy(&mut self, view: &View) -> View {
        let to = self.temporary_of(view);
        self.copy_into(view, &to);
        to
    }

    fn temporary_of(&mut self, view: &View) -> View {
        let name = format!("t{}", self.plan.buffers.len());
        let kind = BufferKind::Temp { slot: 0 };
        self.plan.buffers.push(Buffer {
            name,
            dtype: view.dtype,
            shape: view.shape.clone(),
            kind,
        });
        View::whole(self.plan.buffers.len() - 1, view.dtype, view.shape.clone())
    }

    fn copy_into(&mut self, from: &View, to: &View) {
        let mut k = KernelBuilder::new("copy", &from.shape);
        let value = k.load_broadcast(from);
        k.store(to, value);
        self.launch(k.finish());
    }

    /// The result in a buffer of the caller's. A temporary that is the result as it stands becomes that buffer.
    fn output(&mut self, name: &str, ty: &TensorType, view: View) {
        let kind = BufferKind::Output(name.to_string());
        let whole =
            view.is_dense() && Size::product(&view.shape) == Size::product(&self.plan.buffers[view.buffer].shape);
        if whole && matches!(self.plan.buffers[view.buffer].kind, BufferKind::Temp { .. }) {
            let buffer = &mut self.plan.buffers[view.buffer];
            buffer.kind = kind;
            buffer.shape = view.shape;
            buffer.name = name.to_string();
            return;
        }
        let buffer = self.buffer(name, ty, kind);
        self.copy_into(&view, &View::whole(buffer, ty.dtype, sizes(&ty.shape)));
    }

    fn op<'f>(&mut self, frame: &mut Frame<'f>, op: &'f Op) -> Result<(), PassError> {
        if op.name == "call" {
            return self.call(frame, op);
        }
        let v = op.results[0];
        if matches!(frame.defs.get(&v), Some(Def::View(_))) {
            // Computed beside an earlier op.
            return Ok(());
        }
        let ty = frame.f.ty(v).clone();
        if let Some(weight) = stacked(frame, op, &ty).or_else(|| scaled(frame, op, &ty)) {
            frame.defs.insert(v, weight);
            return Ok(());
        }
        if frame.groups().waits(v) {
            frame.defs.insert(v, Def::Lazy(op));
            return Ok(());
        }
        let view = match op.name.as_str() {
            name if expression::is_elementwise(name) => self.kernel(frame, op)?,
            "lse" => return self.means(frame, op),
            "mean" if frame.f.ops.iter().any(|op| op.name == "lse") => return self.means(frame, op),
            "sweep_gradient" => return self.sweep_gradient(frame, op),
            "matmul" | "mean" | "update" => self.kernel(frame, op)?,
            "reshape" => {
                let x = self.view(frame, op.operands[0])?;
                let shape = sizes(&ty.shape);
                match x.reshaped(&shape) {
                    Some(view) => view,
                    None => View {
                        shape: shape.clone(),
                        strides: view::dense(&shape),
                        ..self.copy(&x)
                    },
                }
            }
            "transpose" => {
                let perm = ints(op, "perm");
                self.view(frame, op.operands[0])?.transposed(&perm)
            }
            "slice" => {
                let x = self.view(frame, op.operands[0])?;
                let axis = int(op, "axis") as usize;
                let size = ty.shape[axis].size();
                match x.sliced(axis, int(op, "begin"), size.clone()) {
                    Some(view) => view,
                    None => {
                        let whole = self.copy(&x);
                        whole
                            .sliced(axis, int(op, "begin"), size)
                            .ok_or_else(|| PassError("the slice has no offset".into()))?
                    }
                }
            }
            _ => self.row_op(frame, op, &ty)?,
        };
        frame.defs.insert(v, Def::View(view));
        Ok(())
    }

    fn call(&mut self, frame: &mut Frame, op: &Op) -> Result<(), PassError> {
        let Some(Attr::Str(name)) = op.attrs.get("callee") else {
            return Err(PassError("callee is missing".into()));
        };
        let callee = self
            .module
            .function(name)
            .ok_or_else(|| PassError(format!("there is no function @{name}")))?;
        let args = op
            .operands
            .iter()
            .map(|v| self.view(frame, *v))
            .collect::<Result<Vec<_>, _>>()?;
        let results = self.function(callee, int(op, "layer"), &args)?;
        for (v, view) in op.results.iter().zip(results) {
            frame.defs.insert(*v, Def::View(view));
        }
        Ok(())
    }
}

/// Weights that stand one below the other are one weight, made when it is loaded.
fn stacked<'f>(frame: &Frame<'f>, op: &Op, ty: &TensorType) -> Option<Def<'f>> {
    if op.name != "concat" || int(op, "axis") != 0 {
        return None;
    }
    let mut all = vec![];
    for v in &op.operands {
        match frame.defs.get(v) {
            Some(Def::Weight { names, scale: None, .. }) => all.extend(names.iter().cloned()),
            _ => return None,
        }
    }
    Some(Def::Weight {
        names: all,
        scale: None,
        ty: ty.clone(),
    })
}

/// A weight by another's elements is one weight, made when it is loaded.
fn scaled<'f>(frame: &Frame<'f>, op: &Op, ty: &TensorType) -> Option<Def<'f>> {
    if op.name != "scale_columns" {
        return None;
    }
    match op.operands.iter().map(|v| frame.defs.get(v)).collect::<Vec<_>>()[..] {
        [
            Some(Def::Weight { names, scale: None, .. }),
            Some(Def::Weight {
                names: by, scale: None, ..
            }),
        ] if by.len() == 1 => Some(Def::Weight {
            names: names.clone(),
            scale: by.first().cloned(),
            ty: ty.clone(),
        }),
        _ => None,
    }
}

impl Frame<'_> {
    fn groups(&self) -> &Groups {
        &self.analysis.groups
    }
}

pub(crate) fn ints(op: &Op, name: &str) -> Vec<i64> {
    match op.attrs.get(name) {
        Some(Attr::Ints(list)) => list.clone(),
        _ => vec![],
    }
}

pub(crate) fn int(op: &Op, name: &str) -> i64 {
    match op.attrs.get(name) {
        Some(Attr::Int(i)) => *i,
        _ => 0,
    }
}

pub(crate) fn float(op: &Op, name: &str) -> f64 {
    match op.attrs.get(name) {
        Some(Attr::Float(x)) => *x,
        _ => 0.0,
    }
}

pub(crate) fn flag(op: &Op, name: &str) -> bool {
    op.attrs.get(name) == Some(&Attr::Bool(true))
}
