//! Ops that are one kernel each: norms, softmax, rotary embedding, look-ups, cache writes, reductions, loss, concat.

use ir::plan::{Binary, ExprId, Reduction, Unary};
use ir::{DType, Op, Size, TensorType, ValueId};

use super::build::KernelBuilder;
use super::expression::rms_scale;
use super::view::{View, sizes};
use super::{Def, Frame, Scheduler, flag, float, int};
use crate::PassError;

/// The most negative finite f32: below every score, and no infinity minus infinity.
const LOWEST: f64 = f32::MIN as f64;

impl Scheduler<'_> {
    pub(super) fn row_op(&mut self, frame: &mut Frame, op: &Op, ty: &TensorType) -> Result<View, PassError> {
        if op.name == "cross_entropy"
            && let Some(Def::Lazy(logits)) = frame.defs.get(&op.operands[0]).cloned()
        {
            return self.joined_loss(frame, op, logits, ty);
        }
        let mut norm = None;
        let mut operands = vec![];
        for v in &op.operands {
            operands.push(match frame.defs.get(v).cloned() {
                Some(Def::Lazy(waits)) if waits.name == "rms_norm" => {
                    let w = self.view(frame, waits.operands[1])?;
                    norm = Some(Norm {
                        w,
                        eps: float(waits, "eps"),
                        rounded: frame.f.ty(*v).dtype == DType::BF16,
                    });
                    self.view(frame, waits.operands[0])?
                }
                _ => self.view(frame, *v)?,
            });
        }
        if op.name == "cache_write" {
            return self.cache_write(op, &operands);
        }
        if op.name == "scatter_rows" {
            let to = self.placed(frame, op.results[0], ty);
            self.scatter_rows(&operands[0], &operands[1], &to);
            return Ok(to);
        }
        if op.name == "concat" {
            let to = match frame.stacks.get(&op.results[0]) {
                Some(begun) => begun.clone(),
                None => self.placed(frame, op.results[0], ty),
            };
            self.concat(op, &operands, &to);
            return Ok(to);
        }
        if op.name == "rope" {
            return self.turned_rows(frame, op, &operands, norm, ty);
        }
        let to = self.placed(frame, op.results[0], ty);
        let mut k = KernelBuilder::keeping_columns(&op.name, &to.shape);
        match op.name.as_str() {
            "softmax" => softmax(&mut k, &operands[0], &to),
            "rms_norm" => rms_norm(&mut k, &operands[0], &operands[1], float(op, "eps"), &to),
            "rms_scale" => k = row_scale(&operands[0], float(op, "eps"), &to),
            "reduce_sum" => k = reduce(Reduction::Sum, int(op, "axis") as usize, &operands[0], &to),
            "reduce_max" => k = reduce(Reduction::Max, int(op, "axis") as usize, &operands[0], &to),
            "embed" => {
                let (table, tokens) = (&operands[0], &operands[1]);
                let zero = Size::from(0);
                let token = k.load(
                    tokens,
                    &[tokens.strides[0].clone(), tokens.strides[1].clone(), zero.clone()],
                    None,
                );
                let row = Some((token, table.strides[0].clone()));
                let value = k.load(table, &[zero.clone(), zero, table.broadcast_strides(2)[1].clone()], row);
                k.store(&to, value);
            }
            "take_rows" => {
                let (x, last) = (&operands[0], &operands[1]);
                let zero = Size::from(0);
                let row = k.load(last, &[last.strides[0].clone(), zero.clone(), zero.clone()], None);
                let row = Some((row, x.strides[1].clone()));
                let value = k.load(x, &[x.strides[0].clone(), zero, x.broadcast_strides(3)[2].clone()], row);
                k.store(&to, value);
            }
            "log_sum_exp" => k = log_sum_exp(&operands[0], &to),
            "arg_max" => k = self.arg_max(&operands[0], &to),
            "cross_entropy" => k = cross_entropy(&operands[0], &operands[1], &to),
            other => return Err(PassError(format!("there is no kernel for `{other}`"))),
        }
        self.launch(k.finish());
        Ok(to)
    }

    /// The loss in the kernel of its logits' matmul: the columns go by once and are never stored.
    fn joined_loss(&mut self, frame: &mut Frame, op: &Op, logits: &Op, ty: &TensorType) -> Result<View, PassError> {
        let shape = sizes(&frame.f.ty(logits.results[0]).shape);
        let targets = self.view(frame, op.operands[1])?;
        let mut k = KernelBuilder::keeping_columns("", &shape);
        let mut names = vec!["cross_entropy".to_string()];
        let x = self.expression(frame, &mut k, logits, shape.len(), &mut names)?;
        k.rename(&names.join("_"));
        let nll = loss(&mut k, x, &targets);
        let to = self.placed(frame, op.results[0], ty);
        store_rows(&mut k, &to, nll);
        self.launch(k.finish());
        Ok(to)
    }

    /// What a loss and its gradient want of the rows of logits that this kernel stores: sums over the columns as they go by.
    pub(super) fn rows_of_logits(
        &mut self,
        frame: &mut Frame,
        k: &mut KernelBuilder,
        logits: ValueId,
        x: ExprId,
    ) -> Result<(), PassError> {
        let readers = frame.f.ops.iter().filter(|o| o.operands.first() == Some(&logits));
        let mut rows = vec![];
        for op in readers {
            let value = match op.name.as_str() {
                "log_sum_exp" => k.reduce(Reduction::LogSumExp, x),
                "cross_entropy" if frame.defs.contains_key(&op.operands[1]) => {
                    let targets = self.view(frame, op.operands[1])?;
                    loss(k, x, &targets)
                }
                _ => continue,
            };
            rows.push((op.results[0], value));
        }
        for (v, value) in rows {
            let mut to = self.temporary(&frame.f.ty(v).clone());
            if to.shape.len() == 3 {
                // A column of its own: [B, T, 1].
                to.shape.pop();
                to.strides.pop();
            }
            store_rows(k, &to, value);
            let ty = frame.f.ty(v).clone();
            let whole = View::whole(to.buffer, ty.dtype, sizes(&ty.shape));
            frame.defs.insert(v, Def::View(whole));
        }
        Ok(())
    }

    /// Rows turned by their positions, to memory and, where they are what a cache takes, there at once.
    fn turned_rows(
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

    fn cache_write(&mut self, op: &Op, operands: &[View]) -> Result<View, PassError> {
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

    /// Zeros, then row after row: a tile owns a block of columns and walks all rows in order, so that sums have one order.
    fn scatter_rows(&mut self, x: &View, rows: &View, to: &View) {
        let mut zeros = KernelBuilder::new("zeros", &to.shape);
        let zero = zeros.float(0.0);
        zeros.store(to, zero);
        self.launch(zeros.finish());
        let width = to.shape[1].coef;
        let block = (1..=64).rev().find(|b| width % b == 0).unwrap_or(1);
        let none = || Size::from(0);
        let shape = [
            Size::from(width / block),
            x.shape[0].clone(),
            x.shape[1].clone(),
            Size::from(block),
        ];
        let mut k = KernelBuilder::keeping_all("scatter_rows", &shape);
        k.ordered = 2;
        let row = k.load(
            rows,
            &[none(), rows.strides[0].clone(), rows.strides[1].clone(), none()],
            None,
        );
        let column = &x.strides[2];
        let by_block = |stride: &Size| stride * &Size::from(block);
        let strides = [
            by_block(column),
            x.strides[0].clone(),
            x.strides[1].clone(),
            column.clone(),
        ];
        let value = k.load(x, &strides, None);
        let column = &to.strides[1];
        let place = [by_block(column), none(), none(), column.clone()];
        let to_row = || Some((row, to.strides[0].clone()));
        let sum = k.load(to, &place, to_row());
        let sum = k.binary(Binary::Add, sum, value);
        k.store_at(to, &place, to_row(), sum, None);
        self.launch(k.finish());
    }

    fn concat(&mut self, op: &Op, operands: &[View], to: &View) {
        let axis = int(op, "axis") as usize;
        let mut begin = 0;
        for part in operands {
            let n = part.shape[axis].coef;
            // A part that was written into its place is there already.
            if part.buffer != to.buffer
                && let Some(place) = to.sliced(axis, begin, Size::from(n))
            {
                self.copy_into(part, &place);
            }
            begin += n;
        }
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
struct Norm {
    w: View,
    eps: f64,
    /// Its value would have been stored as bf16.
    rounded: bool,
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

fn softmax(k: &mut KernelBuilder, x: &View, to: &View) {
    let x = k.load_broadcast(x);
    let max = k.reduce(Reduction::Max, x);
    let lowest = k.float(LOWEST);
    let max = k.binary(Binary::Max, max, lowest);
    let shifted = k.binary(Binary::Sub, x, max);
    let e = k.unary(Unary::Exp, shifted);
    let sum = k.reduce(Reduction::Sum, e);
    // A row that sees nothing sums to 0 and stays 0.
    let tiny = k.float(1e-30);
    let sum = k.binary(Binary::Max, sum, tiny);
    let one = k.float(1.0);
    let scale = k.binary(Binary::Div, one, sum);
    let y = k.binary(Binary::Mul, e, scale);
    k.store(to, y);
}

/// The negative log-likelihood of the kernel's row, whose logits are x.
fn loss(k: &mut KernelBuilder, x: ExprId, targets: &View) -> ExprId {
    let row = [targets.strides[0].clone(), targets.strides[1].clone(), Size::from(0)];
    let target = k.load(targets, &row, None);
    let total = k.reduce(Reduction::LogSumExp, x);
    let column = k.index(2);
    let is_target = k.binary(Binary::Eq, column, target);
    let nothing = k.float(0.0);
    let chosen = k.select(is_target, x, nothing);
    let chosen = k.reduce(Reduction::Sum, chosen);
    let nll = k.binary(Binary::Sub, total, chosen);
    let first = k.int(0);
    let none = k.binary(Binary::Lt, target, first);
    k.select(none, nothing, nll)
}

/// Into [B, T], once per row.
fn store_rows(k: &mut KernelBuilder, to: &View, value: ExprId) {
    let row = [to.strides[0].clone(), to.strides[1].clone(), Size::from(0)];
    k.store_at(to, &row, None, value, None);
}

fn log_sum_exp(x: &View, to: &View) -> KernelBuilder {
    let mut k = KernelBuilder::keeping_columns("log_sum_exp", &x.shape);
    let x = k.load_broadcast(x);
    let max = k.reduce(Reduction::Max, x);
    let shifted = k.binary(Binary::Sub, x, max);
    let e = k.unary(Unary::Exp, shifted);
    let sum = k.reduce(Reduction::Sum, e);
    let log = k.unary(Unary::Log, sum);
    let total = k.binary(Binary::Add, log, max);
    store_once(&mut k, to, total);
    k
}

/// Into [.., 1], once per row.
pub(super) fn store_once(k: &mut KernelBuilder, to: &View, value: ExprId) {
    let mut strides = to.broadcast_strides(to.shape.len());
    *strides.last_mut().expect("it has a row") = Size::from(0);
    k.store_at(to, &strides, None, value, None);
}

fn rms_norm(k: &mut KernelBuilder, x: &View, w: &View, eps: f64, to: &View) {
    let n = x.shape[x.shape.len() - 1].coef;
    let x = k.load_broadcast(x);
    let square = k.binary(Binary::Mul, x, x);
    let sum = k.reduce(Reduction::Sum, square);
    let scale = rms_scale(k, sum, n, eps);
    let w = k.load_broadcast(w);
    let y = k.binary(Binary::Mul, x, scale);
    let y = k.binary(Binary::Mul, y, w);
    k.store(to, y);
}

/// An `rms_scale` of its own: once per row.
fn row_scale(x: &View, eps: f64, to: &View) -> KernelBuilder {
    let mut k = KernelBuilder::keeping_columns("rms_scale", &x.shape);
    let n = x.shape[x.shape.len() - 1].coef;
    let x = k.load(x, &x.strides, None);
    let square = k.binary(Binary::Mul, x, x);
    let sum = k.reduce(Reduction::Sum, square);
    let scale = rms_scale(&mut k, sum, n, eps);
    let mut strides = to.strides.clone();
    *strides.last_mut().expect("a row has columns") = Size::from(0);
    k.store_at(to, &strides, None, scale, None);
    k
}

/// The axis moves to the columns.
fn reduce(op: Reduction, axis: usize, x: &View, to: &View) -> KernelBuilder {
    let rank = x.shape.len();
    let mut perm: Vec<i64> = (0..rank as i64).filter(|d| *d != axis as i64).collect();
    perm.push(axis as i64);
    let x = x.transposed(&perm);
    let mut to = to.transposed(&perm);
    to.strides[rank - 1] = Size::from(0);
    let mut k = KernelBuilder::keeping_columns(
        if op == Reduction::Sum {
            "reduce_sum"
        } else {
            "reduce_max"
        },
        &x.shape,
    );
    let value = k.load(&x, &x.strides, None);
    let value = k.reduce(op, value);
    k.store_at(&to, &to.strides, None, value, None);
    k
}

fn cross_entropy(logits: &View, targets: &View, to: &View) -> KernelBuilder {
    let mut k = KernelBuilder::keeping_columns("cross_entropy", &logits.shape);
    let zero = || Size::from(0);
    let x = k.load(logits, &logits.strides, None);
    let max = k.reduce(Reduction::Max, x);
    let shifted = k.binary(Binary::Sub, x, max);
    let e = k.unary(Unary::Exp, shifted);
    let sum = k.reduce(Reduction::Sum, e);
    let log = k.unary(Unary::Log, sum);
    let target = k.load(
        targets,
        &[targets.strides[0].clone(), targets.strides[1].clone(), zero()],
        None,
    );
    let first = k.int(0);
    let none = k.binary(Binary::Lt, target, first);
    let at = k.binary(Binary::Max, target, first);
    let strides = [logits.strides[0].clone(), logits.strides[1].clone(), zero()];
    let chosen = k.load(logits, &strides, Some((at, logits.strides[2].clone())));
    let total = k.binary(Binary::Add, log, max);
    let nll = k.binary(Binary::Sub, total, chosen);
    let nothing = k.float(0.0);
    let nll = k.select(none, nothing, nll);
    k.store_at(
        to,
        &[to.strides[0].clone(), to.strides[1].clone(), zero()],
        None,
        nll,
        None,
    );
    k
}
