//! What gradient rules are written with. The rules stand beside their ops; `crate::gradient` chains them.

use super::attrs;
use crate::graph::{Attr, Attrs, Function, Op, ValueId};
use crate::types::{DType, Dim, TensorType};

/// One step of the chain rule: from the gradient of an op's result to that of an operand.
pub struct Chain<'a> {
    pub f: &'a mut Function,
    pub op: &'a Op,
    /// d loss / d result: f32, in the result's shape.
    pub dy: ValueId,
    /// Which operand is asked for.
    pub at: usize,
}

impl Chain<'_> {
    /// An operand in f32.
    pub fn x(&mut self, operand: usize) -> ValueId {
        self.f.cast(self.op.operands[operand], DType::F32)
    }

    /// The result in f32.
    pub fn y(&mut self) -> ValueId {
        self.f.cast(self.op.results[0], DType::F32)
    }

    /// Shape of the operand that is asked for.
    pub fn shape(&self) -> Vec<Dim> {
        self.f.ty(self.op.operands[self.at]).shape.clone()
    }

    pub fn scalar(&mut self, value: f64) -> ValueId {
        self.f.scalar(value, DType::F32)
    }

    /// `v` in the shape of the operand, summed over what the op had broadcast.
    pub fn summed(&mut self, v: ValueId) -> ValueId {
        let shape = self.shape();
        summed(self.f, v, shape)
    }

    /// `v` broadcast to the shape of the operand.
    pub fn expanded(&mut self, v: ValueId) -> ValueId {
        let shape = self.shape();
        let zeros = self.zeros(shape);
        self.f.add(zeros, v)
    }

    pub fn zeros(&mut self, shape: Vec<Dim>) -> ValueId {
        self.f.constant(0.0, f32s(shape))
    }

    /// The op again on other operands and with these attributes besides its own.
    pub fn again<const N: usize>(&mut self, operands: &[ValueId], list: [(&str, Attr); N]) -> Result<ValueId, String> {
        let mut all: Attrs = self.op.attrs.clone();
        all.extend(attrs(list));
        self.f.try_op(&self.op.name, operands, all)
    }
}

pub fn f32s(shape: Vec<Dim>) -> TensorType {
    TensorType {
        shape,
        dtype: DType::F32,
    }
}

/// `v` summed over the axes in which it is larger than `shape`.
pub fn summed(f: &mut Function, mut v: ValueId, shape: Vec<Dim>) -> ValueId {
    let one = Dim::Const(1);
    let own = f.ty(v).shape.clone();
    let front = own.len() - shape.len();
    for (axis, dim) in own.iter().enumerate() {
        let kept = axis >= front && (shape[axis - front] != one);
        if !kept && *dim != one {
            v = f.reduce_sum(v, axis as i64);
        }
    }
    if f.ty(v).shape == shape {
        v
    } else {
        f.reshape(v, f32s(shape))
    }
}
