//! Sizes that are known after all: a module with numbers for some of its symbols. Computes nothing.

use crate::graph::{Attr, Module};
use crate::types::{Dim, Sizes, TensorType};

/// The module with the value of every symbol that `sizes` names in its place.
pub fn bind(mut module: Module, sizes: &Sizes) -> Module {
    let fix = |ty: &mut TensorType| {
        for dim in &mut ty.shape {
            if let Some(n) = dim.size().eval(sizes) {
                *dim = Dim::Const(n);
            }
        }
    };
    for f in &mut module.functions {
        f.values.iter_mut().for_each(|v| fix(&mut v.ty));
        for op in &mut f.ops {
            for attr in op.attrs.values_mut() {
                if let Attr::Type(ty) = attr {
                    fix(ty);
                }
            }
        }
    }
    module
}
