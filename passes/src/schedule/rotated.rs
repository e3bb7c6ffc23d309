//! Rows turned by their positions (RoPE), with the norm before them, and rows that go into caches: one kernel where one value does both.

use ir::plan::{Binary, ExprId, Reduction, Unary};
use ir::{Op, Size, TensorType, ValueId};

use super::build::KernelBuilder;
use super::expression::rms_scale;
use super::view::View;
use super::{Def, Frame, Scheduler};
use crate::PassError;
use crate::attrs::{flag, float, int};

impl Scheduler<'_> {
    /// Rows turned by their positions, to memory and, where they are what a cache takes, there at once.
    pub(super) fn turned_rows(
        &mut self,
        frame: &mut Frame,
        op: &Op,
        operands: &[View],
        norm: Option<Norm>,
        ty: &TensorType,
    ) -> Result<View, PassError> {
        let (mut k, halves) = self.rope(op, operands, norm);
        let cached = self.cached_at_once(frame, op, ty);
        let result = op.results[0];
        let readers = frame.f.ops.iter().filter(|o| o.operands.contains(&result)).count();
        let returned = frame.f.returns.iter().any(|(_, v)| *v == result);
        let mut stored = None;
        if let Some(write) = cached {
            let mut views = vec![];
            for v in &write.operands {
                // Its rows are the ones that are computed here.
                views.push(if *v == result {
                    operands[0].clone()
                } else {
                    self.view(frame, *v)?
                });
            }
            let cache = views[0].clone();
            let place = cache_place(&mut k, write, &views, ty.shape[2].size());
            for (half, value) in [Some(cache.clone()), upper_half(&cache)].iter().flatten().zip(halves) {
                k.store_at(half, &place.strides, place.row.clone(), value, place.when);
            }
            frame.defs.insert(write.results[0], Def::View(cache.clone()));
            self.write_alike(frame, &mut k, write, ty)?;
            // Who reads rows that only a cache takes? Nobody: they have no memory of their own.
            stored = (readers == 1 && !returned).then_some(cache);
        }
        let to = match stored {
            Some(cache) => cache,
            None => {
                let mut to = self.placed(frame, result, ty);
                if upper_half(&to).is_none() {
                    to = self.temporary(ty);
                }
                for (half, value) in [Some(to.clone()), upper_half(&to)].iter().flatten().zip(halves) {
                    k.store_at(half, &to.strides, None, value, None);
                }
                to
            }
        };
        self.launch(k.finish());
        Ok(to)
    }

    /// Other rows of the same shape that lie ready for a cache of their own (values beside keys) go there in the same kernel.
    fn write_alike(
        &mut self,
        frame: &mut Frame,
        k: &mut KernelBuilder,
        write: &Op,
        ty: &TensorType,
    ) -> Result<(), PassError> {
        let f = frame.f;
        for other in f
            .ops
            .iter()
            .filter(|o| o.name == "cache_write" && o.results != write.results)
        {
            let (cache, rows) = (other.operands[0], other.operands[1]);
            let alone = f.ops.iter().filter(|o| o.operands.contains(&cache)).count() == 1;
            let alike = f.ty(rows) == ty && other.operands[2..] == write.operands[2..];
            let done = matches!(frame.defs.get(&other.results[0]), Some(Def::View(_)));
            if done || !alone || !alike || !self.lies_ready(frame, rows)? {
                continue;
            }
            let views = other
                .operands
                .iter()
                .map(|v| self.view(frame, *v))
                .collect::<Result<Vec<_>, _>>()?;
            let (cache, rows) = (&views[0], &views[1]);
            let (Some(upper_cache), Some(upper_rows)) = (upper_half(cache), upper_half(rows)) else {
                continue;
            };
            if !self.is_state(cache) || cache.dtype != rows.dtype {
                continue;
            }
            let place = cache_place(k, other, &views, ty.shape[2].size());
            for (to, from) in [(cache, rows), (&upper_cache, &upper_rows)] {
                let value = k.load(from, &from.strides, None);
                k.store_at(to, &place.strides, place.row.clone(), value, place.when);
            }
            frame.defs.insert(other.results[0], Def::View(cache.clone()));
        }
        Ok(())
    }

    /// Is the value in memory, or a view of one that is?
    fn lies_ready(&mut self, frame: &mut Frame, v: ValueId) -> Result<bool, PassError> {
        let f = frame.f;
        match (frame.defs.get(&v), f.ops.iter().find(|o| o.results.first() == Some(&v))) {
            (Some(Def::View(_)), _) => Ok(true),
            (None, Some(op)) if matches!(op.name.as_str(), "slice" | "transpose" | "reshape") => {
                let ready = self.lies_ready(frame, op.operands[0])?;
                if ready {
                    self.op(frame, op)?;
                }
                Ok(ready)
            }
            _ => Ok(false),
        }
    }

    /// The write of these rows into a cache that nobody else reads as it was.
    fn cached_at_once<'f>(&mut self, frame: &Frame<'f>, op: &Op, ty: &TensorType) -> Option<&'f Op> {
        let f = frame.f;
        let rows = op.results[0];
        let write = f
            .ops
            .iter()
            .find(|o| o.name == "cache_write" && o.operands[1] == rows)?;
        let alone = f.ops.iter().filter(|o| o.operands.contains(&write.operands[0])).count() == 1;
        let known = |v: &ValueId| *v == rows || matches!(frame.defs.get(v), Some(Def::View(_)));
        let Some(Def::View(cache)) = frame.defs.get(&write.operands[0]) else {
            return None;
        };
        let fits = cache.dtype == ty.dtype && self.is_state(cache) && upper_half(cache).is_some();
        (self.options.epilogues && alone && fits && write.operands.iter().all(known)).then_some(write)
    }

    /// Pairs (c, c + D/2): the columns are the first halves. The kernel, and both halves' values.
    fn rope(&mut self, op: &Op, operands: &[View], norm: Option<Norm>) -> (KernelBuilder, [ExprId; 2]) {
        // A view that starts at an offset of its own may have no second half: a dense copy has one.
        let x = match upper_half(&operands[0]) {
            Some(_) => operands[0].clone(),
            None => self.copy(&operands[0]),
        };
        let x = &x;
        let rank = x.shape.len();
        let half = x.shape[rank - 1].coef / 2;
        let mut shape = x.shape.clone();
        shape[rank - 1] = Size::from(half);
        let mut k = KernelBuilder::keeping_columns("rope", &shape);
        let (rows, dim, theta) = (int(op, "max"), 2 * half, float(op, "theta"));
        let mut table = |k: &mut KernelBuilder, sin: bool| {
            let table = self.rope_table(rows, dim, theta, sin);
            let mut strides = vec![Size::from(0); rank];
            strides[rank - 1] = Size::one();
            let indirect = match operands.get(1) {
                None => {
                    strides[rank - 2] = Size::from(half);
                    None
                }
                Some(start) => {
                    let mut at = vec![Size::from(0); rank];
                    at[0] = start.strides[0].clone();
                    let start = k.load(start, &at, None);
                    let t = k.index(rank - 2);
                    let row = k.binary(Binary::Add, start, t);
                    Some((row, Size::from(half)))
                }
            };
            k.load(&table, &strides, indirect)
        };
        let (cos, sin) = (table(&mut k, false), table(&mut k, true));
        let upper = |v: &View| upper_half(v).expect("it was asked for above");
        let (mut a, mut b) = (k.load(x, &x.strides, None), k.load(&upper(x), &x.strides, None));
        if let Some(norm) = norm {
            k.rename("rms_norm_rope");
            (a, b) = norm.apply(&mut k, rank, half, a, b);
        }
        let product = |k: &mut KernelBuilder, x, y| k.binary(Binary::Mul, x, y);
        let (ac, bs) = (product(&mut k, a, cos), product(&mut k, b, sin));
        let (bc, as_) = (product(&mut k, b, cos), product(&mut k, a, sin));
        let (minus, plus) = if flag(op, "inverse") {
            (Binary::Add, Binary::Sub)
        } else {
            (Binary::Sub, Binary::Add)
        };
        let first = k.binary(minus, ac, bs);
        let second = k.binary(plus, bc, as_);
        (k, [first, second])
    }

    pub(super) fn cache_write(&mut self, op: &Op, operands: &[View]) -> Result<View, PassError> {
        // Only a state is written in place; anything else stays as it is for its other readers.
        let in_place = self.is_state(&operands[0]);
        let cache = if in_place {
            operands[0].clone()
        } else {
            self.copy(&operands[0])
        };
        let (cache, new) = (&cache, &operands[1]);
        let mut k = KernelBuilder::keeping_columns("cache_write", &new.shape);
        let value = k.load(new, &new.strides, None);
        let place = cache_place(&mut k, op, operands, new.shape[2].clone());
        k.store_at(cache, &place.strides, place.row, value, place.when);
        self.launch(k.finish());
        Ok(cache.clone())
    }
}

/// Where a kernel over [B, heads, T, D] stores the rows that a cache takes.
struct CachePlace {
    strides: Vec<Size>,
    row: Option<(ExprId, Size)>,
    when: Option<ExprId>,
}

/// Of a `cache_write`; `operands` are its own, `rows` the number of new rows of a sequence.
fn cache_place(k: &mut KernelBuilder, op: &Op, operands: &[View], rows: Size) -> CachePlace {
    let cache = &operands[0];
    let mut strides = cache.strides.clone();
    let ring = flag(op, "ring");
    let mut row = k.index(2);
    let mut when = None;
    if ring {
        // Of more rows than the ring has, only the last stay: no two rows of one call meet.
        let rows = k.expr(ir::plan::Expr::SizeOf(rows));
        let capacity = k.expr(ir::plan::Expr::SizeOf(cache.shape[2].clone()));
        let first = k.binary(Binary::Sub, rows, capacity);
        when = Some(k.binary(Binary::Le, first, row));
    }
    if let Some(start) = operands.get(2) {
        let zero = Size::from(0);
        let start = k.load(
            start,
            &[start.strides[0].clone(), zero.clone(), zero.clone(), zero],
            None,
        );
        row = k.binary(Binary::Add, start, row);
    }
    if ring {
        let capacity = k.expr(ir::plan::Expr::SizeOf(cache.shape[2].clone()));
        row = k.binary(Binary::Rem, row, capacity);
    }
    let row = (ring || operands.len() > 2).then(|| (row, std::mem::replace(&mut strides[2], Size::from(0))));
    CachePlace { strides, row, when }
}

/// An `rms_norm` that waits for the kernel that reads it.
pub(super) struct Norm {
    pub w: View,
    pub eps: f64,
    /// Its value would have been stored as bf16.
    pub rounded: bool,
}

impl Norm {
    /// Both halves of a row, normed.
    fn apply(&self, k: &mut KernelBuilder, rank: usize, half: i64, a: ExprId, b: ExprId) -> (ExprId, ExprId) {
        let (aa, bb) = (k.binary(Binary::Mul, a, a), k.binary(Binary::Mul, b, b));
        let squares = k.binary(Binary::Add, aa, bb);
        let sum = k.reduce(Reduction::Sum, squares);
        let scale = rms_scale(k, sum, 2 * half, self.eps);
        let mut strides = vec![Size::from(0); rank];
        strides[rank - 1] = self.w.strides[0].clone();
        let mut one = |x: ExprId, begin: i64| {
            let part = self.w.sliced(0, begin, Size::from(half)).expect("a weight starts at 0");
            let w = k.load(&part, &strides, None);
            let y = k.binary(Binary::Mul, x, scale);
            let y = k.binary(Binary::Mul, y, w);
            if self.rounded { k.unary(Unary::RoundBf16, y) } else { y }
        };
        (one(a, 0), one(b, half))
    }
}

/// The second half of the columns.
fn upper_half(v: &View) -> Option<View> {
    let axis = v.shape.len() - 1;
    let half = v.shape[axis].coef / 2;
    v.sliced(axis, half, Size::from(half))
}
