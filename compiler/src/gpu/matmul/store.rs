//! The kernel's stages on a consumer's sums, in registers: what a product ends with.
//!
//!     for 64 rows, for rows g and g + 8 of a warp's 16
//!       for some columns: sums, of four threads by turns, to neighbouring columns of each; loads; then stores
//!
//! What is reduced over columns is reduced over the tile's: a number for each row, which four threads have parts of (`apart.rs`).
//!
//! `wgmma` leaves a thread two neighbouring columns of each eight. Four threads that have a row exchange theirs, so that each has 4 or 8
//! neighbouring ones: 16 bytes of what is bf16. Nothing waits for another warp.

use ir::Size;
use ir::plan::{Access, Expr, Kernel, Stage};

use super::super::epilogue::clamped;
use super::super::ptx::{self, I32, lane_bits};
use super::super::{hopper, reduction};
use super::Rows;
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, Columns, Point, memory};

/// Sums of a thread that are loaded for together: so many loads are on their way.
const TOGETHER: i64 = 32;

pub struct Store<'b, 'k> {
    pub body: &'b Body<'k>,
    /// Where the tiles' results of reductions go, if the kernel has any.
    pub parts: Option<Val>,
    /// The rows' squares, where they were measured, and of how many numbers each is the sum.
    pub squares: Option<(Val, i64)>,
    /// Of the consumer: 64 each.
    pub bands: i64,
    /// Of each weight's tile.
    pub columns: i64,
    /// The thread's warp in its group; in the warp its number, its row and its pair of columns, i32.
    pub warp: Val,
    pub lane: Val,
    pub g: Val,
    pub c: Val,
}

/// Columns that a thread takes together: no more than `bytes` of what is stored, and than all rows begin at multiples of.
pub fn lanes(kernel: &Kernel, bytes: i64) -> i64 {
    let narrowest = stores(kernel).map(|(to, ..)| kernel.args[to.arg].dtype.bytes()).min();
    let most = bytes / narrowest.unwrap_or(bytes);
    [8, 4]
        .into_iter()
        .find(|n| *n <= most && kernel.allows_lanes(*n))
        .unwrap_or(2)
}

/// The most that they are aligned to, in bytes.
pub const ALIGNMENT: usize = 16;

impl<'b, 'k> Store<'b, 'k> {
    /// `workspaces`: the rows' squares are the second one, the tiles' results the last one.
    pub fn new(
        e: &mut Emit,
        body: &'b Body<'k>,
        thread: Val,
        workspaces: &[Val],
        rows: Rows,
        bands: i64,
        columns: i64,
    ) -> Self {
        let kernel = body.kernel;
        let squares = workspaces.get(1).map(|w| (*w, rows.sums()));
        Store {
            body,
            parts: workspaces.last().copied().filter(|_| kernel.reduces()),
            squares: squares.filter(|_| kernel.exprs.contains(&Expr::RowSquares)),
            bands,
            columns,
            warp: lane_bits(e, thread, 5, 2),
            lane: lane_bits(e, thread, 0, 5),
            g: lane_bits(e, thread, 2, 3),
            c: lane_bits(e, thread, 0, 2),
        }
    }

    /// What the tile at (row, column) will load of rows goes to the second cache while the tile is multiplied: a thread a row.
    pub fn expect(&self, e: &mut Emit, row: Val, column: Val) {
        let kernel = self.body.kernel;
        let streams: Vec<&Access> = (kernel.exprs.iter())
            .filter_map(|x| match x {
                Expr::Load(a) => Some(a),
                _ => None,
            })
            .filter(|a| a.indirect.is_none() && *a.strides.last().unwrap_or(&a.offset) == Size::one())
            .filter(|a| a.strides[..a.strides.len() - 1].iter().any(|s| s.coef != 0))
            .collect();
        if streams.is_empty() || !kernel.allows_lanes(8) {
            return;
        }
        let mine = e.int(16, self.lane.ty);
        let mine = e.cmp(Cmp::Lt, self.lane, mine);
        e.if_then(mine, &[], |e| {
            let warp = e.shl(self.warp, 4);
            let row = e.add(row, warp);
            let row = e.add(row, self.lane);
            let row = e.extend_signed(row, Elem::I64);
            let column = e.extend_signed(column, Elem::I64);
            let rows = self.body.size(e, &Size::product(&kernel.outer));
            let cols = self.body.size(e, &kernel.cols);
            let (left, width) = (e.sub(cols, column), e.i64(self.columns));
            let count = e.min(left, width);
            let count = e.truncate_int(count, Elem::I32);
            for band in 0..self.bands {
                let down = e.i64(64 * band);
                let row = e.add(row, down);
                let row = clamped(e, row, rows);
                let index = self.body.unravel(e, row, &kernel.outer);
                let mut point = self.body.point(index);
                for a in &streams {
                    let elem = memory(kernel.args[a.arg].dtype);
                    let base = self.body.base(e, &mut point, a);
                    let at = e.add(base, column);
                    let at = e.at(self.body.args[a.arg], at, elem);
                    let size = e.int(elem.bytes() as i64, count.ty);
                    let bytes = e.mul(count, size);
                    hopper::prefetch(e, at, bytes);
                }
            }
            vec![]
        });
    }

    /// `row`, `column`: the consumer's first, i32. `sums`: of each 64 rows, fragments of each weight, [tile of 8 columns][4].
    pub fn run(&self, e: &mut Emit, row: Val, column: Val, sums: &[Vec<Val>]) {
        let kernel = self.body.kernel;
        let warp = e.shl(self.warp, 4);
        let row = e.add(row, warp);
        let row = e.add(row, self.g);
        let row = e.extend_signed(row, Elem::I64);
        let tile = column;
        let column = self.first_column(e, column);
        let column = e.extend_signed(column, Elem::I64);
        let rows = self.body.size(e, &Size::product(&kernel.outer));
        for (band, sums) in sums.iter().enumerate() {
            for half in 0..2 {
                let down = e.i64(64 * band as i64 + 8 * half);
                let row = e.add(row, down);
                let there = e.cmp(Cmp::Lt, row, rows);
                let row = clamped(e, row, rows);
                let index = self.body.unravel(e, row, &kernel.outer);
                let mut point = self.body.point(index);
                point.squares = self.squares.map(|(squares, sums)| {
                    let each = e.i64(sums);
                    let at = e.mul(row, each);
                    let all: Vec<Val> = (0..sums)
                        .map(|i| {
                            let i = e.i64(i);
                            let at = e.add(at, i);
                            let at = e.at(squares, at, Elem::F32);
                            e.load(at, Ty::scalar(Elem::F32))
                        })
                        .collect();
                    all[1..].iter().fold(all[0], |sum, x| e.add(sum, *x))
                });
                kernel.stages.iter().for_each(|s| self.body.hoist(e, &mut point, s));
                let count = (self.columns / 2) as usize;
                let own: Vec<Vec<Val>> = (sums.chunks(count))
                    .map(|all| {
                        all.chunks(4)
                            .flat_map(|f| f[2 * half as usize..][..2].to_vec())
                            .collect()
                    })
                    .collect();
                if let Some(parts) = self.parts {
                    self.reduce(e, &mut point, (row, there), (tile, column), &own[0], parts);
                }
                self.row(e, &mut point, there, column, &own);
            }
        }
    }

    /// The reductions of one row, over the columns of the tile that begins at `tile` (i32).
    fn reduce(
        &self,
        e: &mut Emit,
        point: &mut Point,
        (row, there): (Val, Val),
        (tile, column): (Val, Val),
        own: &[Val],
        parts: Val,
    ) {
        let kernel = self.body.kernel;
        let tiles = kernel
            .cols
            .as_const()
            .map_or(0, |n| (n + self.columns - 1) / self.columns);
        let width = e.int(self.columns, I32);
        let tile = e.div(tile, width);
        let tile = e.extend_signed(tile, Elem::I64);
        let zero = e.int(0, self.c.ty);
        let leads = e.cmp(Cmp::Eq, self.c, zero);
        let here = e.and(leads, there);
        let mut groups: Vec<(Columns, Val)> = vec![];
        for (right, sums) in self.groups(e, own) {
            let (column, inside) = self.columns_at(e, column, right);
            groups.push((Columns::new(column, None, Some(e.vector(&sums))), inside));
        }
        let rows = self.body.size(e, &Size::product(&kernel.outer));
        let reductions = kernel.stages.iter().filter_map(|s| match s {
            Stage::Reduce { op, value } => Some((*op, *value)),
            Stage::Store { .. } => None,
        });
        for (i, (op, value)) in reductions.enumerate() {
            let mut values = vec![];
            for (columns, inside) in &mut groups {
                let x = self.body.vector(e, point, columns, value);
                // Of no columns.
                let nothing = reduction::identity(e, op, x.ty)[0];
                values.push(e.select(*inside, x, nothing));
            }
            let lanes = reduction::of(e, op, &values);
            let lane = |e: &mut Emit, i: usize| lanes.iter().map(|v| e.extract(*v, i)).collect::<Vec<Val>>();
            let mut state = lane(e, 0);
            for i in 1..self.lanes() {
                let other = lane(e, i);
                state = reduction::merge(e, op, &state, &other);
            }
            for bits in [1, 2] {
                let other: Vec<Val> = state.iter().map(|x| ptx::shuffle_xor(e, *x, bits)).collect();
                state = reduction::merge(e, op, &state, &other);
            }
            let result = reduction::finish(e, op, &state);
            let first = e.i64(i as i64);
            let first = e.mul(first, rows);
            let at = e.add(first, row);
            let tiles = e.i64(tiles);
            let at = e.mul(at, tiles);
            let at = e.add(at, tile);
            let to = e.at(parts, at, Elem::F32);
            e.if_then(here, &[], |e| {
                e.store(result, to);
                vec![]
            });
        }
    }

    /// Columns that begin so far behind the thread's first one, and are they inside? If not, they are the last ones.
    fn columns_at(&self, e: &mut Emit, column: Val, right: i64) -> (Val, Val) {
        let kernel = self.body.kernel;
        let right = e.i64(right);
        let column = e.add(column, right);
        if kernel.cols.as_const().is_some_and(|n| n % self.columns == 0) {
            return (column, e.int(1, Ty::scalar(Elem::I1)));
        }
        let cols = self.body.size(e, &kernel.cols);
        let inside = e.cmp(Cmp::Lt, column, cols);
        let lanes = e.i64(self.lanes() as i64);
        let last = e.sub(cols, lanes);
        (e.min(column, last), inside)
    }

    fn lanes(&self) -> usize {
        self.body.lanes
    }

    /// The thread's first column, behind the tile's.
    fn first_column(&self, e: &mut Emit, column: Val) -> Val {
        let one = e.int(1, self.c.ty);
        let mine = match self.lanes() {
            8 => e.shl(self.c, 3),
            4 => {
                let (tile, half) = (e.and(self.c, one), e.shr(self.c, 1));
                let (tile, half) = (e.shl(tile, 3), e.shl(half, 2));
                e.add(tile, half)
            }
            _ => e.shl(self.c, 1),
        };
        e.add(column, mine)
    }

    /// Neighbouring columns of each weight, and where they begin behind the thread's first.
    fn groups(&self, e: &mut Emit, own: &[Val]) -> Vec<(i64, Vec<Val>)> {
        let lanes = self.lanes();
        (own.chunks(lanes).enumerate())
            .map(|(i, pairs)| {
                let mut pairs: Vec<[Val; 2]> = pairs.chunks(2).map(|p| [p[0], p[1]]).collect();
                for bit in (0..2).filter(|bit| 2 << bit < lanes) {
                    self.exchange(e, &mut pairs, bit);
                }
                ((i * lanes * 4) as i64, pairs.concat())
            })
            .collect()
    }

    /// Pairs whose numbers differ in a bit, with the thread whose number does.
    fn exchange(&self, e: &mut Emit, pairs: &mut [[Val; 2]], bit: usize) {
        let zero = e.int(0, self.c.ty);
        let mask = e.int(1 << bit, self.c.ty);
        let is_high = e.and(self.c, mask);
        let is_high = e.cmp(Cmp::Ne, is_high, zero);
        for low in (0..pairs.len()).filter(|i| i >> bit & 1 == 0) {
            let high = low | 1 << bit;
            let mut swap = |a: Val, b: Val| {
                let given = e.select(is_high, a, b);
                let taken = ptx::shuffle_xor(e, given, 1 << bit);
                [e.select(is_high, taken, a), e.select(is_high, b, taken)]
            };
            let [[a0, a1], [b0, b1]] = [pairs[low], pairs[high]];
            let [[a0, b0], [a1, b1]] = [swap(a0, b0), swap(a1, b1)];
            (pairs[low], pairs[high]) = ([a0, a1], [b0, b1]);
        }
    }

    /// One row: sums of each weight, [tile of 8 columns][2].
    fn row(&self, e: &mut Emit, point: &mut Point, there: Val, column: Val, own: &[Vec<Val>]) {
        let kernel = self.body.kernel;
        if stores(kernel).next().is_none() {
            return;
        }
        for from in (0..own[0].len()).step_by(TOGETHER as usize) {
            let end = (from + TOGETHER as usize).min(own[0].len());
            let groups: Vec<_> = own.iter().map(|x| self.groups(e, &x[from..end])).collect();
            let mut ready = vec![];
            for (i, (right, first)) in groups[0].iter().enumerate() {
                let (first_column, inside) = self.columns_at(e, column, right + 4 * from as i64);
                let here = e.and(there, inside);
                let mut columns = Columns::new(first_column, None, Some(e.vector(first)));
                columns.also = groups.get(1).map(|g| e.vector(&g[i].1));
                let values: Vec<(Val, Option<Val>)> = (stores(kernel))
                    .map(|(_, value, when)| {
                        let when = when.map(|w| self.body.vector(e, point, &mut columns, w));
                        (self.body.vector(e, point, &mut columns, value), when)
                    })
                    .collect();
                ready.push((columns, here, values));
            }
            for (mut columns, here, values) in ready {
                e.if_then(here, &[], |e| {
                    for ((to, ..), (value, when)) in stores(kernel).zip(values) {
                        self.body.store_vector(e, point, &mut columns, to, value, when);
                    }
                    vec![]
                });
            }
        }
    }
}

fn stores(kernel: &Kernel) -> impl Iterator<Item = (&Access, usize, Option<usize>)> {
    kernel.stages.iter().filter_map(|s| match s {
        Stage::Store { to, value, when } => Some((to, *value, *when)),
        Stage::Reduce { .. } => None,
    })
}
