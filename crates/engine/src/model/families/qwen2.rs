//! Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows in the upper layers of some models.
//!
//! "Qwen2 Technical Report" (2024). The options are those of `Qwen2Config` in `transformers`.

use super::super::spec::{Activation, Nonlinearity};
use super::super::{ModelDescription, ModelError};
use super::decoder::{self, HUGGING_FACE, Names, decoder, describe};
use super::json::Json;
use super::keys::Keys;
use super::numbers::{Defaults, Numbers, activation};
use super::{GgufForm, rope, windows};
use crate::format::{Checkpoint, gguf};

/// From `general.architecture = qwen2`.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    metadata: &gguf::Metadata,
) -> Result<ModelDescription, ModelError> {
    let keys = Keys::new(checkpoint, metadata)?;
    let mut numbers = Numbers::from_gguf(&keys, Activation::Silu)?;
    numbers.ropes = vec![rope::from_gguf(&keys, numbers.head_dim, true)?];
    Ok(describe("qwen2", &numbers, &decoder::GGUF))
}

/// From `model_type = qwen2`, with the names of `transformers`.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<ModelDescription, ModelError> {
    let (numbers, names) = hugging_face_numbers(checkpoint, config)?;
    Ok(describe("qwen2", &numbers, &names))
}

fn hugging_face_numbers(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<(Numbers, Names), ModelError> {
    let (mut numbers, names) = common_numbers(checkpoint, config, HUGGING_FACE, &defaults())?;
    numbers.biases.qkv = true;
    set_windows(&mut numbers, config)?;
    Ok((numbers, names))
}

/// What the configurations of Qwen 2 and its successors mean by nothing.
pub(super) fn defaults() -> Defaults {
    Defaults { context_length: Some(32768), kv_heads: Some(32), eps: 1e-6, ..Defaults::default() }
}

/// What Qwen 2 and its successors have in common, less biases, windows and experts.
pub(super) fn common_numbers(
    checkpoint: &Checkpoint,
    config: &Json,
    names: Names,
    defaults: &Defaults,
) -> Result<(Numbers, Names), ModelError> {
    let activation = activation(config, "hidden_act", "silu")?;
    let mut numbers = Numbers::from_hugging_face(checkpoint, config, defaults, activation)?;
    let (names, has_head) = names.in_checkpoint(checkpoint, config, defaults.tied)?;
    numbers.head_rows = has_head.then_some(numbers.vocab_size);
    numbers.ropes = vec![rope::from_hugging_face(config, numbers.head_dim, 10000.0)?];
    numbers.refuse_partial_rotation(config)?;
    Ok((numbers, names))
}

/// The window, if windows are in use; their size is 4,096 where nothing else is said.
pub(super) fn window(config: &Json) -> Result<Option<usize>, ModelError> {
    let size = config.size("sliding_window")?;
    let default = (!config.is_null("sliding_window")).then_some(4096);
    let is_used = config.bool("use_sliding_window")?.unwrap_or(false);
    Ok(size.or(default).filter(|_| is_used))
}

/// Sets the windows that `layer_types` has, or else those from layer `max_window_layers` on.
pub(super) fn set_windows(numbers: &mut Numbers, config: &Json) -> Result<(), ModelError> {
    let window = window(config)?;
    let first = config.u32("max_window_layers")?.unwrap_or(28) as usize;
    let windowed = windows::layer_types(config, numbers.layers.len())?;
    for (index, layer) in numbers.layers.iter_mut().enumerate() {
        let is_windowed = windowed.as_ref().map_or(index >= first, |windowed| windowed[index]);
        layer.window = window.filter(|_| is_windowed);
    }
    if let Some(windowed) = windowed.filter(|_| window.is_none())
        && windowed.contains(&true)
    {
        let expected = "full_attention for all layers, as use_sliding_window is not set";
        return Err(config.error("layer_types", expected, "sliding_attention"));
    }
    Ok(())
}

/// The form of a Hugging Face checkpoint, unless it has what GGUF has no key for.
pub fn to_gguf(checkpoint: &Checkpoint, config: &Json) -> Result<GgufForm, ModelError> {
    let (numbers, _) = hugging_face_numbers(checkpoint, config)?;
    refuse_what_gguf_has_no_key_for(&numbers, config)?;
    Ok(form(&numbers))
}

/// Refuses what GGUF has no key for in the architectures of Qwen.
pub(super) fn refuse_what_gguf_has_no_key_for(
    numbers: &Numbers,
    config: &Json,
) -> Result<(), ModelError> {
    if numbers.nonlinearity != Nonlinearity::Gated(Activation::Silu) {
        let found = config.string("hidden_act")?.unwrap_or_default();
        return Err(config.error("hidden_act", "silu, the only one that GGUF has for it", found));
    }
    if numbers.layers.iter().any(|layer| layer.window.is_some()) {
        let expected = "false, as GGUF has no key for windows of this architecture";
        return Err(config.error("use_sliding_window", expected, true));
    }
    numbers.refuse_what_gguf_has_no_key_for(config, true)
}

fn form(numbers: &Numbers) -> GgufForm {
    let (metadata, factors) = numbers.to_gguf("qwen2");
    GgufForm { metadata, decoder: decoder(numbers, &decoder::GGUF), source: None, factors }
}

/// The names of the published sizes.
pub fn shapes() -> Vec<&'static str> {
    vec!["qwen2.5-0.5b", "qwen2.5-7b"]
}

/// The form of a published size.
pub fn shape(name: &str) -> Option<GgufForm> {
    let mut numbers = match name {
        "qwen2.5-0.5b" => {
            let numbers = Numbers::of_shape(24, 896, 4864, (14, 2, 64), 151936);
            Numbers { head_rows: None, ..numbers }
        }
        "qwen2.5-7b" => Numbers::of_shape(28, 3584, 18944, (28, 4, 128), 152064),
        _ => return None,
    };
    numbers.biases.qkv = true;
    numbers.context_length = 32768;
    numbers.eps = 1e-6;
    numbers.ropes[0].base = 1e6;
    Some(form(&numbers))
}
