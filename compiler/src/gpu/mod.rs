//! Kernels for NVIDIA GPUs: PTX from the same plans as the CPU's, one or more functions a kernel.
//!
//! A kernel here is data (`runtime::artefact::GpuKernel`: variants, launch geometry, tensor maps) and the MLIR of its functions. Nothing of
//! CUDA's toolkit is needed to make them, and no GPU.

mod accumulate;
mod assemble;
mod contraction;
mod epilogue;
mod few_rows;
mod few_rows_mma;
mod hopper;
mod join;
mod kernels;
mod map;
pub(crate) mod math;
mod matmul;
mod mma;
mod pairs;
mod pipeline;
mod ptx;
mod reduction;
mod target;
pub mod tuning;

pub use target::Target;

use std::collections::BTreeSet;

use ir::Size;
use ir::plan::{Contraction, Kernel, Plan, Rhs};
use runtime::artefact::{self, GpuKernel, Join, Step, Variant};

use self::tuning::{Space, Table, Tuning, Way};

use crate::cpu::{CodeError, Compiled};
use crate::pipeline as levels;

/// A kernel's functions, and how they are run.
pub struct Emitted {
    pub kernel: GpuKernel,
    /// (name, MLIR)
    pub functions: Vec<(String, String)>,
}

impl Emitted {
    /// One function, for all sizes.
    fn one(name: &str, step: Step, text: String) -> Emitted {
        Emitted {
            functions: vec![(step.function.clone(), text)],
            kernel: GpuKernel {
                name: name.to_string(),
                variants: vec![Variant {
                    steps: vec![step],
                    ..Variant::default()
                }],
            },
        }
    }

    /// Another way that goes before those that are there; if it has no condition, nothing is left for them.
    fn before_all(&mut self, variant: Variant, name: String, text: String, always: bool) {
        if always {
            self.kernel.variants.clear();
            self.functions.clear();
        }
        self.kernel.variants.insert(0, variant);
        self.functions.push((name, text));
    }
}

/// Code for one target, and how its kernels are run.
pub struct Module {
    pub compiled: Compiled,
    pub kernels: Vec<GpuKernel>,
    pub joins: Vec<Join>,
}

/// Compiles all kernels to one PTX module. `plans`, each with its launches' kernels by name, tell what runs as one.
pub fn compile_plans(
    kernels: &[Kernel],
    plans: &[(&Plan, &[String])],
    target: &Target,
    tuning: &Tuning,
    texts: bool,
) -> Result<Module, CodeError> {
    let (tables, mut unknown) = (tuning.of(target.name), BTreeSet::new());
    let mut all = vec![];
    for kernel in kernels {
        let mut emitted = tuned(kernel, target, &tables, &mut unknown)?;
        emitted.kernel.name = kernel.name.clone();
        all.push(emitted);
    }
    for what in unknown {
        log::warn!("tuning: {what} any more; it is left out, and `loopc tune` measures what there is");
    }
    let mut joins = vec![];
    for (plan, names) in plans {
        for group in join::groups(plan) {
            let launches = &plan.launches[group.launches.clone()];
            let parts: Vec<&str> = launches.iter().map(|l| names[l.kernel].as_str()).collect();
            let name = parts.join("+");
            if !all.iter().any(|e| e.kernel.name == name) {
                let bodies: Vec<Kernel> = launches.iter().map(|l| plan.kernels[l.kernel].clone()).collect();
                all.push(join::emit(&name, &bodies, &group.points, target));
            }
            joins.push(Join {
                entry: plan.entry.clone(),
                first: group.launches.start as u32,
                count: group.launches.len() as u32,
                kernel: name,
            });
        }
        let pairs = if target.hopper { pairs::pairs(plan) } else { vec![] };
        for pair in pairs {
            let launches = &plan.launches[pair.first..pair.first + 2];
            let [a, b] = [0, 1].map(|i| names[launches[i].kernel].as_str());
            let name = format!("{a}+{b}");
            if !all.iter().any(|e| e.kernel.name == name) {
                let [a, b] = [a, b].map(|name| kernels.iter().find(|k| k.name == name));
                let (Some(a), Some(b)) = (a, b) else { continue };
                let Some(mut both) = together([a, b], pair.store, target, &tables) else {
                    continue;
                };
                // One product may hand its rows to several, and get them from several.
                let known: BTreeSet<&String> = all.iter().flat_map(|e| &e.functions).map(|(name, _)| name).collect();
                both.functions.retain(|(name, _)| !known.contains(name));
                all.push(both);
            }
            joins.push(Join {
                entry: plan.entry.clone(),
                first: pair.first as u32,
                count: 2,
                kernel: name,
            });
        }
    }
    let (how, functions): (Vec<_>, Vec<_>) = all.into_iter().map(|e| (e.kernel, e.functions)).unzip();
    let functions = functions.into_iter().flatten().collect();
    Ok(Module {
        compiled: assemble::compile(functions, target, texts)?,
        kernels: how,
        joins,
    })
}

/// As `compile_plans`, each kernel by itself.
pub fn compile_kernels(
    kernels: &[Kernel],
    target: &Target,
    texts: bool,
) -> Result<(Compiled, Vec<GpuKernel>), CodeError> {
    let module = compile_plans(kernels, &[], target, &Tuning::default(), texts)?;
    Ok((module.compiled, module.kernels))
}

/// Every way of the kernels that have several; of kernels with one key one, and only of keys that are wanted.
pub fn spaces(
    kernels: &[Kernel],
    target: &Target,
    tuning: &Tuning,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Space>, CodeError> {
    let tables = tuning.of(target.name);
    let mut spaces: Vec<Space> = vec![];
    // Those with a row for each token first: they can be given any number of rows.
    let (by_token, others): (Vec<&Kernel>, Vec<&Kernel>) = kernels
        .iter()
        .partition(|k| k.outer.iter().any(|n| n.syms.iter().any(|s| s == "T")));
    for kernel in by_token.into_iter().chain(others) {
        let named = with_ptx_name(kernel);
        let Some(c) = &named.contraction else { continue };
        let Some(key) = tuning::key(&named, c).filter(|key| wanted(key)) else {
            continue;
        };
        if spaces.iter().any(|s| s.key == key) {
            continue;
        }
        if let Some((mut space, functions)) = tuning::space(ways(&named, c, target, &|_| true), key, &named, &tables) {
            space.kernel.name = kernel.name.clone();
            space.code = assemble::compile(functions, target, false)?.code;
            spaces.push(space);
        }
    }
    Ok(spaces)
}

/// As `compile_kernels`, but products have all their ways, for those who measure; kernels that are no products are left out.
pub fn compile_ways(kernels: &[Kernel], target: &Target, texts: bool) -> Result<(Compiled, Vec<GpuKernel>), CodeError> {
    let (mut how, mut functions) = (vec![], vec![]);
    for kernel in kernels {
        let named = with_ptx_name(kernel);
        let Some(c) = &named.contraction else { continue };
        let ways = ways(&named, c, target, &|_| true);
        how.push(GpuKernel {
            name: kernel.name.clone(),
            variants: ways.iter().map(|w| w.variant.clone()).collect(),
        });
        functions.extend(ways.into_iter().flat_map(|w| w.functions));
    }
    Ok((assemble::compile(functions, target, texts)?, how))
}

/// One kernel, as the shipped tables have it.
pub fn emit(kernel: &Kernel, target: &Target) -> Result<Emitted, CodeError> {
    tuned(kernel, target, &Tuning::default().of(target.name), &mut BTreeSet::new())
}

fn tuned(
    kernel: &Kernel,
    target: &Target,
    tables: &[Table],
    unknown: &mut BTreeSet<String>,
) -> Result<Emitted, CodeError> {
    let kernel = &with_ptx_name(kernel);
    if let Some(c) = &kernel.contraction {
        let (ways, chosen) = chosen(kernel, c, target, tables, unknown);
        let used: BTreeSet<usize> = chosen.iter().map(|(way, _)| *way).collect();
        let of_used = ways.into_iter().enumerate().filter(|(i, _)| used.contains(i));
        return Ok(Emitted {
            kernel: GpuKernel {
                name: kernel.name.clone(),
                variants: chosen.into_iter().map(|(_, variant)| variant).collect(),
            },
            functions: of_used.flat_map(|(_, way)| way.functions).collect(),
        });
    }
    if let Some(sweep) = &kernel.sweep {
        return Ok(kernels::sweep::emit(kernel, sweep, target));
    }
    if let Some(g) = &kernel.sweep_gradient {
        return Ok(kernels::sweep_gradient::emit(kernel, g, target));
    }
    Ok(map::emit(kernel, target))
}

/// A product's ways, and those that run as the tables have it.
fn chosen(
    kernel: &Kernel,
    c: &Contraction,
    target: &Target,
    tables: &[Table],
    unknown: &mut BTreeSet<String>,
) -> pairs::Chosen {
    let key = tuning::key(kernel, c);
    let tables = &with_waves(kernel, c, key.as_deref(), target, tables);
    let named = tuning::named(tables, key.as_deref());
    let ways = ways(kernel, c, target, &|name| named.contains(name));
    let chosen = tuning::arranged(&ways, key.as_deref(), kernel, tables, unknown);
    (ways, chosen)
}

/// A product and the one that it hands its rows to.
fn together(kernels: [&Kernel; 2], store: usize, target: &Target, tables: &[Table]) -> Option<Emitted> {
    let name = format!("{}+{}", kernels[0].name, kernels[1].name);
    let [first, second] = kernels.map(with_ptx_name);
    let [a, b] =
        [&first, &second].map(|k| Some(chosen(k, k.contraction.as_ref()?, target, tables, &mut BTreeSet::new())));
    pairs::emit(&name, [&first, &second], store, [&a?, &b?])
}

/// The tables, and for known rows one more in front of the target's own.
fn with_waves(kernel: &Kernel, c: &Contraction, key: Option<&str>, target: &Target, tables: &[Table]) -> Vec<Table> {
    let mut tables = tables.to_vec();
    let waves = (key.filter(|_| target.hopper && matmul::takes(kernel, c)))
        .and_then(|key| tuning::by_waves(kernel, c, key, target.name));
    let at = tables.len().saturating_sub(1);
    tables.splice(at..at, waves);
    tables
}

/// The ways of a contraction; where no table says another, the first one that fits runs. The last one always does. Of many tiles only the
/// first and what is `wanted`: a text costs time.
fn ways(kernel: &Kernel, c: &Contraction, target: &Target, wanted: &dyn Fn(&str) -> bool) -> Vec<Way> {
    let function = |ending: &str| format!("{}_{ending}", kernel.name);
    let mut ways = vec![];
    let mut few = |rows: i64, made: fn(&Kernel, &Contraction, i64, &str, &Target) -> (Variant, String)| {
        let name = format!("r{rows}");
        let (variant, text) = made(kernel, c, rows, &function(&name), target);
        ways.push(Way::new(&name, variant, function(&name), text));
    };
    if few_rows_mma::takes(kernel, c) {
        few_rows_mma::ROWS
            .into_iter()
            .for_each(|rows| few(rows, few_rows_mma::variant));
    } else if few_rows::takes(kernel, c) {
        few_rows::ROWS.into_iter().for_each(|rows| few(rows, few_rows::variant));
    }
    if target.hopper && matmul::takes(kernel, c) {
        for (i, shape) in matmul::SHAPES.iter().enumerate() {
            let name = shape.name();
            if i == 0 || wanted(&name) {
                let (variant, functions) = matmul::variant(kernel, c, *shape, &function(&name));
                ways.push(Way {
                    name,
                    variant,
                    functions,
                });
            }
        }
        return ways;
    }
    let reduced = kernel.reduces() && target.hopper;
    let shape = tuning::shape(kernel, c).unwrap_or(matmul::SHAPES[0]);
    if reduced && let Some((variant, functions)) = matmul::reduced(kernel, &kernel.name, shape, target) {
        let name = "reduced".to_string();
        ways.push(Way {
            name,
            variant,
            functions,
        });
        return ways;
    }
    if let Some(even) = mma::takes(kernel, c) {
        let (variant, text) = mma::variant(kernel, c, &even, &function("mma"), target);
        ways.push(Way::new("mma", variant, function("mma"), text));
        if even.is_empty() {
            return ways;
        }
    }
    let plain = contraction::emit(kernel, c, target);
    ways.extend(plain.kernel.variants.into_iter().map(|variant| Way {
        name: "plain".to_string(),
        variant,
        functions: plain.functions.clone(),
    }));
    ways
}

/// PTX names have no dots.
fn with_ptx_name(kernel: &Kernel) -> Kernel {
    Kernel {
        name: kernel.name.replace('.', "_"),
        ..kernel.clone()
    }
}

/// The arguments that a product's weights are: one, or two.
fn weights(c: &Contraction) -> Vec<usize> {
    let arg = |b: &Rhs| match b {
        Rhs::Packed { arg } => Some(*arg),
        _ => None,
    };
    std::iter::once(&c.b).chain(&c.also).filter_map(arg).collect()
}

fn tiles(grid: &[(Size, i64)]) -> Vec<(artefact::Size, i64)> {
    grid.iter().map(|(s, block)| (levels::size(s), *block)).collect()
}
