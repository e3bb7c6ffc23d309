//! In which order a value's dimensions lie in memory: as its reader wants them, so that no copy turns them.

use std::collections::HashMap;

use ir::{DType, Function, Op, Size, ValueId};

use super::view::{View, dense, sizes};
use crate::attrs::ints;

/// Dimensions of values from the outermost in memory to the innermost; a value that is not here lies as it is written.
pub type Layouts = HashMap<ValueId, Vec<usize>>;

/// Where in a `concat` a value goes: its result, the operand's place.
pub type Places = HashMap<ValueId, (ValueId, usize)>;

/// For every value whose only way leads into a `concat`: it is written there at once.
pub fn places(f: &Function) -> Places {
    let mut readers: HashMap<ValueId, usize> = HashMap::new();
    let read = f.ops.iter().flat_map(|op| op.operands.iter());
    read.chain(f.returns.iter().map(|(_, v)| v))
        .for_each(|v| *readers.entry(*v).or_insert(0) += 1);
    let made_by = crate::order::makers(f);
    let mut places = Places::new();
    for op in f.ops.iter().filter(|op| op.name == "concat") {
        for (i, v) in op.operands.iter().enumerate() {
            let mut at = *v;
            while readers.get(&at) == Some(&1)
                && let Some(maker) = made_by.get(&at).map(|m| &f.ops[*m])
            {
                if maker.name == "reshape" {
                    at = maker.operands[0];
                    continue;
                }
                // What has no memory of its own cannot be moved.
                if !matches!(
                    maker.name.as_str(),
                    "slice" | "transpose" | "concat" | "cache_write" | "call"
                ) {
                    places.insert(at, (op.results[0], i));
                }
                break;
            }
        }
    }
    places
}

/// For every value that is turned on its only way into a matmul.
pub fn layouts(f: &Function) -> Layouts {
    let mut readers: HashMap<ValueId, Vec<&Op>> = HashMap::new();
    for op in &f.ops {
        op.operands.iter().for_each(|v| readers.entry(*v).or_default().push(op));
    }
    let returned: Vec<ValueId> = f.returns.iter().map(|(_, v)| *v).collect();
    let mut layouts = Layouts::new();
    for op in &f.ops {
        let Some(&v) = op.results.first() else { continue };
        if matches!(op.name.as_str(), "reshape" | "transpose" | "slice") {
            continue;
        }
        let mut chain: Vec<&Op> = vec![];
        let mut at = v;
        let ends_well = loop {
            match readers.get(&at).map_or(&[][..], |r| r) {
                [only] if returned.contains(&at) || chain.len() > 8 || only.operands[0] != at => break false,
                [only] if matches!(only.name.as_str(), "reshape" | "transpose") => {
                    chain.push(only);
                    at = only.results[0];
                }
                [only] => break only.name == "matmul",
                _ => break false,
            }
        };
        if ends_well && chain.iter().any(|o| o.name == "transpose") {
            let shape = sizes(&f.ty(v).shape);
            let good = |order: &Vec<usize>| is_dense_after(f, &shape, order, &chain);
            if let Some(order) = permutations(shape.len()).into_iter().find(good) {
                layouts.insert(v, order);
            }
        }
    }
    layouts
}

/// Dense strides for dimensions in this order.
pub fn strides(shape: &[Size], order: &[usize]) -> Vec<Size> {
    let ordered: Vec<Size> = order.iter().map(|d| shape[*d].clone()).collect();
    let mut strides = vec![Size::one(); shape.len()];
    for (d, s) in order.iter().zip(dense(&ordered)) {
        strides[*d] = s;
    }
    strides
}

fn is_dense_after(f: &Function, shape: &[Size], order: &[usize], chain: &[&Op]) -> bool {
    let mut view = View {
        strides: strides(shape, order),
        ..View::whole(0, DType::F32, shape.to_vec())
    };
    for op in chain {
        view = match op.name.as_str() {
            "transpose" => view.transposed(&ints(op, "perm")),
            _ => match view.reshaped(&sizes(&f.ty(op.results[0]).shape)) {
                Some(view) => view,
                None => return false,
            },
        };
    }
    view.is_dense()
}

/// Those that keep the last dimension last, which kernels write contiguously; the order as written first.
fn permutations(rank: usize) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = vec![vec![]];
    for _ in 1..rank.clamp(1, 6) {
        let longer = |p: Vec<usize>| {
            let rest: Vec<usize> = (0..rank - 1).filter(|d| !p.contains(d)).collect();
            rest.into_iter().map(move |d| [p.clone(), vec![d]].concat())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all.retain(|p| p.len() + 1 == rank);
    all.iter_mut().for_each(|p| p.push(rank - 1));
    all
}
