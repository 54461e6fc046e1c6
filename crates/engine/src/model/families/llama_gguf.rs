//! Llama as GGUF: the keys, the order of rows, and the published sizes.

use super::super::ModelError;
use super::super::spec::{Activation, Nonlinearity, Rows, TensorSource};
use super::GgufForm;
use super::decoder::{Names, decoder};
use super::json::Json;
use super::llama::{GGUF, hugging_face_numbers};
use super::numbers::Numbers;
use super::rope::Scaling;
use crate::format::Checkpoint;

/// The form of a Hugging Face checkpoint, unless it has what GGUF has no key for.
pub fn from_hugging_face(checkpoint: &Checkpoint, config: &Json) -> Result<GgufForm, ModelError> {
    let (numbers, names) = hugging_face_numbers(checkpoint, config)?;
    converted(&numbers, &names, config)
}

/// The form of a checkpoint with these numbers and names.
pub(super) fn converted(
    numbers: &Numbers,
    names: &Names,
    config: &Json,
) -> Result<GgufForm, ModelError> {
    if numbers.nonlinearity != Nonlinearity::Gated(Activation::Silu) {
        let found = config.string("hidden_act")?.unwrap_or_default();
        return Err(config.error(
            "hidden_act",
            "silu, the only one that GGUF has for llama",
            found,
        ));
    }
    numbers.refuse_what_gguf_has_no_key_for(config, true)?;
    let mut source = decoder(numbers, names);
    let order = Rows::HalvesToPairs { head_dim: numbers.head_dim };
    let in_pairs = |source: &mut TensorSource| source.order = order;
    for layer in &mut source.layers {
        for linear in layer.attention.qkv.iter_mut().take(2) {
            in_pairs(&mut linear.weight);
            linear.bias.as_mut().map(in_pairs);
        }
    }
    Ok(GgufForm { source: Some(source), ..form(numbers) })
}

/// The form of these numbers.
pub(super) fn form(numbers: &Numbers) -> GgufForm {
    let (metadata, factors) = numbers.to_gguf("llama");
    GgufForm { metadata, decoder: decoder(numbers, &GGUF), source: None, factors }
}

/// The names of the published sizes.
pub fn shapes() -> Vec<&'static str> {
    vec!["tinyllama", "smollm2-135m", "llama3.2-1b", "llama3-8b"]
}

/// The form of a published size.
pub fn shape(name: &str) -> Option<GgufForm> {
    let numbers = match name {
        "tinyllama" => Numbers::of_shape(22, 2048, 5632, (32, 4, 64), 32000),
        "smollm2-135m" => {
            let mut numbers = Numbers::of_shape(30, 576, 1536, (9, 3, 64), 49152);
            numbers.context_length = 8192;
            numbers.ropes[0].base = 1e5;
            numbers.head_rows = None;
            numbers
        }
        "llama3.2-1b" => {
            let mut numbers = Numbers::of_shape(16, 2048, 8192, (32, 8, 64), 128256);
            numbers.context_length = 131072;
            numbers.ropes[0].base = 5e5;
            numbers.ropes[0].scaling =
                Scaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };
            numbers.head_rows = None;
            numbers
        }
        "llama3-8b" => {
            let mut numbers = Numbers::of_shape(32, 4096, 14336, (32, 8, 128), 128256);
            numbers.context_length = 8192;
            numbers.ropes[0].base = 5e5;
            numbers
        }
        _ => return None,
    };
    Some(form(&numbers))
}
