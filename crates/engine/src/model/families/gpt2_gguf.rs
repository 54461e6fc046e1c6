//! GPT-2 as GGUF: the keys, and what they cannot say.

use super::super::ModelError;
use super::super::spec::Activation;
use super::GgufForm;
use super::gpt2::{Config, GGUF, decoder, hugging_face_config};
use super::json::Json;
use crate::format::Checkpoint;
use crate::format::gguf::Metadata;

/// The form of a Hugging Face checkpoint, unless an option that GGUF has no key for is not at its default.
pub fn from_hugging_face(checkpoint: &Checkpoint, config: &Json) -> Result<GgufForm, ModelError> {
    let numbers = hugging_face_config(checkpoint, config)?;
    let refuse = |key: &str, expected: &str, found: &str| {
        Err(config.error(key, &format!("{expected}, the only one that GGUF has for gpt2"), found))
    };
    if numbers.activation != Activation::GeluTanh {
        let found = config.string("activation_function")?.unwrap_or_default();
        return refuse("activation_function", "gelu_new or another tanh GELU", found);
    }
    if !numbers.scale_attention {
        return refuse("scale_attn_weights", "true", "false");
    }
    if numbers.scale_by_layer {
        return refuse("scale_attn_by_inverse_layer_idx", "false", "true");
    }
    Ok(form(&numbers))
}

/// The published sizes: name, layers, width and heads.
const SHAPES: &[(&str, usize, usize, usize)] = &[
    ("gpt2", 12, 768, 12),
    ("gpt2-medium", 24, 1024, 16),
    ("gpt2-large", 36, 1280, 20),
    ("gpt2-xl", 48, 1600, 25),
];

/// The names of the published sizes.
pub fn shapes() -> Vec<&'static str> {
    SHAPES.iter().map(|(name, ..)| *name).collect()
}

/// The form of a published size.
pub fn shape(name: &str) -> Option<GgufForm> {
    let &(_, layers, hidden, heads) = SHAPES.iter().find(|(shape, ..)| *shape == name)?;
    Some(form(&Config {
        vocab_size: 50257,
        context_length: 1024,
        hidden,
        intermediate: 4 * hidden,
        layers,
        heads,
        eps: 1e-5,
        activation: Activation::GeluTanh,
        scale_attention: true,
        scale_by_layer: false,
        head_rows: None,
    }))
}

/// The form of these numbers.
fn form(config: &Config) -> GgufForm {
    let mut metadata = Metadata::new("gpt2".to_string());
    metadata.set("general.architecture", "gpt2");
    metadata.set("general.type", "model");
    for (key, number) in [
        ("gpt2.block_count", config.layers),
        ("gpt2.context_length", config.context_length),
        ("gpt2.embedding_length", config.hidden),
        ("gpt2.feed_forward_length", config.intermediate),
        ("gpt2.attention.head_count", config.heads),
    ] {
        // Sizes in config.json were read as u32.
        metadata.set(key, u32::try_from(number).unwrap_or(u32::MAX));
    }
    metadata.set("gpt2.attention.layer_norm_epsilon", config.eps);
    GgufForm {
        metadata,
        decoder: decoder(config, &GGUF, &|name| name),
        source: None,
        factors: Vec::new(),
    }
}
