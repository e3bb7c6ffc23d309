//! Writes one kernel: arguments, expressions, stages over an iteration space given by a shape.

use std::collections::HashMap;

use ir::plan::{
    Access, Arg, Binary, Contraction, Expr, ExprId, Kernel, Launch, Reduction, Stage, Sweep, SweepGradient, Unary,
};
use ir::{DType, Size, ValueId};

use super::view::View;

/// A kernel in the making. Dimensions of size 1 are dropped from the iteration space; the last one left is the columns.
pub struct KernelBuilder {
    name: String,
    /// Position of each dimension of the shape in the iteration space, `None` if it has size 1.
    kept: Vec<Option<usize>>,
    sizes: Vec<Size>,
    args: Vec<Arg>,
    /// Buffers by argument.
    buffers: Vec<usize>,
    exprs: Vec<Expr>,
    known: HashMap<Expr, ExprId>,
    stages: Vec<Stage>,
    /// Expressions of the graph's values that are computed here.
    values: HashMap<ValueId, ExprId>,
    /// Of the last dimensions before the columns, how many are walked in order.
    pub ordered: usize,
    /// Its store fills panels.
    pub panels: bool,
    pub contraction: Option<Contraction>,
    pub sweep: Option<Sweep>,
    pub sweep_gradient: Option<SweepGradient>,
    /// Segments of the sweep, by the value they are the state of.
    pub segments: HashMap<ValueId, usize>,
}

impl KernelBuilder {
    pub fn new(name: &str, shape: &[Size]) -> KernelBuilder {
        KernelBuilder::with(name, shape, shape.len())
    }

    /// The last dimension stays the columns even if it has size 1: a contraction's columns are its n.
    pub fn keeping_columns(name: &str, shape: &[Size]) -> KernelBuilder {
        KernelBuilder::with(name, shape, shape.len() - 1)
    }

    /// No dimension is dropped: `ordered` counts them.
    pub fn keeping_all(name: &str, shape: &[Size]) -> KernelBuilder {
        KernelBuilder::with(name, shape, 0)
    }

    fn with(name: &str, shape: &[Size], droppable: usize) -> KernelBuilder {
        let mut sizes = vec![];
        let kept = shape.iter().enumerate().map(|(d, n)| {
            (d >= droppable || n.as_const() != Some(1)).then(|| {
                sizes.push(n.clone());
                sizes.len() - 1
            })
        });
        let kept = kept.collect();
        KernelBuilder {
            name: name.to_string(),
            kept,
            sizes,
            args: vec![],
            buffers: vec![],
            exprs: vec![],
            known: HashMap::new(),
            stages: vec![],
            values: HashMap::new(),
            ordered: 0,
            panels: false,
            contraction: None,
            sweep: None,
            sweep_gradient: None,
            segments: HashMap::new(),
        }
    }

    pub fn rename(&mut self, name: &str) {
        self.name = name.to_string();
    }

    /// The graph's value as an expression, if it is one already.
    pub fn value(&self, v: ValueId) -> Option<ExprId> {
        self.values.get(&v).copied()
    }

    pub fn remember(&mut self, v: ValueId, e: ExprId) {
        self.values.insert(v, e);
    }

    /// How many of the shape's first `n` dimensions are in the iteration space.
    pub fn kept(&self, n: usize) -> usize {
        self.kept[..n].iter().flatten().count()
    }

    /// Is dimension d of the shape in the iteration space?
    pub fn keeps(&self, d: usize) -> bool {
        self.kept[d].is_some()
    }

    pub fn expr(&mut self, expr: Expr) -> ExprId {
        if let Some(id) = self.known.get(&expr) {
            return *id;
        }
        self.exprs.push(expr.clone());
        self.known.insert(expr, self.exprs.len() - 1);
        self.exprs.len() - 1
    }

    pub fn float(&mut self, x: f64) -> ExprId {
        self.expr(Expr::Float((x as f32).to_bits()))
    }

    pub fn int(&mut self, x: i32) -> ExprId {
        self.expr(Expr::Int(x))
    }

    pub fn unary(&mut self, op: Unary, a: ExprId) -> ExprId {
        self.expr(Expr::Unary(op, a))
    }

    pub fn binary(&mut self, op: Binary, a: ExprId, b: ExprId) -> ExprId {
        self.expr(Expr::Binary(op, a, b))
    }

    pub fn select(&mut self, c: ExprId, a: ExprId, b: ExprId) -> ExprId {
        self.expr(Expr::Select(c, a, b))
    }

    /// The position in dimension d of the shape; 0 where it has size 1.
    pub fn index(&mut self, d: usize) -> ExprId {
        match self.kept[d] {
            Some(at) => self.expr(Expr::Index(at)),
            None => self.int(0),
        }
    }

    pub fn arg(&mut self, buffer: usize, dtype: DType, written: bool) -> usize {
        match self.buffers.iter().position(|b| *b == buffer) {
            Some(at) => {
                self.args[at].written |= written;
                at
            }
            None => {
                self.buffers.push(buffer);
                self.args.push(Arg { dtype, written });
                self.args.len() - 1
            }
        }
    }

    /// Strides by dimension of the shape to strides of the iteration space.
    pub fn strides(&self, by_dimension: &[Size]) -> Vec<Size> {
        let mut strides = vec![Size::from(0); self.sizes.len().max(1)];
        for (at, stride) in self.kept.iter().zip(by_dimension) {
            if let Some(at) = at {
                strides[*at] = stride.clone();
            }
        }
        strides
    }

    /// An access to a view by strides per dimension of the shape.
    pub fn access(
        &mut self,
        view: &View,
        by_dimension: &[Size],
        indirect: Option<(ExprId, Size)>,
        written: bool,
    ) -> Access {
        let arg = self.arg(view.buffer, view.dtype, written);
        Access {
            arg,
            offset: view.offset.clone(),
            strides: self.strides(by_dimension),
            indirect,
        }
    }

    pub fn load(&mut self, view: &View, by_dimension: &[Size], indirect: Option<(ExprId, Size)>) -> ExprId {
        let access = self.access(view, by_dimension, indirect, false);
        self.expr(Expr::Load(access))
    }

    /// The element that broadcasting reads.
    pub fn load_broadcast(&mut self, view: &View) -> ExprId {
        let strides = view.broadcast_strides(self.kept.len());
        self.load(view, &strides, None)
    }

    pub fn reduce(&mut self, op: Reduction, value: ExprId) -> ExprId {
        self.stages.push(Stage::Reduce { op, value });
        let stage = self.stages.len() - 1;
        self.expr(Expr::Reduced(stage))
    }

    /// Into a view of the shape itself.
    pub fn store(&mut self, to: &View, value: ExprId) {
        let strides = to.broadcast_strides(self.kept.len());
        self.store_at(to, &strides, None, value, None);
    }

    pub fn store_at(
        &mut self,
        to: &View,
        strides: &[Size],
        indirect: Option<(ExprId, Size)>,
        value: ExprId,
        when: Option<ExprId>,
    ) {
        let to = self.access(to, strides, indirect, true);
        self.stages.push(Stage::Store { to, value, when });
    }

    /// The kernel and the buffers of its arguments.
    pub fn finish(self) -> (Kernel, Launch) {
        let mut outer = self.sizes;
        let cols = outer.pop().unwrap_or_else(Size::one);
        let mut kernel = Kernel {
            name: self.name,
            args: self.args,
            outer,
            ordered: self.ordered,
            panels: self.panels,
            cols,
            contraction: self.contraction,
            sweep: self.sweep,
            sweep_gradient: self.sweep_gradient,
            exprs: self.exprs,
            stages: self.stages,
        };
        merge_rows(&mut kernel);
        (
            kernel,
            Launch {
                kernel: usize::MAX,
                args: self.buffers,
            },
        )
    }
}

/// Row dimensions of a contraction that lie one behind the other in everything it touches become one.
fn merge_rows(kernel: &mut Kernel) {
    let Some(batch) = kernel.contraction.as_ref().map(|c| c.batch) else {
        return;
    };
    let mut d = kernel.outer.len();
    while d >= batch + 2 {
        d -= 1;
        let size = kernel.outer[d].clone();
        let follows = |a: &mut Access| a.strides[d - 1] == &a.strides[d] * &size;
        let position = |e: &Expr| matches!(e, Expr::Index(i) if *i == d || *i == d - 1);
        if kernel.exprs.iter().any(position) || !accesses(kernel).into_iter().all(follows) {
            continue;
        }
        let inner = kernel.outer.remove(d);
        kernel.outer[d - 1] = &kernel.outer[d - 1] * &inner;
        for a in accesses(kernel) {
            a.strides.remove(d - 1);
        }
        for e in &mut kernel.exprs {
            if let Expr::Index(i) = e
                && *i > d
            {
                *i -= 1;
            }
        }
    }
}

/// All accesses whose strides are the outer dimensions'.
fn accesses(kernel: &mut Kernel) -> Vec<&mut Access> {
    let mut list: Vec<&mut Access> = vec![];
    for e in &mut kernel.exprs {
        if let Expr::Load(a) = e {
            list.push(a);
        }
    }
    for s in &mut kernel.stages {
        if let Stage::Store { to, .. } = s {
            list.push(to);
        }
    }
    list.extend(kernel.contraction.as_mut().map(|c| &mut c.a));
    list
}
