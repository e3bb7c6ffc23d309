//! `loopc export`: a checkpoint as one file of weights, without what only training needs.

use std::path::PathBuf;

use model::export::Store;

use crate::options::ComputeType;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder: a run's checkpoint/, a retrofit, one with shards
    model: PathBuf,
    /// Type of the weights that are written
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: ComputeType,
    /// The folder to write; it must not exist
    #[arg(short, long)]
    output: PathBuf,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let store = match self.dtype {
            ComputeType::F32 => Store::F32,
            ComputeType::Bf16 => Store::Bf16,
        };
        model::export::export(&self.model, &self.output, store)?;
        println!("{}", self.output.display());
        Ok(())
    }
}
