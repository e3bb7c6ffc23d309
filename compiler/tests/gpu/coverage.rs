//! Plans on a GPU that is evaluated, launch by launch beside the plan's interpreter: launch geometry, tiles' coverage and index arithmetic,
//! for sizes at the edges of tiles and for few multiprocessors. What a kernel is to write is NaN before, so that what it leaves out shows;
//! memory ends where a buffer ends, so that what it writes or reads outside is a fault.

use std::collections::HashSet;

use ir::plan::eval::{allocate, round, run_kernel};
use ir::plan::{BufferKind, Kernel, Plan, WeightRecipe};
use ir::{DType, Sizes};
use runtime::artefact::{GpuKernel, Variant};

use crate::harness::size;
use crate::subjects::{Made, Subject};

/// Of blocks that walk tiles there are this many in turn.
const MULTIPROCESSORS: [u64; 3] = [1, 2, 7];

pub fn sizes(list: [i64; 4]) -> Sizes {
    ["B", "T", "S", "C"].into_iter().map(String::from).zip(list).collect()
}

/// Kernels that were run, and ways of them.
#[derive(Default)]
pub struct Seen(pub HashSet<(String, usize)>);

/// Which ways are run: by function's name.
pub type Which<'a> = &'a dyn Fn(&str) -> bool;

/// Runs the subject's plan; the first difference is an error.
pub fn check(subject: &Subject, made: &Made, sizes: &Sizes, which: Which, seen: &mut Seen) -> Result<(), String> {
    let plan = &subject.plan;
    let mut memory = start(plan, sizes);
    let mut fresh: HashSet<usize> = (0..plan.buffers.len()).filter(|b| is_written_first(plan, *b)).collect();
    let mut done = HashSet::new();
    let mut group: Vec<(usize, Vec<Vec<f64>>)> = vec![];
    for (at, launch) in plan.launches.iter().enumerate() {
        let kernel = &plan.kernels[launch.kernel];
        let mut held: Vec<Vec<f64>> = launch.args.iter().map(|b| std::mem::take(&mut memory[*b])).collect();
        for ((arg, b), values) in kernel.args.iter().zip(&launch.args).zip(&mut held) {
            if arg.written && fresh.remove(b) {
                values.fill(f64::NAN);
            }
        }
        let before = held.clone();
        run_kernel(kernel, sizes, &mut held).map_err(|e| e.to_string())?;
        // What is stored is rounded, as memory does; a backward's sums are not, there.
        for (arg, values) in kernel.args.iter().zip(&mut held).filter(|(a, _)| a.written) {
            values.iter_mut().for_each(|x| *x = round(*x, arg.dtype));
        }
        let case = Case {
            kernels: vec![kernel],
            buffers: launch.args.clone(),
            made,
            sizes,
        };
        if subject.new[launch.kernel] && done.insert(launch.kernel) {
            case.compare(&kernel.name, &before, &held, which, seen)?;
        }
        // A joined kernel starts from what its first launch finds. What a later one needs of an earlier one is in a buffer of both.
        let joined = made
            .joins
            .iter()
            .find(|j| (j.first..j.first + j.count).contains(&(at as u32)));
        if let Some(join) = joined {
            group.push((at, before));
            if at as u32 + 1 == join.first + join.count {
                let wanted: Vec<Vec<f64>> = (group.iter())
                    .flat_map(|(i, _)| &plan.launches[*i].args)
                    .zip(group.iter().flat_map(|(_, args)| args))
                    .map(|(b, before)| {
                        let here = launch.args.iter().position(|x| x == b);
                        let after = here.map_or(&memory[*b], |i| &held[i]);
                        if after.is_empty() {
                            before.clone()
                        } else {
                            after.clone()
                        }
                    })
                    .collect();
                let before: Vec<Vec<f64>> = group.drain(..).flat_map(|(_, args)| args).collect();
                let first = join.first as usize;
                let launches = &plan.launches[first..=at];
                let case = Case {
                    kernels: launches.iter().map(|l| &plan.kernels[l.kernel]).collect(),
                    buffers: launches.iter().flat_map(|l| l.args.iter().copied()).collect(),
                    made,
                    sizes,
                };
                case.compare(&join.kernel, &before, &wanted, which, seen)?;
            }
        }
        for (b, values) in launch.args.iter().zip(held) {
            memory[*b] = values;
        }
    }
    Ok(())
}

/// One kernel, or several that are joined, at some sizes.
struct Case<'a> {
    kernels: Vec<&'a Kernel>,
    /// The plan's buffers that are the arguments.
    buffers: Vec<usize>,
    made: &'a Made,
    sizes: &'a Sizes,
}

impl Case<'_> {
    fn compare(
        &self,
        name: &str,
        before: &[Vec<f64>],
        wanted: &[Vec<f64>],
        which: Which,
        seen: &mut Seen,
    ) -> Result<(), String> {
        let found: Option<&GpuKernel> = self.made.kernels.iter().find(|k| k.name == name);
        let gpu = found.ok_or_else(|| format!("there is no code for {name}"))?;
        let args: Vec<_> = self.kernels.iter().flat_map(|k| &k.args).collect();
        let types: Vec<DType> = args.iter().map(|a| a.dtype).collect();
        for (i, variant) in gpu.variants.iter().enumerate() {
            let runs = variant.steps.iter().all(|s| which(&s.function));
            if !self.holds(variant) || !runs {
                continue;
            }
            seen.0.insert((name.to_string(), i));
            let walks = variant.steps.iter().any(|s| s.per_multiprocessor > 0);
            for m in &MULTIPROCESSORS[..if walks { 3 } else { 1 }] {
                let mine = self
                    .made
                    .code
                    .run(variant, (&types, &self.buffers), before, self.sizes, *m);
                for (n, (arg, (mine, wanted))) in args.iter().zip(mine.iter().zip(wanted)).enumerate() {
                    let mut of_buffer = args.iter().zip(&self.buffers).filter(|(_, b)| **b == self.buffers[n]);
                    let what = if of_buffer.any(|(a, _)| a.written) {
                        self.tolerance(arg.dtype)
                    } else {
                        0.0
                    };
                    differ(mine, wanted, what).map_or(Ok(()), |d| {
                        let way = &variant.steps[0].function;
                        Err(format!(
                            "{way} on {m} multiprocessors, {:?}: argument {n} {d}",
                            self.sizes
                        ))
                    })?;
                }
            }
        }
        Ok(())
    }

    fn holds(&self, v: &Variant) -> bool {
        let small = v.at_most.as_ref().is_none_or(|(s, n)| size(s, self.sizes) <= *n as u64);
        small
            && v.multiples
                .iter()
                .all(|(s, n)| size(s, self.sizes).is_multiple_of(*n as u64))
    }

    /// Of an argument's largest element: weights and results are rounded in more places than the interpreter rounds them.
    fn tolerance(&self, dtype: DType) -> f64 {
        let attends = |k: &&Kernel| k.sweep.is_some() || k.sweep_gradient.is_some();
        let rounds = self
            .kernels
            .iter()
            .flat_map(|k| &k.args)
            .any(|a| a.dtype == DType::BF16);
        match dtype {
            _ if rounds && self.kernels.iter().any(attends) => 2e-2,
            DType::BF16 => 1e-2,
            DType::I32 => 0.0,
            _ => 1e-4,
        }
    }
}

/// NaN is like NaN alone: a place that nothing is to be written to.
fn differ(mine: &[f64], wanted: &[f64], tolerance: f64) -> Option<String> {
    let largest = wanted
        .iter()
        .filter(|x| x.is_finite())
        .fold(0.1, |m: f64, x| m.max(x.abs()));
    let alike = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * largest;
    let at = mine.iter().zip(wanted).position(|(x, y)| !alike(*x, *y))?;
    let off = mine.iter().zip(wanted).filter(|(x, y)| !alike(**x, **y)).count();
    let (x, y) = (mine[at], wanted[at]);
    Some(format!(
        "element {at} is {x}, wants {y}; {off} of {} differ",
        wanted.len()
    ))
}

/// Is there nothing in the buffer before a kernel writes it?
fn is_written_first(plan: &Plan, buffer: usize) -> bool {
    matches!(
        plan.buffers[buffer].kind,
        BufferKind::Temp { .. } | BufferKind::Output(_)
    )
}

/// Random inputs, weights and states; positions and tokens that exist.
fn start(plan: &Plan, sizes: &Sizes) -> Vec<Vec<f64>> {
    let mut seed = 1u32;
    let mut random = move || {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        f64::from(seed >> 8) / f64::from(1 << 23) - 1.0
    };
    let mut memory = allocate(plan, sizes).expect("all sizes are known");
    for (b, values) in plan.buffers.iter().zip(&mut memory) {
        let at_most = |s: &str| sizes[s];
        let name = match &b.kind {
            BufferKind::Weight(WeightRecipe::RopeTable { .. }) | BufferKind::Temp { .. } | BufferKind::Output(_) => {
                continue;
            }
            BufferKind::Input(name) | BufferKind::State(name) => name.as_str(),
            BufferKind::Weight(_) => "",
        };
        if b.dtype != DType::I32 {
            values.iter_mut().for_each(|x| *x = round(random(), b.dtype));
            continue;
        }
        let limit = match name {
            "start" => at_most("S"),
            "last" => at_most("T"),
            _ => rows_of_tables(plan),
        };
        for (i, x) in values.iter_mut().enumerate() {
            *x = match (name, i) {
                // The first sequence sees all keys.
                ("start", 0) => (limit - 1) as f64,
                // Nothing is wanted of some tokens.
                ("targets", i) if i % 3 == 2 => -1.0,
                _ => ((random() + 1.0) * 0.5 * limit as f64).floor().min((limit - 1) as f64),
            };
        }
    }
    memory
}

/// Tokens that every table of the plan has a row for.
fn rows_of_tables(plan: &Plan) -> i64 {
    let rows = |b: &ir::plan::Buffer| match (&b.kind, &b.shape[..]) {
        (BufferKind::Weight(WeightRecipe::Tensors { .. }) | BufferKind::State(_), [rows, _]) => rows.as_const(),
        _ => None,
    };
    let named = plan
        .buffers
        .iter()
        .filter(|b| b.name.contains("embed_tokens"))
        .filter_map(rows);
    named.min().unwrap_or(64)
}
