//! gpt-oss as GGUF: the keys, what they cannot say, and the published sizes.

use super::super::spec::{Choice, ChoiceWeights, Linear, Nonlinearity, Rows, TensorSource};
use super::super::{DecoderSource, ModelError};
use super::GgufForm;
use super::decoder::decoder;
use super::gpt_oss::{GGUF, InSafetensors, SWIGLU};
use super::json::Json;
use super::numbers::{Biases, Experts, Numbers};
use super::rope::{Scaling, yarn_magnitude};
use crate::format::Checkpoint;

/// The form of a checkpoint in either layout of safetensors, unless it has what GGUF has no key for.
pub fn from_hugging_face(checkpoint: &Checkpoint, config: &Json) -> Result<GgufForm, ModelError> {
    let model = InSafetensors::new(checkpoint, config)?;
    let numbers = &model.numbers;
    if let Nonlinearity::ClampedSwiglu { alpha, limit } = numbers.nonlinearity
        && numbers.nonlinearity != SWIGLU
    {
        let Nonlinearity::ClampedSwiglu { alpha: one, limit: other } = SWIGLU else {
            unreachable!("gpt-oss has one nonlinearity")
        };
        let (key, expected, found) = match alpha == one {
            true => ("swiglu_limit", other, limit),
            false => ("swiglu_alpha", one, alpha),
        };
        let expected = format!("{expected}, the only one that GGUF has for gpt-oss");
        return Err(config.error(key, &expected, found));
    }
    if !numbers.biases.qkv {
        return Err(config.error("attention_bias", "true, as GGUF has it for gpt-oss", false));
    }
    let windows = numbers.layers.iter().enumerate();
    if let Some((layer, _)) =
        windows.into_iter().find(|(index, layer)| layer.window.is_some() != (index % 2 == 0))
    {
        let expected = "sliding_attention and full_attention in turn, as GGUF has it for gpt-oss";
        return Err(config.error("layer_types", expected, format!("otherwise at layer {layer}")));
    }
    numbers.refuse_what_gguf_has_no_key_for(config, false)?;
    let source = with_split_qkv(model.decoder(checkpoint));
    Ok(GgufForm { source: Some(source), ..form(numbers) })
}

/// Queries, keys and values each on their own, as GGUF has them, where the file has them in one matrix.
fn with_split_qkv(mut decoder: DecoderSource) -> DecoderSource {
    for layer in &mut decoder.layers {
        let attention = &mut layer.attention;
        let [fused] = &attention.qkv[..] else { continue };
        let shape = attention.shape;
        let mut start = 0;
        let widths = [shape.query_width(), shape.kv_width(), shape.kv_width()];
        let parts = widths.map(|rows| {
            let order = Rows::From { start, of: shape.qkv_width() };
            start += rows;
            let weight = TensorSource { rows, order, ..fused.weight.clone() };
            let bias = fused.bias.clone().map(|bias| TensorSource { cols: rows, order, ..bias });
            Linear { weight, bias }
        });
        attention.qkv = parts.into();
    }
    decoder
}

/// The form of these numbers.
fn form(numbers: &Numbers) -> GgufForm {
    let (metadata, factors) = numbers.to_gguf("gpt-oss");
    GgufForm { metadata, decoder: decoder(numbers, &GGUF), source: None, factors }
}

/// The published sizes: name, layers and experts.
const SHAPES: &[(&str, usize, usize)] = &[("gpt-oss-20b", 24, 32), ("gpt-oss-120b", 36, 128)];

/// The names of the published sizes.
pub fn shapes() -> Vec<&'static str> {
    SHAPES.iter().map(|(name, ..)| *name).collect()
}

/// The form of a published size.
pub fn shape(name: &str) -> Option<GgufForm> {
    let &(_, layers, experts) = SHAPES.iter().find(|(shape, ..)| *shape == name)?;
    let mut numbers = Numbers::of_shape(layers, 2880, 2880, (64, 8, 64), 201088);
    numbers.context_length = 131072;
    numbers.nonlinearity = SWIGLU;
    numbers.biases = Biases { qkv: true, attention_output: true, feed_forward: true, router: true };
    let choice = Choice { count: 4, weights: ChoiceWeights::SoftmaxOfChosen };
    numbers.experts = Some(Experts { count: experts, choice });
    numbers.ropes[0].base = 150000.0;
    numbers.ropes[0].scaling = Scaling::Yarn {
        factor: 32.0,
        original: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: false,
        magnitude: yarn_magnitude(32.0, 1.0),
    };
    for layer in numbers.layers.iter_mut().step_by(2) {
        layer.window = Some(128);
    }
    Some(form(&numbers))
}
