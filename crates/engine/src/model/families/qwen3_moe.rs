//! Qwen 3 with experts, in all layers or with layers of one network among them.
//!
//! "Qwen3 Technical Report" (2025). The options are those of `Qwen3MoeConfig` in `transformers`.

use super::super::spec::{Activation, Choice, ChoiceWeights, Layout, Rows, TensorSource};
use super::super::{DecoderSource, ModelDescription, ModelError};
use super::decoder::{Names, decoder, describe};
use super::json::Json;
use super::keys::Keys;
use super::numbers::{Defaults, Experts, Numbers};
use super::qwen2::{common_numbers, defaults, refuse_what_gguf_has_no_key_for, window};
use super::qwen3::{self, published, refuse_biases, set_biases};
use super::{GgufForm, rope};
use crate::format::{Checkpoint, gguf};

const GGUF: Names =
    Names { up: &["ffn_gate_exps", "ffn_up_exps"], down: "ffn_down_exps", ..qwen3::GGUF };

/// A tensor for each expert, as published and as `transformers` saves them.
const HUGGING_FACE: Names = Names {
    up: &["mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"],
    down: "mlp.experts.{}.down_proj",
    ..qwen3::HUGGING_FACE
};

/// The experts of a layer in two tensors, gate before up, as `transformers` 5 has them in memory.
const FUSED_UP: &str = "mlp.experts.gate_up_proj";
const FUSED_DOWN: &str = "mlp.experts.down_proj";

/// From `general.architecture = qwen3moe`.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    metadata: &gguf::Metadata,
) -> Result<ModelDescription, ModelError> {
    let keys = Keys::new(checkpoint, metadata)?;
    let mut numbers = Numbers::from_gguf(&keys, Activation::Silu)?;
    // GGUF has no key for it: llama.cpp brings the weights of the chosen experts to a sum of one.
    let experts = Experts::from_gguf(&keys, ChoiceWeights::SoftmaxOfChosen)?;
    numbers.intermediate = match keys.size("expert_feed_forward_length")? {
        Some(width) => width,
        None if numbers.intermediate.is_multiple_of(experts.choice.count) => {
            numbers.intermediate / experts.choice.count
        }
        None => {
            let expected = "a positive integer";
            return Err(keys.error("expert_feed_forward_length", expected, "nothing"));
        }
    };
    numbers.experts = Some(experts);
    numbers.ropes = vec![rope::from_gguf(&keys, numbers.head_dim, true)?];
    Ok(describe("qwen3moe", &numbers, &GGUF))
}

/// From `model_type = qwen3_moe`, with the names of `transformers`.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<ModelDescription, ModelError> {
    let model = InSafetensors::new(checkpoint, config)?;
    let mut description = describe("qwen3moe", &model.numbers, &model.names);
    description.decoder = model.decoder(checkpoint);
    Ok(description)
}

/// A model with the names of `transformers`.
struct InSafetensors {
    /// Those of the layers with experts.
    numbers: Numbers,
    names: Names,
    /// Width of the feed-forward part of the other layers.
    dense_width: usize,
    /// Whether each layer has experts.
    sparse: Vec<bool>,
}

impl InSafetensors {
    fn new(checkpoint: &Checkpoint, config: &Json) -> Result<Self, ModelError> {
        let defaults = Defaults { kv_heads: Some(4), ..defaults() };
        let (mut numbers, names) = common_numbers(checkpoint, config, HUGGING_FACE, &defaults)?;
        set_biases(&mut numbers, config)?;
        // Unlike in the models without experts, in all layers or in none.
        numbers.set_window(window(config)?);
        let weights = match config.bool("norm_topk_prob")?.unwrap_or(false) {
            true => ChoiceWeights::SoftmaxOfChosen,
            false => ChoiceWeights::SoftmaxOfAll,
        };
        // `transformers` knows it by either name.
        let count_key = if config.has("num_experts") { "num_experts" } else { "num_local_experts" };
        let sparse = sparse_layers(config, numbers.layers.len())?;
        let experts =
            Experts::from_hugging_face(config, count_key, "num_experts_per_tok", weights)?;
        numbers.experts = Some(experts);
        let dense_width = numbers.intermediate;
        numbers.intermediate = config.required_size("moe_intermediate_size")?;
        Ok(InSafetensors { numbers, names, dense_width, sparse })
    }

    /// The decoder, with the names and layouts of the file.
    fn decoder(&self, checkpoint: &Checkpoint) -> DecoderSource {
        let mut sparse = decoder(&self.numbers, &self.names);
        let dense_names =
            Names { up: qwen3::HUGGING_FACE.up, down: qwen3::HUGGING_FACE.down, ..self.names };
        let dense_numbers =
            Numbers { experts: None, intermediate: self.dense_width, ..self.numbers.clone() };
        let dense = decoder(&dense_numbers, &dense_names);
        for (index, (layer, dense)) in sparse.layers.iter_mut().zip(dense.layers).enumerate() {
            if !self.sparse[index] {
                *layer = dense;
                continue;
            }
            let [up, down] = [FUSED_UP, FUSED_DOWN].map(|name| self.names.part(index, name));
            if checkpoint.tensor(&up).is_some() {
                let width = self.numbers.intermediate;
                let ffn = &mut layer.feed_forward;
                let fused = |weight: &TensorSource, name: &str| TensorSource {
                    name: name.to_string(),
                    layout: Layout::RowMajor,
                    ..weight.clone()
                };
                for (part, linear) in ffn.up.iter_mut().enumerate() {
                    let order = Rows::From { start: part * width, of: 2 * width };
                    linear.weight = fused(&linear.weight, &up).with_order(order);
                }
                ffn.down.weight = fused(&ffn.down.weight, &down);
            }
        }
        sparse
    }
}

/// Whether each of `layers` layers has experts: by `decoder_sparse_step`, less those in `mlp_only_layers`.
fn sparse_layers(config: &Json, layers: usize) -> Result<Vec<bool>, ModelError> {
    let step = config.size("decoder_sparse_step")?.unwrap_or(1);
    let dense = config.ids("mlp_only_layers")?;
    let is_sparse = |layer: usize| {
        (layer + 1).is_multiple_of(step) && !dense.iter().any(|dense| *dense as usize == layer)
    };
    Ok((0..layers).map(is_sparse).collect())
}

/// The form of a Hugging Face checkpoint, unless it has what GGUF has no key for.
pub fn to_gguf(checkpoint: &Checkpoint, config: &Json) -> Result<GgufForm, ModelError> {
    let model = InSafetensors::new(checkpoint, config)?;
    let numbers = &model.numbers;
    let weights = numbers.experts.map(|experts| experts.choice.weights);
    if weights != Some(ChoiceWeights::SoftmaxOfChosen) {
        let expected = "true, the only one that GGUF has for qwen3moe";
        return Err(config.error("norm_topk_prob", expected, false));
    }
    if let Some(layer) = model.sparse.iter().position(|sparse| !sparse) {
        let expected = "experts in every layer, as GGUF has it for qwen3moe";
        let found = format!("none in layer {layer}");
        return Err(config.error("mlp_only_layers, decoder_sparse_step", expected, found));
    }
    refuse_biases(numbers, config)?;
    refuse_what_gguf_has_no_key_for(numbers, config)?;
    let source = Some(model.decoder(checkpoint));
    Ok(GgufForm { source, ..form(numbers, model.dense_width) })
}

fn form(numbers: &Numbers, dense_width: usize) -> GgufForm {
    let (mut metadata, factors) = numbers.to_gguf("qwen3moe");
    let width = u32::try_from(dense_width).unwrap_or(u32::MAX);
    metadata.set("qwen3moe.feed_forward_length", width);
    GgufForm { metadata, decoder: decoder(numbers, &GGUF), source: None, factors }
}

/// The names of the published sizes.
pub fn shapes() -> Vec<&'static str> {
    vec!["qwen3-30b-a3b"]
}

/// The form of a published size.
pub fn shape(name: &str) -> Option<GgufForm> {
    (name == "qwen3-30b-a3b").then(|| {
        let mut numbers = published(Numbers::of_shape(48, 2048, 768, (32, 4, 128), 151936));
        let choice = Choice { count: 8, weights: ChoiceWeights::SoftmaxOfChosen };
        numbers.experts = Some(Experts { count: 128, choice });
        form(&numbers, 6144)
    })
}
