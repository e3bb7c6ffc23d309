//! `loopc retrofit`: a loop checkpoint from a plain one.

use std::path::PathBuf;

use model::config::Mode;

#[derive(clap::Args)]
pub struct Args {
    /// The Hugging Face folder of a plain model
    base: PathBuf,
    /// layer: both passes share a layer's keys; restart: the stack runs again from the embeddings; stack: again on its own output
    #[arg(long, value_parser = ["layer", "restart", "stack"])]
    mode: String,
    /// Keys that the local pass sees, the token itself included
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(i64).range(1..))]
    window: i64,
    /// Trips through the stack, for restart and stack
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i64).range(2..=64))]
    loops: i64,
    /// The gates' first bias: sigmoid(bias) is the weight of the global pass
    #[arg(long, default_value_t = 4.0, allow_negative_numbers = true)]
    gate_bias: f32,
    /// The folder to write; it must not exist
    #[arg(short, long)]
    output: PathBuf,
}

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let mode = match self.mode.as_str() {
            "restart" => Mode::Restart,
            "stack" => Mode::Stack,
            _ => Mode::Layer,
        };
        let options = model::retrofit::Options {
            mode,
            window: self.window,
            loops: self.loops,
            gate_bias: self.gate_bias,
        };
        model::retrofit::retrofit(&self.base, &self.output, &options)?;
        println!("{}", self.output.display());
        Ok(())
    }
}
