//! An op's attributes by name and kind; what an op does not say is 0, false or empty. What it must say is the verifier's to ask.

use ir::{Attr, Op};

pub(crate) fn ints(op: &Op, name: &str) -> Vec<i64> {
    match op.attrs.get(name) {
        Some(Attr::Ints(list)) => list.clone(),
        _ => vec![],
    }
}

pub(crate) fn int(op: &Op, name: &str) -> i64 {
    match op.attrs.get(name) {
        Some(Attr::Int(i)) => *i,
        _ => 0,
    }
}

pub(crate) fn float(op: &Op, name: &str) -> f64 {
    match op.attrs.get(name) {
        Some(Attr::Float(x)) => *x,
        _ => 0.0,
    }
}

pub(crate) fn flag(op: &Op, name: &str) -> bool {
    op.attrs.get(name) == Some(&Attr::Bool(true))
}
