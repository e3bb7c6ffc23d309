//! One method per op on [`Function`]: how graphs are written in Rust.
//!
//! They panic on a type error, with the op and the types: a graph that our own code builds wrongly is our bug. Text from a user goes
//! through the parser and the verifier instead.

use super::{attrs, op};
use crate::graph::{Attr, Attrs, Function, Op, Param, ValueId};
use crate::types::{DType, TensorType};

impl Function {
    /// Any op but `call` by name; says what does not fit.
    pub fn try_op(&mut self, name: &str, operands: &[ValueId], attrs: Attrs) -> Result<ValueId, String> {
        let def = op(name).ok_or_else(|| format!("there is no op `{name}`"))?;
        let types: Vec<&TensorType> = operands.iter().map(|v| self.ty(*v)).collect();
        let ty = (def.infer)(&super::Signature {
            operands: &types,
            attrs: &attrs,
        })
        .map_err(|e| format!("{name}: {e}"))?;
        let result = self.new_value(ty, None);
        self.ops.push(Op {
            name: name.to_string(),
            operands: operands.to_vec(),
            attrs,
            results: vec![result],
        });
        Ok(result)
    }

    fn op<const N: usize>(&mut self, name: &str, operands: &[ValueId], list: [(&str, Attr); N]) -> ValueId {
        self.try_op(name, operands, attrs(list))
            .unwrap_or_else(|e| panic!("@{}: {e}", self.name))
    }

    pub fn constant(&mut self, value: f64, ty: TensorType) -> ValueId {
        self.op(
            "constant",
            &[],
            [("type", Attr::Type(ty)), ("value", Attr::Float(value))],
        )
    }

    /// A scalar that broadcasts against anything of its type.
    pub fn scalar(&mut self, value: f64, dtype: DType) -> ValueId {
        self.constant(value, TensorType { shape: vec![], dtype })
    }

    pub fn embed(&mut self, table: ValueId, tokens: ValueId, dtype: DType) -> ValueId {
        self.op("embed", &[table, tokens], [name(dtype)])
    }

    pub fn take_rows(&mut self, x: ValueId, last: ValueId) -> ValueId {
        self.op("take_rows", &[x, last], [])
    }

    pub fn matmul(&mut self, a: ValueId, b: ValueId, transpose_b: bool, dtype: DType) -> ValueId {
        self.op(
            "matmul",
            &[a, b],
            [("transpose_b", Attr::Bool(transpose_b)), name(dtype)],
        )
    }

    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op("add", &[a, b], [])
    }

    pub fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op("sub", &[a, b], [])
    }

    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op("mul", &[a, b], [])
    }

    pub fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op("div", &[a, b], [])
    }

    pub fn max(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op("max", &[a, b], [])
    }

    /// `neg`, `exp`, `log`, `rsqrt`, `sigmoid`, `silu`.
    pub fn unary(&mut self, op: &str, x: ValueId) -> ValueId {
        self.op(op, &[x], [])
    }

    /// No op if x has the type already.
    pub fn cast(&mut self, x: ValueId, dtype: DType) -> ValueId {
        if self.ty(x).dtype == dtype {
            x
        } else {
            self.op("cast", &[x], [name(dtype)])
        }
    }

    pub fn select(&mut self, cond: ValueId, a: ValueId, b: ValueId) -> ValueId {
        self.op("where", &[cond, a, b], [])
    }

    pub fn mask(&mut self, start: Option<ValueId>, window: Option<i64>, ty: TensorType) -> ValueId {
        let mut list = attrs([("type", Attr::Type(ty))]);
        list.extend(window.map(|w| ("window".to_string(), Attr::Int(w))));
        let operands: Vec<ValueId> = start.into_iter().collect();
        self.try_op("mask", &operands, list)
            .unwrap_or_else(|e| panic!("@{}: {e}", self.name))
    }

    pub fn rope(&mut self, x: ValueId, start: Option<ValueId>, theta: f64, max: i64, dtype: DType) -> ValueId {
        let operands: Vec<ValueId> = [Some(x), start].into_iter().flatten().collect();
        self.op(
            "rope",
            &operands,
            [("theta", Attr::Float(theta)), ("max", Attr::Int(max)), name(dtype)],
        )
    }

    pub fn softmax(&mut self, x: ValueId, dtype: DType) -> ValueId {
        self.op("softmax", &[x], [name(dtype)])
    }

    pub fn rms_norm(&mut self, x: ValueId, w: ValueId, eps: f64, dtype: DType) -> ValueId {
        self.op("rms_norm", &[x, w], [("eps", Attr::Float(eps)), name(dtype)])
    }

    pub fn reduce_sum(&mut self, x: ValueId, axis: i64) -> ValueId {
        self.op("reduce_sum", &[x], [("axis", Attr::Int(axis))])
    }

    pub fn arg_max(&mut self, x: ValueId) -> ValueId {
        self.op("arg_max", &[x], [])
    }

    pub fn reduce_max(&mut self, x: ValueId, axis: i64) -> ValueId {
        self.op("reduce_max", &[x], [("axis", Attr::Int(axis))])
    }

    pub fn reshape(&mut self, x: ValueId, ty: TensorType) -> ValueId {
        self.op("reshape", &[x], [("type", Attr::Type(ty))])
    }

    pub fn transpose(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        self.op("transpose", &[x], [("perm", Attr::Ints(perm.to_vec()))])
    }

    pub fn slice(&mut self, x: ValueId, axis: i64, begin: i64, ty: TensorType) -> ValueId {
        self.op(
            "slice",
            &[x],
            [
                ("axis", Attr::Int(axis)),
                ("begin", Attr::Int(begin)),
                ("type", Attr::Type(ty)),
            ],
        )
    }

    pub fn concat(&mut self, parts: &[ValueId], axis: i64) -> ValueId {
        self.op("concat", parts, [("axis", Attr::Int(axis))])
    }

    pub fn cache_write(&mut self, cache: ValueId, new: ValueId, start: Option<ValueId>, ring: bool) -> ValueId {
        let operands: Vec<ValueId> = [Some(cache), Some(new), start].into_iter().flatten().collect();
        self.op("cache_write", &operands, [("ring", Attr::Bool(ring))])
    }

    /// The state's new value; the old one is gone.
    pub fn update(&mut self, state: ValueId, value: ValueId) -> ValueId {
        self.op("update", &[state, value], [])
    }

    pub fn cross_entropy(&mut self, logits: ValueId, targets: ValueId) -> ValueId {
        self.op("cross_entropy", &[logits, targets], [])
    }

    /// The callee's returns, in order. `args` are its inputs, in order.
    pub fn call(&mut self, callee: &Function, layer: i64, args: &[ValueId]) -> Vec<ValueId> {
        let inputs: Vec<&TensorType> = callee
            .params
            .iter()
            .filter(|(_, p)| matches!(p, Param::Input(_)))
            .map(|(v, _)| callee.ty(*v))
            .collect();
        let given: Vec<&TensorType> = args.iter().map(|v| self.ty(*v)).collect();
        assert_eq!(inputs, given, "@{} calls @{}", self.name, callee.name);
        let results: Vec<ValueId> = callee
            .returns
            .iter()
            .map(|(_, v)| callee.ty(*v).clone())
            .map(|ty| self.new_value(ty, None))
            .collect();
        let list = attrs([("callee", Attr::Str(callee.name.clone())), ("layer", Attr::Int(layer))]);
        self.ops.push(Op {
            name: "call".to_string(),
            operands: args.to_vec(),
            attrs: list,
            results: results.clone(),
        });
        results
    }

    pub fn returns(&mut self, name: &str, value: ValueId) {
        self.returns.push((name.to_string(), value));
    }
}

fn name(dtype: DType) -> (&'static str, Attr) {
    ("dtype", Attr::Str(dtype.name().to_string()))
}
