//! A token as one function (a persistent kernel): blocks, one a multiprocessor, that stay from an entry's first launch to its last.
//!
//!     the first units of weights are under way                  they depend on nothing, and fill shared memory ahead of all tasks (units.rs)
//!     for task                                                  a launch, or a token's attention with what stands in front of it
//!       its keys to the second cache                            what needs no other block's results
//!       all blocks have ended the task before it                a counter (grid.rs)
//!       a product of few rows, an attention, a small kernel     bodies: layers are alike, so there are a dozen, and tasks say which
//!
//! Only entries whose kernels all have such a body, with few rows. What a task is told stands in a table (`runtime::artefact::Persistent`).
//! The bodies' arithmetic is that of the functions they have elsewhere.

mod grid;
mod product;
mod small;
mod table;
mod units;

use ir::plan::{BufferKind, Kernel, Plan};
use ir::Size;
use runtime::artefact::{self, Matrices, Persistent, Task};

use self::grid::Grid;
use self::product::Product;
use self::small::Small;
use self::table::Table;
use self::units::Units;
use super::few_rows_mma::{ROWS, THREADS, WARPS};
use super::kernels::sweep::Token;
use super::pipeline::{self, Place};
use super::ptx::{self, I32, Params, Signature};
use super::{Target, join};
use crate::mlir::emit::{Cmp, Emit};
use crate::pipeline as levels;

/// Shared memory that a block can have on Hopper.
const SHARED: i64 = 227 << 10;
/// Units in shared memory, at most.
const MOST_UNITS: i64 = 16;
/// Threads of a block: those that do its tasks, and the warp that brings weights.
const ALL_THREADS: i64 = THREADS + 32;

enum Body<'k> {
    Product(Product<'k>),
    Attention(Token<'k>),
    Small(Small<'k>),
}

impl<'k> Body<'k> {
    /// Of these kernels: one, or a sweep's prologue and the sweep.
    fn of(kernels: &[&'k Kernel], points: &[i64]) -> Option<Body<'k>> {
        let (last, front) = kernels.split_last()?;
        if let Some(c) = &last.contraction {
            return Product::new(last, c).map(Body::Product);
        }
        if last.sweep.is_some() {
            let prologue = front.iter().copied().zip(points.iter().copied()).collect();
            return Token::new(last, prologue, WARPS).map(Body::Attention);
        }
        last.is_small().then(|| Body::Small(Small::new(last)))
    }

    /// Bytes of shared memory.
    fn shared(&self) -> i64 {
        match self {
            Body::Product(p) => p.shared(),
            Body::Attention(a) => a.memory().0,
            Body::Small(s) => s.shared(),
        }
    }

    /// Bytes of the workspace.
    fn workspace(&self) -> i64 {
        match self {
            Body::Attention(a) => a.memory().1,
            _ => 0,
        }
    }

    fn matrices(&self) -> Option<Matrices> {
        match self {
            Body::Product(p) => Some(p.matrices()),
            _ => None,
        }
    }
}

/// Tasks of an entry, and the bodies that they have.
struct Program<'k> {
    bodies: Vec<Known<'k>>,
    tasks: Vec<Task>,
    /// Of all products.
    rows: Size,
}

/// A body, the plan's kernels that it is of, and how many buffers they have.
struct Known<'k> {
    kernels: Vec<usize>,
    buffers: usize,
    body: Body<'k>,
}

impl<'k> Program<'k> {
    fn new(plan: &'k Plan) -> Option<Program<'k>> {
        let groups = join::groups(plan);
        let mut program = Program {
            bodies: vec![],
            tasks: vec![],
            rows: rows(plan)?,
        };
        let mut at = 0;
        while at < plan.launches.len() {
            let group = groups.iter().find(|g| g.launches.start == at);
            let (end, points) = group.map_or((at + 1, &[][..]), |g| (g.launches.end, &g.points[..]));
            if points.is_empty() {
                // Side by side: each by itself, and no barrier between them.
                for i in at..end {
                    program.task(plan, i..i + 1, points, i > at)?;
                }
            } else {
                program.task(plan, at..end, points, false)?;
            }
            at = end;
        }
        let decodes = |b: &Known| matches!(b.body, Body::Attention(_));
        program.bodies.iter().any(decodes).then_some(program)
    }

    fn task(&mut self, plan: &'k Plan, launches: std::ops::Range<usize>, points: &[i64], beside: bool) -> Option<()> {
        let all = &plan.launches[launches.clone()];
        let of: Vec<usize> = all.iter().map(|l| l.kernel).collect();
        let known = self.bodies.iter().position(|b| b.kernels == of);
        let body = match known {
            Some(body) => body,
            None => {
                let kernels: Vec<&Kernel> = of.iter().map(|k| &plan.kernels[*k]).collect();
                self.bodies.push(Known {
                    buffers: kernels.iter().map(|k| k.args.len()).sum(),
                    body: Body::of(&kernels, points)?,
                    kernels: of,
                });
                self.bodies.len() - 1
            }
        };
        let matrices = self.bodies[body].body.matrices();
        // Units are asked for long before: of what no launch writes.
        let weight = |arg: &u32| matches!(plan.buffers[all[0].args[*arg as usize]].kind, BufferKind::Weight(_));
        if matrices.iter().flat_map(|m| &m.args).any(|arg| !weight(arg)) {
            return None;
        }
        self.tasks.push(Task {
            body: body as u32,
            first: launches.start as u32,
            count: launches.len() as u32,
            beside,
            matrices,
        });
        Some(())
    }
}

/// Rows of the entry's products, if they all have so many.
fn rows(plan: &Plan) -> Option<Size> {
    let kernels = plan.launches.iter().map(|l| &plan.kernels[l.kernel]);
    let mut all = kernels.filter(|k| k.contraction.is_some()).map(|k| Size::product(&k.outer));
    let first = all.next()?;
    all.all(|rows| rows == first).then_some(first)
}

/// The function of a plan's entry, if it can be one: how it is run, and its name and MLIR.
pub fn emit(plan: &Plan, target: &Target) -> Option<(Persistent, (String, String))> {
    let program = Program::new(plan).filter(|_| target.hopper)?;
    let layout = Layout::new(&program)?;
    let function = format!("{}_persistent", plan.entry);
    let signature = Signature {
        buffers: 2,
        workspaces: 1,
        counters: true,
        threads: ALL_THREADS as u32,
        ..Signature::default()
    };
    let text = ptx::function(&function, signature, |e, params| run(e, &program, &layout, params));
    let persistent = Persistent {
        entry: plan.entry.clone(),
        at_most: (levels::size(&program.rows), ROWS[0]),
        function: function.clone(),
        threads: ALL_THREADS as u32,
        shared: layout.bytes as u32,
        workspace: program.bodies.iter().map(|b| b.body.workspace()).max()? as u64,
        counters: grid::COUNTERS as u32,
        row: layout.words as u32,
        units: artefact::Units {
            rows: units::ROWS,
            depth: units::DEPTH,
        },
        tasks: program.tasks,
    };
    Some((persistent, (function, text)))
}

/// Shared memory: what the tasks' bodies work on, two rows of the table, the ring of units.
struct Layout {
    /// u64 of a row: the body, then addresses.
    words: i64,
    rows: i64,
    /// Where the units' ring begins, and how many it has room for.
    ring: i64,
    units: i64,
    bytes: i64,
}

impl Layout {
    fn new(program: &Program) -> Option<Layout> {
        let aligned = |n: i64, to: i64| (n + to - 1) / to * to;
        let words = 1 + program.bodies.iter().map(|b| b.buffers).max()? as i64;
        let work = program.bodies.iter().map(|b| b.body.shared()).max()?;
        let rows = aligned(work, 16);
        let ring = aligned(rows + 16 * words, 128);
        let units = ((SHARED - ring - pipeline::BARRIERS) / units::BYTES).min(MOST_UNITS);
        // A group of a product's tiles is there as a whole.
        let needed = program.bodies.iter().map(|b| match &b.body {
            Body::Product(p) => p.units_of_group(),
            _ => 0,
        });
        (needed.max()? <= units && words <= THREADS).then_some(Layout {
            words,
            rows,
            ring,
            units,
            bytes: ring + pipeline::BARRIERS + units * units::BYTES,
        })
    }
}

fn run(e: &mut Emit, program: &Program, layout: &Layout, params: Params) {
    let (thread, threads) = (ptx::thread(e), e.int(THREADS, I32));
    let units = Units::new(e, layout.ring, layout.units, params.buffers[1]);
    units.start(e, thread);
    let works = e.cmp(Cmp::Lt, thread, threads);
    e.if_else(
        works,
        &[],
        |e| {
            e.meeting = Some(THREADS);
            tasks(e, program, layout, &units, params);
            e.meeting = None;
            vec![]
        },
        |e| {
            let lane = e.sub(thread, threads);
            units.produce(e, lane);
            vec![]
        },
    );
}

/// What the threads do that do the block's work.
fn tasks(e: &mut Emit, program: &Program, layout: &Layout, units: &Units, params: Params) {
    let table = Table::new(e, layout, &params);
    let counters = params.counters.expect("they were asked for");
    let grid = Grid::new(e, counters, table.thread);
    let (zero, count) = (e.int(0, I32), e.int(program.tasks.len() as i64, I32));
    table.begin(e);
    ptx::barrier(e);
    let first = Place::first(e).values();
    e.for_loop(zero, count, 1, &first, |e, task, carried| {
        let row = table.row(e, task);
        let coming = table.look_up_next(e, task, count);
        // What needs no other block's results.
        for (i, known) in program.bodies.iter().enumerate() {
            if let Body::Attention(a) = &known.body {
                row.if_it_is(e, i, &[], |e| {
                    let own = row.params(e, known.buffers, &params);
                    a.prefetch(e, own);
                    vec![]
                });
            }
        }
        grid.wait(e, task, row.beside);
        ptx::barrier(e);
        table.put_next(e, task, coming);
        let mut place = [carried[0], carried[1]];
        for (i, known) in program.bodies.iter().enumerate() {
            let after = row.if_it_is(e, i, &place, |e| {
                let own = row.params(e, known.buffers, &params);
                match &known.body {
                    Body::Product(p) => return p.run(e, units, own, Place::of(&place)).values().to_vec(),
                    Body::Attention(a) => a.run(e, own),
                    Body::Small(s) => s.run(e, own),
                }
                place.to_vec()
            });
            place = [after[0], after[1]];
        }
        ptx::barrier(e);
        grid.arrive(e);
        place.to_vec()
    });
    grid.leave(e);
}
