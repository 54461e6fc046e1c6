//! Mistral: Llama with a sliding window. In GGUF it is a llama.
//!
//! Jiang et al., "Mistral 7B" (2023). The options are those of `MistralConfig` in `transformers`.

use super::super::{ModelDescription, ModelError};
use super::decoder::{HUGGING_FACE, Names, describe};
use super::json::Json;
use super::numbers::{Defaults, Numbers, activation};
use super::{GgufForm, llama_gguf, rope};
use crate::format::Checkpoint;

/// From `model_type = mistral`, with the names of `transformers`.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<ModelDescription, ModelError> {
    let (numbers, names) = hugging_face_numbers(checkpoint, config)?;
    Ok(describe("mistral", &numbers, &names))
}

fn hugging_face_numbers(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<(Numbers, Names), ModelError> {
    let defaults = Defaults { eps: 1e-6, kv_heads: Some(8), ..Defaults::default() };
    let activation = activation(config, "hidden_act", "silu")?;
    let mut numbers = Numbers::from_hugging_face(checkpoint, config, &defaults, activation)?;
    let (names, has_head) = HUGGING_FACE.in_checkpoint(checkpoint, config, defaults.tied)?;
    numbers.head_rows = has_head.then_some(numbers.vocab_size);
    numbers.ropes = vec![rope::from_hugging_face(config, numbers.head_dim, 10000.0)?];
    numbers.refuse_partial_rotation(config)?;
    let window = match config.size("sliding_window")? {
        None if !config.is_null("sliding_window") => Some(4096),
        window => window,
    };
    numbers.set_window(window);
    // `transformers` computes all layers alike, whatever this list says.
    let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
    if let Some(kinds) = config.strings("layer_types")?
        && let Some(other) = kinds.iter().find(|other| **other != kind)
    {
        let expected = format!("{kind} for all layers, by sliding_window");
        return Err(config.error("layer_types", &expected, other));
    }
    Ok((numbers, names))
}

/// The form of a Hugging Face checkpoint.
pub fn to_gguf(checkpoint: &Checkpoint, config: &Json) -> Result<GgufForm, ModelError> {
    let (numbers, names) = hugging_face_numbers(checkpoint, config)?;
    llama_gguf::converted(&numbers, &names, config)
}

/// The names of the published sizes.
pub fn shapes() -> Vec<&'static str> {
    vec!["mistral-7b"]
}

/// The form of a published size.
pub fn shape(name: &str) -> Option<GgufForm> {
    // Mistral 7B v0.3: no window, a larger vocabulary than v0.1.
    (name == "mistral-7b").then(|| {
        let mut numbers = Numbers::of_shape(32, 4096, 14336, (32, 8, 128), 32768);
        numbers.context_length = 32768;
        numbers.ropes[0].base = 1e6;
        llama_gguf::form(&numbers)
    })
}
