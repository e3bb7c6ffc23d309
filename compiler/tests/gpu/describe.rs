//! A kernel's code so that a person can read it, and that every change of it shows: how it is launched, and how many instructions of what
//! kind each function has.

use std::collections::BTreeMap;
use std::fmt::Write;

use ptx::text::{Function, Instruction, Item, Operand, Tree};
use runtime::artefact::{GpuKernel, MapSource, Size, Step, TensorMap, Variant};

const WIDTH: usize = 140;

pub fn kernel(kernel: &GpuKernel, tree: &Tree) -> String {
    let mut out = format!("kernel {}\n", kernel.name);
    for v in &kernel.variants {
        writeln!(out, "  {}", conditions(v)).unwrap();
        for step in &v.steps {
            let function = function(tree, &step.function);
            writeln!(out, "    {}", launch(step)).unwrap();
            for map in &step.maps {
                writeln!(out, "      map {}", tensor_map(map)).unwrap();
            }
            writeln!(out, "      takes {}", parameters(function)).unwrap();
            let counts: Vec<String> = (count(function).iter())
                .map(|(name, n)| format!("{name} {n}"))
                .collect();
            wrap(&mut out, "      ", &counts);
        }
    }
    out
}

pub fn function<'t>(tree: &'t Tree, name: &str) -> &'t Function {
    let found = tree.functions.iter().find(|f| f.name == name);
    found.unwrap_or_else(|| panic!("no function {name}"))
}

fn conditions(v: &Variant) -> String {
    let mut all = vec![];
    all.extend(v.at_most.iter().map(|(s, n)| format!("{} <= {n}", size(s))));
    all.extend(v.multiples.iter().map(|(s, n)| format!("{n} divides {}", size(s))));
    let mut out = match &all[..] {
        [] => "always".to_string(),
        all => format!("if {}", all.join(" and ")),
    };
    for s in &v.workspaces {
        write!(out, ", workspace {}", size(s)).unwrap();
    }
    if v.counters > 0 {
        write!(out, ", {} counters", v.counters).unwrap();
    }
    out
}

fn launch(step: &Step) -> String {
    let grids = std::iter::once(&step.tiles).chain(&step.more_tiles);
    let grids: Vec<String> = grids
        .map(|g| {
            let sides: Vec<String> = g.iter().map(|(s, n)| format!("{}/{n}", size(s))).collect();
            sides.join(" x ")
        })
        .collect();
    let mut out = format!(
        "{}: tiles {}, {} threads",
        step.function,
        grids.join(" + "),
        step.threads
    );
    for (n, what) in [
        (step.shared, "bytes shared"),
        (step.per_multiprocessor, "a multiprocessor"),
        (step.cluster, "in a cluster"),
    ] {
        if n > 0 {
            write!(out, ", {n} {what}").unwrap();
        }
    }
    if step.overlap {
        out += ", overlaps";
    }
    for (what, taken) in [("buffers", &step.buffers), ("workspaces", &step.workspaces)] {
        if let Some(taken) = taken {
            write!(out, ", takes {what} {taken:?}").unwrap();
        }
    }
    out
}

fn tensor_map(m: &TensorMap) -> String {
    let source = match m.source {
        MapSource::Buffer(n) => format!("buffer {n}"),
        MapSource::Workspace(n) => format!("workspace {n}"),
    };
    let list = |all: &[Size]| all.iter().map(size).collect::<Vec<_>>().join(", ");
    format!(
        "{source} {:?} from {}, [{}] by [{}], box {:?}, swizzle {}",
        m.dtype,
        size(&m.offset),
        list(&m.dims),
        list(&m.strides),
        m.r#box,
        m.swizzle
    )
}

fn size(s: &Size) -> String {
    ir::Size {
        coef: s.coef,
        syms: s.syms.clone(),
    }
    .to_string()
}

/// Types of a function's parameters, those that follow each other together, and what is asked of a launch.
fn parameters(f: &Function) -> String {
    let mut groups: Vec<(String, usize)> = vec![];
    for p in &f.parameters {
        let ty = match p.count {
            Some(n) => format!("{}[{n}]", p.ty),
            None => p.ty.clone(),
        };
        match groups.last_mut() {
            Some((last, n)) if *last == ty => *n += 1,
            _ => groups.push((ty, 1)),
        }
    }
    let all: Vec<String> = groups.iter().map(|(ty, n)| format!("{n} {ty}")).collect();
    let asks: Vec<String> = (f.directives.iter())
        .map(|(name, values)| format!(".{name} {values:?}"))
        .collect();
    format!("{}; {}", all.join(", "), asks.join(" "))
}

fn wrap(out: &mut String, indent: &str, words: &[String]) {
    let mut line = indent.to_string();
    for (i, word) in words.iter().enumerate() {
        let comma = if i + 1 < words.len() { ", " } else { "" };
        if line.len() + word.len() > WIDTH {
            writeln!(out, "{}", line.trim_end()).unwrap();
            line = indent.to_string();
        }
        line = line + word + comma;
    }
    writeln!(out, "{}", line.trim_end()).unwrap();
}

/// How many instructions of each family a function has.
pub fn count(f: &Function) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    instructions(f.body.as_deref().unwrap_or(&[]), &mut |i| {
        *counts.entry(family(i)).or_insert(0) += 1;
    });
    counts
}

fn instructions(items: &[Item], each: &mut impl FnMut(&Instruction)) {
    for item in items {
        match item {
            Item::Instruction(i) => each(i),
            Item::Block(inner) => instructions(inner, each),
            _ => {}
        }
    }
}

/// What units other than the plain arithmetic ones do keeps its name, loads and stores their width in bits.
fn family(i: &Instruction) -> String {
    let parts: Vec<&str> = i.op.split('.').collect();
    let has = |what: &str| parts.contains(&what);
    match parts[0] {
        "wgmma" if has("mma_async") => {
            let registers = matches!(i.operands.get(1), Some(Operand::Vector(_)));
            format!("wgmma {}{}", parts[4], if registers { " A in registers" } else { "" })
        }
        "wgmma" => format!("wgmma {}", parts[1]),
        "mma" => format!("mma {}", parts[3]),
        "setmaxnreg" => format!("setmaxnreg {} {}", parts[1], i.operands[0]),
        "ldmatrix" | "stmatrix" => format!("{}{}", parts[0], if has("trans") { " trans" } else { "" }),
        "ld" | "st" if has("param") => format!("{} param", parts[0]),
        "ld" | "st" => memory(&parts),
        "cp" | "mbarrier" | "fence" | "griddepcontrol" | "atom" | "red" | "membar" | "bar" | "barrier" | "prefetch"
        | "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "div" | "shfl" | "vote" | "fma" | "trap" | "call" => i.op.clone(),
        "add" | "sub" | "mul" | "max" | "min" | "neg" | "abs" if has("f32") => format!("{}.f32", parts[0]),
        "cvt" => "cvt".to_string(),
        "bra" => "bra".to_string(),
        "rem" => "rem".to_string(),
        _ => "other".to_string(),
    }
}

/// `ld.global.nc.128`
fn memory(parts: &[&str]) -> String {
    let width: usize = parts.last().and_then(|t| t[1..].parse().ok()).unwrap_or(0);
    let lanes = [("v2", 2), ("v4", 4), ("v8", 8)];
    let lanes = lanes.iter().find(|(v, _)| parts.contains(v)).map_or(1, |l| l.1);
    let keeps = [
        "global",
        "shared",
        "shared::cta",
        "local",
        "nc",
        "acquire",
        "release",
        "relaxed",
        "volatile",
    ];
    let kept: Vec<&str> = parts[1..].iter().copied().filter(|p| keeps.contains(p)).collect();
    format!("{}.{}.{}", parts[0], kept.join("."), width * lanes)
}
