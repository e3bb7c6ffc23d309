//! Two bodies made one: the second behind the first at every point, or the first inside the second where its value was loaded.

use std::collections::HashMap;

use ir::plan::{Access, Buffer, Expr, ExprId, Kernel, Stage};

use super::body::{Exprs, loads, reads, rounded, stores, with_exprs, writes};
use super::{halves, space};

/// Names are symbols of object code too.
const NAME: usize = 40;

/// What `second` loads of what `first` stored becomes that value. `None` where the two touch one buffer otherwise: at another place, which
/// another thread may have stored or not. Each may store its part of what is a whole for others. Both are over one space; `finish` checks the rest.
pub fn together(first: &Kernel, second: &Kernel, buffers: &[Buffer]) -> Option<Kernel> {
    let written = writes(first);
    let meets =
        |(a, ..): (&Access, _, _)| stores(second).any(|(b, ..)| a.arg == b.arg && !space::are_apart(first, a, b));
    if stores(first).any(meets) {
        return None;
    }
    let mut exprs = Exprs::default();
    let now = exprs.copy(&first.exprs, |_, _| None);
    let mut stored: HashMap<Access, ExprId> = HashMap::new();
    for (to, value, always) in stores(first) {
        if always && to.indirect.is_none() {
            let value = rounded(&mut exprs, now[value], buffers[to.arg].dtype)?;
            stored.insert(to.clone(), value);
        }
    }
    let mut lost = false;
    let offset = first.stages.len();
    let then = exprs.copy(&second.exprs, |exprs, e| match e {
        Expr::Load(a) if written.contains(&a.arg) => {
            let value = stored.get(a).copied();
            lost |= value.is_none();
            value
        }
        Expr::Reduced(s) => Some(exprs.add(Expr::Reduced(s + offset))),
        _ => None,
    });
    let stages = first.stages.iter().map(|s| s.with_operands(&now));
    let stages = stages
        .chain(second.stages.iter().map(|s| s.with_operands(&then)))
        .collect();
    let joined = Kernel {
        name: name(&first.name, &second.name),
        ..with_exprs(first, exprs, &now, stages)
    };
    (!lost).then(|| once(joined))
}

/// A reduction that stands there twice is done once.
pub fn once(mut kernel: Kernel) -> Kernel {
    for s in 0..kernel.stages.len() {
        let first = kernel.stages.iter().position(|other| *other == kernel.stages[s]);
        let first = first.expect("it is there itself");
        if first == s || !matches!(kernel.stages[s], Stage::Reduce { .. }) {
            continue;
        }
        let mut exprs = Exprs::default();
        let now = exprs.copy(&kernel.exprs, |exprs, e| {
            (*e == Expr::Reduced(s)).then(|| exprs.add(Expr::Reduced(first)))
        });
        let stages = kernel.stages.iter().map(|stage| stage.with_operands(&now)).collect();
        kernel = with_exprs(&kernel, exprs, &now, stages);
    }
    kernel
}

/// `reader` with the value of `producer`, whose stages all store it, wherever it loaded it.
pub fn inlined(producer: &Kernel, mut reader: Kernel, buffers: &[Buffer]) -> Option<Kernel> {
    let value = *writes(producer).first()?;
    while reads(&reader).contains(&value) {
        let load = loads(&reader).find(|a| a.arg == value)?.clone();
        let (inner, outer) = at_load(producer, &reader, &load)?;
        let left = |k: &Kernel| loads(k).filter(|a| a.arg == value).count();
        let before = left(&outer);
        reader = with_value(&inner, &outer, buffers)?;
        if left(&reader) == before {
            return None;
        }
    }
    reader.name = name(&producer.name, &reader.name);
    Some(reader)
}

/// The producer of what `reader` loads there in the reader's space, halves of rows beside halves.
fn at_load(producer: &Kernel, reader: &Kernel, load: &Access) -> Option<(Kernel, Kernel)> {
    let within = |producer: &Kernel, reader: (&Kernel, &Access)| {
        stores(producer).find_map(|(to, ..)| space::within((producer, to), reader))
    };
    within(producer, (reader, load)).or_else(|| {
        let (to, ..) = stores(producer).next()?;
        halves::met((producer, to), (reader, load), |(producer, _), reader| {
            within(producer, reader)
        })
    })
}

/// Both are over one space.
fn with_value(producer: &Kernel, reader: &Kernel, buffers: &[Buffer]) -> Option<Kernel> {
    let mut exprs = Exprs::default();
    let now = exprs.copy(&producer.exprs, |_, _| None);
    let mut stored: HashMap<Access, ExprId> = HashMap::new();
    for (to, value, _) in stores(producer) {
        let value = rounded(&mut exprs, now[value], buffers[to.arg].dtype)?;
        stored.insert(to.clone(), value);
    }
    let now = exprs.copy(&reader.exprs, |_, e| match e {
        Expr::Load(a) => stored.get(a).copied(),
        _ => None,
    });
    let stages = reader.stages.iter().map(|s| s.with_operands(&now)).collect();
    Some(Kernel {
        exprs: exprs.list,
        stages,
        ..reader.clone()
    })
}

/// The words of both, each once, as many as a symbol's name has room for.
fn name(first: &str, second: &str) -> String {
    let mut name = String::new();
    for word in first.split('_').chain(second.split('_')) {
        let known = name.split('_').any(|w| w == word);
        if !known && name.len() + word.len() < NAME {
            name += if name.is_empty() { "" } else { "_" };
            name += word;
        }
    }
    name
}
