//! The graph: a module of functions, each a straight line of ops over SSA values. Knows no op's meaning (`ops` does).

use std::collections::BTreeMap;

use crate::types::TensorType;

/// A value of a function: a parameter or an op's result. Index into `Function::values`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A compile-time attribute of an op or of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(String),
    /// `[0, 2, 1]`
    Ints(Vec<i64>),
    /// A type, for ops whose result type does not follow from their operands (`reshape`, `constant`, ...).
    Type(TensorType),
}

/// Attributes by name, in printing order (sorted).
pub type Attrs = BTreeMap<String, Attr>;

/// One op: `%r = "loop.NAME"(%a, %b) {attrs} : (types) -> types`.
#[derive(Clone, Debug, PartialEq)]
pub struct Op {
    /// Without the dialect prefix: `matmul`.
    pub name: String,
    pub operands: Vec<ValueId>,
    pub attrs: Attrs,
    /// One for every op but `call`.
    pub results: Vec<ValueId>,
}

/// How a function's parameter is fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Param {
    /// By the caller, under this name (`tokens`, `start`, an activation of a layer function ...).
    Input(String),
    /// A tensor of the checkpoint. `{i}` in the name stands for the layer of the `call` that reaches the function.
    Weight(String),
    /// Memory that outlives the call (KV cache), changed in place by `cache_write` or `update`; `{i}` as in `Weight`.
    State(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub ty: TensorType,
    /// Printed as `%name`; unique in the function. Numbers for those nobody named.
    pub name: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    pub name: String,
    pub params: Vec<(ValueId, Param)>,
    pub ops: Vec<Op>,
    /// With the names the caller sees (`logits`, `loss`, ...).
    pub returns: Vec<(String, ValueId)>,
    pub values: Vec<Value>,
}

/// Functions by order of definition. Entry points (`prefill`, `decode`, `logits`, `loss`) call layer functions with
/// `call {callee = "layer", layer = 3}`; callees stand before their callers.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Module {
    pub functions: Vec<Function>,
}

impl Op {
    /// Does it change memory that outlives the call?
    pub fn writes_state(&self) -> bool {
        matches!(self.name.as_str(), "cache_write" | "update")
    }
}

impl Module {
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name)
    }
}

impl Function {
    pub fn new(name: &str) -> Function {
        Function {
            name: name.to_string(),
            params: vec![],
            ops: vec![],
            returns: vec![],
            values: vec![],
        }
    }

    pub fn ty(&self, v: ValueId) -> &TensorType {
        &self.values[v.0 as usize].ty
    }

    pub fn value_name(&self, v: ValueId) -> &str {
        &self.values[v.0 as usize].name
    }

    pub fn new_value(&mut self, ty: TensorType, name: Option<&str>) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        let is_free = |name: &str| self.values.iter().all(|v| v.name != name);
        let name = match name {
            Some(wanted) if is_free(wanted) => wanted.to_string(),
            // A graph that was read may have gaps in its numbers, and larger ones.
            _ => (id.0..).map(|n| n.to_string()).find(|n| is_free(n)).unwrap_or_default(),
        };
        self.values.push(Value { ty, name });
        id
    }

    pub fn param(&mut self, name: &str, ty: TensorType, kind: Param) -> ValueId {
        let v = self.new_value(ty, Some(name));
        self.params.push((v, kind));
        v
    }
}
