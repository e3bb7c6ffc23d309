//! A module as a picture: Graphviz DOT text, one cluster per function. Knows no pass, no plan and no layout.

use std::collections::HashMap;
use std::fmt::Write;

use crate::graph::{Attr, Function, Module, Op, Param, ValueId};
use crate::types::TensorType;

/// Fill colours by family; what stands in no row is element-wise.
const COLOURS: &[(&[&str], &str)] = &[
    (&["matmul"], "#f6d5b8"),
    (
        &[
            "reduce_sum",
            "reduce_max",
            "arg_max",
            "softmax",
            "rms_norm",
            "cross_entropy",
        ],
        "#d9cdec",
    ),
    (&["reshape", "transpose", "slice", "concat"], "#e8e8e8"),
    (
        &["embed", "take_rows", "scatter_rows", "cache_write", "update"],
        "#c9e4de",
    ),
    (&["call"], "#f7d6e0"),
    (&["input"], "#ffffff"),
    (&["weight"], "#fbf3c4"),
    (&["state"], "#c9e4de"),
];
const ELEMENT_WISE: &str = "#d3e5f7";

/// What an op's operands are called; nothing where their order has no meaning (`add`, `mul`, `max`).
const OPERANDS: &[(&str, &[&str])] = &[
    ("embed", &["table", "tokens"]),
    ("matmul", &["a", "b"]),
    ("sub", &["a", "b"]),
    ("div", &["a", "b"]),
    ("where", &["cond", "a", "b"]),
    ("rms_norm", &["x", "w"]),
    ("rope", &["x", "start"]),
    ("cache_write", &["cache", "new", "start"]),
    ("take_rows", &["x", "last"]),
    ("cross_entropy", &["logits", "targets"]),
];

/// A constant or a mask with at most this many readers stands in their labels and is no node.
const FEW: usize = 3;

/// DOT text of all functions, or of the one called `function`; a graph without clusters if there is none of that name.
///
/// Within a cluster the parameters come first, one node each, then ops and returns.
pub fn dot(module: &Module, function: Option<&str>) -> String {
    let mut out = String::from("digraph module {\n  node [shape=\"box\", style=\"filled\", fontsize=\"12\"];\n");
    out += "  edge [fontsize=\"10\"];\n";
    for (i, f) in module.functions.iter().enumerate() {
        if function.is_none_or(|name| name == f.name) {
            cluster(module, f, i, &mut out);
        }
    }
    out + "}\n"
}

fn cluster(module: &Module, f: &Function, index: usize, out: &mut String) {
    let mut lines = vec![format!("label={};", quoted(&format!("@{}", f.name)))];
    let mut edges = vec![];
    // The node each value comes from, or the text that stands for it in its readers.
    let mut nodes: HashMap<ValueId, String> = HashMap::new();
    let mut inlined: HashMap<ValueId, String> = HashMap::new();
    for (i, (v, param)) in f.params.iter().enumerate() {
        let (kind, name) = match param {
            Param::Input(name) => ("input", name),
            Param::Weight(name) => ("weight", name),
            Param::State(name) => ("state", name),
        };
        let node = format!("f{index}_p{i}");
        let label = format!("{kind} {name}\n{}", short(f.ty(*v)));
        lines.push(format!(
            "{node} [label={}, style=\"rounded,filled\", fillcolor=\"{}\"];",
            quoted(&label),
            colour(kind)
        ));
        nodes.insert(*v, node);
    }
    for (i, op) in f.ops.iter().enumerate() {
        let node = format!("f{index}_o{i}");
        if source(op) && readers(f, op.results[0]) <= FEW {
            inlined.insert(op.results[0], title(f, op));
            continue;
        }
        let mut label = format!("{} {}", values(f, &op.results), title(f, op));
        let names = operand_names(module, op);
        for (i, v) in op.operands.iter().enumerate() {
            let name = names.get(i).filter(|_| op.operands.len() > 1);
            if let Some(text) = inlined.get(v) {
                let name = name.map(|n| format!("{n}: ")).unwrap_or_default();
                write!(label, "\n{name}{text}").ok();
            } else if let Some(from) = nodes.get(v) {
                let name = name.map(|n| format!(" [label={}]", quoted(n))).unwrap_or_default();
                edges.push(format!("{from} -> {node}{name};"));
            }
        }
        for v in &op.results {
            write!(label, "\n{}", short(f.ty(*v))).ok();
            nodes.insert(*v, node.clone());
        }
        let fill = colour(&op.name);
        lines.push(format!("{node} [label={}, fillcolor=\"{fill}\"];", quoted(&label)));
    }
    for (i, (name, v)) in f.returns.iter().enumerate() {
        let node = format!("f{index}_r{i}");
        let mut label = format!("return {name}");
        match (inlined.get(v), nodes.get(v)) {
            (Some(text), _) => label += &format!("\n{text}"),
            (None, Some(from)) => edges.push(format!("{from} -> {node};")),
            (None, None) => {}
        }
        let fill = colour("input");
        lines.push(format!("{node} [label={}, fillcolor=\"{fill}\"];", quoted(&label)));
    }
    writeln!(out, "  subgraph cluster_{index} {{").ok();
    for line in lines.iter().chain(&edges) {
        writeln!(out, "    {line}").ok();
    }
    *out += "  }\n";
}

fn colour(kind: &str) -> &'static str {
    let row = COLOURS.iter().find(|(names, _)| names.contains(&kind));
    row.map_or(ELEMENT_WISE, |(_, colour)| colour)
}

/// Reads nothing: a constant, or a mask from position 0.
fn source(op: &Op) -> bool {
    op.operands.is_empty() && ["constant", "mask"].contains(&op.name.as_str()) && op.results.len() == 1
}

fn readers(f: &Function, v: ValueId) -> usize {
    let operands = f.ops.iter().flat_map(|op| &op.operands).filter(|o| **o == v);
    operands.count() + f.returns.iter().filter(|(_, r)| *r == v).count()
}

/// The op and its attributes. Types are left out, the result's stands below; so are switches that are off.
fn title(f: &Function, op: &Op) -> String {
    if let (Some(Attr::Str(callee)), Some(Attr::Int(layer))) = (op.attrs.get("callee"), op.attrs.get("layer")) {
        return format!("call @{callee}, layer {layer}");
    }
    if let (Some(Attr::Float(value)), [v]) = (op.attrs.get("value"), op.results.as_slice()) {
        let ty = f.ty(*v);
        return match ty.rank() {
            0 => value.to_string(),
            _ => format!("{value} as {}", short(ty)),
        };
    }
    let attrs = op.attrs.iter().filter_map(|(name, attr)| match attr {
        Attr::Type(_) | Attr::Bool(false) => None,
        Attr::Str(_) if name == "dtype" => None,
        Attr::Bool(true) => Some(name.clone()),
        Attr::Int(x) => Some(format!("{name} {x}")),
        Attr::Float(x) => Some(format!("{name} {x:?}")),
        Attr::Str(x) => Some(format!("{name} {x}")),
        Attr::Ints(x) => Some(format!("{name} {x:?}")),
    });
    std::iter::once(op.name.clone())
        .chain(attrs)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Empty if they need none; a concat's parts are numbered.
fn operand_names(module: &Module, op: &Op) -> Vec<String> {
    if op.name == "concat" {
        return (0..op.operands.len()).map(|i| i.to_string()).collect();
    }
    if let Some(Attr::Str(callee)) = op.attrs.get("callee") {
        let params = module.function(callee).map_or(&[][..], |g| &g.params);
        return params
            .iter()
            .filter_map(|(_, p)| match p {
                Param::Input(name) => Some(name.clone()),
                _ => None,
            })
            .collect();
    }
    let row = OPERANDS.iter().find(|(name, _)| *name == op.name);
    row.map_or(vec![], |(_, names)| names.iter().map(|n| n.to_string()).collect())
}

fn values(f: &Function, list: &[ValueId]) -> String {
    let names: Vec<String> = list.iter().map(|v| format!("%{}", f.value_name(*v))).collect();
    names.join(", ")
}

/// `bf16[B, T, 64]`
fn short(ty: &TensorType) -> String {
    let dims: Vec<String> = ty.shape.iter().map(|d| d.to_string()).collect();
    format!("{}[{}]", ty.dtype, dims.join(", "))
}

/// A DOT string. What would end a line elsewhere than meant is shown as `?`.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out + "\""
}
