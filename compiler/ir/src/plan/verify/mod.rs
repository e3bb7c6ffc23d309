//! The plan's verifier: everything the emitters, the runtime and the interpreter take for granted, all faults at once.
//!
//! A plan is checked kernel by kernel (here, what all parts of a kernel ask for; its expressions, stages, contraction and sweeps each in
//! a file), then its launches and slots. It does not prove that accesses stay inside their buffers (that depends on the sizes of a
//! call); the interpreter checks that.

mod contraction;
mod expressions;
mod launches;
mod stages;
mod sweep;

use std::collections::HashSet;

use super::{Access, ExprId, Kernel, Plan, Stage};
use expressions::Kind;

/// A fault, with the kernel, launch or buffer it is in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct PlanError {
    pub place: String,
    pub message: String,
}

/// All faults of a plan; none if it is fit to be compiled and run.
pub fn verify(plan: &Plan) -> Vec<PlanError> {
    let mut errors = vec![];
    let mut names = HashSet::new();
    for kernel in &plan.kernels {
        if !names.insert(&kernel.name) {
            errors.push(PlanError {
                place: format!("kernel {}", kernel.name),
                message: "the name is taken".to_string(),
            });
        }
        errors.extend(verify_kernel(kernel));
    }
    launches::launches(plan, &mut errors);
    launches::slots(plan, &mut errors);
    errors
}

/// All faults of one kernel.
pub fn verify_kernel(kernel: &Kernel) -> Vec<PlanError> {
    let mut check = Check {
        kernel,
        errors: vec![],
        kinds: vec![],
        depends: kernel.column_dependent(),
    };
    for id in 0..kernel.exprs.len() {
        check.expr(id);
    }
    if let Some(c) = &kernel.contraction {
        check.contraction(c);
    }
    if let Some(sweep) = &kernel.sweep {
        check.sweep(sweep);
    }
    if kernel.contraction.is_some() && kernel.reduces() {
        check.reduced_contraction();
    }
    if kernel.panels {
        check.panels();
    }
    for (s, stage) in kernel.stages.iter().enumerate() {
        check.stage(s, stage);
    }
    if let Some(gradient) = &kernel.sweep_gradient {
        check.sweep_gradient(gradient);
    } else if !kernel.stages.iter().any(|s| matches!(s, Stage::Store { .. })) {
        check.fail("stores nothing".to_string());
    }
    check.errors
}

struct Check<'a> {
    kernel: &'a Kernel,
    errors: Vec<PlanError>,
    /// `None` for an expression that is itself at fault.
    kinds: Vec<Option<Kind>>,
    depends: Vec<bool>,
}

impl Check<'_> {
    fn fail(&mut self, message: String) {
        self.errors.push(PlanError {
            place: format!("kernel {}", self.kernel.name),
            message,
        });
    }

    fn arg(&mut self, arg: usize, written: Option<bool>, what: &str) {
        match self.kernel.args.get(arg) {
            None => self.fail(format!(
                "{what} is argument a{arg}, there are {}",
                self.kernel.args.len()
            )),
            Some(a) if written.is_some_and(|w| w != a.written) => {
                let is = if a.written { "written" } else { "only read" };
                self.fail(format!("{what} is argument a{arg}, which is declared as {is}"));
            }
            Some(_) => {}
        }
    }

    /// Do all points meet the same element? Where there is one column its stride says nothing.
    fn is_one_place(&self, a: &Access, b: &Access) -> bool {
        let single = usize::from(self.kernel.cols.as_const() == Some(1));
        let count = |x: &Access| x.strides.len().saturating_sub(single);
        let strides = a.strides[..count(a)] == b.strides[..count(b)];
        strides && (a.arg, &a.offset, &a.indirect) == (b.arg, &b.offset, &b.indirect)
    }

    fn access(&mut self, a: &Access, before: Option<ExprId>, what: &str) {
        if a.strides.len() != self.kernel.outer.len() + 1 {
            self.fail(format!(
                "{what} has {} strides for {} dimensions",
                a.strides.len(),
                self.kernel.outer.len() + 1
            ));
        }
        if let Some((e, _)) = &a.indirect {
            if *e >= before.unwrap_or(self.kinds.len()) {
                self.fail(format!(
                    "{what} looks up by expression {e}, which does not stand before it"
                ));
            } else if self.kinds[*e].is_some_and(|k| k != Kind::Int) {
                self.fail(format!("{what} looks up by expression {e}, which is no integer"));
            }
        }
    }
}
