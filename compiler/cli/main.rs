//! The command line: one file per subcommand. Results go to standard output, progress and logs to standard error.
//!
//! Exit codes: 0 success, 2 bad usage (clap's), 1 any other error, told in one line.

mod bench;
mod cache;
mod ceilings;
mod check;
mod compare;
mod compare_steps;
mod compile;
mod doctor;
mod documents;
mod draw;
mod eval;
mod export;
mod generate;
mod grad;
mod init;
mod kernels;
mod logits;
mod metrics;
mod opt;
mod options;
mod retrofit;
mod rounds;
mod session;
mod step;
mod tensorboard;
mod tokens;
mod trace;
mod train;
mod tune;
mod tuning;

use clap::{Parser, Subcommand};

/// A compiler for Loop Attention language models of the Qwen3 family.
#[derive(Parser)]
#[command(version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile a Hugging Face folder to one artefact file
    Compile(compile::Args),
    /// Run graph passes on a textual graph
    Opt(opt::Args),
    /// Continue a prompt
    Generate(generate::Args),
    /// Write the logits of token sequences to a safetensors file
    Logits(logits::Args),
    /// Write the loss of token sequences and its gradients to a safetensors file
    Grad(grad::Args),
    /// Loss and perplexity on a text
    Eval(eval::Args),
    /// Make a fresh checkpoint, with a tokenizer made from texts
    Init(Box<init::Args>),
    /// Train a model, or its gates and norms alone
    Train(Box<train::Args>),
    /// Make a loop checkpoint from a plain one
    Retrofit(retrofit::Args),
    /// Write a checkpoint as one file of weights, without what only training needs
    Export(export::Args),
    /// Time prefill and decode, and where the time goes
    Bench(bench::Args),
    /// Measure every way of a model's GPU kernels, and remember the fastest
    Tune(Box<tune::Args>),
    /// Compiled programs against the graph's evaluator, on random data
    Check(Box<check::Args>),
    /// What this machine can compile for and run on, and what is missing
    Doctor(doctor::Args),
}

fn main() -> std::process::ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    // A file that may not grow (`ulimit -f`) is an error of the write that meets it, not the process's silent end.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Compile(args) => args.run(),
        Command::Opt(args) => args.run(),
        Command::Generate(args) => args.run(),
        Command::Logits(args) => args.run(),
        Command::Grad(args) => args.run(),
        Command::Eval(args) => args.run(),
        Command::Init(args) => args.run(),
        Command::Train(args) => args.run(),
        Command::Retrofit(args) => args.run(),
        Command::Export(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Tune(args) => args.run(),
        Command::Check(args) => args.run(),
        Command::Doctor(args) => args.run(),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        // A reader that has seen enough (`loopc ... | head`) is no error.
        Err(e)
            if e.downcast_ref::<std::io::Error>()
                .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) =>
        {
            std::process::ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("loopc: {}", one_line(&e));
            std::process::ExitCode::FAILURE
        }
    }
}

/// The error and its causes; one that the text in front of it has told already is left out.
fn one_line(e: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in e.chain().map(|c| c.to_string()) {
        match text.is_empty() {
            true => text = cause,
            false if !text.ends_with(&cause) => text += &format!(": {cause}"),
            false => {}
        }
    }
    text.replace('\n', " ")
}
