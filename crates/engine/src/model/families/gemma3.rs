//! Gemma 3, its text part: norms before and after each part, QK-norm, GeGLU, and windows in most layers.
//!
//! "Gemma 3 Technical Report" (2025). The options are those of `Gemma3TextConfig` in `transformers`; a directory of a
//! model that sees images is read for its text part alone.

use super::super::spec::Activation;
use super::super::{ModelDescription, ModelError};
use super::decoder::{self, HUGGING_FACE, Names, describe};
use super::json::Json;
use super::keys::Keys;
use super::numbers::{Biases, Defaults, Numbers, activation};
use super::rope::{self, RopeNumbers, Scaling};
use crate::format::Checkpoint;
use crate::format::gguf::{self, Array, Value};

/// The names of llama.cpp. The norms have their offset.
pub(super) const GGUF: Names = Names {
    query_norm: Some("attn_q_norm"),
    key_norm: Some("attn_k_norm"),
    attention_post_norm: Some("post_attention_norm"),
    feed_forward_post_norm: Some("post_ffw_norm"),
    ..decoder::GGUF
};

/// The rotations of the layers without and with a window, by their places.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

/// How many layers follow each other before one without a window comes round again.
const PATTERN: usize = 6;

/// From `general.architecture = gemma3`.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    metadata: &gguf::Metadata,
) -> Result<ModelDescription, ModelError> {
    let keys = Keys::new(checkpoint, metadata)?;
    let mut numbers = Numbers::from_gguf(&keys, Activation::GeluTanh)?;
    numbers.scale = (gguf_scalar(&numbers) as f64).powf(-0.5) as f32;
    numbers.embedding_scale = (numbers.hidden as f64).sqrt() as f32;
    let global = rope::from_gguf(&keys, numbers.head_dim, true)?;
    let base = f64::from(keys.f32("rope.freq_base_swa")?.unwrap_or(10000.0));
    if !(base > 1.0 && base.is_finite()) {
        return Err(keys.error("rope.freq_base_swa", "a number above 1", base));
    }
    let local = RopeNumbers { base, dims: global.dims, scaling: Scaling::None };
    numbers.ropes = vec![global, local];
    if let Some(window @ 1..) = keys.u32("attention.sliding_window")? {
        let windows = gguf_windows(&keys, numbers.layers.len())?;
        set_windows(&mut numbers, window as usize, &windows);
    }
    numbers.soft_cap = match keys.f32("final_logit_softcapping")? {
        // llama.cpp takes 0 for "none".
        None | Some(0.0) => None,
        Some(cap) if cap.is_finite() && cap > 0.0 => Some(cap),
        Some(cap) => return Err(keys.error("final_logit_softcapping", "a positive number", cap)),
    };
    Ok(describe("gemma3", &numbers, &GGUF))
}

/// What llama.cpp takes for `query_pre_attn_scalar`: the 27B model, which it knows by its layers, has another one.
pub(super) fn gguf_scalar(numbers: &Numbers) -> usize {
    if numbers.layers.len() == 62 { numbers.hidden / numbers.heads } else { numbers.head_dim }
}

/// Which layers have a window.
fn gguf_windows(keys: &Keys, layers: usize) -> Result<Vec<bool>, ModelError> {
    let key = "attention.sliding_window_pattern";
    match keys.value(key) {
        Some(Value::Array(Array::Bool(windows))) if windows.len() == layers => Ok(windows.clone()),
        Some(Value::Array(array)) => {
            let expected = format!("a number, or {layers} truth values");
            Err(keys.error(key, &expected, Value::Array(array.clone())))
        }
        _ => {
            let pattern = keys.u32(key)?.map_or(PATTERN, |pattern| pattern as usize);
            // 0 for llama.cpp means that every layer has one.
            Ok(of_pattern(pattern, layers))
        }
    }
}

/// Which layers have a window if every `pattern`th has none.
pub(super) fn of_pattern(pattern: usize, layers: usize) -> Vec<bool> {
    (1..=layers).map(|number| pattern == 0 || !number.is_multiple_of(pattern)).collect()
}

/// Gives some layers the window and the rotation that goes with it.
pub(super) fn set_windows(numbers: &mut Numbers, window: usize, windows: &[bool]) {
    for (layer, has_window) in numbers.layers.iter_mut().zip(windows) {
        (layer.window, layer.rope) =
            if *has_window { (Some(window), LOCAL) } else { (None, GLOBAL) };
    }
}

/// From `model_type = gemma3_text`, or the text part of `gemma3`, with the names of `transformers`.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<ModelDescription, ModelError> {
    let (numbers, names) = hugging_face_numbers(checkpoint, config)?;
    Ok(describe("gemma3", &numbers, &names))
}

/// The part of `config.json` that is about text.
pub(super) fn text_config<'a>(config: &Json<'a>) -> Result<Json<'a>, ModelError> {
    match config.string("model_type")? {
        Some("gemma3") => {
            config.object("text_config")?.ok_or_else(|| config.missing("text_config", "an object"))
        }
        _ => Ok(config.clone()),
    }
}

/// The numbers in `config.json`, and the names.
pub(super) fn hugging_face_numbers(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<(Numbers, Names), ModelError> {
    let config = &text_config(config)?;
    let defaults = Defaults {
        vocab_size: Some(262208),
        context_length: Some(131072),
        heads: Some(8),
        kv_heads: Some(4),
        head_dim: Some(256),
        eps: 1e-6,
        tied: true,
    };
    let activation = activation(config, "hidden_activation", "gelu_pytorch_tanh")?;
    let mut numbers = Numbers::from_hugging_face(checkpoint, config, &defaults, activation)?;
    if config.bool("use_bidirectional_attention")?.unwrap_or(false) {
        return Err(config.error("use_bidirectional_attention", "false", "true"));
    }
    if config.has("attn_logit_softcapping") {
        let expected = "null, as `transformers` does not look at it for gemma3";
        return Err(config.error("attn_logit_softcapping", expected, "a number"));
    }
    let attention = config.bool("attention_bias")?.unwrap_or(false);
    numbers.biases = Biases { qkv: attention, attention_output: attention, ..Biases::default() };
    let scalar = config.size("query_pre_attn_scalar")?.unwrap_or(256);
    numbers.scale = (scalar as f64).powf(-0.5) as f32;
    numbers.embedding_scale = (numbers.hidden as f64).sqrt() as f32;
    numbers.soft_cap = match config.f32("final_logit_softcapping")? {
        Some(cap) if cap <= 0.0 => {
            return Err(config.error("final_logit_softcapping", "a positive number", cap));
        }
        cap => cap,
    };
    numbers.ropes = ropes(config, numbers.head_dim)?;
    numbers.refuse_partial_rotation(config)?;
    let windows = windows(config, numbers.layers.len())?;
    if windows.contains(&true) {
        let window = match config.size("sliding_window")? {
            None if config.is_null("sliding_window") => {
                return Err(config.missing("sliding_window", "a positive integer"));
            }
            window => window.unwrap_or(4096),
        };
        set_windows(&mut numbers, window, &windows);
    }
    let (names, has_head) = names(checkpoint).in_checkpoint(checkpoint, config, defaults.tied)?;
    numbers.head_rows = has_head.then_some(numbers.vocab_size);
    Ok((numbers, names))
}

/// The rotations: [`GLOBAL`], then [`LOCAL`].
fn ropes(config: &Json, head_dim: usize) -> Result<Vec<RopeNumbers>, ModelError> {
    let by_kind = config.object("rope_parameters")?;
    let of_kind = |kind: &str| match &by_kind {
        Some(by_kind) => by_kind.object(kind),
        None => Ok(None),
    };
    let scaling = config.object("rope_scaling")?;
    let global = scaling.or(of_kind("full_attention")?);
    let base = config.f64("rope_theta")?.unwrap_or(1e6);
    let local_base = config.f64("rope_local_base_freq")?.unwrap_or(1e4);
    Ok(vec![
        rope::from_parameters(config, global.as_ref(), head_dim, base)?,
        rope::from_parameters(
            config,
            of_kind("sliding_attention")?.as_ref(),
            head_dim,
            local_base,
        )?,
    ])
}

/// Which layers have a window.
fn windows(config: &Json, layers: usize) -> Result<Vec<bool>, ModelError> {
    let Some(kinds) = config.strings("layer_types")? else {
        let pattern = config.size("sliding_window_pattern")?.unwrap_or(PATTERN);
        return Ok(of_pattern(pattern, layers));
    };
    if kinds.len() != layers {
        let expected = format!("{layers} kinds, one for each layer");
        return Err(config.error("layer_types", &expected, kinds.len()));
    }
    let window = |kind: &&str| match *kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(config.error("layer_types", "sliding_attention or full_attention", other)),
    };
    kinds.iter().map(window).collect()
}

/// The names of `transformers`: those of a text model, or of the text part of one that sees images, which newer and older
/// versions save under different ones.
fn names(checkpoint: &Checkpoint) -> Names {
    let has = |prefix: &str| checkpoint.tensor(&format!("{prefix}norm.weight")).is_some();
    let (prefix, head) = if has("language_model.model.") {
        ("language_model.model.", "language_model.lm_head.weight")
    } else if has("model.language_model.") {
        ("model.language_model.", "lm_head.weight")
    } else {
        (HUGGING_FACE.prefix, HUGGING_FACE.head)
    };
    Names {
        prefix,
        head,
        query_norm: Some("self_attn.q_norm"),
        key_norm: Some("self_attn.k_norm"),
        attention_post_norm: Some("post_attention_layernorm"),
        feed_forward_norm: "pre_feedforward_layernorm",
        feed_forward_post_norm: Some("post_feedforward_layernorm"),
        // The file has the weights less 1.
        norm_plus: 1.0,
        ..HUGGING_FACE
    }
}
