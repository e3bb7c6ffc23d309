//! PTX text: the kernels' MLIR to LLVM IR to LLVM's NVPTX back end. Machine code is the driver's business, at load.

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

/// `functions`: (name, MLIR).
pub fn compile(functions: Vec<(String, String)>, target: &Target, texts: bool) -> Result<Compiled, CodeError> {
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
    let code = text.as_slice();
    Ok(Compiled {
        // LLVM ends its text with a zero byte.
        code: code.strip_suffix(&[0]).unwrap_or(code).to_vec(),
        mlir: if texts { functions } else { vec![] },
        llvm,
    })
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
