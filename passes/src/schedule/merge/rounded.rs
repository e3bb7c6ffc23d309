//! Rows that products round are stored rounded, once, by who makes them.
//!
//!     x = ..                       x, y = .., rounded(..)
//!     q = rounded(x) * w1'         q = y * w1'
//!     k = rounded(x) * w2'         k = y * w2'
//!
//! A product by a packed bf16 weight rounds rows of f32 as it reads them. A GPU's copy engine cannot: in front of each such product
//! another function reads 4 bytes of each element and writes the 2 that the product reads. One more store where the rows are made
//! writes 2, once, and each product reads 2 instead of 4. So there are never more bytes than before, and fewer where several products
//! read the rows or nothing wants them in f32: then they are not stored in f32 at all. Where their maker stores them in bf16 already,
//! as a backward wants them, that is read.
//!
//! Products that measure their rows (`Expr::RowSquares`) want them as they are. Of known and many rows only, as `epilogue`.

use ir::DType;
use ir::plan::{Access, Contraction, Expr, ExprId, Kernel, Rhs, Stage, Unary};

use super::body::{finish, loads, stores};
use super::epilogue::{has_many_rows, is_fit};
use super::is_good;
use super::steps::{Step, Steps};

/// Whether anything has changed.
pub fn store(steps: &mut Steps) -> bool {
    let mut changed = false;
    for at in 0..steps.list.len() {
        for buffer in steps.list[at].writes.clone() {
            changed |= rounded(steps, at, buffer).is_some();
        }
    }
    changed
}

/// Step `at` stores what it makes in a buffer in bf16 too, and the products that round it read that, if it can be.
fn rounded(steps: &mut Steps, at: usize, buffer: usize) -> Option<()> {
    let products: Vec<usize> = (at + 1..steps.list.len())
        .filter(|r| rounds(steps, &steps.list[*r], buffer))
        .collect();
    let is_one_steps = steps.is_temporary(buffer) && steps.writers(buffer) == 1;
    if products.is_empty() || !is_one_steps {
        return None;
    }
    let maker = steps.list[at].kernel()?.clone();
    let stored = only_store(&maker, buffer)?;
    let known = in_bf16(steps, &maker, &stored);
    let place = known.unwrap_or_else(|| steps.temporary_like(buffer, DType::BF16));
    let mut body = Kernel::clone(&maker);
    if known.is_none() {
        body.stages.push(Stage::Store {
            to: of(&stored.0, place),
            value: stored.1,
            when: None,
        });
    }
    let gone = products.iter().all(|r| !loads_from(steps, *r, buffer)) && steps.readers(buffer) == products.len();
    let body = finish(body, |b| b == buffer && gone)?;
    if !is_as_good(steps, &maker, &body) {
        return None;
    }
    let mut new = vec![(at, steps.step(body)?)];
    for r in products {
        new.push((r, steps.step(reading(steps.list[r].product.as_ref()?, place)?)?));
    }
    new.into_iter().for_each(|(at, step)| steps.replace(at, step));
    Some(())
}

/// Does the step multiply many rows of the buffer by a weight that wants them rounded?
fn rounds(steps: &Steps, step: &Step, buffer: usize) -> bool {
    let Some(product) = &step.product else { return false };
    let Some(c) = &product.contraction else { return false };
    let by_bf16 = matches!(&c.b, Rhs::Packed { arg } if steps.buffers[*arg].dtype == DType::BF16);
    let rows = c.a.arg == buffer && steps.buffers[buffer].dtype == DType::F32;
    rows && by_bf16 && !c.packed_a && has_many_rows(product) && !product.exprs.contains(&Expr::RowSquares)
}

fn loads_from(steps: &Steps, at: usize, buffer: usize) -> bool {
    let product = steps.list[at].product.as_ref();
    product.is_some_and(|p| loads(p).any(|a| a.arg == buffer))
}

/// Where and what a kernel stores in the buffer, always and once.
fn only_store(kernel: &Kernel, buffer: usize) -> Option<(Access, ExprId)> {
    let mut all = stores(kernel).filter(|(to, ..)| to.arg == buffer);
    match (all.next(), all.next()) {
        (Some((to, value, true)), None) if to.indirect.is_none() => Some((to.clone(), value)),
        _ => None,
    }
}

/// The buffer in which the kernel stores the same in bf16, if it does.
fn in_bf16(steps: &Steps, kernel: &Kernel, (place, value): &(Access, ExprId)) -> Option<usize> {
    let same = |x: ExprId| x == *value || kernel.exprs[x] == Expr::Unary(Unary::RoundBf16, *value);
    let kept = |b: usize| steps.buffers[b].dtype == DType::BF16 && steps.is_temporary(b) && steps.writers(b) == 1;
    let mut all = stores(kernel).filter(|(to, x, always)| {
        let here = **to == of(place, to.arg);
        *always && here && same(*x) && kept(to.arg)
    });
    all.next().map(|(to, ..)| to.arg)
}

/// The same place of another buffer.
fn of(place: &Access, buffer: usize) -> Access {
    Access {
        arg: buffer,
        ..place.clone()
    }
}

fn is_as_good(steps: &Steps, was: &Kernel, now: &Kernel) -> bool {
    match now.contraction {
        Some(_) => is_fit(was, now),
        None => is_good(steps, &[(was, now)], now),
    }
}

/// The product with its rows from another buffer.
fn reading(product: &Kernel, buffer: usize) -> Option<Kernel> {
    let c = product.contraction.clone()?;
    let a = of(&c.a, buffer);
    Some(Kernel {
        contraction: Some(Contraction { a, ..c }),
        ..product.clone()
    })
}
