//! The `oxgpt` program: one `match` from command to function.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod chat;
mod convert;
mod fit;
mod generate;
mod grammar;
mod hub;
mod inspect;
mod interrupt;
mod logits;
mod memory;
mod open;
mod output;
mod perplexity;
mod plan;
mod pull;
mod quantize;
mod run;
mod serve;
mod server;
mod synth;
mod tokenize;

use args::{Args, Command};
use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    // What was typed holds until the end of the program, and `serve` has threads that read it.
    let Args { model, command } = Box::leak(Box::new(Args::read()));
    let result = match command {
        Command::Run(args) => run::run(model, args),
        Command::Chat(args) => chat::chat(model, args),
        Command::Serve(args) => serve::serve(model, args),
        Command::Logits(args) => logits::logits(model, args),
        Command::Tokenize(args) => tokenize::tokenize(model, args),
        Command::Perplexity(args) => perplexity::perplexity(model, args),
        Command::Bench(args) => bench::bench(model, args),
        Command::Inspect(args) => inspect::inspect(model, args),
        Command::Plan(args) => plan::plan(model, args),
        Command::Convert(args) => convert::convert(args),
        Command::Quantize(args) => quantize::quantize(args),
        Command::Synth(args) => synth::synth(args),
        Command::Pull(args) => pull::pull(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough, as in `oxgpt run ... | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
