//! The model around the compiler: configuration, the naive graph, weights by name, tokenizer, chat template, sampling, generation and
//! evaluation, training, and folders that are made: fresh, retrofitted, exported. Knows the graph (`ir`) and the runtime, but no compiler.

pub mod chat;
pub mod config;
pub mod export;
pub mod generate;
pub mod gradients;
pub mod graph;
pub mod init;
pub mod retrofit;
pub mod runner;
pub mod sample;
pub mod tokenizer;
pub mod train;
pub mod trainable;
pub mod weights;
pub mod write;

pub use config::{Config, ConfigError, Family, LoopAttention, Mode};
