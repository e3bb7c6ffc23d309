//! The model around the compiler: configuration, the naive graph, weights by name, tokenizer, chat template, sampling,
//! generation and evaluation. Knows the graph (`ir`) and the runtime, but no compiler.

pub mod chat;
pub mod config;
pub mod generate;
pub mod gradients;
pub mod graph;
pub mod retrofit;
pub mod runner;
pub mod sample;
pub mod tokenizer;
pub mod train;
pub mod trainable;
pub mod weights;

pub use config::{Config, ConfigError, Family, LoopAttention, Mode};
