//! Options of the commands that generate text.

use super::values::{LogitBias, TokenList, parse_positive, parse_threads};
use oxgpt_engine::sampler::SamplingOptions;
use oxgpt_engine::stop::StopMatcher;
use std::path::PathBuf;

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
    /// Hold the answer to the JSON schema in this file; reasoning before it is left alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["grammar", "ignore_eos"])]
    pub json_schema: Option<PathBuf>,
    /// Hold the answer to the rules in this file, in Lark's notation; reasoning before it is left alone
    #[arg(long, value_name = "FILE", conflicts_with = "ignore_eos")]
    pub grammar: Option<PathBuf>,
    /// Print one JSON object instead of streaming text
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Where the same tokens stood before, compute what followed them together with the token before it, if that pays: the same answer, sooner
    #[arg(long, help_heading = "Engine")]
    pub speculate: bool,
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
    /// Where the same tokens stood before, compute what followed them together with the token before it, if that pays: the same answer, sooner
    #[arg(long, help_heading = "Engine")]
    pub speculate: bool,
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
    /// Let no result depend on what else runs or ran: slower with many sequences on a GPU, and `serve` does not remember the
    /// tokens of its answers
    #[arg(long)]
    pub deterministic: bool,
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
    pub(super) fn check(&self) -> Result<(), String> {
        let mut options = SamplingOptions::default();
        self.apply(&mut options);
        options.validate().map_err(|error| error.to_string())?;
        StopMatcher::new(self.stop.clone()).map_err(|error| error.to_string())?;
        Ok(())
    }
}
