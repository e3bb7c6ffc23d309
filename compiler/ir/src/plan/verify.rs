//! The plan's verifier: everything the emitters, the runtime and the interpreter take for granted, all faults at once.
//!
//! It does not prove that accesses stay inside their buffers (that depends on the sizes of a call); the interpreter checks that.

use std::collections::{HashMap, HashSet};

use super::{Access, Binary, BufferKind, Expr, ExprId, Kernel, Plan, Rhs, Stage, Sweep, SweepGradient, Unary};
use crate::types::{DType, Size};

/// A fault, with the kernel, launch or buffer it is in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct PlanError {
    pub place: String,
    pub message: String,
}

/// What a scalar expression is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Float,
    Int,
    Truth,
}

impl Kind {
    pub fn of(dtype: DType) -> Kind {
        match dtype {
            DType::I32 => Kind::Int,
            DType::I1 => Kind::Truth,
            DType::F32 | DType::BF16 | DType::F16 => Kind::Float,
        }
    }
}

impl Kernel {
    /// Which expressions differ between columns.
    pub fn column_dependent(&self) -> Vec<bool> {
        let mut depends: Vec<bool> = vec![];
        for e in &self.exprs {
            let own = match e {
                Expr::Load(a) => a.strides.last().is_some_and(|s| s.coef != 0),
                Expr::Index(d) => *d == self.outer.len(),
                Expr::Acc | Expr::AccAlso | Expr::Swept(_) => true,
                _ => false,
            };
            let inherited = e.operands().iter().any(|&o| depends.get(o).copied().unwrap_or(false));
            depends.push(own || inherited);
        }
        depends
    }
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
    launches(plan, &mut errors);
    slots(plan, &mut errors);
    errors
}

fn launches(plan: &Plan, errors: &mut Vec<PlanError>) {
    let mut written: Vec<bool> = plan
        .buffers
        .iter()
        .map(|b| !matches!(b.kind, BufferKind::Temp { .. } | BufferKind::Output(_)))
        .collect();
    for (i, launch) in plan.launches.iter().enumerate() {
        let mut fail = |message: String| {
            errors.push(PlanError {
                place: format!("launch {i}"),
                message,
            })
        };
        let Some(kernel) = plan.kernels.get(launch.kernel) else {
            fail(format!("there is no kernel {}", launch.kernel));
            continue;
        };
        if launch.args.len() != kernel.args.len() {
            fail(format!(
                "{} takes {} buffers, {} given",
                kernel.name,
                kernel.args.len(),
                launch.args.len()
            ));
            continue;
        }
        for (at, (arg, &b)) in kernel.args.iter().zip(&launch.args).enumerate() {
            let Some(buffer) = plan.buffers.get(b) else {
                fail(format!("there is no buffer {b}"));
                continue;
            };
            if buffer.dtype != arg.dtype {
                fail(format!(
                    "{} is {}, argument a{at} of {} is {}",
                    buffer.name, buffer.dtype, kernel.name, arg.dtype
                ));
            }
            if arg.written && matches!(buffer.kind, BufferKind::Input(_) | BufferKind::Weight(_)) {
                fail(format!(
                    "{} writes {}, which is only to be read",
                    kernel.name, buffer.name
                ));
            }
            if !arg.written && !written[b] {
                fail(format!(
                    "{} reads {} before anything is in it",
                    kernel.name, buffer.name
                ));
            }
            if launch
                .args
                .iter()
                .zip(&kernel.args)
                .enumerate()
                .any(|(o, (&x, a))| o != at && x == b && a.written)
            {
                fail(format!(
                    "{} is bound to two arguments of {} and written",
                    buffer.name, kernel.name
                ));
            }
        }
        for (arg, &b) in kernel.args.iter().zip(&launch.args) {
            if arg.written && b < written.len() {
                written[b] = true;
            }
        }
    }
    for (b, buffer) in plan.buffers.iter().enumerate() {
        if matches!(buffer.kind, BufferKind::Output(_)) && !written[b] {
            errors.push(PlanError {
                place: format!("buffer {}", buffer.name),
                message: "nothing writes it".to_string(),
            });
        }
    }
}

/// First and last launch that uses each buffer.
pub fn lives(plan: &Plan) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; plan.buffers.len()];
    for (i, launch) in plan.launches.iter().enumerate() {
        for &b in &launch.args {
            if let Some(life) = lives.get_mut(b) {
                *life = Some((life.map_or(i, |(first, _)| first), i));
            }
        }
    }
    lives
}

fn slots(plan: &Plan, errors: &mut Vec<PlanError>) {
    let lives = lives(plan);
    let mut by_slot: HashMap<u32, Vec<(usize, usize, usize)>> = HashMap::new();
    for (b, buffer) in plan.buffers.iter().enumerate() {
        if let (BufferKind::Temp { slot }, Some((first, last))) = (&buffer.kind, lives[b]) {
            by_slot.entry(*slot).or_default().push((first, last, b));
        }
    }
    let mut slots: Vec<_> = by_slot.into_iter().collect();
    slots.sort();
    for (slot, mut tenants) in slots {
        tenants.sort();
        for pair in tenants.windows(2) {
            let ((_, last, a), (first, _, b)) = (pair[0], pair[1]);
            if first <= last {
                let message = format!(
                    "{} and {} are both in use at launch {first}",
                    plan.buffers[a].name, plan.buffers[b].name
                );
                errors.push(PlanError {
                    place: format!("slot {slot}"),
                    message,
                });
            }
        }
    }
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
        let rank = kernel.outer.len();
        if c.batch > rank {
            check.fail(format!("{} batch dimensions of {rank}", c.batch));
        }
        check.access(&c.a, None, "the contraction's left side");
        if kernel.is_turned() {
            let one_row = c.batch == 0 && rank == 1 && c.a.strides[0] == Size::one();
            let alone = c.also.is_none() && !c.packed_a && !matches!(c.b, Rhs::Packed { .. });
            if !one_row || !alone || kernel.exprs.contains(&Expr::RowSquares) {
                check.fail(
                    "the contraction's left side is contiguous neither in k nor in the rows of a matrix".to_string(),
                );
            }
        }
        if c.packed_a && (c.batch > 0 || !matches!(c.b, Rhs::Packed { .. })) {
            check.fail("a packed left side beside what is not packed".to_string());
        }
        let alike = |also: &Rhs| match &c.b {
            Rhs::Packed { .. } => matches!(also, Rhs::Packed { .. }),
            Rhs::KContiguous { .. } => matches!(also, Rhs::KContiguous { .. }),
            Rhs::NContiguous { .. } => false,
        };
        if c.also.as_ref().is_some_and(|also| !alike(also)) {
            check.fail("a second right side that does not lie as the first".to_string());
        }
        for b in c.rights() {
            match b {
                Rhs::Packed { arg } => check.arg(*arg, Some(false), "the packed weight"),
                Rhs::KContiguous { arg, strides, .. } | Rhs::NContiguous { arg, strides, .. } => {
                    check.arg(*arg, Some(false), "the contraction's right side");
                    if strides.len() != c.batch + 1 {
                        let message = format!(
                            "the right side has {} strides for {} batch dimensions",
                            strides.len(),
                            c.batch
                        );
                        check.fail(message);
                    }
                }
            }
        }
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

    fn panels(&mut self) {
        let kernel = self.kernel;
        let (k, n) = (Size::product(&kernel.outer), &kernel.cols);
        if k.as_const().is_none() || n.as_const().is_none() {
            self.fail(format!("fills panels of {k} by {n}, which are not known"));
        }
        let plain = kernel.contraction.is_none() && kernel.sweep.is_none() && kernel.ordered == 0;
        match &kernel.stages[..] {
            [Stage::Store { to, when: None, .. }] if plain && to.indirect.is_none() && to.offset.coef == 0 => {
                let column = to.strides.last();
                if column != Some(&Size::one()) && column != Some(&k) {
                    self.fail("its columns are neither k nor n of the panels".to_string());
                }
            }
            _ => self.fail("fills panels by something else than one store".to_string()),
        }
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

    fn expr(&mut self, id: ExprId) {
        let expr = &self.kernel.exprs[id];
        let what = format!("expression {id}");
        if let Some(&late) = expr.operands().iter().find(|&&o| o >= id) {
            self.fail(format!(
                "{what} refers to expression {late}, which does not stand before it"
            ));
            self.kinds.push(None);
            return;
        }
        let kind = |e: &ExprId| self.kinds[*e];
        let mut wanted: Option<String> = None;
        let mut want = |e: &ExprId, wants: Kind| {
            if kind(e).is_some_and(|k| k != wants) {
                wanted = Some(format!(
                    "{what} takes {wants:?}, expression {e} is {:?}",
                    kind(e).unwrap_or(wants)
                ));
            }
        };
        let result = match expr {
            Expr::Load(a) => self.kernel.args.get(a.arg).map(|arg| Kind::of(arg.dtype)),
            Expr::Float(_)
            | Expr::Reduced(_)
            | Expr::Acc
            | Expr::AccAlso
            | Expr::RowSquares
            | Expr::Swept(_)
            | Expr::Lse(_) => Some(Kind::Float),
            Expr::Int(_) | Expr::Index(_) | Expr::SizeOf(_) => Some(Kind::Int),
            Expr::Unary(Unary::ToFloat, a) => {
                want(a, Kind::Int);
                Some(Kind::Float)
            }
            Expr::Unary(_, a) => {
                want(a, Kind::Float);
                Some(Kind::Float)
            }
            Expr::Binary(op, a, b) => {
                let takes = match op {
                    Binary::Rem => Some(Kind::Int),
                    Binary::And => Some(Kind::Truth),
                    Binary::Div => Some(Kind::Float),
                    _ => kind(a),
                };
                if let Some(takes) = takes {
                    want(a, takes);
                    want(b, takes);
                }
                match op {
                    Binary::Lt | Binary::Le | Binary::Eq | Binary::And => Some(Kind::Truth),
                    _ => takes,
                }
            }
            Expr::Select(c, a, b) => {
                want(c, Kind::Truth);
                if let Some(k) = kind(a) {
                    want(b, k);
                }
                kind(a)
            }
        };
        if let Some(message) = wanted {
            self.fail(message);
        }
        match expr {
            Expr::Load(a) => {
                // What a kernel writes it may read only where the same point writes: an update in place.
                let in_place = |s: &Stage| matches!(s, Stage::Store { to, .. } if to == a);
                let written = self.kernel.stages.iter().any(in_place);
                self.arg(a.arg, Some(written), &what);
                self.access(a, Some(id), &what);
            }
            Expr::Index(d) if *d > self.kernel.outer.len() => {
                self.fail(format!("{what} is the index of dimension {d}"))
            }
            Expr::Acc if self.kernel.contraction.is_none() => self.fail(format!("{what} is Acc without a contraction")),
            Expr::RowSquares
                if !self
                    .kernel
                    .contraction
                    .as_ref()
                    .is_some_and(|c| matches!(c.b, Rhs::Packed { .. })) =>
            {
                self.fail(format!("{what} is RowSquares without a contraction by a weight"));
            }
            Expr::AccAlso if self.kernel.contraction.as_ref().is_none_or(|c| c.also.is_none()) => {
                self.fail(format!("{what} is AccAlso without a second right side"));
            }
            Expr::Swept(p) | Expr::Lse(p) if self.kernel.sweep.as_ref().is_none_or(|s| *p >= s.segments.len()) => {
                self.fail(format!("{what} is segment {p} of a sweep that has none such"));
            }
            Expr::Reduced(s) if !matches!(self.kernel.stages.get(*s), Some(Stage::Reduce { .. })) => {
                self.fail(format!("{what} is the result of stage {s}, which is no reduction"));
            }
            _ => {}
        }
        self.kinds.push(result);
    }

    fn stage(&mut self, s: usize, stage: &Stage) {
        let what = format!("stage {s}");
        if let Some(&e) = stage.operands().iter().find(|&&e| e >= self.kernel.exprs.len()) {
            return self.fail(format!(
                "{what} refers to expression {e}, there are {}",
                self.kernel.exprs.len()
            ));
        }
        if let Some(late) = stage
            .operands()
            .iter()
            .find_map(|&e| self.latest_stage(e))
            .filter(|&late| late >= s)
        {
            self.fail(format!("{what} needs the result of stage {late}, which has not run"));
        }
        match stage {
            Stage::Reduce { value, .. } => {
                if self.kinds[*value].is_some_and(|k| k != Kind::Float) {
                    self.fail(format!("{what} reduces expression {value}, which is no float"));
                }
            }
            Stage::Store { to, value, when } => {
                self.arg(to.arg, Some(true), &what);
                self.access(to, None, &what);
                let stored = self.kernel.args.get(to.arg).map(|a| Kind::of(a.dtype));
                if let (Some(stored), Some(kind)) = (stored, self.kinds[*value])
                    && stored != kind
                {
                    self.fail(format!("{what} stores {kind:?} in an argument of {stored:?}"));
                }
                if let Some(c) = when
                    && self.kinds[*c].is_some_and(|k| k != Kind::Truth)
                {
                    self.fail(format!("{what} has a condition that is no truth value"));
                }
                let per_column = to.strides.last().is_some_and(|s| s.coef != 0);
                if !per_column && stage.operands().iter().any(|&e| self.depends[e]) {
                    self.fail(format!(
                        "{what} stores a value per column where all columns share one place"
                    ));
                }
            }
        }
    }

    /// The columns of a contraction are walked once.
    fn reduced_contraction(&mut self) {
        let mut stored = false;
        for (s, stage) in self.kernel.stages.iter().enumerate() {
            match stage {
                Stage::Reduce { value, .. } => {
                    if stored || (*value < self.kernel.exprs.len() && self.latest_stage(*value).is_some()) {
                        self.fail(format!("stage {s} reduces a contraction a second time"));
                    }
                }
                Stage::Store { to, value, .. } => {
                    stored = true;
                    // The columns go by once: what is stored of each knows no row's result yet.
                    let per_column = to.strides.last().is_some_and(|s| s.coef != 0);
                    if per_column && *value < self.kernel.exprs.len() && self.latest_stage(*value).is_some() {
                        self.fail(format!("stage {s} stores columns that want a reduction of them"));
                    }
                }
            }
        }
    }

    fn sweep_gradient(&mut self, g: &SweepGradient) {
        let kernel = self.kernel;
        if kernel.contraction.is_some() || kernel.sweep.is_some() || !kernel.stages.is_empty() {
            self.fail("does more than a sweep's backward".to_string());
        }
        if kernel.cols.as_const().is_none() || g.depth < 1 || g.groups < 1 {
            self.fail("head sizes and groups of a sweep's backward are constants".to_string());
        }
        for (what, rows, written) in g.matrices() {
            self.arg(rows.arg, Some(written), what);
            let wanted = kernel.outer.len()
                + if what.ends_with('k') || what.ends_with('v') {
                    1
                } else {
                    2
                };
            if rows.strides.len() != wanted {
                self.fail(format!("{what} has {} strides, wants {wanted}", rows.strides.len()));
            }
        }
        if g.ranges.is_empty() {
            self.fail("a sweep's backward without ranges".to_string());
        }
    }

    fn sweep(&mut self, sweep: &Sweep) {
        let rank = self.kernel.outer.len();
        if self.kernel.contraction.is_some() {
            self.fail("a sweep beside a contraction".to_string());
        }
        if sweep.batch + usize::from(sweep.tokens) > rank {
            return self.fail(format!("the sweep has {} batch dimensions of {rank}", sweep.batch));
        }
        self.access(&sweep.q, None, "the queries");
        self.arg(sweep.q.arg, Some(false), "the queries");
        if sweep.q.strides.last().is_some_and(|s| s.as_const() != Some(1)) {
            self.fail("the queries are not contiguous".to_string());
        }
        if self.kernel.cols.as_const().is_none() || sweep.depth < 1 {
            self.fail("a sweep's head sizes are constants".to_string());
        }
        let rows = &self.kernel.outer[sweep.batch..];
        let groups = &rows[..rows.len() - usize::from(sweep.tokens)];
        if groups.iter().any(|n| n.as_const().is_none()) {
            self.fail("how many rows share keys is a constant".to_string());
        }
        if let Some(start) = sweep.start
            && self.kinds.get(start).copied().flatten() != Some(Kind::Int)
        {
            self.fail(format!("the sweep starts at expression {start}, which is no integer"));
        }
        for (i, s) in sweep.segments.iter().enumerate() {
            for (rows, what) in [(&s.k, "keys"), (&s.v, "values")] {
                self.arg(rows.arg, Some(false), what);
                if rows.strides.len() != sweep.batch + 1 {
                    self.fail(format!("segment {i}'s {what} have {} strides", rows.strides.len()));
                }
            }
            if s.near < 0 || s.far.is_some_and(|far| far <= s.near) {
                self.fail(format!("segment {i} sees distances {} to {:?}", s.near, s.far));
            }
            if s.after.is_some_and(|a| a >= i) {
                self.fail(format!(
                    "segment {i} goes on from {:?}, which does not stand before it",
                    s.after
                ));
            }
        }
    }

    /// The latest reduction that an expression needs.
    fn latest_stage(&self, id: ExprId) -> Option<usize> {
        match &self.kernel.exprs[id] {
            Expr::Reduced(s) => Some(*s),
            e => e
                .operands()
                .iter()
                .filter(|&&o| o < id)
                .filter_map(|&o| self.latest_stage(o))
                .max(),
        }
    }
}
