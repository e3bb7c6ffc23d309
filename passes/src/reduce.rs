//! Shrinks a graph while something about it stays true: what is left of a fault is small enough to read. Not a pass of the pipeline.

use std::collections::{HashMap, HashSet};

use ir::{Attr, Function, Module, Param, ValueId};

/// Greedily drops functions, results, ops and parameters as long as `interesting` holds, until nothing more can go.
///
/// `interesting` sees only modules that verify. Ops are cut off by turning their results into inputs `cut0`, `cut1`, ... A module that
/// is not interesting itself comes back as it is, unless one of its pieces is.
pub fn reduce(module: &Module, interesting: &mut dyn FnMut(&Module) -> bool) -> Module {
    let mut search = Search {
        best: module.clone(),
        interesting,
    };
    while search.round() {}
    search.best
}

struct Search<'a> {
    best: Module,
    interesting: &'a mut dyn FnMut(&Module) -> bool,
}

impl Search<'_> {
    /// Every way to shrink, everywhere, once; the coarse ones first. True if any of them did.
    fn round(&mut self) -> bool {
        let before = size(&self.best);
        for f in (0..self.best.functions.len()).rev() {
            self.accept(|m| {
                m.functions.remove(f);
            });
        }
        for f in 0..self.best.functions.len() {
            self.first_result(f);
            for r in (0..self.best.functions[f].returns.len()).rev() {
                self.accept(|m| drop_return(m, f, r));
            }
            for change in [cut, forward] {
                // From the end: what a cut op alone has read goes with it.
                for op in (0..self.best.functions[f].ops.len()).rev() {
                    let operands = self.best.functions[f].ops.get(op).map_or(0, |op| op.operands.len());
                    for choice in 0..operands.max(1) {
                        if self.accept(|m| change(m, f, op, choice)) {
                            break;
                        }
                    }
                }
            }
            for p in (0..self.best.functions[f].params.len()).rev() {
                self.accept(|m| drop_param(m, f, p));
            }
        }
        size(&self.best) < before
    }

    /// The function ends at the first op whose result alone is interesting.
    fn first_result(&mut self, f: usize) {
        if called(&self.best, &self.best.functions[f].name) {
            return;
        }
        for op in 0..self.best.functions[f].ops.len() {
            for v in self.best.functions[f].ops[op].results.clone() {
                let done = self.accept(|m| {
                    m.functions[f].ops.truncate(op + 1);
                    m.functions[f].returns = vec![("result".to_string(), v)];
                });
                if done {
                    return;
                }
            }
        }
    }

    /// Keeps the change if the module is smaller, sound and interesting.
    fn accept(&mut self, change: impl FnOnce(&mut Module)) -> bool {
        let mut module = self.best.clone();
        change(&mut module);
        let sound = (crate::dce::DCE.run)(&mut module).is_ok()
            && size(&module) < size(&self.best)
            && ir::verify::verify(&module).is_empty();
        let better = sound && (self.interesting)(&module);
        if better {
            self.best = module;
        }
        better
    }
}

/// Ordered as a reader would: functions, ops, results, parameters. Every change makes it smaller, so the search ends.
fn size(m: &Module) -> [usize; 4] {
    let sum = |count: fn(&Function) -> usize| m.functions.iter().map(count).sum();
    [
        m.functions.len(),
        sum(|f| f.ops.len()),
        sum(|f| f.returns.len()),
        sum(|f| f.params.len()),
    ]
}

fn called(module: &Module, name: &str) -> bool {
    let mut ops = module.functions.iter().flat_map(|f| &f.ops);
    ops.any(|op| op.attrs.get("callee") == Some(&Attr::Str(name.to_string())))
}

fn calls<'a>(module: &'a mut Module, name: &str) -> impl Iterator<Item = &'a mut ir::Op> {
    let callee = Attr::Str(name.to_string());
    let ops = module.functions.iter_mut().flat_map(|f| &mut f.ops);
    ops.filter(move |op| op.attrs.get("callee") == Some(&callee))
}

/// Here and in all calls.
fn drop_return(module: &mut Module, f: usize, r: usize) {
    module.functions[f].returns.remove(r);
    let name = module.functions[f].name.clone();
    calls(module, &name).filter(|op| r < op.results.len()).for_each(|op| {
        op.results.remove(r);
    });
}

/// Here and in all calls; of a parameter that is read the verifier will complain.
fn drop_param(module: &mut Module, f: usize, p: usize) {
    let params = &mut module.functions[f].params;
    let input = |p: &(ValueId, Param)| matches!(p.1, Param::Input(_));
    let at = params[..p].iter().filter(|p| input(p)).count();
    if input(&params.remove(p)) {
        let name = module.functions[f].name.clone();
        calls(module, &name).filter(|op| at < op.operands.len()).for_each(|op| {
            op.operands.remove(at);
        });
    }
}

/// The op goes; those of its results that are read become inputs. A called function gets no new inputs: there the change fails.
fn cut(module: &mut Module, f: usize, op: usize, _: usize) {
    let fixed = called(module, &module.functions[f].name);
    let f = &mut module.functions[f];
    if op >= f.ops.len() {
        return;
    }
    for v in f.ops.remove(op).results {
        let read = f.ops.iter().any(|op| op.operands.contains(&v)) || f.returns.iter().any(|(_, r)| *r == v);
        if read && !fixed {
            let taken: HashSet<&str> = f.params.iter().map(|(_, p)| name(p)).collect();
            let free = (0..).map(|i| format!("cut{i}")).find(|n| !taken.contains(n.as_str()));
            f.params.push((v, Param::Input(free.unwrap_or_default())));
        }
    }
}

fn name(param: &Param) -> &str {
    match param {
        Param::Input(name) | Param::Weight(name) | Param::State(name) => name,
    }
}

/// The op goes; its readers read operand `choice` instead.
fn forward(module: &mut Module, f: usize, op: usize, choice: usize) {
    let f = &mut module.functions[f];
    let Some([result]) = f.ops.get(op).map(|op| op.results.as_slice()) else {
        return;
    };
    let (result, Some(operand)) = (*result, f.ops[op].operands.get(choice).copied()) else {
        return;
    };
    if f.ty(result) != f.ty(operand) {
        return;
    }
    f.ops.remove(op);
    let to: HashMap<ValueId, ValueId> = [(result, operand)].into();
    let swap = |v: &mut ValueId| *v = to.get(v).copied().unwrap_or(*v);
    f.ops.iter_mut().flat_map(|op| &mut op.operands).for_each(swap);
    f.returns.iter_mut().map(|(_, v)| v).for_each(swap);
}
