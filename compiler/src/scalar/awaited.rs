//! Loads and stores of values that functions wait for one by one (`gpu::awaited`); a GPU's alone.

use ir::plan::{Expr, ExprId};

use super::{Body, Columns, Point, memory};
use crate::gpu::awaited::{self, Asked};
use crate::mlir::emit::{Emit, Ty, Val};

/// Bytes of the widest load.
const WIDEST: usize = 16;

impl Body<'_> {
    pub fn awaits(&self, arg: usize) -> bool {
        self.awaited.get(arg).copied().unwrap_or(false)
    }

    /// What expressions load of values that are waited for, once all of it is there: one latency, not one for each.
    pub fn await_all(&self, e: &mut Emit, point: &mut Point, all: &mut [Columns]) {
        let (mut asked, mut of) = (vec![], vec![]);
        for (id, expr) in self.kernel.exprs.iter().enumerate() {
            let Expr::Load(access) = expr else { continue };
            if !self.awaits(access.arg) || access.indirect.is_some() || !self.varies(id) {
                continue;
            }
            for (i, cols) in all.iter_mut().enumerate() {
                self.ask(e, point, cols, id);
                let parts = cols.asked.remove(&id).unwrap_or_default();
                of.push((i, id, access.arg, parts.len()));
                asked.extend(parts);
            }
        }
        if asked.is_empty() {
            return;
        }
        // What can be loaded before is.
        for (id, expr) in self.kernel.exprs.iter().enumerate() {
            if !matches!(expr, Expr::Load(_)) || !self.is_known(id) {
                continue;
            }
            if self.varies(id) {
                for cols in all.iter_mut() {
                    self.vector(e, point, cols, id);
                }
            } else {
                self.scalar(e, point, id);
            }
        }
        let mut words = awaited::settle(e, &asked).into_iter();
        for (i, id, arg, parts) in of {
            let words: Vec<Val> = words.by_ref().take(parts).flatten().collect();
            let dtype = self.kernel.args[arg].dtype;
            let raw = awaited::value(e, &words, Ty::vector(memory(dtype), self.lanes));
            let x = super::widen(e, raw, dtype);
            all[i].values.insert(id, x);
        }
    }

    /// Does the value need nothing that is waited for, or made by this kernel?
    pub fn is_known(&self, id: ExprId) -> bool {
        let expr = &self.kernel.exprs[id];
        match expr {
            Expr::Load(a) if self.awaits(a.arg) || self.kernel.args[a.arg].written => false,
            Expr::Load(a) => a.indirect.iter().all(|(id, _)| self.is_known(*id)),
            Expr::Reduced(_) | Expr::RowSquares | Expr::Lse(_) | Expr::Acc | Expr::AccAlso | Expr::Swept(_) => false,
            other => other.operands().into_iter().all(|id| self.is_known(id)),
        }
    }

    /// A load under way, if it is not.
    pub fn ask(&self, e: &mut Emit, point: &mut Point, cols: &mut Columns, id: ExprId) {
        let Expr::Load(access) = &self.kernel.exprs[id] else {
            return;
        };
        if cols.asked.contains_key(&id) || cols.values.contains_key(&id) {
            return;
        }
        let elem = memory(self.kernel.args[access.arg].dtype);
        let ptr = self.pointers(e, point, cols, access, elem);
        let parts = self.parts(e, ptr, Ty::vector(elem, self.lanes), WIDEST);
        let asked = parts
            .into_iter()
            .map(|(at, lanes)| awaited::ask(e, at, lanes * elem.bytes(), elem.bytes()))
            .collect::<Vec<Asked>>();
        cols.asked.insert(id, asked);
    }

    /// A vector's parts that one instruction moves, of at most so many bytes: where, and how many elements.
    fn parts(&self, e: &mut Emit, ptr: Val, ty: Ty, widest: usize) -> Vec<(Val, usize)> {
        let lanes = ty.lanes.max(1);
        if ptr.ty.lanes > 0 {
            return (0..lanes).map(|i| (e.extract(ptr, i), 1)).collect();
        }
        let each = (self.aligned(ty).min(widest) / ty.elem.bytes()).max(1);
        (0..lanes)
            .step_by(each)
            .map(|i| {
                let more = e.int(i as i64, super::I32);
                (e.at(ptr, more, ty.elem), each)
            })
            .collect()
    }

    /// `mask`: the lanes that are stored.
    pub(super) fn store_awaited(&self, e: &mut Emit, raw: Val, ptr: Val, mask: Option<Val>) {
        let widest = if mask.is_some() { raw.ty.elem.bytes() } else { WIDEST };
        let parts = self.parts(e, ptr, raw.ty, widest);
        let mut lane = 0;
        for (at, lanes) in parts {
            let part = if lanes == raw.ty.lanes.max(1) {
                raw
            } else {
                let list: Vec<Val> = (lane..lane + lanes).map(|i| e.extract(raw, i)).collect();
                e.vector(&list)
            };
            match mask {
                None => awaited::store(e, part, at),
                Some(mask) => {
                    let on = e.extract(mask, lane);
                    e.if_then(on, &[], |e| {
                        awaited::store(e, part, at);
                        vec![]
                    });
                }
            }
            lane += lanes;
        }
    }
}
