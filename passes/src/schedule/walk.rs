//! The walk over a function's ops: what waits for its readers' kernel, what is a view, and what is launched now. A call is walked into.

use std::collections::HashMap;
use std::rc::Rc;

use ir::plan::BufferKind;
use ir::{Attr, Function, Op, Param, ValueId};

use super::groups::Groups;
use super::layout::{self, Layouts, Places};
use super::view::{self, View, sizes};
use super::weights::{scaled, stacked};
use super::{Analysis, Def, Frame, Scheduler, expression};
use crate::PassError;
use crate::attrs::{int, ints};

impl Scheduler<'_> {
    /// Results in order; `inputs` in the order of the parameters.
    pub(super) fn function(&mut self, f: &Function, layer: i64, inputs: &[View]) -> Result<Vec<View>, PassError> {
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
    pub(super) fn view(&mut self, frame: &mut Frame, v: ValueId) -> Result<View, PassError> {
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

    pub(super) fn op<'f>(&mut self, frame: &mut Frame<'f>, op: &'f Op) -> Result<(), PassError> {
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
