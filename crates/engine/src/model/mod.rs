//! Models: from an opened checkpoint to a decoder whose every weight was checked.

pub mod executor;
pub mod families;
pub mod forward;
mod open;
pub mod spec;
pub mod weights;

use crate::format::{Checkpoint, FormatError, Source};
use crate::sampler::SamplingOptions;
use crate::tokenizer::TokenizerError;
use spec::{Decoder, TensorSource};

pub use open::Model;
pub use open::gguf_tokenizer;

/// A decoder that only names its weights.
pub type DecoderSource = Decoder<TensorSource, TensorSource>;

/// What a checkpoint says about its model: everything but the weights themselves.
#[derive(Clone, Debug)]
pub struct ModelDescription {
    /// The family's name, such as `gpt2`.
    pub family: &'static str,
    /// The model's own name, where the file has one.
    pub name: Option<String>,
    /// What it computes, and from which tensors.
    pub decoder: DecoderSource,
    /// The ids that end an answer, as the model's configuration has them.
    pub end_tokens: Vec<u32>,
    /// The sampling settings that the model's authors recommend.
    pub generation: GenerationSettings,
}

/// Sampling settings that come with a model; `None` where it has no opinion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationSettings {
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Keep the `k` most probable tokens.
    pub top_k: Option<u32>,
    /// Keep the most probable tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Keep tokens at least this probable relative to the most probable one.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens already seen.
    pub repeat_penalty: Option<f32>,
}

impl GenerationSettings {
    /// `options` with the settings that the model has an opinion on.
    pub fn over(&self, options: SamplingOptions) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature.unwrap_or(options.temperature),
            top_k: self.top_k.unwrap_or(options.top_k),
            top_p: self.top_p.unwrap_or(options.top_p),
            min_p: self.min_p.unwrap_or(options.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(options.repeat_penalty),
            ..options
        }
    }
}

/// Why a checkpoint is not a model that oxgpt can run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file itself is wrong.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The tokenizer is wrong.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer is that of another model.
    #[error(
        "{file}: the tokenizer has token {id} (and ids up to {max_id}), expected all below the {rows} rows of the \
         embedding"
    )]
    Vocabulary {
        /// The checkpoint.
        file: String,
        /// The first ordinary token without a row.
        id: u32,
        /// The largest id of the tokenizer.
        max_id: u32,
        /// The rows of the embedding.
        rows: usize,
    },
    /// A family that we do not have.
    #[error("{file}: unknown architecture `{found}` (supported: {})", families::names().join(", "))]
    UnknownArchitecture {
        /// The checkpoint.
        file: String,
        /// What it calls itself.
        found: String,
    },
    /// The configuration contradicts itself or asks for what the family does not have.
    #[error("{file}: {key}: expected {expected}, found {found}")]
    Configuration {
        /// The checkpoint.
        file: String,
        /// The setting.
        key: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A weight that the model needs is not there.
    #[error("{file}: tensor `{tensor}` is missing (expected shape {expected:?})")]
    MissingTensor {
        /// The checkpoint.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape, outermost dimension first.
        expected: Vec<usize>,
    },
    /// A weight has another shape than the configuration asks for.
    #[error("{file}: tensor `{tensor}`: expected shape {expected:?}, found {found:?}")]
    TensorShape {
        /// The checkpoint.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape it should have, outermost dimension first.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A weight has a type that we cannot run.
    #[error(
        "{file}: tensor `{tensor}` has type {found}, which is not supported (supported: {supported})"
    )]
    TensorType {
        /// The checkpoint.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
        /// The types we have.
        supported: String,
    },
}

/// Reads the configuration of a checkpoint and checks every weight that it asks for, without loading any.
pub fn describe(checkpoint: &Checkpoint) -> Result<ModelDescription, ModelError> {
    let description = match checkpoint.source() {
        Source::Gguf(metadata) => families::from_gguf(checkpoint, metadata)?,
        Source::HuggingFace(files) => families::from_hugging_face(checkpoint, files)?,
    };
    description.decoder.map(&mut weights::Check { checkpoint })?;
    Ok(description)
}

/// What errors call a checkpoint.
fn file_name(checkpoint: &Checkpoint) -> String {
    checkpoint.path().display().to_string()
}
