//! From MLIR text to an LLVM module: parse, verify, the pass pipeline, translation.

use std::cell::RefCell;

use inkwell::context::Context as LlvmContext;
use inkwell::llvm_sys::prelude::{LLVMContextRef, LLVMModuleRef};
use inkwell::module::Module as LlvmModule;
use melior::Context;
use melior::dialect::DialectRegistry;
use melior::ir::Module;
use melior::pass::PassManager;
use melior::utility::{
    parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes,
};

/// In this order; each by MLIR's own name.
pub const PIPELINE: &str = "builtin.module(canonicalize,cse,convert-scf-to-cf,convert-vector-to-llvm,convert-arith-to-llvm,\
    convert-func-to-llvm,convert-cf-to-llvm,convert-index-to-llvm,convert-ub-to-llvm,reconcile-unrealized-casts)";

/// Lowers `text`, a module of kernels, into `llvm`. An error carries what MLIR said; it is a bug of an emitter.
pub fn lower<'c>(text: &str, llvm: &'c LlvmContext) -> Result<LlvmModule<'c>, String> {
    let registry = DialectRegistry::new();
    register_all_dialects(&registry);
    let context = Context::new();
    context.append_dialect_registry(&registry);
    context.load_all_available_dialects();
    // Modules are lowered side by side (`gpu::assemble`); a pool of threads for each would be threads of threads.
    context.enable_multi_threading(false);
    register_all_llvm_translations(&context);
    static PASSES: std::sync::Once = std::sync::Once::new();
    PASSES.call_once(register_all_passes);

    let said = RefCell::new(String::new());
    // The handler lives as long as the context, which this function owns.
    let said_by: &'static RefCell<String> = unsafe { std::mem::transmute(&said) };
    let handler = context.attach_diagnostic_handler(move |diagnostic| {
        let mut said = said_by.borrow_mut();
        if said.len() < 2000 {
            said.push_str(&format!("{}: {diagnostic}; ", diagnostic.location()));
        }
        true
    });
    let failed = |what: &str| format!("MLIR, {what}: {}", said.borrow());
    let mut module = Module::parse(&context, text).ok_or_else(|| failed("parsing"))?;
    let manager = PassManager::new(&context);
    parse_pass_pipeline(manager.as_operation_pass_manager(), PIPELINE).map_err(|e| failed(&e.to_string()))?;
    manager.run(&mut module).map_err(|_| failed("lowering"))?;
    let raw = unsafe {
        mlir_sys::mlirTranslateModuleToLLVMIR(module.as_operation().to_raw(), llvm.raw() as *mut _) as LLVMModuleRef
    };
    context.detach_diagnostic_handler(handler);
    let _: LLVMContextRef = llvm.raw();
    if raw.is_null() {
        return Err(failed("translation to LLVM IR"));
    }
    Ok(unsafe { LlvmModule::new(raw) })
}
