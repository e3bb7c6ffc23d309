//! Kernels for NVIDIA GPUs: PTX from the same plans as the CPU's, one or more functions a kernel.
//!
//! A kernel here is data (`runtime::artefact::GpuKernel`: variants, launch geometry, tensor maps) and the MLIR of its functions. Nothing of
//! CUDA's toolkit is needed to make them, and no GPU.

mod assemble;
mod contraction;
mod epilogue;
mod few_rows;
mod hopper;
mod join;
mod kernels;
mod map;
pub(crate) mod math;
mod matmul;
mod mma;
mod pipeline;
mod ptx;
mod reduction;
mod sweep_mma;
mod target;

pub use target::Target;

use ir::Size;
use ir::plan::{Contraction, Kernel, Plan};
use runtime::artefact::{self, GpuKernel, Join, Variant};

use crate::cpu::{CodeError, Compiled};
use crate::pipeline as levels;

/// A kernel's functions, and how they are run.
pub struct Emitted {
    pub kernel: GpuKernel,
    /// (name, MLIR)
    pub functions: Vec<(String, String)>,
}

impl Emitted {
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
    texts: bool,
) -> Result<Module, CodeError> {
    let mut all = vec![];
    for kernel in kernels {
        let mut emitted = emit(kernel, target)?;
        emitted.kernel.name = kernel.name.clone();
        all.push(emitted);
    }
    let mut joins = vec![];
    for (plan, names) in plans {
        for group in join::groups(plan) {
            let launches = &plan.launches[group.clone()];
            let parts: Vec<&str> = launches.iter().map(|l| names[l.kernel].as_str()).collect();
            let name = parts.join("+");
            if !all.iter().any(|e| e.kernel.name == name) {
                let bodies: Vec<Kernel> = launches.iter().map(|l| plan.kernels[l.kernel].clone()).collect();
                all.push(join::emit(&name, &bodies, target));
            }
            joins.push(Join {
                entry: plan.entry.clone(),
                first: group.start as u32,
                count: group.len() as u32,
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
    let module = compile_plans(kernels, &[], target, texts)?;
    Ok((module.compiled, module.kernels))
}

/// As `compile_kernels`, of products with every shape of the table; kernels that are none are left out.
pub fn compile_shapes(
    kernels: &[Kernel],
    target: &Target,
    texts: bool,
) -> Result<(Compiled, Vec<GpuKernel>), CodeError> {
    let all = kernels.iter().filter_map(|k| {
        let mut emitted = emit_shapes(k)?;
        emitted.kernel.name = k.name.clone();
        Some(emitted)
    });
    let (how, functions): (Vec<_>, Vec<_>) = all.map(|e| (e.kernel, e.functions)).unzip();
    let functions = functions.into_iter().flatten().collect();
    Ok((assemble::compile(functions, target, texts)?, how))
}

/// One kernel.
pub fn emit(kernel: &Kernel, target: &Target) -> Result<Emitted, CodeError> {
    let kernel = &with_ptx_name(kernel);
    if let Some(c) = &kernel.contraction {
        let mut emitted = contraction::emit(kernel, c, target);
        if let Some(even) = mma::takes(kernel, c) {
            let name = format!("{}_mma", kernel.name);
            let (variant, text) = mma::variant(kernel, c, &even, &name, target);
            emitted.before_all(variant, name, text, even.is_empty());
        }
        let reduced = kernel.reduces() && target.hopper;
        if reduced && let Some((variant, functions)) = matmul::reduced(kernel, &kernel.name, target) {
            emitted.kernel.variants = vec![variant];
            emitted.functions = functions;
        }
        if target.hopper && matmul::takes(kernel, c) {
            emitted.kernel.variants.clear();
            emitted.functions.clear();
            for (shape, at_most) in matmul::choice(kernel, 1 + i64::from(c.also.is_some())) {
                matmul_way(&mut emitted, kernel, c, shape, at_most);
            }
        }
        if few_rows::takes(kernel, c) {
            for rows in few_rows::ROWS.into_iter().rev() {
                let name = format!("{}_r{rows}", kernel.name);
                let (variant, text) = few_rows::variant(kernel, c, rows, &name, target);
                emitted.before_all(variant, name, text, false);
            }
        }
        return Ok(emitted);
    }
    if let Some(sweep) = &kernel.sweep {
        return Ok(kernels::sweep::emit(kernel, sweep, target));
    }
    if let Some(g) = &kernel.sweep_gradient {
        return Ok(kernels::sweep_gradient::emit(kernel, g, target));
    }
    Ok(map::emit(kernel, target))
}

/// A product's kernel with every shape of its table, for those who measure; none where another kernel makes it.
pub fn emit_shapes(kernel: &Kernel) -> Option<Emitted> {
    let kernel = &with_ptx_name(kernel);
    let c = kernel.contraction.as_ref().filter(|c| matmul::takes(kernel, c))?;
    let mut emitted = Emitted {
        kernel: GpuKernel {
            name: kernel.name.clone(),
            variants: vec![],
        },
        functions: vec![],
    };
    for shape in matmul::SHAPES {
        matmul_way(&mut emitted, kernel, c, *shape, None);
    }
    Some(emitted)
}

fn matmul_way(
    emitted: &mut Emitted,
    kernel: &Kernel,
    c: &Contraction,
    shape: matmul::Shape,
    most: Option<(Size, i64)>,
) {
    let name = format!("{}_{}", kernel.name, shape.name());
    let (mut variant, functions) = matmul::variant(kernel, c, shape, &name);
    variant.at_most = most.map(|(rows, most)| (levels::size(&rows), most));
    emitted.kernel.variants.push(variant);
    emitted.functions.extend(functions);
}

/// PTX names have no dots.
fn with_ptx_name(kernel: &Kernel) -> Kernel {
    Kernel {
        name: kernel.name.replace('.', "_"),
        ..kernel.clone()
    }
}

fn tiles(grid: &[(Size, i64)]) -> Vec<(artefact::Size, i64)> {
    grid.iter().map(|(s, block)| (levels::size(s), *block)).collect()
}
