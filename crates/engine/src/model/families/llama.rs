//! Llama and what has its architecture: Llama 2 and 3, SmolLM, TinyLlama; in GGUF Mistral as well.
//!
//! Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models" (2023), and "The Llama 3 Herd of Models"
//! (2024). The options are those of `LlamaConfig` in `transformers`.

use super::super::spec::{Activation, RopeStyle};
use super::super::{ModelDescription, ModelError};
use super::decoder::{self, HUGGING_FACE, Names, describe};
use super::json::Json;
use super::keys::Keys;
use super::numbers::{Biases, Defaults, Numbers, activation};
use super::rope;
use crate::format::{Checkpoint, gguf};

/// The names of llama.cpp. Its rows of queries and keys are in the order of the original checkpoints.
pub(super) const GGUF: Names = Names { rope_style: RopeStyle::Pairs, ..decoder::GGUF };

/// From `general.architecture = llama`.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    metadata: &gguf::Metadata,
) -> Result<ModelDescription, ModelError> {
    let keys = Keys::new(checkpoint, metadata)?;
    if let Some(experts @ 1..) = keys.u32("expert_count")? {
        return Err(keys.error("expert_count", "0, as Mixtral is not supported", experts));
    }
    let mut numbers = Numbers::from_gguf(&keys, Activation::Silu)?;
    numbers.ropes = vec![rope::from_gguf(&keys, numbers.head_dim, true)?];
    // llama.cpp does not look at it, but a Mistral file that has it means it.
    numbers.set_window(keys.u32("attention.sliding_window")?.map(|window| window as usize));
    Ok(describe("llama", &numbers, &GGUF))
}

/// From `model_type = llama`, with the names of `transformers`.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<ModelDescription, ModelError> {
    let (numbers, names) = hugging_face_numbers(checkpoint, config)?;
    Ok(describe("llama", &numbers, &names))
}

/// The numbers in `config.json`, and the names.
pub(super) fn hugging_face_numbers(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<(Numbers, Names), ModelError> {
    let defaults = Defaults { eps: 1e-6, ..Defaults::default() };
    let activation = activation(config, "hidden_act", "silu")?;
    let mut numbers = Numbers::from_hugging_face(checkpoint, config, &defaults, activation)?;
    let attention = config.bool("attention_bias")?.unwrap_or(false);
    let feed_forward = config.bool("mlp_bias")?.unwrap_or(false);
    numbers.biases =
        Biases { qkv: attention, attention_output: attention, feed_forward, router: false };
    let (names, has_head) = HUGGING_FACE.in_checkpoint(checkpoint, config, defaults.tied)?;
    numbers.head_rows = has_head.then_some(numbers.vocab_size);
    numbers.ropes = vec![rope::from_hugging_face(config, numbers.head_dim, 10000.0)?];
    numbers.refuse_partial_rotation(config)?;
    Ok((numbers, names))
}
