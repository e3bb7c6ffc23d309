//! Training: what a recipe says, where tokens come from, the loop around the compiled `train_step`, and what it leaves on disk.
//!
//! Computes nothing itself: forward, backward and the optimizer are one entry point of the compiled model (`graph::training`).

pub mod checkpoint;
pub mod data;
pub mod recipe;
mod trainer;

pub use recipe::Recipe;
pub use trainer::{Step, TrainError, Trainer, check_text};
