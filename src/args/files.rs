//! Options of the commands that write models.

use super::values::{parse_dtype, parse_target};
use crate::hub::HubId;
use oxgpt_engine::format::DType;
use oxgpt_engine::format::gguf::Existing;
use oxgpt_engine::model::families;
use oxgpt_engine::quantize::Target;
use oxgpt_engine::synth;
use std::path::PathBuf;

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
