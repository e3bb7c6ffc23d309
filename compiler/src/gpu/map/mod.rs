//! Kernels without a contraction: element-wise chains, norms, softmax, look-ups, cache writes, casts, AdamW.
//!
//!     block = (block of points, chunk of columns)      a team of threads for each point
//!       for ordered position                           what goes on from what was stored: one thread, one column, in order; sums of
//!                                                      rows some at a time (accumulate.rs)
//!         for stage                                    neighbouring stores share one loop
//!           for column step team * lanes               a vector a thread, 16 bytes where addresses allow
//!
//! A short row's values stay in registers from its reductions to its stores; of longer rows they are loaded again, from the caches.
//!
//! Neighbouring threads take neighbouring columns, or neighbouring points where that is how memory lies (sums over rows).

mod points;
mod reduce;

use ir::Size;
use ir::plan::{Access, Expr, ExprId, Kernel, Stage};
use runtime::artefact::Step;

use super::accumulate::{self, Accumulation};
use super::ptx::{self, I32, Signature};
use super::{Emitted, Target, tiles};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};
use crate::scalar::{Body, Columns, Math, Point};

pub const THREADS: i64 = 256;
/// Vectors of columns that a thread takes in a chunk.
const VECTORS: i64 = 4;
/// Vectors of a row that one warp reduces.
const SHORT: i64 = 8 * 32;
/// Elements of a row that a thread keeps, at most: registers.
const KEPT: i64 = 96;
/// Sums over so many columns are shared by more threads if there are no more points than these: a thread's own loads wait for each other.
const LONG: i64 = 256;
const FEW_POINTS: i64 = 16384;

/// How a block's threads share the work.
pub struct Shape {
    /// Threads of a point.
    team: i64,
    /// Neighbouring threads take neighbouring points, not columns.
    along_points: bool,
    /// Columns of a thread at a time.
    lanes: i64,
    /// Columns of a block; none: all.
    chunk: Option<i64>,
    /// Vectors of a thread whose values stay from stage to stage; none: each stage walks the row anew.
    kept: Option<i64>,
}

impl Shape {
    pub fn new(kernel: &Kernel) -> Shape {
        let along_points = kernel.lies_along_points();
        // A column has all positions behind each other: more threads, of one column each.
        let accumulates = kernel.ordered > 0 && accumulate::parts(kernel).is_some();
        let lanes = if along_points || accumulates { 1 } else { lanes(kernel) };
        let cols = kernel.cols.as_const().unwrap_or(i64::MAX);
        let vectors = (cols / lanes).max(1);
        let reduces = kernel.reduces();
        let keeps = reduces && !along_points && kernel.ordered == 0 && reduces_first(kernel);
        let kept = |team: i64| -> Option<i64> {
            let each = vectors / team;
            let fits = vectors % team == 0 && loads_by_column(kernel) * each * lanes <= KEPT;
            (keeps && fits).then_some(each)
        };
        let team = if along_points {
            let points = Size::product(&kernel.outer).as_const().unwrap_or(i64::MAX);
            match vectors {
                LONG.. if points <= FEW_POINTS => 32,
                64.. => 8,
                _ => 1,
            }
        } else {
            let at_most = |most: i64| (vectors as u64).next_power_of_two().min(most as u64) as i64;
            let [warp, block] = [32, THREADS].map(at_most);
            // A warp needs no shared memory; rows that it cannot keep it would read twice.
            let one_warp = reduces && vectors <= SHORT && (kept(warp).is_some() || kept(block).is_none());
            if one_warp { warp } else { block }
        };
        let chunk = team * lanes * if accumulates { 1 } else { VECTORS };
        Shape {
            team,
            along_points,
            lanes,
            chunk: (!reduces && cols > chunk).then_some(chunk),
            kept: kept(team),
        }
    }

    fn points(&self) -> i64 {
        THREADS / self.team
    }

    /// Tiles: blocks of points, and chunks of columns.
    pub fn grid(&self, kernel: &Kernel) -> Vec<(Size, i64)> {
        let parallel = &kernel.outer[..kernel.outer.len() - kernel.ordered];
        let mut grid = vec![(Size::product(parallel), self.points())];
        grid.extend(self.chunk.map(|chunk| (kernel.cols.clone(), chunk)));
        grid
    }

    /// Bytes of shared memory: what the groups of a team have reduced.
    pub fn shared(&self, kernel: &Kernel) -> u32 {
        // Two numbers of each thread at most.
        let partials = if kernel.reduces() { 2 * THREADS } else { 0 };
        (partials * 4) as u32
    }

    pub fn body<'k>(&self, kernel: &'k Kernel, buffers: Vec<Val>, symbols: Vec<(&'static str, Val)>) -> Body<'k> {
        let mut body = Body::over(kernel, self.lanes as usize, buffers, symbols, Math::Gpu);
        body.alignment = 16;
        body
    }

    /// What the threads of tile `block` do.
    pub fn emit(&self, e: &mut Emit, body: &Body, block: Val) {
        Map::begin(e, body, self, block).run(e);
    }
}

/// Columns of a vector: no more than 16 bytes of what is widest, so that a warp's vectors fill all sectors that they touch.
fn lanes(kernel: &Kernel) -> i64 {
    let by_column = |a: &&Access| a.strides[kernel.outer.len()].coef != 0;
    let widest = kernel
        .accesses()
        .filter(by_column)
        .map(|a| kernel.args[a.arg].dtype.bytes())
        .max();
    kernel.lanes().min(16 / widest.unwrap_or(2).max(2))
}

fn loads_by_column(kernel: &Kernel) -> i64 {
    let by_column = |e: &&Expr| matches!(e, Expr::Load(a) if a.strides[kernel.outer.len()].coef != 0);
    kernel.exprs.iter().filter(by_column).count() as i64
}

/// Do all stores come behind all reductions? Then no stage loads what another has stored.
fn reduces_first(kernel: &Kernel) -> bool {
    let mut stages = kernel.stages.iter().skip_while(|s| matches!(s, Stage::Reduce { .. }));
    stages.all(|s| matches!(s, Stage::Store { .. }))
}

pub fn emit(kernel: &Kernel, target: &Target) -> Emitted {
    let shape = Shape::new(kernel);
    let signature = Signature {
        buffers: kernel.args.len(),
        threads: THREADS as u32,
        overlap: target.hopper,
        ..Signature::default()
    };
    let text = ptx::function(&kernel.name, signature, |e, params| {
        let block = ptx::block(e);
        let body = shape.body(kernel, params.buffers, params.symbols);
        shape.emit(e, &body, block);
    });
    let step = Step {
        function: kernel.name.clone(),
        tiles: tiles(&shape.grid(kernel)),
        threads: THREADS as u32,
        shared: shape.shared(kernel),
        overlap: target.hopper,
        ..Step::default()
    };
    Emitted::one(&kernel.name, step, text)
}

/// Where, what and whether.
type Store<'s> = (&'s Access, ExprId, Option<ExprId>);

/// A thread's part.
struct Map<'b, 'k> {
    body: &'b Body<'k>,
    shape: &'b Shape,
    thread: Val,
    /// Number in the team, i64.
    member: Val,
    /// The point of the parallel dimensions, linear; the last one where there are no more, and whether it is there.
    point: Val,
    is_there: Val,
    /// Columns of the block.
    first: Val,
    last: Val,
    /// Is it the block that stores what is stored once for each point?
    is_first_chunk: Option<Val>,
}

impl<'b, 'k> Map<'b, 'k> {
    fn begin(e: &mut Emit, body: &'b Body<'k>, shape: &'b Shape, block: Val) -> Map<'b, 'k> {
        let kernel = body.kernel;
        let parallel = &kernel.outer[..kernel.outer.len() - kernel.ordered];
        let thread = ptx::thread(e);
        let zero = e.i64(0);
        let cols = body.size(e, &kernel.cols);
        let (block, first, last, is_first_chunk) = match shape.chunk {
            None => (block, zero, cols, None),
            Some(chunk) => {
                let (less, chunk) = (e.i64(chunk - 1), e.i64(chunk));
                let n = e.add(cols, less);
                let n = e.div(n, chunk);
                let n = e.truncate_int(n, Elem::I32);
                let at = e.rem(block, n);
                let block = e.div(block, n);
                let at = e.extend_signed(at, Elem::I64);
                let first = e.mul(at, chunk);
                let last = e.add(first, chunk);
                let last = e.min(last, cols);
                let is_first = e.cmp(Cmp::Eq, at, zero);
                (block, first, last, Some(is_first))
            }
        };
        let (team, points) = (e.int(shape.team, I32), e.int(shape.points(), I32));
        let (point, member) = if shape.along_points {
            (e.rem(thread, points), e.div(thread, points))
        } else {
            (e.div(thread, team), e.rem(thread, team))
        };
        let base = e.mul(block, points);
        let point = e.add(base, point);
        let point = e.extend_signed(point, Elem::I64);
        let n = body.size(e, &Size::product(parallel));
        let is_there = e.cmp(Cmp::Lt, point, n);
        let one = e.i64(1);
        let end = e.sub(n, one);
        let point = e.min(point, end);
        let member = e.extend_signed(member, Elem::I64);
        Map {
            body,
            shape,
            thread,
            member,
            point,
            is_there,
            first,
            last,
            is_first_chunk,
        }
    }

    fn run(&self, e: &mut Emit) {
        let kernel = self.body.kernel;
        let (parallel, ordered) = kernel.outer.split_at(kernel.outer.len() - kernel.ordered);
        let outer = self.body.unravel(e, self.point, parallel);
        if ordered.is_empty() {
            let mut point = self.body.point(outer);
            self.stages(e, &mut point);
            return;
        }
        if let Some(sum) = Accumulation::of(self.body) {
            e.if_then(self.is_there, &[], |e| {
                self.columns(e, &[], |e, first, _| {
                    sum.emit(e, &outer, ordered, first);
                    vec![]
                });
                vec![]
            });
            return;
        }
        let (zero, n) = (e.i64(0), self.body.size(e, &Size::product(ordered)));
        e.for_loop(zero, n, 1, &[], |e, at, _| {
            let mut index = outer.clone();
            index.extend(self.body.unravel(e, at, ordered));
            let mut point = self.body.point(index);
            self.stages(e, &mut point);
            vec![]
        });
    }

    fn stages(&self, e: &mut Emit, point: &mut Point) {
        let stages = &self.body.kernel.stages;
        let mut kept = self.kept(e);
        let mut i = 0;
        while i < stages.len() {
            match &stages[i] {
                Stage::Reduce { .. } => {
                    let end = i + self.together(&stages[i..], i);
                    stages[i..end].iter().for_each(|s| self.body.hoist(e, point, s));
                    let results = self.reduce(e, point, &mut kept, &stages[i..end]);
                    point.reduced.extend((i..end).zip(results));
                    i = end;
                }
                Stage::Store { .. } => {
                    let group: Vec<&Stage> = stages[i..]
                        .iter()
                        .take_while(|s| matches!(s, Stage::Store { .. }))
                        .collect();
                    i += group.len();
                    group.iter().for_each(|s| self.body.hoist(e, point, s));
                    self.store(e, point, &mut kept, &group);
                }
            }
        }
    }

    /// The thread's columns whose values stay.
    fn kept(&self, e: &mut Emit) -> Vec<Columns> {
        let lanes = e.i64(self.shape.lanes);
        let begin = e.mul(self.member, lanes);
        (0..self.shape.kept.unwrap_or(0))
            .map(|i| {
                let right = e.i64(i * self.shape.team * self.shape.lanes);
                Columns::new(e.add(begin, right), None, None)
            })
            .collect()
    }

    /// The thread's columns, carrying values.
    fn columns(&self, e: &mut Emit, init: &[Val], f: impl FnOnce(&mut Emit, Val, &[Val]) -> Vec<Val>) -> Vec<Val> {
        let lanes = e.i64(self.shape.lanes);
        let begin = e.mul(self.member, lanes);
        let begin = e.add(self.first, begin);
        let step = self.shape.team * self.shape.lanes;
        e.for_loop(begin, self.last, step, init, f)
    }

    /// Stores of scalars by one thread of a team, those of vectors in one loop over the columns.
    fn store(&self, e: &mut Emit, point: &mut Point, kept: &mut [Columns], group: &[&Stage]) {
        let column = self.body.kernel.outer.len();
        let mut vectors: Vec<Store> = vec![];
        for stage in group {
            let Stage::Store { to, value, when } = stage else {
                continue;
            };
            let moves =
                to.strides[column].coef != 0 || to.indirect.as_ref().is_some_and(|(id, _)| self.body.varies(*id));
            if !self.body.single_column() && moves {
                vectors.push((to, *value, *when));
                continue;
            }
            let value = self.body.scalar(e, point, *value);
            let zero = e.i64(0);
            let one_member = e.cmp(Cmp::Eq, self.member, zero);
            let mut mine = e.and(one_member, self.is_there);
            if let Some(first) = self.is_first_chunk {
                mine = e.and(mine, first);
            }
            if let Some(when) = when {
                let when = self.body.scalar(e, point, *when);
                mine = e.and(mine, when);
            }
            e.if_then(mine, &[], |e| {
                self.body.store_scalar(e, point, to, value);
                vec![]
            });
        }
        if vectors.is_empty() {
            return;
        }
        if kept.is_empty() {
            e.if_then(self.is_there, &[], |e| {
                self.columns(e, &[], |e, first, _| {
                    let mut cols = Columns::new(first, None, None);
                    let ready = self.ready(e, point, &mut cols, &vectors);
                    self.store_ready(e, point, &mut cols, &vectors, ready);
                    vec![]
                });
                vec![]
            });
            return;
        }
        let ready: Vec<_> = (kept.iter_mut())
            .map(|cols| self.ready(e, point, cols, &vectors))
            .collect();
        e.if_then(self.is_there, &[], |e| {
            for (cols, ready) in kept.iter_mut().zip(ready) {
                self.store_ready(e, point, cols, &vectors, ready);
            }
            vec![]
        });
    }

    /// What is to be stored, and where.
    fn ready(&self, e: &mut Emit, point: &mut Point, cols: &mut Columns, stores: &[Store]) -> Vec<(Val, Option<Val>)> {
        (stores.iter())
            .map(|(_, value, when)| {
                let when = when.map(|w| self.body.vector(e, point, cols, w));
                (self.body.vector(e, point, cols, *value), when)
            })
            .collect()
    }

    fn store_ready(
        &self,
        e: &mut Emit,
        point: &mut Point,
        cols: &mut Columns,
        stores: &[Store],
        ready: Vec<(Val, Option<Val>)>,
    ) {
        for ((to, ..), (value, when)) in stores.iter().zip(ready) {
            self.body.store_vector(e, point, cols, to, value, when);
        }
    }
}
