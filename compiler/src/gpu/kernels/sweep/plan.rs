//! What is known of a flash attention when compiling: which segments are one stream, how a tile is shared out, where things lie in shared
//! memory, what the copy engine is told.

use ir::plan::{Access, Expr, Kernel, Reduction, Rows, Stage, Sweep};
use ir::{DType, Size};
use runtime::artefact::{MapSource, TensorMap};

use super::flash::{CONSUMERS, RELEASES};
use super::walk::{Bounds, HALF, KEYS};
use crate::pipeline;

/// Segments that share keys and values, newest first.
#[derive(Clone, Debug)]
pub struct Stream {
    pub segments: Vec<usize>,
    pub bounds: Vec<Bounds>,
    pub k: Rows,
    pub v: Rows,
    pub scale: f32,
}

/// How a matrix of rows lies in shared memory: panels of so many columns.
#[derive(Clone, Copy, Debug)]
pub struct Panels {
    pub columns: i64,
    pub width: i64,
}

impl Panels {
    pub fn new(columns: i64) -> Panels {
        let width = [64, 32, 16]
            .into_iter()
            .find(|w| columns % w == 0)
            .expect("a multiple of 16");
        Panels { columns, width }
    }

    pub fn count(self) -> i64 {
        self.columns / self.width
    }

    pub fn swizzle(self) -> i64 {
        2 * self.width
    }

    /// Bytes of a panel.
    pub fn bytes(self, rows: i64) -> i64 {
        2 * self.width * rows
    }
}

/// Everything that is known when compiling.
pub struct Plan<'k> {
    pub kernel: &'k Kernel,
    pub sweep: &'k Sweep,
    pub streams: Vec<Stream>,
    pub keys: Panels,
    pub values: Panels,
    pub stages: i64,
    /// Consumers take two heads that share keys, at the same tokens; else one head, 64 tokens apart.
    pub paired: bool,
    /// Rows may see keys that are not there.
    pub bounded: bool,
    /// A tile's newest key lies 64 or 128 keys before the next.
    pub aligned: bool,
    pub groups: i64,
    /// Is there a value to sum up, or only masses?
    pub sums: bool,
    /// Columns of a thread at a time, in the kernel's stages.
    pub lanes: i64,
}

impl<'k> Plan<'k> {
    /// None: not for this file. Sizes that must be multiples of 8 elements go to `even`.
    pub fn new(kernel: &'k Kernel, sweep: &'k Sweep, even: &mut Vec<Size>) -> Option<Plan<'k>> {
        let cols = kernel.cols.as_const()?;
        let fits = |n: i64| n % 16 == 0 && (16..=128).contains(&n);
        let bf16 = |arg: usize| kernel.args[arg].dtype == DType::BF16;
        let rows = &kernel.outer[sweep.batch..];
        let groups = Size::product(&rows[..rows.len().checked_sub(1)?]).as_const()?;
        let log = |s: &Stage| {
            matches!(
                s,
                Stage::Reduce {
                    op: Reduction::LogSumExp,
                    ..
                }
            )
        };
        if !sweep.tokens
            || !fits(sweep.depth)
            || !fits(cols)
            || sweep.q.indirect.is_some()
            || kernel.stages.iter().any(log)
        {
            return None;
        }
        let mut streams: Vec<Stream> = vec![];
        for (i, s) in sweep.segments.iter().enumerate() {
            let scale = f32::from_bits(s.scale);
            let bounds = Bounds {
                near: s.near,
                far: s.far,
            };
            let here = streams
                .iter_mut()
                .find(|t| s.after.is_some() && t.segments.last() == s.after.as_ref());
            match here {
                Some(t) => {
                    let goes_on = t.bounds[t.bounds.len() - 1].far == Some(s.near)
                        && (&t.k, &t.v, t.scale) == (&s.k, &s.v, scale);
                    let keys = &sweep.segments[t.segments[0]].keys;
                    if !goes_on || *keys != s.keys {
                        return None;
                    }
                    t.segments.push(i);
                    t.bounds.push(bounds);
                }
                None if s.after.is_none() && s.near == 0 => streams.push(Stream {
                    segments: vec![i],
                    bounds: vec![bounds],
                    k: s.k.clone(),
                    v: s.v.clone(),
                    scale,
                }),
                None => return None,
            }
            let nothing = s.far.is_some_and(|far| far <= s.near || far > 1 << 24);
            if !bf16(s.k.arg) || !bf16(s.v.arg) || scale <= 0.0 || nothing {
                return None;
            }
        }
        // The longest stream last: its result stays in registers.
        streams.sort_by_key(|s| s.bounds[s.bounds.len() - 1].far.unwrap_or(i64::MAX));
        if !bf16(sweep.q.arg) || sweep.segments.len() > 2 {
            return None;
        }
        let tokens = kernel.outer.last()?;
        let mut sizes: Vec<&Size> = row_strides(&sweep.q).iter().chain([&sweep.q.offset]).collect();
        for r in streams.iter().flat_map(|s| [&s.k, &s.v]) {
            sizes.extend(r.strides.iter().chain([&r.offset]));
            // Innermost, rows, batch dimensions.
            let rank = 2 + kernel.outer[..sweep.batch]
                .iter()
                .filter(|n| n.as_const() != Some(1))
                .count();
            if rank > 5 {
                return None;
            }
        }
        if 1 + kernel.outer.iter().filter(|n| n.as_const() != Some(1)).count() > 5 {
            return None;
        }
        for s in sizes.into_iter().filter(|s| s.coef % 8 != 0) {
            if s.as_const().is_some() {
                return None;
            }
            even.push(s.clone());
        }
        let uses = |f: &dyn Fn(&Expr) -> bool| kernel.exprs.iter().any(f);
        let plan = Plan {
            kernel,
            sweep,
            keys: Panels::new(sweep.depth),
            values: Panels::new(cols),
            stages: if sweep.depth.max(cols) > 64 { 2 } else { 4 },
            paired: groups % 2 == 0,
            bounded: sweep.start.is_some() || sweep.segments.iter().any(|s| s.keys != *tokens),
            aligned: sweep.start.is_none(),
            groups,
            sums: uses(&|e| matches!(e, Expr::Swept(_))),
            lanes: if kernel.allows_lanes(8) { 8 } else { 1 },
            streams,
        };
        Some(plan)
    }

    pub fn cols(&self) -> i64 {
        self.values.columns
    }

    /// Tokens of a tile.
    pub fn tokens(&self) -> i64 {
        if self.paired { HALF } else { CONSUMERS * HALF }
    }

    /// How many halves each consumer's rows lie behind the tile's last ones.
    pub fn shifts(&self) -> &'static [i64] {
        if self.paired { &[0] } else { &[1, 0] }
    }

    /// Segments whose results wait in shared memory.
    pub fn parked(&self) -> Vec<usize> {
        let all: Vec<usize> = self.streams.iter().flat_map(|s| s.segments.clone()).collect();
        all[..all.len() - 1].to_vec()
    }

    // Bytes of shared memory, in this order.

    pub fn query_bytes(&self) -> i64 {
        self.keys.count() * self.keys.bytes(HALF)
    }

    pub fn key_bytes(&self) -> i64 {
        self.keys.count() * self.keys.bytes(KEYS)
    }

    pub fn value_bytes(&self) -> i64 {
        self.values.count() * self.values.bytes(KEYS)
    }

    pub fn at_keys(&self) -> i64 {
        CONSUMERS * self.query_bytes()
    }

    pub fn at_values(&self) -> i64 {
        self.at_keys() + self.stages * self.key_bytes()
    }

    /// A parked result: rows of bf16.
    pub fn at_parked(&self, number: usize) -> i64 {
        self.at_values() + self.stages * self.value_bytes() + number as i64 * CONSUMERS * HALF * self.cols() * 2
    }

    /// Eight rows of f32 for each warp.
    pub fn at_turned(&self) -> i64 {
        self.at_parked(self.parked().len())
    }

    /// Logarithms of masses, by segment and row.
    pub fn at_logs(&self) -> i64 {
        self.at_turned() + RELEASES * 8 * self.cols() * 4
    }

    pub fn at_barriers(&self) -> i64 {
        self.at_logs() + self.sweep.segments.len() as i64 * CONSUMERS * HALF * 4
    }

    pub fn bytes(&self) -> i64 {
        self.at_barriers() + 8 * (2 * CONSUMERS + 4 * self.stages)
    }
}

fn row_strides(a: &Access) -> &[Size] {
    &a.strides[..a.strides.len() - 1]
}

/// Queries, then keys and values of each stream.
pub fn maps(plan: &Plan) -> Vec<TensorMap> {
    let (kernel, sweep) = (plan.kernel, plan.sweep);
    let map = |arg: usize, offset: &Size, panels: Panels, dims: Vec<(Size, Size)>, rows: i64| {
        let dims: Vec<(Size, Size)> = dims
            .into_iter()
            .enumerate()
            .filter(|(i, (n, _))| *i == 0 || n.as_const() != Some(1))
            .map(|(_, d)| d)
            .collect();
        let mut r#box = vec![panels.width as u32, rows as u32];
        r#box.resize(dims.len() + 1, 1);
        TensorMap {
            source: MapSource::Buffer(arg as u32),
            dtype: runtime::artefact::DType::BF16,
            offset: pipeline::size(offset),
            dims: std::iter::once(&Size::from(panels.columns))
                .chain(dims.iter().map(|d| &d.0))
                .map(pipeline::size)
                .collect(),
            strides: dims.iter().map(|d| pipeline::size(&d.1)).collect(),
            r#box,
            swizzle: panels.swizzle() as u32,
        }
    };
    let outer: Vec<(Size, Size)> = kernel
        .outer
        .iter()
        .cloned()
        .zip(row_strides(&sweep.q).iter().cloned())
        .rev()
        .collect();
    let mut all = vec![map(sweep.q.arg, &sweep.q.offset, plan.keys, outer, HALF)];
    for s in &plan.streams {
        let keys = &sweep.segments[s.segments[0]].keys;
        for (rows, panels) in [(&s.k, plan.keys), (&s.v, plan.values)] {
            let (stride, batch) = rows.strides.split_last().expect("rows have a stride");
            let mut dims = vec![(keys.clone(), stride.clone())];
            dims.extend(
                kernel.outer[..sweep.batch]
                    .iter()
                    .cloned()
                    .zip(batch.iter().cloned())
                    .rev(),
            );
            all.push(map(rows.arg, &rows.offset, panels, dims, KEYS));
        }
    }
    all
}
