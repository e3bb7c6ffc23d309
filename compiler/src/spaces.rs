//! What `loopc tune` measures: the ways of a program's kernels, by the same passes and plans as the program itself.

use ir::plan::BufferKind;
use ir::{Module, Size};
use runtime::artefact;

use crate::pipeline::{CompileError, Options, dtype, plans, share_kernels, size};
use crate::{Target, gpu};

/// Every way of a kernel that has several, and the memory that a launch of it is given.
pub struct Space {
    pub ways: gpu::tuning::Space,
    pub operands: Vec<Operand>,
}

/// A buffer of a launch.
pub struct Operand {
    pub dtype: artefact::DType,
    pub elements: artefact::Size,
    pub written: bool,
    /// A weight: another one in each layer, so it comes from memory and not from a cache.
    pub weight: bool,
}

/// Of the first target, which is a GPU; of kernels whose key is `wanted`.
pub fn spaces(module: Module, options: &Options, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Space>, CompileError> {
    let plans = plans(module, options)?;
    let (kernels, names) = share_kernels(&plans);
    let Some(Target::Gpu(target)) = options.targets.first() else {
        let target = options.targets.first().map_or("none", Target::name).to_string();
        let reason = "it has no kernels with several ways".to_string();
        return Err(CompileError::Code { target, reason });
    };
    let spaces = gpu::spaces(&kernels, target, &options.tuning, wanted).map_err(|e| CompileError::Code {
        target: target.name.to_string(),
        reason: e.to_string(),
    })?;
    let launches = plans.iter().zip(&names).flat_map(|(plan, names)| {
        let all = plan.launches.iter();
        all.map(move |l| (plan, l, names[l.kernel].as_str()))
    });
    let launches: Vec<_> = launches.collect();
    let mut all = vec![];
    for ways in spaces {
        let Some((plan, launch, _)) = launches.iter().find(|(.., name)| *name == ways.kernel.name) else {
            continue;
        };
        let operands = launch
            .args
            .iter()
            .zip(&plan.kernels[launch.kernel].args)
            .map(|(buffer, arg)| {
                let buffer = &plan.buffers[*buffer];
                Operand {
                    dtype: dtype(buffer.dtype),
                    elements: size(&Size::product(&buffer.shape)),
                    written: arg.written,
                    weight: matches!(buffer.kind, BufferKind::Weight(_)),
                }
            });
        all.push(Space {
            operands: operands.collect(),
            ways,
        });
    }
    Ok(all)
}
