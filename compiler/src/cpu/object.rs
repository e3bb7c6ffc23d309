//! Object code: the kernels' MLIR to LLVM IR to one relocatable ELF object.

use inkwell::OptimizationLevel;
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target as LlvmTarget, TargetMachine, TargetTriple,
};
use inkwell::values::AnyValue;

use super::{CodeError, Compiled, Target};
use crate::mlir::lower::lower;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Our loops are unrolled and vectorised where they should be; what is left is clean-up and selection of instructions.
const PASSES: &str = "function(sroa,early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,reassociate,\
    loop-mssa(loop-rotate,licm),gvn,instcombine<no-verify-fixpoint>,simplifycfg)";

/// `functions`: (name, MLIR). Kernels are independent; they share one module so that the object has one symbol table.
pub fn compile(functions: Vec<(String, String)>, target: &Target, texts: bool) -> Result<Compiled, CodeError> {
    let context = Context::create();
    let machine = machine(target)?;
    let text = functions.iter().fold(String::from("module {\n"), |acc, (_, f)| acc + f) + "}\n";
    let module = lower(&text, &context).map_err(CodeError)?;
    prepare(&module, &context, &machine, target);
    module.verify().map_err(|e| CodeError(format!("LLVM IR: {e}")))?;
    module
        .run_passes(PASSES, &machine, PassBuilderOptions::create())
        .map_err(|e| CodeError(format!("LLVM passes: {e}")))?;
    let object = machine
        .write_to_memory_buffer(&module, FileType::Object)
        .map_err(|e| CodeError(format!("LLVM code generation: {e}")))?;
    let llvm = match texts {
        true => functions
            .iter()
            .filter_map(|(name, _)| Some((name.clone(), module.get_function(name)?.print_to_string().to_string())))
            .collect(),
        false => vec![],
    };
    let mlir = if texts { functions } else { vec![] };
    Ok(Compiled {
        code: object.as_slice().to_vec(),
        mlir,
        llvm,
    })
}

fn machine(target: &Target) -> Result<TargetMachine, CodeError> {
    LlvmTarget::initialize_x86(&InitializationConfig::default());
    let triple = TargetTriple::create(TRIPLE);
    let failed = |e: String| CodeError(format!("LLVM has no x86-64: {e}"));
    LlvmTarget::from_triple(&triple)
        .map_err(|e| failed(e.to_string()))?
        .create_target_machine(
            &triple,
            target.cpu,
            &target.llvm_features(),
            OptimizationLevel::Default,
            RelocMode::PIC,
            CodeModel::Small,
        )
        .ok_or_else(|| failed("no target machine".to_string()))
}

fn prepare(module: &Module, context: &Context, machine: &TargetMachine, target: &Target) {
    module.set_triple(&TargetTriple::create(TRIPLE));
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    let width = (target.lanes * 32).to_string();
    for function in module.get_functions() {
        let text = |key: &str, value: &str| {
            function.add_attribute(AttributeLoc::Function, context.create_string_attribute(key, value));
        };
        text("prefer-vector-width", &width);
        // Kernels call nothing: loops must not become memcpy or memset.
        text("no-builtins", "");
        let nounwind = Attribute::get_named_enum_kind_id("nounwind");
        function.add_attribute(AttributeLoc::Function, context.create_enum_attribute(nounwind, 0));
    }
}
