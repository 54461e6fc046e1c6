//! Qwen 3: every head of queries and keys is normed before the rotation, and heads have a width of their own.
//!
//! "Qwen3 Technical Report" (2025). The options are those of `Qwen3Config` in `transformers`.

use super::super::spec::Activation;
use super::super::{ModelDescription, ModelError};
use super::decoder::{self, Names, decoder, describe};
use super::json::Json;
use super::keys::Keys;
use super::numbers::{Defaults, Numbers};
use super::qwen2::{common_numbers, defaults, refuse_what_gguf_has_no_key_for, set_windows};
use super::{GgufForm, rope};
use crate::format::{Checkpoint, gguf};

pub(super) const GGUF: Names =
    Names { query_norm: Some("attn_q_norm"), key_norm: Some("attn_k_norm"), ..decoder::GGUF };

pub(super) const HUGGING_FACE: Names = Names {
    query_norm: Some("self_attn.q_norm"),
    key_norm: Some("self_attn.k_norm"),
    ..decoder::HUGGING_FACE
};

/// From `general.architecture = qwen3`.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    metadata: &gguf::Metadata,
) -> Result<ModelDescription, ModelError> {
    let keys = Keys::new(checkpoint, metadata)?;
    let mut numbers = Numbers::from_gguf(&keys, Activation::Silu)?;
    numbers.ropes = vec![rope::from_gguf(&keys, numbers.head_dim, true)?];
    Ok(describe("qwen3", &numbers, &GGUF))
}

/// From `model_type = qwen3`, with the names of `transformers`.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<ModelDescription, ModelError> {
    let (numbers, names) = hugging_face_numbers(checkpoint, config)?;
    Ok(describe("qwen3", &numbers, &names))
}

fn hugging_face_numbers(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<(Numbers, Names), ModelError> {
    // `null` means the hidden size divided by the heads.
    let head_dim = (!config.is_null("head_dim")).then_some(128);
    let defaults = Defaults { head_dim, ..defaults() };
    let (mut numbers, names) = common_numbers(checkpoint, config, HUGGING_FACE, &defaults)?;
    set_biases(&mut numbers, config)?;
    set_windows(&mut numbers, config)?;
    Ok((numbers, names))
}

/// All four products of attention have biases, or none has.
pub(super) fn set_biases(numbers: &mut Numbers, config: &Json) -> Result<(), ModelError> {
    let attention = config.bool("attention_bias")?.unwrap_or(false);
    (numbers.biases.qkv, numbers.biases.attention_output) = (attention, attention);
    Ok(())
}

/// The form of a Hugging Face checkpoint, unless it has what GGUF has no key for.
pub fn to_gguf(checkpoint: &Checkpoint, config: &Json) -> Result<GgufForm, ModelError> {
    let (numbers, _) = hugging_face_numbers(checkpoint, config)?;
    refuse_biases(&numbers, config)?;
    refuse_what_gguf_has_no_key_for(&numbers, config)?;
    Ok(form(&numbers))
}

/// Refuses biases, which llama.cpp would not add.
pub(super) fn refuse_biases(numbers: &Numbers, config: &Json) -> Result<(), ModelError> {
    match numbers.biases.attention_output {
        true => Err(config.error("attention_bias", "false, as GGUF has it for qwen3", true)),
        false => Ok(()),
    }
}

fn form(numbers: &Numbers) -> GgufForm {
    let (metadata, factors) = numbers.to_gguf("qwen3");
    GgufForm { metadata, decoder: decoder(numbers, &GGUF), source: None, factors }
}

/// The names of the published sizes.
pub fn shapes() -> Vec<&'static str> {
    vec!["qwen3-0.6b"]
}

/// The form of a published size.
pub fn shape(name: &str) -> Option<GgufForm> {
    (name == "qwen3-0.6b").then(|| {
        let mut numbers = published(Numbers::of_shape(28, 1024, 3072, (16, 8, 128), 151936));
        numbers.head_rows = None;
        form(&numbers)
    })
}

/// `numbers` with what all published sizes have.
pub(super) fn published(mut numbers: Numbers) -> Numbers {
    numbers.context_length = 40960;
    numbers.eps = 1e-6;
    numbers.ropes[0].base = 1e6;
    numbers
}
