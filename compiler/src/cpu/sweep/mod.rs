//! Kernels with a sweep: attention over ranges of keys, streamed once (flash attention, Dao et al., arXiv 2205.14135).
//!
//!     for tile in begin..end                  (batch point, block of tokens): all rows that share its keys
//!       for segment                           its accumulator starts at zero, or as a copy of the one that it continues
//!         for block of 64 keys in its range   keys turned and values paired in scratch
//!           for chunk of rows                 scores = q k: the matmuls' register tile
//!           for row                           mask by distance, maximum, exponentials, sum; the factor for what was there
//!           for chunk of rows                 O = O * factor + p v
//!       for row                               the kernel's stages on O / l
//!
//! Few rows (decoding) are another walk: nothing is packed, each key and value is read once where it lies. Scores are in units of
//! log2, so that an exponential is a power of two.

mod products;
mod scratch;
mod softmax;

use ir::DType;
use ir::plan::{Expr, Kernel, Segment, Sweep};

use self::scratch::Scratch;
use super::Target;
use super::keys::{BLOCK, Matrix, pack_keys, pack_values};
use super::{map, product, vmath};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};
use crate::scalar::{Body, F32, memory};

/// A maximum before any key was seen: below every score, and far from where subtracting it overflows.
const LOWEST: f32 = -1e30;
/// With no more rows than this, packing keys costs more than it saves.
const FEW: i64 = 8;

/// Gets a chunk's group (none: rows are groups), its first token or row, and its height.
type ChunkBody<'a> = &'a mut dyn FnMut(&mut Emit, Option<Val>, Val, i64);

/// Scratch of a worker.
pub fn scratch_bytes(kernel: &Kernel, sweep: &Sweep) -> i64 {
    Scratch::new(kernel, sweep).end
}

pub fn emit(kernel: &Kernel, sweep: &Sweep, target: &Target) -> String {
    let mut e = Emit::default();
    e.kernel(&kernel.name, |e, [buffers, symbols, begin, end, memory]| {
        let body = Body::new(e, kernel, target.lanes, buffers, symbols);
        let (batch, rows) = kernel.outer.split_at(sweep.batch);
        let tokens = match rows.last() {
            Some(n) if sweep.tokens => body.size(e, n),
            _ => e.i64(1),
        };
        let height = if sweep.tokens {
            sweep.tile_tokens(&kernel.outer)
        } else {
            1
        };
        let (step, less) = (e.i64(height), e.i64(height - 1));
        let blocks = e.add(tokens, less);
        let blocks = e.div(blocks, step);
        e.for_loop(begin, end, 1, &[], |e, tile, _| {
            // The last tokens see the most keys: they go first, so that no thread is left with them.
            let block = e.rem(tile, blocks);
            let one = e.i64(1);
            let last = e.sub(blocks, one);
            let block = e.sub(last, block);
            let point = e.div(tile, blocks);
            let batch = body.unravel(e, point, batch);
            let first = e.mul(block, step);
            let count = e.sub(tokens, first);
            let count = e.min(count, step);
            let position = position(e, &body, sweep, &batch, first);
            let tile = Tile {
                body: &body,
                kernel,
                sweep,
                target,
                lay: Scratch::new(kernel, sweep),
                memory,
                height,
                batch,
                first,
                count,
                position,
            };
            for (i, segment) in sweep.segments.iter().enumerate() {
                e.comment(&format!("segment {i}"));
                tile.begin(e, i, segment.after);
                tile.segment(e, i, segment);
            }
            tile.finish(e);
            vec![]
        });
    });
    e.finish()
}

/// The position of the tile's first token, i64.
fn position(e: &mut Emit, body: &Body, sweep: &Sweep, batch: &[Val], first: Val) -> Val {
    let Some(start) = sweep.start else { return first };
    let zero = e.i64(0);
    let mut index = batch.to_vec();
    index.resize(body.kernel.outer.len(), zero);
    let mut point = body.point(index);
    let start = body.scalar(e, &mut point, start);
    let start = e.extend_signed(start, Elem::I64);
    e.add(start, first)
}

/// The rows of one batch point and block of tokens. Row (group g, token t of the tile) is row g * height + t of scratch.
struct Tile<'k> {
    body: &'k Body<'k>,
    kernel: &'k Kernel,
    sweep: &'k Sweep,
    target: &'k Target,
    lay: Scratch,
    memory: Val,
    height: i64,
    batch: Vec<Val>,
    /// First token, and how many.
    first: Val,
    count: Val,
    /// Of the first token.
    position: Val,
}

impl Tile<'_> {
    fn cols(&self) -> i64 {
        self.kernel.cols.as_const().unwrap_or(1)
    }

    fn is_few(&self) -> bool {
        !self.sweep.tokens && self.lay.rows <= FEW
    }

    /// Probabilities meet bf16 values in pairs.
    fn in_pairs(&self, segment: &Segment) -> bool {
        self.kernel.args[segment.v.arg].dtype == DType::BF16 && !self.is_few()
    }

    /// A place in scratch.
    fn place(&self, e: &mut Emit, bytes: i64) -> Val {
        let at = e.i64(bytes);
        e.at(self.memory, at, Elem::I8)
    }

    fn state(&self, segment: usize) -> i64 {
        self.lay.states + segment as i64 * self.lay.state
    }

    /// Pointer to element (row, column) of f32 scratch at `bytes` with this many columns.
    fn element(&self, e: &mut Emit, bytes: i64, row: Val, width: i64, elem: Elem) -> Val {
        let base = self.place(e, bytes);
        let width = e.i64(width);
        let at = e.mul(row, width);
        e.at(base, at, elem)
    }

    fn maximum(&self, e: &mut Emit, segment: usize, row: Val) -> Val {
        let bytes = self.state(segment) + self.lay.rows * self.lay.width * 4;
        self.element(e, bytes, row, 1, Elem::F32)
    }

    fn mass(&self, e: &mut Emit, segment: usize, row: Val) -> Val {
        let bytes = self.state(segment) + self.lay.rows * (self.lay.width + 1) * 4;
        self.element(e, bytes, row, 1, Elem::F32)
    }

    /// For each group of rows: its number and its first row in scratch.
    fn groups(&self, e: &mut Emit, f: &mut dyn FnMut(&mut Emit, Val, Val)) {
        let (zero, n) = (e.i64(0), e.i64(self.lay.rows / self.height));
        e.for_loop(zero, n, 1, &[], |e, g, _| {
            let height = e.i64(self.height);
            let row = e.mul(g, height);
            f(e, g, row);
            vec![]
        });
    }

    /// Chunks of rows, none across two groups: (group, token of the tile, row of scratch, rows). Few rows are one group.
    fn chunks(&self, e: &mut Emit, f: ChunkBody) {
        if self.height == 1 {
            let (zero, n) = (e.i64(0), e.i64(self.lay.rows));
            product::chunks(e, zero, n, &mut |e, row, chunk| f(e, None, row, chunk));
            return;
        }
        let zero = e.i64(0);
        self.groups(e, &mut |e, g, _| {
            product::chunks(e, zero, self.count, &mut |e, t, chunk| f(e, Some(g), t, chunk));
        });
    }

    /// Row of scratch for row i of a chunk.
    fn row(&self, e: &mut Emit, g: Option<Val>, at: Val, i: i64) -> Val {
        let i = e.i64(i);
        let at = e.add(at, i);
        match g {
            None => at,
            Some(g) => {
                let height = e.i64(self.height);
                let row = e.mul(g, height);
                e.add(row, at)
            }
        }
    }

    /// The kernel's indices of a row.
    fn index(&self, e: &mut Emit, g: Val, token: Val) -> Vec<Val> {
        let rows = &self.kernel.outer[self.sweep.batch..];
        let mut index = self.batch.clone();
        if self.sweep.tokens {
            index.extend(self.body.unravel(e, g, &rows[..rows.len() - 1]));
            let t = e.add(self.first, token);
            index.push(t);
        } else {
            index.extend(self.body.unravel(e, g, rows));
        }
        index
    }

    /// Pointer to the query of row i of a chunk.
    fn query(&self, e: &mut Emit, g: Option<Val>, at: Val, i: i64) -> Val {
        let i = e.i64(i);
        let at = e.add(at, i);
        let index = match g {
            Some(g) => self.index(e, g, at),
            None => {
                let zero = e.i64(0);
                self.index(e, at, zero)
            }
        };
        let q = &self.sweep.q;
        let base = self.body.linear(e, &q.offset, &index, &q.strides[..index.len()]);
        e.at(self.body.args[q.arg], base, memory(self.kernel.args[q.arg].dtype))
    }

    /// The accumulator: zero, or a copy.
    fn begin(&self, e: &mut Emit, segment: usize, after: Option<usize>) {
        let lanes = self.target.lanes;
        let ty = Ty::vector(Elem::F32, lanes);
        let to = self.place(e, self.state(segment));
        let from = after.map(|a| self.place(e, self.state(a)));
        // m and l lie behind O: a copy takes all three.
        let elements = self.lay.state / 4;
        let (zero, n) = (e.i64(0), e.i64(elements));
        let nothing = e.f32(0.0, ty);
        e.for_loop(zero, n, lanes as i64, &[], |e, at, _| {
            let v = match from {
                None => nothing,
                Some(from) => {
                    let p = e.at(from, at, Elem::F32);
                    e.load(p, ty)
                }
            };
            let p = e.at(to, at, Elem::F32);
            e.store(v, p);
            vec![]
        });
        if after.is_none() {
            let rows = e.i64(self.lay.rows);
            e.for_loop(zero, rows, 1, &[], |e, row, _| {
                let p = self.maximum(e, segment, row);
                let lowest = e.f32(LOWEST, F32);
                e.store(lowest, p);
                vec![]
            });
        }
    }

    fn segment(&self, e: &mut Emit, number: usize, s: &Segment) {
        let keys = self.body.size(e, &s.keys);
        let k = Matrix::new(e, self.body, self.kernel, &s.k, &self.batch, keys);
        let v = Matrix::new(e, self.body, self.kernel, &s.v, &self.batch, keys);
        // Keys that any row of the tile sees: from..to.
        let zero = e.i64(0);
        let from = match s.far {
            None => zero,
            Some(far) => {
                let reach = e.i64(far - 1);
                let from = e.sub(self.position, reach);
                e.max(from, zero)
            }
        };
        let near = e.i64(s.near);
        let to = e.add(self.position, self.count);
        let to = e.sub(to, near);
        let to = e.min(to, keys);
        let first = if self.is_few() {
            from
        } else {
            let mask = e.i64(-BLOCK);
            e.and(from, mask)
        };
        e.for_loop(first, to, BLOCK, &[], |e, block, _| {
            if self.is_few() {
                let n = e.sub(to, block);
                let whole = e.i64(BLOCK);
                let n = e.min(n, whole);
                self.few_scores(e, &k, block, n);
                let lanes = |e: &mut Emit, at: i64| {
                    let at = e.i64(at);
                    let left = e.sub(n, at);
                    e.first_lanes(left, self.target.lanes)
                };
                self.softmax(e, number, s, &|e, _, at| Some(lanes(e, at)));
                self.few_values(e, number, &v, block, n);
                return vec![];
            }
            let panel = self.place(e, self.lay.keys);
            pack_keys(e, self.target, &k, self.sweep.depth, block, panel);
            self.scores(e, s);
            self.masked_softmax(e, number, s, block, keys);
            if self.in_pairs(s) {
                let panel = self.place(e, self.lay.values);
                pack_values(e, self.target, &v, self.cols(), self.lay.width, block, panel);
            }
            self.values(e, number, s, &v, block);
            vec![]
        });
    }

    /// The logarithm of the mass of what the row has seen.
    fn lse(&self, e: &mut Emit, segment: usize, row: Val) -> Val {
        let mass = self.mass(e, segment, row);
        let mass = e.load(mass, F32);
        let tiny = e.f32(1e-30, F32);
        let some = e.cmp(Cmp::Lt, tiny, mass);
        let mass = e.max(mass, tiny);
        let log = vmath::log(e, mass);
        let maximum = self.maximum(e, segment, row);
        // Scores are in units of log2.
        let maximum = e.load(maximum, F32);
        let unit = e.f32(std::f32::consts::LN_2, F32);
        let lse = e.fma(maximum, unit, log);
        let lowest = e.f32(LOWEST, F32);
        e.select(some, lse, lowest)
    }

    /// The kernel's stages for every row.
    fn finish(&self, e: &mut Emit) {
        let lanes = self.target.lanes;
        let zero = e.i64(0);
        self.groups(e, &mut |e, g, base| {
            e.for_loop(zero, self.count, 1, &[], |e, token, _| {
                let row = e.add(base, token);
                let states: Vec<(Val, Val)> = (0..self.sweep.segments.len())
                    .map(|s| {
                        let mass = self.mass(e, s, row);
                        let mass = e.load(mass, F32);
                        // A row that saw no key has mass 0 and stays 0.
                        let tiny = e.f32(1e-30, F32);
                        let mass = e.max(mass, tiny);
                        let one = e.f32(1.0, F32);
                        let share = e.div(one, mass);
                        let o = self.element(e, self.state(s), row, self.lay.width, Elem::F32);
                        (o, e.broadcast(share, lanes))
                    })
                    .collect();
                let index = self.index(e, g, token);
                let mut point = self.body.point(index);
                let asked = |s: usize| self.kernel.exprs.contains(&Expr::Lse(s));
                if (0..self.sweep.segments.len()).any(asked) {
                    point.lse = (0..self.sweep.segments.len()).map(|s| self.lse(e, s, row)).collect();
                }
                map::stages(e, self.body, &mut point, &|e, cols| {
                    for (o, share) in &states {
                        let p = e.at(*o, cols.first, Elem::F32);
                        let x = e.load(p, Ty::vector(Elem::F32, lanes));
                        let x = e.mul(x, *share);
                        cols.swept.push(x);
                    }
                });
                vec![]
            });
        });
    }
}
