//! The command line: what was typed, checked as far as it can be without a model.
//!
//! What is wrong here ends the program with exit code 2.

use crate::hub::HubId;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use oxgpt_engine::backend::cuda;
use oxgpt_engine::format::DType;
use oxgpt_engine::format::gguf::Existing;
use oxgpt_engine::model::families;
use oxgpt_engine::quant;
use oxgpt_engine::quantize::Target;
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::stop::StopMatcher;
use oxgpt_engine::synth;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::LazyLock;

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
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate text
    Run(Box<RunArgs>),
    /// Talk with a model
    Chat(Box<ChatArgs>),
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

/// Generate text.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The text to continue, or the user's message for a model with a chat template; standard input if not given
    #[arg(conflicts_with = "tokens")]
    pub prompt: Option<String>,
    /// The prompt as token ids, separated by commas
    #[arg(long, value_name = "IDS", conflicts_with_all = ["system", "reasoning_effort", "hide_reasoning"])]
    pub tokens: Option<TokenList>,
    /// The most tokens to generate; until the model ends or the context is full if not given
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Treat the prompt as a user's message, with the model's chat template
    #[arg(long, conflicts_with_all = ["raw", "tokens"])]
    pub chat: bool,
    /// Continue the prompt as it is, without a chat template
    #[arg(long, conflicts_with_all = ["system", "reasoning_effort", "hide_reasoning"])]
    pub raw: bool,
    #[command(flatten)]
    pub chat_options: ChatOptions,
    /// Print one JSON object instead of streaming text
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Talk with a model.
///
/// A line is a message. A line that ends in a backslash goes on in the next one, and lines between two `"""` are one
/// message. `/help` lists the commands. Standard input need not be a terminal.
#[derive(Debug, clap::Args)]
pub struct ChatArgs {
    /// The most tokens of an answer; until the model ends or the context is full if not given
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<usize>,
    #[command(flatten)]
    pub chat_options: ChatOptions,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What a conversation is given beside its messages.
#[derive(Debug, clap::Args)]
pub struct ChatOptions {
    /// The system message that goes before the first message of a chat
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// How much the model should think, for templates that ask for it
    #[arg(long, value_name = "EFFORT")]
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Do not show what the model thinks, for formats that keep it apart
    #[arg(long)]
    pub hide_reasoning: bool,
}

/// How much a model should think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ReasoningEffort {
    Low,
    Medium,
    High,
}

impl ReasoningEffort {
    /// What templates call it.
    pub fn name(self) -> &'static str {
        match self {
            ReasoningEffort::Low => "low",
            ReasoningEffort::Medium => "medium",
            ReasoningEffort::High => "high",
        }
    }
}

/// How tokens are chosen. What is not given comes from the model's own settings, then from the defaults named here.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Softmax temperature; 0 always takes the most probable token [default: the model's, else 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep the K most probable tokens; 0 keeps all [default: the model's, else 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Keep the most probable tokens that together reach P [default: the model's, else 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep tokens at least P times as probable as the most probable one [default: the model's, else 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens already seen, in the prompt too [default: the model's, else 1]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// Lower the logit of a token by this for each time that it was generated [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Lower the logit of a token by this once it was generated [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Add B to the logit of a token; may be given several times
    #[arg(long, value_name = "ID=B")]
    pub logit_bias: Vec<LogitBias>,
    /// Makes the answer repeatable [default: random]
    #[arg(long, value_parser = clap::value_parser!(u64).range(..MAX_SEED))]
    pub seed: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on after the model's end token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Report the log-probability of each token and of the K most probable ones
    #[arg(long, value_name = "K")]
    pub logprobs: Option<usize>,
}

/// Seeds stay exact in JSON readers that keep numbers as f64.
pub const MAX_SEED: u64 = 1 << 53;

/// How the engine runs.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Positions of the context [default: the model's own limit]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub ctx: Option<usize>,
    /// CPU threads [default: the physical cores]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Use only paths whose results do not depend on what else runs; all of this version's are such
    #[arg(long)]
    pub deterministic: bool,
}

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
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Convert to GGUF.
#[derive(Debug, clap::Args)]
pub struct ConvertArgs {
    /// The directory: config.json, safetensors files, a tokenizer
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Quantize.
#[derive(Debug, clap::Args)]
pub struct QuantizeArgs {
    /// The GGUF file to read (of a split set, any part)
    #[arg(value_name = "SRC.gguf")]
    pub source: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
    /// The type, such as Q8_0, or a mix: Q4_K_M, Q5_K_M
    #[arg(value_name = "TYPE", value_parser = parse_target)]
    pub target: Target,
}

/// Write a model with random weights.
#[derive(Debug, clap::Args)]
pub struct SynthArgs {
    /// The size
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(families::shapes()))]
    pub shape: String,
    #[command(flatten)]
    pub output: OutputArgs,
    /// The type of the matrices; vectors, positions and routers are F32. MXFP4 is for experts, where there are any, and all
    /// else is Q8_0 then [default: as published, MXFP4 for gpt-oss and F16 for all others]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_dtype)]
    pub dtype: Option<DType>,
    /// The first N layers alone, for a stack that is fast to write and to measure
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// Other weights for another seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl SynthArgs {
    /// What is made.
    pub fn options(&self) -> synth::Options {
        synth::Options { dtype: self.dtype, layers: self.layers, seed: self.seed }
    }
}

/// Download a model.
///
/// The cache is that of huggingface_hub. HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they
/// mean there.
#[derive(Debug, clap::Args)]
pub struct PullArgs {
    /// A repository of the hub; of one with several GGUF files, which one, by its name or its type, such as Q4_K_M
    #[arg(value_name = "ORG/REPO[:FILE]")]
    pub id: HubId,
}

/// A GGUF file to write.
#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// The GGUF file to write
    #[arg(value_name = "DST.gguf")]
    pub destination: PathBuf,
    /// Replace the file if it is there already
    #[arg(long)]
    pub force: bool,
}

impl OutputArgs {
    /// Whether the file may be there already.
    pub fn existing(&self) -> Existing {
        if self.force { Existing::Replace } else { Existing::Refuse }
    }
}

/// Where a model should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    Auto,
    Cpu,
    Reference,
    Cuda(usize),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceArg::Auto),
            "cpu" => Ok(DeviceArg::Cpu),
            "reference" => Ok(DeviceArg::Reference),
            "cuda" => Ok(DeviceArg::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(DeviceArg::Cuda)
                .ok_or_else(|| "expected auto, cpu, reference or cuda[:N]".to_string()),
        }
    }
}

/// Token ids, separated by commas or spaces, with or without the brackets of a JSON array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenList(pub Vec<u32>);

impl FromStr for TokenList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let ids = inner.split([',', ' ', '\n']).map(str::trim).filter(|id| !id.is_empty());
        ids.map(|id| id.parse().map_err(|_| format!("`{id}` is not a token id")))
            .collect::<Result<_, _>>()
            .map(TokenList)
    }
}

/// A token and what is added to its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitBias(pub u32, pub f32);

impl FromStr for LogitBias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, bias) = text.split_once('=').ok_or("expected ID=BIAS")?;
        let id = id.parse().map_err(|_| format!("`{id}` is not a token id"))?;
        let bias = bias.parse().map_err(|_| format!("`{bias}` is not a number"))?;
        Ok(LogitBias(id, bias))
    }
}

/// A weight type that we can run, whichever case its name is in.
fn parse_dtype(text: &str) -> Result<DType, String> {
    let known = quant::SUPPORTED.iter().copied();
    known.clone().find(|dtype| dtype.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
        format!("expected one of {}", known.map(DType::name).collect::<Vec<_>>().join(", "))
    })
}

fn parse_target(text: &str) -> Result<Target, String> {
    Target::from_name(text).ok_or_else(|| format!("expected one of {}", Target::names().join(", ")))
}

fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a positive integer".to_string()),
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=1024).contains(&number) => Ok(number),
        _ => Err("expected an integer from 1 to 1024".to_string()),
    }
}

/// Bytes, with a decimal (kB, MB, GB) or binary (KiB, MiB, GiB, or K, M, G) unit.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "tb" => 1000 * 1000 * 1000 * 1000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err("expected a number with a unit such as MiB or GiB".to_string()),
    };
    let number: f64 = number.parse().map_err(|_| "expected a number first".to_string())?;
    let bytes = number * factor as f64;
    if bytes >= 2f64.powi(63) {
        return Err("expected less than 8 EiB".to_string());
    }
    Ok(bytes as u64)
}

impl SamplingArgs {
    /// Puts what was typed over `options`, which come from the model.
    pub fn apply(&self, options: &mut SamplingOptions) {
        fn set<T: Copy>(to: &mut T, from: Option<T>) {
            if let Some(value) = from {
                *to = value;
            }
        }
        set(&mut options.temperature, self.temperature);
        set(&mut options.top_k, self.top_k);
        set(&mut options.top_p, self.top_p);
        set(&mut options.min_p, self.min_p);
        set(&mut options.repeat_penalty, self.repeat_penalty);
        set(&mut options.frequency_penalty, self.frequency_penalty);
        set(&mut options.presence_penalty, self.presence_penalty);
        options.logit_bias = self.logit_bias.iter().map(|bias| (bias.0, bias.1)).collect();
    }

    /// Checks the ranges, which the sampler knows.
    fn check(&self) -> Result<(), String> {
        let mut options = SamplingOptions::default();
        self.apply(&mut options);
        options.validate().map_err(|error| error.to_string())?;
        StopMatcher::new(self.stop.clone()).map_err(|error| error.to_string())?;
        Ok(())
    }
}

impl Args {
    /// Reads the command line; prints what is wrong and exits with code 2.
    pub fn read() -> Self {
        let matches = Args::command().get_matches();
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
        for (id, option) in
            [("model", "--model"), ("device", "--device"), ("memory_limit", "--memory-limit")]
        {
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

    #[test]
    fn devices_are_read() {
        assert_eq!("cuda:3".parse(), Ok(DeviceArg::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(DeviceArg::Cuda(0)));
        assert!("cuda:".parse::<DeviceArg>().is_err());
        assert!("gpu".parse::<DeviceArg>().is_err());
    }

    #[test]
    fn token_lists_are_read() {
        assert_eq!("1,2,3".parse(), Ok(TokenList(vec![1, 2, 3])));
        assert_eq!("[1, 2]\n".parse(), Ok(TokenList(vec![1, 2])));
        assert_eq!("".parse(), Ok(TokenList(vec![])));
        assert!("1,x".parse::<TokenList>().is_err());
        assert!("-1".parse::<TokenList>().is_err());
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("16GiB"), Ok(16 << 30));
        assert_eq!(parse_size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(parse_size("512"), Ok(512));
        for wrong in ["", "GiB", "1 parsec", "-1", "NaN", "9EiB", "99999999999TiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
