//! Options of the commands that show and measure models.

use super::generation::EngineArgs;
use super::values::{DeviceArg, TokenList, parse_positive, parse_threads};
use std::path::PathBuf;

/// Compute logits.
#[derive(Debug, clap::Args)]
pub struct LogitsArgs {
    /// The token ids, separated by commas
    #[arg(long, value_name = "IDS")]
    pub tokens: TokenList,
    /// The safetensors file to write: `logits`, f32, (tokens, vocabulary)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Turn text into token ids, or back.
#[derive(Debug, clap::Args)]
pub struct TokenizeArgs {
    /// The text; standard input if not given
    pub text: Option<String>,
    /// Print the text of these ids instead
    #[arg(long, value_name = "IDS", conflicts_with = "text")]
    pub decode: Option<TokenList>,
}

/// Measure perplexity.
#[derive(Debug, clap::Args)]
pub struct PerplexityArgs {
    /// The text
    pub file: PathBuf,
    /// Also report how far the model is from this one: KL divergence and top-1 agreement
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    /// Where the other model runs [default: as the model]
    #[arg(long, value_name = "DEVICE", requires = "against")]
    pub against_device: Option<DeviceArg>,
    /// How far the windows are apart; less than the context gives each token more to go by [default: the context]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub stride: Option<usize>,
    /// In each window, score only tokens with more than N tokens before them
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Measure speed.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Tokens of a prompt; 0 leaves the test out
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub prompt: usize,
    /// Tokens to generate; 0 leaves the test out
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    pub generate: usize,
    /// Positions already filled before each test
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub depth: usize,
    /// Sequences at once
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = parse_positive)]
    pub batch: usize,
    /// How often each test runs
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = parse_positive)]
    pub repeats: usize,
    /// CPU threads [default: the physical cores]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Let no result depend on what else runs: slower with many sequences on a GPU
    #[arg(long)]
    pub deterministic: bool,
    /// Also show what each launch of a step of generated tokens takes; on a GPU
    #[arg(long)]
    pub profile: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Show a model.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Plan memory.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// Positions of each sequence [default: the model's own limit]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub ctx: Option<usize>,
    /// Sequences that run at once
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value = "1")]
    pub sequences: usize,
    /// Tokens of all sequences together that there is room for [default: that of whole contexts]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub kv_tokens: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
