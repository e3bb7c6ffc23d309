//! Is a module well formed? All errors are returned, not only the first.

use std::collections::HashSet;
use std::fmt;

use crate::graph::{Attr, Function, Module, Op, Param, ValueId};
use crate::ops;
use crate::types::TensorType;

/// What is wrong and where: the function, and the value the op defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    pub function: String,
    /// Without `%`; empty for errors of the function as a whole.
    pub value: String,
    /// The line of the op in the printed text of the module, from 1; 0 for errors of the function as a whole.
    pub line: usize,
    pub message: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "@{}: {}", self.function, self.message),
            value => write!(f, "line {}: @{}: %{value}: {}", self.line, self.function, self.message),
        }
    }
}

impl std::error::Error for VerifyError {}

/// The line of each op: `lines[function][op]`.
pub type Lines = Vec<Vec<usize>>;

/// Checks names, dominance, operand counts and types, calls and returns. Lines are those of the printed module.
pub fn verify(module: &Module) -> Vec<VerifyError> {
    verify_at(module, &printed_lines(module))
}

/// As [`verify`], with the lines of the text the module was parsed from (`text::parse_with_lines`).
pub fn verify_at(module: &Module, lines: &Lines) -> Vec<VerifyError> {
    let mut errors = vec![];
    for (i, f) in module.functions.iter().enumerate() {
        if module.functions[..i].iter().any(|g| g.name == f.name) {
            errors.push(whole(f, "there are two functions of this name".to_string()));
        }
        verify_function(module, i, lines.get(i).map_or(&[], Vec::as_slice), &mut errors);
    }
    errors
}

/// Where `text::print` puts the ops.
fn printed_lines(module: &Module) -> Lines {
    let mut line = 1;
    let mut lines = vec![];
    for (i, f) in module.functions.iter().enumerate() {
        // An empty line between functions; then the header, a line per parameter, and the header's end.
        let body = line + usize::from(i > 0) + f.params.len() + 2;
        lines.push((1..=f.ops.len()).map(|op| body + op).collect());
        line = body + f.ops.len() + 2;
    }
    lines
}

fn whole(f: &Function, message: String) -> VerifyError {
    VerifyError {
        function: f.name.clone(),
        value: String::new(),
        line: 0,
        message,
    }
}

fn verify_function(module: &Module, index: usize, lines: &[usize], errors: &mut Vec<VerifyError>) {
    let f = &module.functions[index];
    let mut defined: HashSet<ValueId> = HashSet::new();
    let mut names: HashSet<(&str, &str)> = HashSet::new();
    for (v, param) in &f.params {
        defined.insert(*v);
        let key = match param {
            Param::Input(n) => Some(("input", n.as_str())),
            Param::State(n) => Some(("state", n.as_str())),
            // One tensor may be read under two types (a tied head).
            Param::Weight(_) => None,
        };
        if let Some((kind, name)) = key
            && !names.insert((kind, name))
        {
            errors.push(whole(f, format!("two parameters are {kind} {name:?}")));
        }
    }
    for (i, op) in f.ops.iter().enumerate() {
        let value = op
            .results
            .first()
            .map(|v| f.value_name(*v).to_string())
            .unwrap_or_default();
        let mut report = |message: String| {
            errors.push(VerifyError {
                function: f.name.clone(),
                value: value.clone(),
                line: lines.get(i).copied().unwrap_or(0),
                message,
            })
        };
        let undefined: Vec<&str> = op
            .operands
            .iter()
            .filter(|v| !defined.contains(v))
            .map(|v| f.value_name(*v))
            .collect();
        if !undefined.is_empty() {
            report(format!("%{} is used before it is defined", undefined.join(", %")));
        }
        if op.results.iter().any(|v| !defined.insert(*v)) {
            report("is defined twice".to_string());
        }
        if let Err(message) = verify_op(&module.functions[..index], f, op) {
            report(message);
        }
    }
    let mut seen = HashSet::new();
    for v in &f.values {
        if !seen.insert(&v.name) {
            errors.push(whole(f, format!("two values are called %{}", v.name)));
        }
    }
    for (i, (name, v)) in f.returns.iter().enumerate() {
        if f.returns[..i].iter().any(|(other, _)| other == name) {
            errors.push(whole(f, format!("two results are called {name:?}")));
        }
        if !defined.contains(v) {
            errors.push(whole(f, format!("return {name}: %{} is not defined", f.value_name(*v))));
        }
    }
}

/// `before`: the functions that may be called; callees stand before callers, so no call can be cyclic.
fn verify_op(before: &[Function], f: &Function, op: &Op) -> Result<(), String> {
    let operands: Vec<&TensorType> = op.operands.iter().map(|v| f.ty(*v)).collect();
    let results: Vec<&TensorType> = op.results.iter().map(|v| f.ty(*v)).collect();
    let inferred: Vec<TensorType> = if op.name == "call" {
        let (Some(Attr::Str(callee)), Some(Attr::Int(_))) = (op.attrs.get("callee"), op.attrs.get("layer")) else {
            return Err("call: wants callee (a string) and layer (an integer)".to_string());
        };
        let g = before
            .iter()
            .find(|g| g.name == *callee)
            .ok_or_else(|| format!("call: there is no function @{callee} above @{}", f.name))?;
        let inputs: Vec<&TensorType> = g
            .params
            .iter()
            .filter(|(_, p)| matches!(p, Param::Input(_)))
            .map(|(v, _)| g.ty(*v))
            .collect();
        if inputs != operands {
            return Err(format!(
                "call: @{callee} wants ({}), gets ({})",
                types(&inputs),
                types(&operands)
            ));
        }
        g.returns.iter().map(|(_, v)| g.ty(*v).clone()).collect()
    } else {
        let def = ops::op(&op.name).ok_or_else(|| format!("there is no op `{}`", op.name))?;
        if let Some(unknown) = op.attrs.keys().find(|name| !def.attrs.contains(&name.as_str())) {
            return Err(format!(
                "{}: has no attribute `{unknown}`; it takes {}",
                op.name, def.usage
            ));
        }
        let signature = ops::Signature {
            operands: &operands,
            attrs: &op.attrs,
        };
        vec![(def.infer)(&signature).map_err(|e| format!("{}: {e}", op.name))?]
    };
    if inferred.iter().collect::<Vec<_>>() != results {
        return Err(format!(
            "{}: is {}, declared as {}",
            op.name,
            types(&inferred.iter().collect::<Vec<_>>()),
            types(&results)
        ));
    }
    Ok(())
}

fn types(list: &[&TensorType]) -> String {
    list.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ")
}
