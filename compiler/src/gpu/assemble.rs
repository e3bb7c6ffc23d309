//! PTX text: the kernels' MLIR to LLVM IR to LLVM's NVPTX back end. Machine code is the driver's business, at load.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use inkwell::OptimizationLevel;
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target as LlvmTarget, TargetMachine, TargetTriple,
};
use inkwell::values::{AnyValue, CallSiteValue};

use super::{Target, ptx};
use crate::cpu::{CodeError, Compiled};
use crate::mlir::lower::lower;

const TRIPLE: &str = "nvptx64-nvidia-cuda";

/// Modules that the functions are dealt to: as many on every machine, so that the text is the same on all.
const MODULES: usize = 16;

/// `functions`: (name, MLIR). Several modules at a time, each with contexts of its own.
pub fn compile(functions: Vec<(String, String)>, target: &Target, texts: bool) -> Result<Compiled, CodeError> {
    // Once, before the threads.
    machine(target)?;
    let mut names = BTreeSet::new();
    if let Some((name, _)) = functions.iter().find(|(name, _)| !names.insert(name)) {
        return Err(CodeError(format!("two functions are called `{name}`")));
    }
    let parts = deal(&functions);
    let next = AtomicUsize::new(0);
    let work = || -> Vec<(usize, Result<Part, CodeError>)> {
        let mine = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        mine.take_while(|i| *i < parts.len())
            .map(|i| (i, part(&parts[i], target, texts)))
            .collect()
    };
    let threads = std::thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(parts.len());
    let mut made: Vec<(usize, Result<Part, CodeError>)> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = all
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        joined.flatten().collect()
    });
    made.sort_by_key(|(i, _)| *i);
    let made: Vec<Part> = made.into_iter().map(|(_, part)| part).collect::<Result<_, _>>()?;
    let code = joined(made.iter().map(|p| p.code.as_str()))
        .ok_or_else(|| CodeError("LLVM's text has no head that ends with its size of addresses".to_string()))?;
    let llvm = made.into_iter().flat_map(|p| p.llvm).collect();
    Ok(Compiled {
        code: code.into_bytes(),
        mlir: if texts { functions } else { vec![] },
        llvm,
    })
}

/// Functions by module, the longest first to the module that has least.
fn deal(functions: &[(String, String)]) -> Vec<Vec<&(String, String)>> {
    let mut longest: Vec<&(String, String)> = functions.iter().collect();
    longest.sort_by_key(|(_, text)| std::cmp::Reverse(text.len()));
    let mut parts: Vec<(usize, Vec<&(String, String)>)> = vec![Default::default(); MODULES.min(functions.len()).max(1)];
    for f in longest {
        if let Some(least) = parts.iter_mut().min_by_key(|p| p.0) {
            least.0 += f.1.len();
            least.1.push(f);
        }
    }
    parts.into_iter().map(|(_, functions)| functions).collect()
}

/// A module's PTX, and its functions' LLVM IR if it is wanted.
struct Part {
    code: String,
    llvm: Vec<(String, String)>,
}

fn part(functions: &[&(String, String)], target: &Target, texts: bool) -> Result<Part, CodeError> {
    let context = Context::create();
    let machine = machine(target)?;
    let text = (functions.iter()).fold(format!("module {{\n{}", ptx::SHARED), |acc, (_, f)| acc + f) + "}\n";
    let module = lower(&text, &context).map_err(CodeError)?;
    module.set_triple(&TargetTriple::create(TRIPLE));
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    converge(&module, &context);
    module.verify().map_err(|e| CodeError(format!("LLVM IR: {e}")))?;
    module
        .run_passes("default<O2>", &machine, PassBuilderOptions::create())
        .map_err(|e| CodeError(format!("LLVM passes: {e}")))?;
    let text = machine
        .write_to_memory_buffer(&module, FileType::Assembly)
        .map_err(|e| CodeError(format!("LLVM code generation: {e}")))?;
    let llvm = match texts {
        true => (functions.iter())
            .filter_map(|(name, _)| Some((name.clone(), module.get_function(name)?.print_to_string().to_string())))
            .collect(),
        false => vec![],
    };
    // LLVM ends its text with a zero byte.
    let code = String::from_utf8_lossy(text.as_slice());
    Ok(Part {
        code: code.trim_end_matches('\0').to_string(),
        llvm,
    })
}

/// The modules' texts as one: version and target stand at its head, the shared memory that all functions name in front of the first.
fn joined<'t>(parts: impl Iterator<Item = &'t str>) -> Option<String> {
    let (mut all, mut is_shared) = (String::new(), false);
    for (i, part) in parts.enumerate() {
        let at = part.find(".address_size")?;
        let behind = at + part[at..].find('\n')? + 1;
        let text = if i == 0 { part } else { &part[behind..] };
        for line in text.split_inclusive('\n') {
            if line.starts_with(".extern .shared") && std::mem::replace(&mut is_shared, true) {
                continue;
            }
            all.push_str(line);
        }
    }
    Some(all)
}

fn machine(target: &Target) -> Result<TargetMachine, CodeError> {
    LlvmTarget::initialize_nvptx(&InitializationConfig::default());
    let triple = TargetTriple::create(TRIPLE);
    let failed = |e: String| CodeError(format!("LLVM has no NVPTX: {e}"));
    LlvmTarget::from_triple(&triple)
        .map_err(|e| failed(e.to_string()))?
        .create_target_machine(
            &triple,
            target.name,
            target.ptx,
            OptimizationLevel::Default,
            RelocMode::Default,
            CodeModel::Default,
        )
        .ok_or_else(|| failed("no target machine".to_string()))
}

/// Inline PTX may hold barriers and collectives of a warp: no pass may move it under a condition that only some threads meet.
fn converge(module: &Module, context: &Context) {
    let convergent = Attribute::get_named_enum_kind_id("convergent");
    for function in module.get_functions() {
        for block in function.get_basic_blocks() {
            for instruction in block.get_instructions() {
                if let Ok(call) = CallSiteValue::try_from(instruction) {
                    call.add_attribute(AttributeLoc::Function, context.create_enum_attribute(convergent, 0));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_once_stands_in_front() {
        let head = "//\n.version 8.0\n.target sm_90a\n.address_size 64\n";
        let shared = ".extern .shared .align 1024 .b8 smem[];\n";
        let parts = [
            format!("{head}a\n"),
            format!("{head}\t// .globl b\n{shared}b\n"),
            format!("{head}{shared}c\n"),
        ];
        assert_eq!(joined(["a\n"].into_iter()), None);
        let all = joined(parts.iter().map(String::as_str));
        assert_eq!(all.unwrap(), format!("{head}a\n\t// .globl b\n{shared}b\nc\n"));
    }

    #[test]
    fn modules_have_alike_much() {
        let functions: Vec<(String, String)> = (0..40)
            .map(|i| (format!("f{i}"), "x".repeat(10 + 7 * i % 50)))
            .collect();
        let parts = deal(&functions);
        let lengths: Vec<usize> = parts.iter().map(|p| p.iter().map(|f| f.1.len()).sum()).collect();
        assert_eq!((parts.len(), parts.iter().map(Vec::len).sum::<usize>()), (MODULES, 40));
        assert!(
            lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 60,
            "{lengths:?}"
        );
        assert_eq!(deal(&functions[..3]).len(), 3);
    }
}
