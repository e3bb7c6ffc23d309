//! Kernels whose accesses name buffers instead of arguments, so that the expressions of two stand in one list.

use std::collections::{BTreeSet, HashMap};

use ir::DType;
use ir::plan::{Access, Arg, Buffer, Expr, ExprId, Kernel, Rhs, Stage, Sweep, Unary};

/// The kernel of a launch with its arguments' buffers in the accesses.
pub fn open(kernel: &Kernel, buffers: &[usize]) -> Kernel {
    let mut body = Kernel {
        args: vec![],
        ..kernel.clone()
    };
    args(&mut body).into_iter().for_each(|a| *a = buffers[*a]);
    body
}

/// The kernel again, and the buffers of its arguments in the order in which it touches them.
pub fn close(body: &Kernel, buffers: &[Buffer]) -> (Kernel, Vec<usize>) {
    let mut kernel = body.clone();
    let mut order: Vec<usize> = vec![];
    for a in args(&mut kernel) {
        let known = order.iter().position(|b| b == a);
        *a = known.unwrap_or_else(|| {
            order.push(*a);
            order.len() - 1
        });
    }
    let written = writes(body);
    let arg = |b: &usize| Arg {
        dtype: buffers[*b].dtype,
        written: written.contains(b),
    };
    kernel.args = order.iter().map(arg).collect();
    (kernel, order)
}

/// All that names an argument: a product's matrices first, or what a sweep sweeps.
fn args(kernel: &mut Kernel) -> Vec<&mut usize> {
    let Kernel {
        contraction,
        sweep,
        exprs,
        stages,
        ..
    } = kernel;
    let mut all = vec![];
    if let Some(sweep) = sweep {
        all.push(&mut sweep.q.arg);
        all.extend(sweep.segments.iter_mut().flat_map(|s| [&mut s.k.arg, &mut s.v.arg]));
    }
    if let Some(c) = contraction {
        all.extend(std::iter::once(&mut c.b).chain(&mut c.also).map(right));
        all.push(&mut c.a.arg);
    }
    all.extend(touched(exprs, stages).map(|a| &mut a.arg));
    all
}

fn right(b: &mut Rhs) -> &mut usize {
    match b {
        Rhs::Packed { arg } | Rhs::KContiguous { arg, .. } | Rhs::NContiguous { arg, .. } => arg,
    }
}

pub fn accesses(kernel: &mut Kernel) -> impl Iterator<Item = &mut Access> {
    touched(&mut kernel.exprs, &mut kernel.stages)
}

fn touched<'k>(exprs: &'k mut [Expr], stages: &'k mut [Stage]) -> impl Iterator<Item = &'k mut Access> {
    let loads = exprs.iter_mut().filter_map(|e| match e {
        Expr::Load(a) => Some(a),
        _ => None,
    });
    loads.chain(stages.iter_mut().filter_map(|s| match s {
        Stage::Store { to, .. } => Some(to),
        Stage::Reduce { .. } => None,
    }))
}

/// The buffers that a body loads from, multiplies or sweeps.
pub fn reads(body: &Kernel) -> BTreeSet<usize> {
    let swept = body.sweep.iter().flat_map(|sweep| {
        let rows = sweep.segments.iter().flat_map(|s| [s.k.arg, s.v.arg]);
        rows.chain([sweep.q.arg])
    });
    loads(body)
        .map(|a| a.arg)
        .chain(contracted(body))
        .chain(swept)
        .collect()
}

/// The buffers that a body multiplies.
pub fn contracted(body: &Kernel) -> BTreeSet<usize> {
    let Some(c) = &body.contraction else {
        return BTreeSet::new();
    };
    let rights = c.rights().map(|b| match b {
        Rhs::Packed { arg } | Rhs::KContiguous { arg, .. } | Rhs::NContiguous { arg, .. } => *arg,
    });
    rights.chain([c.a.arg]).collect()
}

pub fn writes(body: &Kernel) -> BTreeSet<usize> {
    stores(body).map(|(to, ..)| to.arg).collect()
}

pub fn loads(body: &Kernel) -> impl Iterator<Item = &Access> {
    body.exprs.iter().filter_map(|e| match e {
        Expr::Load(a) => Some(a),
        _ => None,
    })
}

/// Where, what, and whether always.
pub fn stores(body: &Kernel) -> impl Iterator<Item = (&Access, ExprId, bool)> {
    body.stages.iter().filter_map(|s| match s {
        Stage::Store { to, value, when } => Some((to, *value, when.is_none())),
        Stage::Reduce { .. } => None,
    })
}

/// A list of expressions, each once.
#[derive(Default)]
pub struct Exprs {
    pub list: Vec<Expr>,
    known: HashMap<Expr, ExprId>,
}

impl Exprs {
    pub fn add(&mut self, expr: Expr) -> ExprId {
        if let Some(id) = self.known.get(&expr) {
            return *id;
        }
        self.list.push(expr.clone());
        self.known.insert(expr, self.list.len() - 1);
        self.list.len() - 1
    }

    /// All expressions of a body, in their order. `replace` may give another one for what stands there, operands already in place;
    /// its answers say where each is now.
    pub fn copy(
        &mut self,
        exprs: &[Expr],
        mut replace: impl FnMut(&mut Exprs, &Expr) -> Option<ExprId>,
    ) -> Vec<ExprId> {
        let mut now: Vec<ExprId> = vec![];
        for expr in exprs {
            let expr = expr.with_operands(&now);
            let id = replace(self, &expr).unwrap_or_else(|| self.add(expr));
            now.push(id);
        }
        now
    }
}

/// The body with other expressions in place of its own: `now` says where each of those is.
pub fn with_exprs(body: &Kernel, exprs: Exprs, now: &[ExprId], stages: Vec<Stage>) -> Kernel {
    let sweep = body.sweep.as_ref().map(|s| Sweep {
        start: s.start.map(|e| now[e]),
        ..s.clone()
    });
    Kernel {
        exprs: exprs.list,
        stages,
        sweep,
        ..body.clone()
    }
}

/// What a load gives of a value that was stored in a buffer of this type; `None` where no expression rounds so.
pub fn rounded(exprs: &mut Exprs, value: ExprId, dtype: DType) -> Option<ExprId> {
    match dtype {
        DType::BF16 => Some(exprs.add(Expr::Unary(Unary::RoundBf16, value))),
        DType::F16 => None,
        DType::F32 | DType::I32 | DType::I1 => Some(value),
    }
}

/// Puts a merged body's stages in an order that is right on every device, and leaves out what nobody reads: stores to buffers that
/// are `dead`, and the expressions that only those needed. `None`: there is no such order.
///
/// All reductions come first, so that the stores share one walk over the columns. What is updated in place is stored after all that
/// wants its old value.
pub fn finish(body: Kernel, dead: impl Fn(usize) -> bool) -> Option<Kernel> {
    let is_reduction = |s: &usize| matches!(body.stages[*s], Stage::Reduce { .. });
    let alive = |s: &usize| !matches!(&body.stages[*s], Stage::Store { to, .. } if dead(to.arg));
    let (reductions, stores): (Vec<usize>, Vec<usize>) = (0..body.stages.len()).filter(alive).partition(is_reduction);
    let needs = Needs::of(&body);
    let mut wanted: BTreeSet<usize> = stores.iter().flat_map(|s| needs.reductions(*s)).collect();
    for s in reductions.iter().rev() {
        if wanted.contains(s) {
            wanted.extend(needs.reductions(*s));
        }
    }
    let mut order: Vec<usize> = reductions.into_iter().filter(|s| wanted.contains(s)).collect();
    order.extend(needs.stores_in_order(stores)?);
    (order.iter().any(|s| !is_reduction(s))).then(|| pruned(&body, &order))
}

/// The stages in this order, and the expressions that they need.
fn pruned(body: &Kernel, order: &[usize]) -> Kernel {
    let mut needed = vec![false; body.exprs.len()];
    let start = body.sweep.as_ref().and_then(|s| s.start);
    start.iter().for_each(|e| needed[*e] = true);
    for s in order {
        body.stages[*s].operands().into_iter().for_each(|e| needed[e] = true);
    }
    for e in (0..body.exprs.len()).rev().filter(|e| needed[*e]).collect::<Vec<_>>() {
        mark(body, e, &mut needed);
    }
    let mut exprs = Exprs::default();
    let mut now = vec![ExprId::MAX; body.exprs.len()];
    for (e, expr) in body.exprs.iter().enumerate().filter(|(e, _)| needed[*e]) {
        let expr = match expr {
            Expr::Reduced(s) => {
                let at = order.iter().position(|o| o == s);
                Expr::Reduced(at.expect("a reduction that is needed stays"))
            }
            other => other.with_operands(&now),
        };
        now[e] = exprs.add(expr);
    }
    let stages = order.iter().map(|s| body.stages[*s].with_operands(&now)).collect();
    with_exprs(body, exprs, &now, stages)
}

fn mark(body: &Kernel, e: ExprId, needed: &mut [bool]) {
    for o in body.exprs[e].operands() {
        if !needed[o] {
            needed[o] = true;
            mark(body, o, needed);
        }
    }
}

/// What each expression needs: buffers that it loads from, and reductions. A reduction's own loads are not among them: they are over.
struct Needs<'k> {
    body: &'k Kernel,
    loads: Vec<BTreeSet<usize>>,
    reduced: Vec<BTreeSet<usize>>,
}

impl Needs<'_> {
    fn of(body: &Kernel) -> Needs<'_> {
        let mut needs = Needs {
            body,
            loads: vec![],
            reduced: vec![],
        };
        for e in &body.exprs {
            let operands = e.operands();
            let of = |known: &[BTreeSet<usize>]| -> BTreeSet<usize> {
                operands.iter().flat_map(|o| known[*o].iter().copied()).collect()
            };
            let (mut loads, mut reduced) = (of(&needs.loads), of(&needs.reduced));
            match e {
                Expr::Load(a) => loads.insert(a.arg),
                Expr::Reduced(s) => reduced.insert(*s),
                _ => false,
            };
            needs.loads.push(loads);
            needs.reduced.push(reduced);
        }
        needs
    }

    fn reductions(&self, stage: usize) -> Vec<usize> {
        let operands = self.body.stages[stage].operands();
        operands.iter().flat_map(|e| self.reduced[*e].iter().copied()).collect()
    }

    fn loads_from(&self, stage: usize, buffer: usize) -> bool {
        let operands = self.body.stages[stage].operands();
        operands.iter().any(|e| self.loads[*e].contains(&buffer))
    }

    /// Each store after all others that load from its buffer. `None` where two wait for each other, or where a buffer is loaded and
    /// stored at unlike places: another thread may store before this one loads.
    fn stores_in_order(&self, mut left: Vec<usize>) -> Option<Vec<usize>> {
        if !updates_are_in_place(self.body) {
            return None;
        }
        let buffer = |s: usize| match &self.body.stages[s] {
            Stage::Store { to, .. } => to.arg,
            Stage::Reduce { .. } => usize::MAX,
        };
        let mut order = vec![];
        while !left.is_empty() {
            let free = |s: &usize| {
                !left
                    .iter()
                    .any(|other| other != s && self.loads_from(*other, buffer(*s)))
            };
            let next = left.iter().position(free)?;
            order.push(left.remove(next));
        }
        Some(order)
    }
}

/// Is everything that is both loaded and stored loaded and stored by the same thread: once, at one place for each column?
fn updates_are_in_place(body: &Kernel) -> bool {
    let one_column = body.cols.as_const() == Some(1);
    let in_place = |load: &Access| {
        let mut all = stores(body).filter(|(to, ..)| to.arg == load.arg);
        match (all.next(), all.next()) {
            (None, _) => true,
            (Some((to, ..)), None) => {
                let own_column = one_column || to.strides.last().is_some_and(|s| s.coef != 0);
                to == load && to.indirect.is_none() && own_column
            }
            (Some(_), Some(_)) => false,
        }
    };
    loads(body).all(in_place)
}
