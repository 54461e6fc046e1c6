//! The command line: what was typed, checked as far as it can be without a model.
//!
//! What is wrong here ends the program with exit code 2.

mod config;
mod files;
mod generation;
mod measuring;
mod serving;
mod values;

pub use files::{ConvertArgs, PullArgs, QuantizeArgs, SynthArgs};
pub use generation::{ChatArgs, ChatOptions, EngineArgs, MAX_SEED, RunArgs, SamplingArgs};
pub use measuring::{BenchArgs, InspectArgs, LogitsArgs, PerplexityArgs, PlanArgs, TokenizeArgs};
pub use serving::ServeArgs;
pub use values::{DeviceArg, KvArg};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use oxgpt_engine::backend::cuda;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::exit;
use std::sync::LazyLock;
use values::parse_size;

/// The version of the program, and what it was built with.
fn version() -> &'static str {
    static VERSION: LazyLock<String> =
        LazyLock::new(|| format!("{} ({})", env!("CARGO_PKG_VERSION"), cuda::kernels()));
    &VERSION
}

/// Run open-weight GPT models.
///
/// Answers go to standard output, everything else to standard error.
#[derive(Debug, Parser)]
#[command(name = "oxgpt", version = version(), arg_required_else_help = true)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Which model, and where it runs.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A .gguf file (of a split set, any part), a directory in Hugging Face layout, or ORG/REPO or ORG/REPO:FILE of the hub;
    /// without it, the built-in demo model
    #[arg(short, long, global = true, env = "OXGPT_MODEL", value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Where the model runs: auto, cpu, reference (slow, in f64), cuda or cuda:N
    #[arg(
        long,
        global = true,
        env = "OXGPT_DEVICE",
        default_value = "auto",
        value_name = "DEVICE"
    )]
    pub device: DeviceArg,
    /// The most memory that weights, keys and values and workspace may take, such as 16GiB
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size)]
    pub memory_limit: Option<u64>,
    /// How keys and values are stored: as the device keeps them, or in 8 bits
    #[arg(long, global = true, value_name = "TYPE", default_value = "full")]
    pub kv: KvArg,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate text
    Run(Box<RunArgs>),
    /// Talk with a model
    Chat(Box<ChatArgs>),
    /// Answer requests over HTTP, with OpenAI's API
    Serve(Box<ServeArgs>),
    /// Compute the logits of every token and write them to a file
    Logits(LogitsArgs),
    /// Turn text into token ids, or back
    Tokenize(TokenizeArgs),
    /// Measure how well a model predicts a text
    Perplexity(PerplexityArgs),
    /// Measure how fast a model runs
    Bench(BenchArgs),
    /// Show what a model is made of
    Inspect(InspectArgs),
    /// Show the memory that a model takes, and whether it is there
    Plan(PlanArgs),
    /// Convert a Hugging Face directory to a GGUF file, without loss
    Convert(ConvertArgs),
    /// Give the matrices of a GGUF file another type
    Quantize(QuantizeArgs),
    /// Write a model of a published size with random weights, for benchmarks
    Synth(SynthArgs),
    /// Download a model from the hub and print its path
    Pull(PullArgs),
}

impl Args {
    /// Reads the command line; prints what is wrong and exits with code 2.
    pub fn read() -> Self {
        let matches = Self::matches();
        let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        if let Err(error) = args.check_used(&matches) {
            Args::command().error(ErrorKind::ArgumentConflict, error).exit();
        }
        let checked = match &args.command {
            Command::Run(run) => run.sampling.check(),
            Command::Chat(chat) => chat.sampling.check(),
            Command::Synth(args) => args.options().check(&args.shape).map_err(|e| e.to_string()),
            _ => Ok(()),
        };
        if let Err(error) = checked {
            Args::command().error(ErrorKind::ValueValidation, error).exit();
        }
        args
    }

    /// What was typed, and of `serve` what is in its file.
    fn matches() -> ArgMatches {
        let mut command = Args::command();
        command.build();
        let mut typed: Vec<OsString> = env::args_os().collect();
        let matches = command.clone().get_matches_from(&typed);
        let Some(("serve", inner)) = matches.subcommand() else { return matches };
        let Some(file) = inner.get_one::<PathBuf>("config") else { return matches };
        let Some(serve) = command.find_subcommand("serve") else { return matches };
        match config::options(file, serve, inner) {
            Ok(options) => {
                typed.extend(options.into_iter().map(OsString::from));
                command.get_matches_from(typed)
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                exit(1)
            }
        }
    }

    /// Refuses options of every command that were typed for one that has no use for them. Those of the environment are
    /// meant for other commands.
    fn check_used(&self, matches: &ArgMatches) -> Result<(), String> {
        let runs_none = matches!(
            self.command,
            Command::Convert(_) | Command::Quantize(_) | Command::Synth(_) | Command::Pull(_)
        );
        if !runs_none {
            return Ok(());
        }
        let typed =
            |matches: &ArgMatches, id| matches.value_source(id) == Some(ValueSource::CommandLine);
        let Some((command, inner)) = matches.subcommand() else { return Ok(()) };
        for (id, option) in [
            ("model", "--model"),
            ("device", "--device"),
            ("memory_limit", "--memory-limit"),
            ("kv", "--kv"),
        ] {
            if typed(matches, id) || typed(inner, id) {
                return Err(format!("{command} has no use for {option}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
