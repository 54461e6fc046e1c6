//! Gemma 3 as GGUF: the keys, and the published sizes.

use super::super::ModelError;
use super::super::spec::{Activation, Nonlinearity};
use super::GgufForm;
use super::decoder::decoder;
use super::gemma3::{
    GGUF, gguf_scalar, hugging_face_numbers, of_pattern, set_windows, text_config,
};
use super::json::Json;
use super::numbers::{Biases, Numbers};
use super::rope::{RopeNumbers, Scaling};
use crate::format::Checkpoint;
use crate::format::gguf::{Array, Value};

/// The form of a Hugging Face checkpoint, unless it has what GGUF has no key for.
pub fn from_hugging_face(checkpoint: &Checkpoint, config: &Json) -> Result<GgufForm, ModelError> {
    let (numbers, _) = hugging_face_numbers(checkpoint, config)?;
    let config = text_config(config)?;
    let refuse = |key: &str, expected: &str, found: &str| {
        Err(config.error(key, &format!("{expected}, the only one that GGUF has for gemma3"), found))
    };
    if numbers.nonlinearity != Nonlinearity::Gated(Activation::GeluTanh) {
        let found = config.string("hidden_activation")?.unwrap_or_default();
        return refuse("hidden_activation", "gelu_pytorch_tanh or another tanh GELU", found);
    }
    if numbers.biases != Biases::default() {
        return refuse("attention_bias", "false", "true");
    }
    let scalar = gguf_scalar(&numbers);
    if numbers.scale != (scalar as f64).powf(-0.5) as f32 {
        return refuse("query_pre_attn_scalar", &scalar.to_string(), "another number");
    }
    let [global, local] = &numbers.ropes[..] else { unreachable!("the family has two rotations") };
    if !matches!(global.scaling, Scaling::None | Scaling::Linear { .. }) {
        return refuse("rope_type", "default or linear", "another kind");
    }
    if local.scaling != Scaling::None {
        return refuse("rope_type", "default for local layers", "another kind");
    }
    Ok(form(&numbers))
}

/// The form of these numbers.
fn form(numbers: &Numbers) -> GgufForm {
    let (mut metadata, factors) = numbers.to_gguf("gemma3");
    let windows: Vec<bool> = numbers.layers.iter().map(|layer| layer.window.is_some()).collect();
    if windows.contains(&true) {
        let key = "gemma3.attention.sliding_window_pattern";
        let pattern = (0..=windows.len()).find(|p| of_pattern(*p, windows.len()) == windows);
        match pattern.and_then(|pattern| u32::try_from(pattern).ok()) {
            Some(pattern) => metadata.set(key, pattern),
            None => metadata.set(key, Value::Array(Array::Bool(windows))),
        }
        metadata.set("gemma3.rope.freq_base_swa", numbers.ropes[1].base as f32);
    }
    GgufForm { metadata, decoder: decoder(numbers, &GGUF), source: None, factors }
}

/// The names of the published sizes.
pub fn shapes() -> Vec<&'static str> {
    vec!["gemma3-270m", "gemma3-1b"]
}

/// The form of a published size.
pub fn shape(name: &str) -> Option<GgufForm> {
    let (layers, hidden, intermediate) = match name {
        "gemma3-270m" => (18, 640, 2048),
        "gemma3-1b" => (26, 1152, 6912),
        _ => return None,
    };
    let mut numbers = Numbers::of_shape(layers, hidden, intermediate, (4, 1, 256), 262144);
    numbers.context_length = 32768;
    numbers.eps = 1e-6;
    numbers.nonlinearity = Nonlinearity::Gated(Activation::GeluTanh);
    numbers.embedding_scale = (hidden as f64).sqrt() as f32;
    numbers.head_rows = None;
    let rope = |base| RopeNumbers { base, dims: 256, scaling: Scaling::None };
    numbers.ropes = vec![rope(1e6), rope(1e4)];
    let windows = of_pattern(6, layers);
    set_windows(&mut numbers, 512, &windows);
    Some(form(&numbers))
}
