//! Rows that are added to rows that are looked up, position after position: a table's gradient by its tokens.
//!
//!     for 16 positions                                 all loads of the group are on their way together
//!       for each: what is there, or what the group has made of it, and its row
//!       the stores, in order
//!
//! The order of each row's sum is the plan's, so that its bits are. Two positions of a group with one row are found by comparing rows.

use ir::Size;
use ir::plan::{Access, Binary, Expr, Kernel, Stage};

use super::epilogue::clamped;
use crate::mlir::emit::{Cmp, Emit, Val};
use crate::scalar::{Body, Columns, Point};

/// Positions of a group.
const GROUP: i64 = 16;

/// All that a kernel does: a row is what it was and something more.
pub struct Accumulation<'b, 'k> {
    body: &'b Body<'k>,
    to: &'k Access,
    /// The row's number, what is there, and what is added.
    row: usize,
    old: usize,
    more: usize,
}

/// A position of a group.
struct Position {
    point: Point,
    cols: Columns,
    row: Val,
    is_there: Val,
    old: Val,
    more: Val,
}

/// Where a kernel that does nothing else accumulates, the row's number, what is there and what is added.
pub fn parts(kernel: &Kernel) -> Option<(&Access, usize, usize, usize)> {
    let [Stage::Store { to, value, when: None }] = &kernel.stages[..] else {
        return None;
    };
    let Expr::Binary(Binary::Add, a, b) = kernel.exprs[*value] else {
        return None;
    };
    let is_old = |id: usize| kernel.exprs[id] == Expr::Load(to.clone());
    let (old, more) = if is_old(a) { (a, b) } else { (b, a) };
    let reads_it = |x: &&Expr| matches!(x, Expr::Load(a) if a.arg == to.arg);
    let row = to.indirect.as_ref()?.0;
    let once = kernel.exprs.iter().filter(reads_it).count() == 1;
    // A cell is known by its row alone.
    let moves = (kernel.outer.len() - kernel.ordered..kernel.outer.len()).any(|d| to.strides[d].coef != 0);
    (is_old(old) && once && !moves).then_some((to, row, old, more))
}

impl<'b, 'k> Accumulation<'b, 'k> {
    pub fn of(body: &'b Body<'k>) -> Option<Accumulation<'b, 'k>> {
        let (to, row, old, more) = parts(body.kernel)?;
        (!body.varies(row)).then_some(Accumulation {
            body,
            to,
            row,
            old,
            more,
        })
    }

    /// By one thread: its columns from `first` on, at the point `outer` of the parallel dimensions.
    pub fn emit(&self, e: &mut Emit, outer: &[Val], ordered: &[Size], first: Val) {
        let (zero, n) = (e.i64(0), self.body.size(e, &Size::product(ordered)));
        e.for_loop(zero, n, GROUP, &[], |e, begin, _| {
            let mut group: Vec<Position> = vec![];
            for i in 0..GROUP {
                let i = e.i64(i);
                let at = e.add(begin, i);
                group.push(self.position(e, at, n, (outer, ordered), first));
            }
            let mut sums: Vec<Val> = vec![];
            for (i, p) in group.iter().enumerate() {
                let mut before = p.old;
                for (other, sum) in group[..i].iter().zip(&sums) {
                    let same = e.cmp(Cmp::Eq, other.row, p.row);
                    before = e.select(same, *sum, before);
                }
                sums.push(e.add(before, p.more));
            }
            for (p, sum) in group.iter_mut().zip(sums) {
                e.if_then(p.is_there, &[], |e| {
                    self.body.store_vector(e, &mut p.point, &mut p.cols, self.to, sum, None);
                    vec![]
                });
            }
            vec![]
        });
    }

    /// Behind the last one it is the last one again, and not there.
    fn position(&self, e: &mut Emit, at: Val, n: Val, (outer, ordered): (&[Val], &[Size]), first: Val) -> Position {
        let is_there = e.cmp(Cmp::Lt, at, n);
        let at = clamped(e, at, n);
        let mut index = outer.to_vec();
        index.extend(self.body.unravel(e, at, ordered));
        let mut point = self.body.point(index);
        let mut cols = Columns::new(first, None, None);
        Position {
            row: self.body.scalar(e, &mut point, self.row),
            old: self.body.vector(e, &mut point, &mut cols, self.old),
            more: self.body.vector(e, &mut point, &mut cols, self.more),
            point,
            cols,
            is_there,
        }
    }
}
