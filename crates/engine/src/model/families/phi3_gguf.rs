//! Phi-3 as GGUF: the keys, and the published sizes.

use super::super::ModelError;
use super::super::spec::{Activation, Nonlinearity};
use super::GgufForm;
use super::decoder::decoder;
use super::json::Json;
use super::numbers::Numbers;
use super::phi3::{GGUF, hugging_face_numbers};
use super::rope::Scaling;
use crate::format::Checkpoint;

/// The form of a Hugging Face checkpoint, unless it has what GGUF has no key for.
pub fn from_hugging_face(checkpoint: &Checkpoint, config: &Json) -> Result<GgufForm, ModelError> {
    let (numbers, _) = hugging_face_numbers(checkpoint, config)?;
    if numbers.nonlinearity != Nonlinearity::Gated(Activation::Silu) {
        let found = config.string("hidden_act")?.unwrap_or_default();
        return Err(config.error("hidden_act", "silu, the only one that GGUF has for phi3", found));
    }
    Ok(form(&numbers))
}

/// The form of these numbers.
fn form(numbers: &Numbers) -> GgufForm {
    let (mut metadata, factors) = numbers.to_gguf("phi3");
    // llama.cpp tells Phi-4 from Phi-3 by a window of 0, and wants the original context in any case.
    if numbers.layers.iter().all(|layer| layer.window.is_none()) {
        metadata.set("phi3.attention.sliding_window", 0u32);
    }
    if !matches!(numbers.ropes[0].scaling, Scaling::Long { .. }) {
        let key = "phi3.rope.scaling.original_context_length";
        metadata.set(key, u32::try_from(numbers.context_length).unwrap_or(u32::MAX));
    }
    GgufForm { metadata, decoder: decoder(numbers, &GGUF), source: None, factors }
}

/// The names of the published sizes.
pub fn shapes() -> Vec<&'static str> {
    vec!["phi3-mini"]
}

/// The form of a published size: Phi-3-mini-4k.
pub fn shape(name: &str) -> Option<GgufForm> {
    (name == "phi3-mini").then(|| {
        let mut numbers = Numbers::of_shape(32, 3072, 8192, (32, 32, 96), 32064);
        numbers.context_length = 4096;
        numbers.set_window(Some(2047));
        form(&numbers)
    })
}
