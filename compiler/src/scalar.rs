//! Scalar expressions of a kernel, emitted for one point (uniform values) or for a vector of columns.
//!
//! Shared by element-wise kernels and matmul epilogues, and by all targets: a matmul's accumulator is one more expression. What differs
//! is how a target writes exponentials and roundings (`Math`), and that a GPU's threads each take a vector of columns.

mod operation;

use std::collections::HashMap;

use ir::Size;
use ir::plan::{Access, Expr, ExprId, Kernel, Stage};

use self::operation::{binary, unary};
pub use self::operation::{memory, narrow, widen};
use crate::mlir::emit::{Elem, Emit, Ty, Val};

pub const I32: Ty = Ty::scalar(Elem::I32);
pub const F32: Ty = Ty::scalar(Elem::F32);

/// A kernel being emitted: its arguments' pointers and the symbols' values.
pub struct Body<'k> {
    pub kernel: &'k Kernel,
    pub lanes: usize,
    pub args: Vec<Val>,
    /// How functions are written.
    pub math: Math,
    /// Vectors of contiguous columns lie at multiples of their size, up to so many bytes; 1: nothing is known.
    pub alignment: usize,
    symbols: Vec<(&'static str, Val)>,
    /// Does the expression depend on the column?
    varies: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Math {
    /// Polynomials over vectors.
    Polynomials,
    /// A GPU's own approximations.
    Gpu,
}

/// A point of the outer dimensions.
pub struct Point {
    pub index: Vec<Val>,
    /// Results of `Reduce` stages, by stage.
    pub reduced: HashMap<usize, Val>,
    /// The contraction's `Expr::RowSquares`.
    pub squares: Option<Val>,
    /// The sweep's `Expr::Lse`, by segment.
    pub lse: Vec<Val>,
    uniform: HashMap<ExprId, Val>,
}

/// A vector of columns at a point.
pub struct Columns {
    /// Column of the first lane, i64.
    pub first: Val,
    /// Off lanes neither load nor store.
    pub mask: Option<Val>,
    /// The contraction's value.
    pub acc: Option<Val>,
    /// The contraction's second value.
    pub also: Option<Val>,
    /// The sweep's results, by segment.
    pub swept: Vec<Val>,
    values: HashMap<ExprId, Val>,
}

impl Columns {
    pub fn new(first: Val, mask: Option<Val>, acc: Option<Val>) -> Columns {
        Columns {
            first,
            mask,
            acc,
            also: None,
            swept: vec![],
            values: HashMap::new(),
        }
    }
}

impl<'k> Body<'k> {
    /// Loads the argument pointers and the symbols, at the head of the kernel.
    pub fn new(e: &mut Emit, kernel: &'k Kernel, lanes: usize, buffers: Val, symbols: Val) -> Body<'k> {
        let pointer = Ty::scalar(Elem::Ptr);
        let args = (0..kernel.args.len())
            .map(|i| {
                let i = e.i64(i as i64);
                let slot = e.at(buffers, i, Elem::Ptr);
                e.load(slot, pointer)
            })
            .collect();
        let symbols = runtime::artefact::SYMBOLS
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let i = e.i64(i as i64);
                let slot = e.at(symbols, i, Elem::I64);
                (*name, e.load(slot, Ty::scalar(Elem::I64)))
            })
            .collect();
        Body::over(kernel, lanes, args, symbols, Math::Polynomials)
    }

    /// With the arguments' pointers and the symbols' values (i64) at hand.
    pub fn over(
        kernel: &'k Kernel,
        lanes: usize,
        args: Vec<Val>,
        symbols: Vec<(&'static str, Val)>,
        math: Math,
    ) -> Body<'k> {
        let mut body = Body {
            kernel,
            lanes,
            args,
            math,
            alignment: 1,
            symbols,
            varies: vec![],
        };
        for expr in &kernel.exprs {
            let varies = body.expr_varies(expr);
            body.varies.push(varies);
        }
        body
    }

    fn expr_varies(&self, expr: &Expr) -> bool {
        let of = |id: &ExprId| self.varies[*id];
        match expr {
            Expr::Acc | Expr::AccAlso | Expr::Swept(_) => true,
            _ if self.single_column() => false,
            Expr::Load(a) => self.access_varies(a),
            Expr::Index(d) => *d == self.kernel.outer.len(),
            Expr::Float(_) | Expr::Int(_) | Expr::SizeOf(_) | Expr::Reduced(_) | Expr::RowSquares | Expr::Lse(_) => {
                false
            }
            Expr::Unary(_, a) => of(a),
            Expr::Binary(_, a, b) => of(a) || of(b),
            Expr::Select(c, a, b) => of(c) || of(a) || of(b),
        }
    }

    /// One column: everything is a scalar.
    pub fn single_column(&self) -> bool {
        let plain = self.kernel.contraction.is_none() && self.kernel.sweep.is_none();
        self.kernel.cols.as_const() == Some(1) && plain
    }

    pub fn varies(&self, id: ExprId) -> bool {
        self.varies[id]
    }

    fn access_varies(&self, a: &Access) -> bool {
        self.column_stride(a).coef != 0 || a.indirect.as_ref().is_some_and(|(id, _)| self.varies[*id])
    }

    fn column_stride<'a>(&self, a: &'a Access) -> &'a Size {
        &a.strides[self.kernel.outer.len()]
    }

    /// A size as i64.
    pub fn size(&self, e: &mut Emit, size: &Size) -> Val {
        let mut value = None;
        for s in &size.syms {
            let known = self.symbols.iter().find(|(name, _)| name == s);
            let v = known
                .unwrap_or_else(|| panic!("kernel {}: no symbol {s}", self.kernel.name))
                .1;
            value = Some(value.map_or(v, |acc| e.mul(acc, v)));
        }
        match (value, size.coef) {
            (Some(v), 1) => v,
            (Some(v), c) => {
                let c = e.i64(c);
                e.mul(v, c)
            }
            (None, c) => e.i64(c),
        }
    }

    /// i64 `value * size`, nothing where the size is 0.
    pub fn scaled(&self, e: &mut Emit, value: Val, size: &Size) -> Option<Val> {
        match (size.coef, size.syms.is_empty()) {
            (0, _) => None,
            (1, true) => Some(value),
            _ => {
                let s = self.size(e, size);
                Some(e.mul(value, s))
            }
        }
    }

    /// The point of a linear index into `sizes` (row-major), i64.
    pub fn unravel(&self, e: &mut Emit, linear: Val, sizes: &[Size]) -> Vec<Val> {
        // A GPU divides 32 bits much faster than 64, and no launch has more points than fit.
        let narrow = self.math == Math::Gpu;
        let width = |e: &mut Emit, v: Val| if narrow { e.truncate_int(v, Elem::I32) } else { v };
        let mut rest = width(e, linear);
        let mut index = vec![linear; sizes.len()];
        for d in (0..sizes.len()).rev() {
            index[d] = if d == 0 {
                rest
            } else if sizes[d].as_const() == Some(1) {
                e.i64(0)
            } else {
                let n = self.size(e, &sizes[d]);
                let n = width(e, n);
                let at = e.rem(rest, n);
                rest = e.div(rest, n);
                at
            };
            if index[d].ty.elem == Elem::I32 {
                index[d] = e.extend_signed(index[d], Elem::I64);
            }
        }
        index
    }

    pub fn point(&self, index: Vec<Val>) -> Point {
        Point {
            index,
            reduced: HashMap::new(),
            squares: None,
            lse: vec![],
            uniform: HashMap::new(),
        }
    }

    /// `offset + sum(index * stride)` over the given strides, i64.
    pub fn linear(&self, e: &mut Emit, offset: &Size, index: &[Val], strides: &[Size]) -> Val {
        let mut sum = (offset.coef != 0).then(|| self.size(e, offset));
        for (i, s) in index.iter().zip(strides) {
            if let Some(term) = self.scaled(e, *i, s) {
                sum = Some(sum.map_or(term, |acc| e.add(acc, term)));
            }
        }
        sum.unwrap_or_else(|| e.i64(0))
    }

    /// The element index of an access without its column part; a scalar indirection included.
    pub fn base(&self, e: &mut Emit, point: &mut Point, access: &Access) -> Val {
        let outer = self.kernel.outer.len();
        let mut base = self.linear(e, &access.offset, &point.index, &access.strides[..outer]);
        if let Some((id, stride)) = &access.indirect
            && !self.varies[*id]
        {
            let i = self.scalar(e, point, *id);
            let i = e.extend_signed(i, Elem::I64);
            if let Some(term) = self.scaled(e, i, stride) {
                base = e.add(base, term);
            }
        }
        base
    }

    /// Pointers of a vector of columns: one to the first lane if they are contiguous, else one a lane.
    fn pointers(&self, e: &mut Emit, point: &mut Point, cols: &mut Columns, access: &Access, elem: Elem) -> Val {
        let base = self.base(e, point, access);
        let indirect = access.indirect.as_ref().filter(|(id, _)| self.varies[*id]);
        let stride = self.column_stride(access);
        if indirect.is_none() && *stride == Size::one() {
            let first = e.add(base, cols.first);
            return e.at(self.args[access.arg], first, elem);
        }
        let mut index = e.broadcast(base, self.lanes);
        if stride.coef != 0 {
            let lane = e.iota(Elem::I64, self.lanes);
            let first = e.broadcast(cols.first, self.lanes);
            let lane = e.add(lane, first);
            let stride = self.size(e, stride);
            let stride = e.broadcast(stride, self.lanes);
            let lane = e.mul(lane, stride);
            index = e.add(index, lane);
        }
        if let Some((id, stride)) = indirect {
            let i = self.vector(e, point, cols, *id);
            let i = e.extend_signed(i, Elem::I64);
            let stride = self.size(e, stride);
            let stride = e.broadcast(stride, self.lanes);
            let i = e.mul(i, stride);
            index = e.add(index, i);
        }
        e.at(self.args[access.arg], index, elem)
    }

    /// The value of an expression that no column changes.
    pub fn scalar(&self, e: &mut Emit, point: &mut Point, id: ExprId) -> Val {
        if let Some(v) = point.uniform.get(&id) {
            return *v;
        }
        let v = match &self.kernel.exprs[id] {
            Expr::Load(access) => {
                let dtype = self.kernel.args[access.arg].dtype;
                let base = self.base(e, point, access);
                let ptr = e.at(self.args[access.arg], base, memory(dtype));
                let raw = e.load(ptr, Ty::scalar(memory(dtype)));
                widen(e, raw, dtype)
            }
            Expr::Index(d) if *d == self.kernel.outer.len() => e.int(0, I32),
            Expr::Index(d) => e.truncate_int(point.index[*d], Elem::I32),
            Expr::SizeOf(size) => {
                let v = self.size(e, size);
                e.truncate_int(v, Elem::I32)
            }
            Expr::Float(bits) => e.f32(f32::from_bits(*bits), F32),
            Expr::Int(i) => e.int(*i as i64, I32),
            Expr::Reduced(stage) => point.reduced[stage],
            Expr::RowSquares => point
                .squares
                .unwrap_or_else(|| panic!("kernel {}: its rows were not measured", self.kernel.name)),
            Expr::Lse(p) => point.lse[*p],
            Expr::Acc | Expr::AccAlso | Expr::Swept(_) => panic!("kernel {}: an accumulator varies", self.kernel.name),
            Expr::Unary(op, a) => {
                let a = self.scalar(e, point, *a);
                unary(e, self.math, *op, a)
            }
            Expr::Binary(op, a, b) => {
                let (a, b) = (self.scalar(e, point, *a), self.scalar(e, point, *b));
                binary(e, *op, a, b)
            }
            Expr::Select(c, a, b) => {
                let [c, a, b] = [*c, *a, *b].map(|id| self.scalar(e, point, id));
                e.select(c, a, b)
            }
        };
        point.uniform.insert(id, v);
        v
    }

    /// The value of any expression for a vector of columns.
    pub fn vector(&self, e: &mut Emit, point: &mut Point, cols: &mut Columns, id: ExprId) -> Val {
        if let Some(v) = cols.values.get(&id) {
            return *v;
        }
        let v = if !self.varies[id] {
            let v = self.scalar(e, point, id);
            e.broadcast(v, self.lanes)
        } else {
            match &self.kernel.exprs[id] {
                Expr::Load(access) => {
                    let dtype = self.kernel.args[access.arg].dtype;
                    let ptr = self.pointers(e, point, cols, access, memory(dtype));
                    let ty = Ty::vector(memory(dtype), self.lanes);
                    let raw = match (ptr.ty.lanes, cols.mask) {
                        (0, None) => e.load_aligned(ptr, ty, self.aligned(ty)),
                        (0, Some(mask)) => e.masked_load(ptr, mask, ty),
                        (_, mask) => {
                            let mask = mask.unwrap_or_else(|| e.all_lanes(self.lanes));
                            e.gather(ptr, mask, ty)
                        }
                    };
                    widen(e, raw, dtype)
                }
                Expr::Index(_) => {
                    let lane = e.iota(Elem::I32, self.lanes);
                    let first = e.truncate_int(cols.first, Elem::I32);
                    let first = e.broadcast(first, self.lanes);
                    e.add(first, lane)
                }
                Expr::Acc => cols
                    .acc
                    .unwrap_or_else(|| panic!("kernel {}: no accumulator", self.kernel.name)),
                Expr::AccAlso => cols
                    .also
                    .unwrap_or_else(|| panic!("kernel {}: no second accumulator", self.kernel.name)),
                Expr::Swept(p) => cols.swept[*p],
                Expr::Unary(op, a) => {
                    let a = self.vector(e, point, cols, *a);
                    unary(e, self.math, *op, a)
                }
                Expr::Binary(op, a, b) => {
                    let (a, b) = (self.vector(e, point, cols, *a), self.vector(e, point, cols, *b));
                    binary(e, *op, a, b)
                }
                Expr::Select(c, a, b) => {
                    let [c, a, b] = [*c, *a, *b].map(|id| self.vector(e, point, cols, id));
                    e.select(c, a, b)
                }
                other => panic!("kernel {}: {other:?} does not vary", self.kernel.name),
            }
        };
        cols.values.insert(id, v);
        v
    }

    /// The alignment, in bytes, of a vector of contiguous columns.
    fn aligned(&self, ty: Ty) -> usize {
        let elem = ty.elem.bytes();
        elem.max((elem * ty.lanes.max(1)).min(self.alignment))
    }

    /// Emits every uniform expression that a stage reads, at the point: a loop over columns must not define them.
    pub fn hoist(&self, e: &mut Emit, point: &mut Point, stage: &Stage) {
        match stage {
            Stage::Reduce { value, .. } => self.hoist_expr(e, point, *value),
            Stage::Store { to, value, when } => {
                self.hoist_expr(e, point, *value);
                when.iter()
                    .chain(to.indirect.as_ref().map(|(id, _)| id))
                    .for_each(|id| self.hoist_expr(e, point, *id));
            }
        }
    }

    fn hoist_expr(&self, e: &mut Emit, point: &mut Point, id: ExprId) {
        if !self.varies[id] {
            self.scalar(e, point, id);
            return;
        }
        let operands: Vec<ExprId> = match &self.kernel.exprs[id] {
            Expr::Load(a) => a.indirect.iter().map(|(id, _)| *id).collect(),
            Expr::Unary(_, a) => vec![*a],
            Expr::Binary(_, a, b) => vec![*a, *b],
            Expr::Select(c, a, b) => vec![*c, *a, *b],
            _ => vec![],
        };
        operands.into_iter().for_each(|id| self.hoist_expr(e, point, id));
    }

    /// Stores a uniform value at the point.
    pub fn store_scalar(&self, e: &mut Emit, point: &mut Point, to: &Access, value: Val) {
        let dtype = self.kernel.args[to.arg].dtype;
        let base = self.base(e, point, to);
        let ptr = e.at(self.args[to.arg], base, memory(dtype));
        let raw = narrow(e, self.math, value, dtype);
        e.store(raw, ptr);
    }

    /// Stores a vector of columns; `when` masks lanes off.
    pub fn store_vector(
        &self,
        e: &mut Emit,
        point: &mut Point,
        cols: &mut Columns,
        to: &Access,
        value: Val,
        when: Option<Val>,
    ) {
        let dtype = self.kernel.args[to.arg].dtype;
        let ptr = self.pointers(e, point, cols, to, memory(dtype));
        let raw = narrow(e, self.math, value, dtype);
        let mask = match (cols.mask, when) {
            (Some(a), Some(b)) => Some(e.and(a, b)),
            (a, b) => a.or(b),
        };
        match (ptr.ty.lanes, mask) {
            (0, None) => e.store_aligned(raw, ptr, self.aligned(raw.ty)),
            (0, Some(mask)) => e.masked_store(raw, ptr, mask),
            (_, mask) => {
                let mask = mask.unwrap_or_else(|| e.all_lanes(self.lanes));
                e.scatter(raw, ptr, mask);
            }
        }
    }
}
