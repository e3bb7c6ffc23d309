//! `join-sums`: a sum of matmuls becomes one matmul over all their k (the gradient of an activation that q, k and v have read).
//!
//!     matmul(a1, b1) + matmul(a2, b2)  =  matmul(a1 | a2, b1 above b2)
//!
//! Gradients of the weights, matmul(a1^T, x) and matmul(a2^T, x), are then rows of one matmul((a1 | a2)^T, x).
//!
//! Only where nothing is copied for it: right sides are weights, stacked when they are loaded or rounded into their stack, and every left
//! side is made element by element for these matmuls alone, so that it is written beside the others at once (`schedule::layout::places`).

use std::collections::{HashMap, HashSet};

use ir::{Attr, Attrs, DType, Dim, Function, Op, TensorType, ValueId};

use crate::attrs::{flag, ints};
use crate::order::{called, makers, sort};
use crate::schedule::expression::is_elementwise;
use crate::stack::{self, Source};
use crate::{Pass, PassError};

pub const JOIN_SUMS: Pass = Pass {
    name: "join-sums",
    about: "multiply once where products are added, and once for the gradients of their weights",
    run: |module| {
        let called = called(module);
        for f in &mut module.functions {
            let is_called = called.contains(&f.name);
            while let Some(sum) = sum(f, is_called) {
                join(f, sum).map_err(|e| PassError(format!("joined sum: {e}")))?;
            }
        }
        Ok(())
    },
};

/// So that a row begins where a device loads vectors.
const ALIGNED: i64 = 16;

/// A sum that becomes one matmul.
struct Sum {
    /// The last add.
    root: usize,
    /// The adds before it.
    adds: Vec<usize>,
    /// What is added to the joined matmuls.
    others: Vec<ValueId>,
    terms: Vec<Term>,
}

/// A matmul of a sum.
struct Term {
    matmul: usize,
    of: Source,
    place: usize,
    gradient: Option<Gradient>,
}

/// The matmul of a left side turned: the ops that reshape, turn and multiply.
struct Gradient {
    ops: [usize; 3],
}

/// Who makes and who reads the values of a function.
struct Uses<'f> {
    f: &'f Function,
    made_by: HashMap<ValueId, usize>,
    readers: HashMap<ValueId, Vec<usize>>,
    returned: HashSet<ValueId>,
    /// Its caller reads views of what it returns; what leaves the program is dense.
    is_called: bool,
}

fn sum(f: &Function, is_called: bool) -> Option<Sum> {
    let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for (i, op) in f.ops.iter().enumerate() {
        op.operands.iter().for_each(|v| readers.entry(*v).or_default().push(i));
    }
    let uses = Uses {
        f,
        made_by: makers(f),
        readers,
        returned: f.returns.iter().map(|(_, v)| *v).collect(),
        is_called,
    };
    // The last add of a chain comes first.
    (0..f.ops.len()).rev().find_map(|at| uses.sum(at))
}

impl Uses<'_> {
    fn maker(&self, v: ValueId) -> Option<(usize, &Op)> {
        self.made_by.get(&v).map(|i| (*i, &self.f.ops[*i]))
    }

    /// The only reader of a value.
    fn only(&self, v: ValueId) -> Option<(usize, &Op)> {
        match self.readers.get(&v).map_or(&[][..], |r| r) {
            [one] if !self.returned.contains(&v) => Some((*one, &self.f.ops[*one])),
            _ => None,
        }
    }

    fn sum(&self, root: usize) -> Option<Sum> {
        let op = self.f.ops.get(root).filter(|op| op.name == "add")?;
        let ty = self.f.ty(op.results[0]);
        if ty.dtype != DType::F32 {
            return None;
        }
        let (mut adds, mut addends) = (vec![], vec![]);
        let mut open: Vec<ValueId> = op.operands.iter().rev().copied().collect();
        while let Some(v) = open.pop() {
            match self.maker(v).filter(|_| self.only(v).is_some() && self.f.ty(v) == ty) {
                Some((at, add)) if add.name == "add" => {
                    adds.push(at);
                    open.extend(add.operands.iter().rev());
                }
                _ => addends.push(v),
            }
        }
        // A number that is added to all is not of the sum's shape.
        let like = |v: &ValueId| self.f.ty(*v) == ty;
        let terms: Vec<(ValueId, Term)> = addends
            .iter()
            .filter(|v| like(v))
            .filter_map(|v| Some((*v, self.term(*v)?)))
            .collect();
        let group = terms.iter().find_map(|(_, first)| self.group(first, &terms))?;
        let (joined, terms): (Vec<_>, Vec<_>) = terms.into_iter().filter(|(v, _)| group.contains(v)).unzip();
        let mut terms: Vec<Term> = terms;
        terms.sort_by_key(|t| t.place);
        addends.retain(|v| !joined.contains(v));
        Some(Sum {
            root,
            adds,
            others: addends,
            terms,
        })
    }

    fn term(&self, v: ValueId) -> Option<Term> {
        let (matmul, op) = self.maker(v).filter(|(_, op)| op.name == "matmul")?;
        self.only(v)?;
        let (left, right) = (op.operands[0], op.operands[1]);
        let (of, place) = stack::source(self.f, right).filter(|_| !flag(op, "transpose_b"))?;
        let ty = self.f.ty(left);
        let columns = ty.shape.last()?.size().as_const()?;
        if columns * ty.dtype.bytes() % ALIGNED != 0 || !self.is_written_anywhere(left) {
            return None;
        }
        let others: Vec<usize> = (self.readers.get(&left)?.iter().copied())
            .filter(|r| *r != matmul)
            .collect();
        let gradient = match others[..] {
            [] => None,
            [reshape] => Some(self.gradient(left, reshape)?),
            _ => return None,
        };
        Some(Term {
            matmul,
            of,
            place,
            gradient,
        })
    }

    /// Is a value made by an element-wise kernel, which may write it to any place, and read only as it is here?
    fn is_written_anywhere(&self, left: ValueId) -> bool {
        let mut at = left;
        while let Some((_, op)) = self.maker(at).filter(|_| !self.returned.contains(&at)) {
            if op.name != "reshape" {
                return is_elementwise(&op.name) && !op.operands.is_empty();
            }
            at = op.operands[0];
            if self.only(at).is_none() {
                return false;
            }
        }
        false
    }

    /// The matmul that a left side turned goes into, by way of the reshape at this place.
    fn gradient(&self, left: ValueId, reshape: usize) -> Option<Gradient> {
        let op = Some(&self.f.ops[reshape]).filter(|op| op.name == "reshape")?;
        let (rows, ty) = (op.results[0], self.f.ty(left));
        let is_matrix = self.f.ty(rows).rank() == 2 && self.f.ty(rows).shape.last() == ty.shape.last();
        let (transpose, op) = self.only(rows).filter(|_| is_matrix)?;
        let turned = *op.results.first()?;
        let turns = op.name == "transpose" && ints(op, "perm") == [1, 0];
        let (matmul, op) = self.only(turned).filter(|_| turns)?;
        let stays = self.is_called || !self.returned.contains(&op.results[0]);
        (op.name == "matmul" && op.operands[0] == turned && stays).then_some(Gradient {
            ops: [reshape, transpose, matmul],
        })
    }

    /// The addends that are one matmul with the first.
    fn group(&self, first: &Term, terms: &[(ValueId, Term)]) -> Option<Vec<ValueId>> {
        let mut group: Vec<(usize, ValueId, ValueId)> = vec![];
        for (v, term) in terms.iter().filter(|(_, t)| self.alike(first, t)) {
            let right = self.f.ops[term.matmul].operands[1];
            if group.iter().all(|(.., other)| *other != right) {
                group.push((term.place, *v, right));
            }
        }
        group.sort_unstable();
        let rights: Vec<ValueId> = group.iter().map(|(.., right)| *right).collect();
        let joins = group.len() > 1 && stack::is_free(self.f, &rights) && self.waits_for_no_gradient(terms);
        joins.then(|| group.into_iter().map(|(_, v, _)| v).collect())
    }

    fn alike(&self, a: &Term, b: &Term) -> bool {
        let op = |t: &Term| &self.f.ops[t.matmul];
        let rows = |t: &Term| {
            let ty = self.f.ty(op(t).operands[0]);
            (ty.dtype, ty.shape[..ty.rank() - 1].to_vec())
        };
        let types = |t: &Term| self.f.ty(op(t).operands[1]).dtype;
        let gradient = |t: &Term| {
            let op = t.gradient.as_ref().map(|g| &self.f.ops[g.ops[2]]);
            op.map(|op| (op.operands[1], op.attrs.clone()))
        };
        let same = a.of == b.of && types(a) == types(b) && op(a).attrs == op(b).attrs;
        same && rows(a) == rows(b) && gradient(a) == gradient(b)
    }

    /// Is no left side made of a gradient? All of them come before the joined one.
    fn waits_for_no_gradient(&self, terms: &[(ValueId, Term)]) -> bool {
        let gradients = terms.iter().filter_map(|(_, t)| t.gradient.as_ref());
        let mut made: HashSet<ValueId> = gradients.map(|g| self.f.ops[g.ops[2]].results[0]).collect();
        for op in &self.f.ops {
            if op.operands.iter().any(|v| made.contains(v)) {
                made.extend(&op.results);
            }
        }
        let lefts = terms.iter().map(|(_, t)| self.f.ops[t.matmul].operands[0]);
        lefts.into_iter().all(|left| !made.contains(&left))
    }
}

fn join(f: &mut Function, sum: Sum) -> Result<(), String> {
    let old: Vec<Op> = sum.terms.iter().map(|t| f.ops[t.matmul].clone()).collect();
    let result = f.ops[sum.root].results.clone();
    let gradients: Vec<[usize; 3]> = sum
        .terms
        .iter()
        .filter_map(|t| Some(t.gradient.as_ref()?.ops))
        .collect();
    let products: Vec<Op> = gradients.iter().map(|ops| f.ops[ops[2]].clone()).collect();
    let mut gone: HashSet<usize> = sum.adds.iter().copied().chain([sum.root]).collect();
    gone.extend(sum.terms.iter().map(|t| t.matmul));
    gone.extend(gradients.iter().flatten());

    // New ops stand where the last add stood.
    let mut stay = std::mem::take(&mut f.ops)
        .into_iter()
        .enumerate()
        .filter(|(i, _)| !gone.contains(i))
        .peekable();
    while let Some((_, op)) = stay.next_if(|(i, _)| *i < sum.root) {
        f.ops.push(op);
    }
    let lefts: Vec<ValueId> = old.iter().map(|op| op.operands[0]).collect();
    let rights: Vec<ValueId> = old.iter().map(|op| op.operands[1]).collect();
    let axis = f.ty(lefts[0]).rank() - 1;
    let left = f.try_op(
        "concat",
        &lefts,
        Attrs::from([("axis".to_string(), Attr::Int(axis as i64))]),
    )?;
    let stacked = stack::concat(f, &rights, 0)?;
    let mut value = f.try_op("matmul", &[left, stacked], old[0].attrs.clone())?;
    for other in sum.others {
        value = f.try_op("add", &[other, value], Attrs::new())?;
    }
    // The last op makes the sum, under its name.
    let last = f.ops.last_mut().ok_or("nothing was made")?;
    debug_assert_eq!(last.results, [value]);
    last.results = result;
    if let Some(product) = products.first() {
        let columns: Dim = f.ty(left).shape[axis].clone();
        let rows = f.ty(product.operands[0]).shape[1].clone();
        let ty = TensorType::new(vec![rows, columns], f.ty(left).dtype);
        let matrix = f.reshape(left, ty);
        let turned = f.transpose(matrix, &[1, 0]);
        let all = f.try_op("matmul", &[turned, product.operands[1]], product.attrs.clone())?;
        let results: Vec<ValueId> = products.iter().map(|p| p.results[0]).collect();
        stack::slices(f, all, 0, &results);
    }
    f.ops.extend(stay.map(|(_, op)| op));
    stack::read_rows(f, stacked, &rights);
    sort(f);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::{Module, Param};

    /// silu(x) * wq + x + neg(x) * wk, and the weights' gradients; what the second left side is and who else reads it is the case's.
    fn backward(second: &str, read_elsewhere: bool) -> Module {
        let mut f = Function::new("backward");
        let ty = |shape: &[i64], dtype| TensorType::new(shape.to_vec(), dtype);
        let x = f.param("x", ty(&[2, 3, 8], DType::F32), Param::Input("x".into()));
        let input = f.param("input", ty(&[6, 8], DType::BF16), Param::Input("input".into()));
        let (mut products, mut gradients) = (vec![], vec![]);
        for (name, op) in [("q", "silu"), ("k", second)] {
            let w = f.param(name, ty(&[8, 8], DType::F32), Param::State(name.into()));
            let w = f.cast(w, DType::BF16);
            let d = match op {
                "transpose" => {
                    let turned = f.transpose(x, &[1, 0, 2]);
                    let turned = f.cast(turned, DType::BF16);
                    f.transpose(turned, &[1, 0, 2])
                }
                op => {
                    let y = f.unary(op, x);
                    f.cast(y, DType::BF16)
                }
            };
            products.push(f.matmul(d, w, false, DType::F32));
            let rows = f.reshape(d, ty(&[6, 8], DType::BF16));
            let turned = f.transpose(rows, &[1, 0]);
            gradients.push(f.matmul(turned, input, false, DType::F32));
            if read_elsewhere && name == "k" {
                f.returns("d", d);
            }
        }
        let sum = f.add(products[0], x);
        let sum = f.add(sum, products[1]);
        f.returns("x", sum);
        for (i, g) in gradients.iter().enumerate() {
            f.returns(&format!("grad.{i}"), *g);
        }
        let mut main = Function::new("main");
        let inputs: Vec<ValueId> = f.params[..]
            .iter()
            .filter(|(_, kind)| matches!(kind, Param::Input(_)))
            .map(|(v, _)| {
                main.param(
                    f.value_name(*v),
                    f.ty(*v).clone(),
                    Param::Input(f.value_name(*v).into()),
                )
            })
            .collect();
        let results = main.call(&f, 0, &inputs);
        main.returns("x", results[0]);
        Module {
            functions: vec![f, main],
        }
    }

    fn joined(mut module: Module) -> Vec<String> {
        (JOIN_SUMS.run)(&mut module).unwrap();
        assert_eq!(ir::verify::verify(&module), [], "{module}");
        module.functions[0].ops.iter().map(|op| op.name.clone()).collect()
    }

    fn count(names: &[String], name: &str) -> usize {
        names.iter().filter(|n| *n == name).count()
    }

    #[test]
    fn a_sum_and_its_gradients_are_two_products() {
        let names = joined(backward("neg", false));
        assert_eq!(
            ["matmul", "concat", "add", "slice"].map(|n| count(&names, n)),
            [2, 2, 1, 2],
            "{names:?}"
        );
    }

    /// A view has no memory that could lie beside another's, and what is read elsewhere may be wanted dense.
    #[test]
    fn what_would_be_copied_stays_apart() {
        for module in [backward("transpose", false), backward("neg", true)] {
            let before = module.to_string();
            let mut after = module;
            (JOIN_SUMS.run)(&mut after).unwrap();
            assert_eq!(after.to_string(), before);
        }
    }
}
