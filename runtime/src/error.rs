//! Why an artefact or a checkpoint cannot be loaded or run: one line each, with what to do.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("{path}: {reason}", path = path.display())]
    File { path: PathBuf, reason: String },
    #[error("{path}: not a usable artefact: {reason}; compile the model again", path = path.display())]
    Artefact { path: PathBuf, reason: String },
    #[error("the artefact's machine code: {0}; compile the model again")]
    Code(String),
    #[error(
        "the artefact was compiled for {compiled}; this CPU lacks {missing}; compile it for this machine with --target native"
    )]
    Foreign { compiled: String, missing: String },
    #[error("the artefact was compiled for {compiled}, which {device} does not run; {way}")]
    OtherDevice {
        compiled: String,
        device: String,
        way: String,
    },
    #[error("cuda: {0}")]
    Cuda(String),
    #[error(
        "cuda: {wanted} for {what} are not to be had: {free} of {total} are free; held are {held}; use a shorter --max-context, \
         a smaller batch or --dtype bf16"
    )]
    DeviceMemory {
        what: &'static str,
        wanted: String,
        free: String,
        total: String,
        held: String,
    },
    #[error("tensor {name} {reason}")]
    Tensor { name: String, reason: String },
    #[error("entry point `{entry}`: {reason}")]
    Call { entry: String, reason: String },
    #[error("the artefact has no entry point `{entry}`; it has {known}")]
    NoEntry { entry: String, known: String },
    #[error("{bytes} bytes of memory are not to be had; use a shorter --max-context or a smaller batch")]
    OutOfMemory { bytes: usize },
}
