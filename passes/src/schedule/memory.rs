//! Where values lie: buffers of the plan, parts of what stands side by side, copies, and results in the caller's buffers.
//! Weights are in `weights`; who shares a slot is decided later (`slots`).

use ir::plan::{Buffer, BufferKind};
use ir::{DType, Size, TensorType, ValueId};

use super::build::KernelBuilder;
use super::view::{View, sizes};
use super::{Frame, Scheduler, layout};
use crate::attrs::int;

impl Scheduler<'_> {
    pub(super) fn buffer(&mut self, name: &str, ty: &TensorType, kind: BufferKind) -> usize {
        self.plan.buffers.push(Buffer {
            name: name.to_string(),
            dtype: ty.dtype,
            shape: sizes(&ty.shape),
            kind,
        });
        self.plan.buffers.len() - 1
    }

    /// Memory for a value of the function, where and how its reader wants it.
    pub(super) fn placed(&mut self, frame: &mut Frame, v: ValueId, ty: &TensorType) -> View {
        if let Some(part) = self.part(frame, v, ty) {
            return part;
        }
        let mut view = self.temporary(ty);
        if let Some(order) = frame.analysis.layouts.get(&v) {
            view.strides = layout::strides(&view.shape, order);
            self.plan.buffers[view.buffer].shape = order.iter().map(|d| view.shape[*d].clone()).collect();
        }
        view
    }

    /// The value's part of the `concat` that is its only reader.
    fn part(&mut self, frame: &mut Frame, v: ValueId, ty: &TensorType) -> Option<View> {
        let (stack, i) = *frame.analysis.places.get(&v)?;
        let op = frame.f.ops.iter().find(|op| op.results.first() == Some(&stack))?;
        let axis = int(op, "axis") as usize;
        let whole = match frame.stacks.get(&stack) {
            Some(view) => view.clone(),
            None => self.temporary(frame.f.ty(stack)),
        };
        frame.stacks.insert(stack, whole.clone());
        let extent = |v: &ValueId| frame.f.ty(*v).shape[axis].size().coef;
        let begin: i64 = op.operands[..i].iter().map(extent).sum();
        let part = whole.sliced(axis, begin, Size::from(extent(&op.operands[i])))?;
        part.reshaped(&sizes(&ty.shape))
    }

    /// A new dense temporary; its slot comes last.
    pub(super) fn temporary(&mut self, ty: &TensorType) -> View {
        self.temporary_of(ty.dtype, sizes(&ty.shape))
    }

    pub(super) fn temporary_of(&mut self, dtype: DType, shape: Vec<Size>) -> View {
        self.plan.buffers.push(Buffer {
            name: format!("t{}", self.plan.buffers.len()),
            dtype,
            shape: shape.clone(),
            kind: BufferKind::Temp { slot: 0 },
        });
        View::whole(self.plan.buffers.len() - 1, dtype, shape)
    }

    pub(super) fn shared_buffer(&mut self, key: String, name: &str, ty: &TensorType, kind: BufferKind) -> usize {
        if let Some(b) = self.shared.get(&key) {
            return *b;
        }
        let buffer = self.buffer(name, ty, kind);
        self.shared.insert(key, buffer);
        buffer
    }

    pub(super) fn is_state(&self, view: &View) -> bool {
        matches!(self.plan.buffers[view.buffer].kind, BufferKind::State(_))
    }

    /// The same values, dense.
    pub(super) fn copy(&mut self, view: &View) -> View {
        let to = self.temporary_of(view.dtype, view.shape.clone());
        self.copy_into(view, &to);
        to
    }

    pub(super) fn copy_into(&mut self, from: &View, to: &View) {
        let mut k = KernelBuilder::new("copy", &from.shape);
        let value = k.load_broadcast(from);
        k.store(to, value);
        self.launch(k.finish());
    }

    /// The result in a buffer of the caller's. A temporary that is the result as it stands becomes that buffer.
    pub(super) fn output(&mut self, name: &str, ty: &TensorType, view: View) {
        let kind = BufferKind::Output(name.to_string());
        let whole =
            view.is_dense() && Size::product(&view.shape) == Size::product(&self.plan.buffers[view.buffer].shape);
        if whole && matches!(self.plan.buffers[view.buffer].kind, BufferKind::Temp { .. }) {
            let buffer = &mut self.plan.buffers[view.buffer];
            buffer.kind = kind;
            buffer.shape = view.shape;
            buffer.name = name.to_string();
            return;
        }
        let buffer = self.buffer(name, ty, kind);
        self.copy_into(&view, &View::whole(buffer, ty.dtype, sizes(&ty.shape)));
    }
}
