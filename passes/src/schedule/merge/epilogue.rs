//! A product's epilogue: an element-wise launch that reads what a product stores becomes more of the product's stages.
//!
//!     g = a * w1'            g = a * w1'
//!     u = a * w2'            h = silu(g) * (a * w2')
//!     h = silu(g) * u
//!
//! The scheduler gives a product what only its own readers' chain wants. With two products in a chain, or several readers, sums of
//! f32 lie in memory; here the last product has them in registers. Products of known and many rows only: those of few rows read
//! little beside their weights.
//!
//! A product keeps its fast ways, whose threads have neighbouring columns of a few rows: what is added touches each row and column at
//! its own place, rows at one distance, or one number of each row or column. It must be little, as what it loads lies in registers
//! beside the sums.

use ir::Size;
use ir::plan::{Access, Contraction, Expr, Kernel};

use super::body::{contracted, finish, loads, stores, writes};
use super::join::hand_on;
use super::pair::together;
use super::steps::{Step, Steps};
use super::{is_dead, space};

/// Rows of a product that takes an epilogue, at least.
const ROWS: i64 = 256;
/// What the product then loads and stores, at most.
const LOADS: usize = 4;
const STORES: usize = 3;

pub fn append(steps: &mut Steps) {
    hand_on(steps, |steps, first, second| {
        let (product, map) = (first.product.as_ref()?, second.body.as_ref()?);
        let fits = takes_epilogue(product) && is_map(map) && contracted(product).is_disjoint(&second.writes);
        if fits {
            joined(steps, first, second, product, map)
        } else {
            None
        }
    });
}

/// Many rows and columns, all known, one product of them, and nothing that its columns are reduced to.
pub fn takes_epilogue(product: &Kernel) -> bool {
    let Some(c) = &product.contraction else { return false };
    let columns = product.cols.as_const().is_some_and(|n| n >= 2);
    has_many_rows(product) && columns && is_plain(c) && !product.reduces() && !product.exprs.contains(&Expr::RowSquares)
}

pub fn has_many_rows(product: &Kernel) -> bool {
    let rows = Size::product(&product.outer);
    rows.as_const().is_some_and(|n| n >= ROWS)
}

fn is_plain(c: &Contraction) -> bool {
    c.batch == 0 && !c.packed_a
}

/// Element-wise, the same at all positions.
fn is_map(kernel: &Kernel) -> bool {
    !kernel.reduces() && is_steady(kernel)
}

/// The same at all positions, and always stored.
pub fn is_steady(kernel: &Kernel) -> bool {
    let positions = |e: &Expr| matches!(e, Expr::Index(_));
    let always = stores(kernel).all(|(.., always)| always);
    let direct = kernel.accesses().all(|a| a.indirect.is_none());
    always && direct && !kernel.exprs.iter().any(positions)
}

/// Both as one step.
fn joined(steps: &Steps, first: &Step, second: &Step, product: &Kernel, map: &Kernel) -> Option<Step> {
    let dead = |buffer: usize| is_dead(steps, &[first, second], buffer);
    let one = |x: &Access, y: &Access| -> Option<Kernel> {
        let map = space::onto((product, x), (map, y))?;
        let body = finish(together(product, &map, &steps.buffers)?, dead)?;
        (is_regular(&map) && is_fit(product, &body)).then_some(body)
    };
    let links = loads(map).filter(|y| writes(product).contains(&y.arg));
    let body = links
        .flat_map(|y| stores(product).map(move |(x, ..)| (x, y)))
        .filter(|(x, y)| x.arg == y.arg)
        .find_map(|(x, y)| one(x, y))?;
    steps.step(body)
}

/// Does the product still load and store little, in vectors as wide as before?
pub fn is_fit(product: &Kernel, merged: &Kernel) -> bool {
    let few = loads(merged).count() <= LOADS && stores(merged).count() <= STORES;
    few && merged.allows_lanes(product.lanes().max(2))
}

/// Is all that it loads and stores as a product's threads want it?
fn is_regular(map: &Kernel) -> bool {
    let cols = map.cols.as_const().unwrap_or(i64::MAX);
    let own = |a: &Access| row(map, a).is_some_and(|row| column(a) == Some(1) && row >= cols);
    let shared = |a: &Access| row(map, a).is_some_and(|row| column(a) == Some(0) || (column(a) == Some(1) && row == 0));
    loads(map).all(|a| own(a) || shared(a)) && stores(map).all(|(to, ..)| own(to))
}

fn column(a: &Access) -> Option<i64> {
    a.strides.last()?.as_const()
}

/// The distance of rows, where it is the same between all.
fn row(kernel: &Kernel, a: &Access) -> Option<i64> {
    let mut next: Option<i64> = None;
    let mut first = 0;
    for (size, stride) in kernel.outer.iter().zip(&a.strides).rev() {
        let (size, stride) = (size.as_const()?, stride.as_const()?);
        if size == 1 {
            continue;
        }
        match next {
            None => first = stride,
            Some(wanted) if wanted != stride => return None,
            Some(_) => {}
        }
        next = Some(stride * size);
    }
    Some(first)
}
