//! gpt-oss: attention with sinks and a window in every other layer, and experts that are published in MXFP4.
//!
//! "gpt-oss-120b & gpt-oss-20b Model Card" (2025). What is computed is what `gpt_oss/torch/model.py` of `openai/gpt-oss`
//! computes; the options are those of `GptOssConfig` in `transformers`, and of `ModelConfig` there. docs/gpt-oss.md has the
//! layouts.

use super::super::spec::{
    Activation, ChoiceWeights, Layout, Linear, Nonlinearity, Rows, TensorSource,
};
use super::super::{DecoderSource, ModelDescription, ModelError};
use super::decoder::{self, Names, decoder, describe};
use super::json::Json;
use super::keys::Keys;
use super::numbers::{Biases, Defaults, Experts, Numbers, activation};
use super::rope::{RopeNumbers, Scaling, yarn_magnitude};
use super::{rope, windows};
use crate::format::{Checkpoint, gguf};

/// The SwiGLU of all published models, and the only one that GGUF has.
pub(super) const SWIGLU: Nonlinearity = Nonlinearity::ClampedSwiglu { alpha: ALPHA, limit: LIMIT };
const ALPHA: f32 = 1.702;
const LIMIT: f32 = 7.0;

/// Elements of an MXFP4 block.
const BLOCK: usize = 32;

/// The names of llama.cpp.
pub(super) const GGUF: Names = Names {
    sinks: Some("attn_sinks.weight"),
    feed_forward_norm: "post_attention_norm",
    up: &["ffn_gate_exps", "ffn_up_exps"],
    down: "ffn_down_exps",
    ..decoder::GGUF
};

const HUGGING_FACE: Names =
    Names { sinks: Some("self_attn.sinks"), router: "mlp.router", ..decoder::HUGGING_FACE };

const ORIGINAL: Names = Names {
    prefix: "",
    tokens: "embedding",
    layers: "block",
    attention_norm: "attn.norm",
    qkv: &["attn.qkv"],
    sinks: Some("attn.sinks"),
    attention_output: "attn.out",
    feed_forward_norm: "mlp.norm",
    router: "mlp.gate",
    final_norm: "norm",
    head: "unembedding.weight",
    ..decoder::HUGGING_FACE
};

/// How a layout of safetensors names and stores the experts of a layer. Gate and up are one matrix, whose even rows are
/// the gate's.
struct ExpertNames {
    up: &'static str,
    up_bias: &'static str,
    down: &'static str,
    down_bias: &'static str,
    /// After the name of a matrix in MXFP4.
    blocks: &'static str,
    /// After the name of a matrix in MXFP4.
    scales: &'static str,
    /// How a matrix is stored that is not in MXFP4.
    plain: Layout,
}

const HUGGING_FACE_EXPERTS: ExpertNames = ExpertNames {
    up: "mlp.experts.gate_up_proj",
    up_bias: "mlp.experts.gate_up_proj_bias",
    down: "mlp.experts.down_proj",
    down_bias: "mlp.experts.down_proj_bias",
    blocks: "_blocks",
    scales: "_scales",
    plain: Layout::Transposed,
};

const ORIGINAL_EXPERTS: ExpertNames = ExpertNames {
    up: "mlp.mlp1_weight",
    up_bias: "mlp.mlp1_bias",
    down: "mlp.mlp2_weight",
    down_bias: "mlp.mlp2_bias",
    blocks: ".blocks",
    scales: ".scales",
    plain: Layout::RowMajor,
};

/// From `general.architecture = gpt-oss`.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    metadata: &gguf::Metadata,
) -> Result<ModelDescription, ModelError> {
    let keys = Keys::new(checkpoint, metadata)?;
    let mut numbers = Numbers::from_gguf(&keys, Activation::Silu)?;
    numbers.nonlinearity = SWIGLU;
    numbers.experts = Some(Experts::from_gguf(&keys, ChoiceWeights::SoftmaxOfChosen)?);
    if let Some(width) = keys.size("expert_feed_forward_length")? {
        numbers.intermediate = width;
    }
    // GGUF has no key for it, and all published models do not round the bounds of YaRN.
    numbers.ropes = vec![rope::from_gguf(&keys, numbers.head_dim, false)?];
    let window = keys.required_size("attention.sliding_window")?;
    let windowed = windows::pattern(&keys, numbers.layers.len(), 2)?;
    set_windows(&mut numbers, &windowed, window);
    Ok(describe("gpt-oss", &numbers, &GGUF))
}

/// From `model_type = gpt_oss` with the names of `transformers`, or from OpenAI's own layout.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<ModelDescription, ModelError> {
    let model = InSafetensors::new(checkpoint, config)?;
    let mut description = describe("gpt-oss", &model.numbers, &model.names);
    description.decoder = model.decoder(checkpoint);
    Ok(description)
}

/// Whether this is the configuration of OpenAI's own layout, which does not say what it is.
pub(super) fn is_original(config: &Json) -> bool {
    let keys =
        ["num_experts", "experts_per_token", "initial_context_length", "rope_scaling_factor"];
    !config.has("model_type") && keys.iter().all(|key| config.has(key))
}

/// A model in one of the two layouts of safetensors.
pub(super) struct InSafetensors {
    pub numbers: Numbers,
    names: Names,
    experts: &'static ExpertNames,
}

impl InSafetensors {
    pub fn new(checkpoint: &Checkpoint, config: &Json) -> Result<Self, ModelError> {
        let is_original = is_original(config);
        let model = match is_original {
            true => Self::original(checkpoint, config)?,
            false => Self::hugging_face(checkpoint, config)?,
        };
        if model.has_blocks(checkpoint, 0) {
            for (key, size) in [
                ("hidden_size", model.numbers.hidden),
                ("intermediate_size", model.numbers.intermediate),
            ] {
                if !size.is_multiple_of(BLOCK) {
                    let expected = format!("a multiple of {BLOCK}, the block of MXFP4");
                    return Err(config.error(key, &expected, size));
                }
            }
        }
        Ok(model)
    }

    fn hugging_face(checkpoint: &Checkpoint, config: &Json) -> Result<Self, ModelError> {
        let defaults = Defaults {
            context_length: Some(131072),
            heads: Some(64),
            kv_heads: Some(8),
            // `null` means the hidden size divided by the heads.
            head_dim: (!config.is_null("head_dim")).then_some(64),
            eps: 1e-5,
            ..Defaults::default()
        };
        let gate = activation(config, "hidden_act", "silu")?;
        if gate != Activation::Silu {
            let found = config.string("hidden_act")?.unwrap_or_default();
            return Err(config.error("hidden_act", "silu, the only one of gpt-oss", found));
        }
        let mut numbers = Numbers::from_hugging_face(checkpoint, config, &defaults, gate)?;
        numbers.nonlinearity = swiglu(config)?;
        let attention = config.bool("attention_bias")?.unwrap_or(true);
        numbers.biases = Biases {
            qkv: attention,
            attention_output: attention,
            feed_forward: true,
            router: true,
        };
        let weights = ChoiceWeights::SoftmaxOfChosen;
        numbers.experts = Some(Experts::from_hugging_face(
            config,
            "num_local_experts",
            "num_experts_per_tok",
            weights,
        )?);
        numbers.ropes = vec![match config.has("rope_scaling") || config.has("rope_parameters") {
            true => rope::from_hugging_face(config, numbers.head_dim, 150000.0)?,
            false => {
                let base = config.f64("rope_theta")?.unwrap_or(150000.0);
                yarn(config, numbers.head_dim, base, 32.0, 4096, (32.0, 1.0))?
            }
        }];
        numbers.refuse_partial_rotation(config)?;
        let layers = numbers.layers.len();
        let in_turn = || (0..layers).map(|layer| layer % 2 == 0).collect();
        let windowed = windows::layer_types(config, layers)?.unwrap_or_else(in_turn);
        let window = match config.size("sliding_window")? {
            Some(window) => window,
            None if !config.is_null("sliding_window") || !windowed.contains(&true) => 128,
            None => return Err(config.error("sliding_window", "a positive integer", "null")),
        };
        set_windows(&mut numbers, &windowed, window);
        let (names, has_head) = HUGGING_FACE.in_checkpoint(checkpoint, config, false)?;
        numbers.head_rows = has_head.then_some(numbers.vocab_size);
        Ok(InSafetensors { numbers, names, experts: &HUGGING_FACE_EXPERTS })
    }

    fn original(checkpoint: &Checkpoint, config: &Json) -> Result<Self, ModelError> {
        let initial = config.required_size("initial_context_length")?;
        let factor = positive(config, "rope_scaling_factor", 32.0)?;
        let defaults = Defaults {
            // As the published models have it in the other layouts.
            context_length: Some((initial as f64 * factor.max(1.0)) as usize),
            heads: Some(64),
            kv_heads: Some(8),
            head_dim: Some(64),
            eps: 1e-5,
            ..Defaults::default()
        };
        let mut numbers =
            Numbers::from_hugging_face(checkpoint, config, &defaults, Activation::Silu)?;
        numbers.nonlinearity = swiglu(config)?;
        numbers.biases =
            Biases { qkv: true, attention_output: true, feed_forward: true, router: true };
        let weights = ChoiceWeights::SoftmaxOfChosen;
        numbers.experts =
            Some(Experts::from_hugging_face(config, "num_experts", "experts_per_token", weights)?);
        let base = config.f64("rope_theta")?.unwrap_or(150000.0);
        let turns =
            (positive(config, "rope_ntk_beta", 32.0)?, positive(config, "rope_ntk_alpha", 1.0)?);
        numbers.ropes = vec![yarn(config, numbers.head_dim, base, factor, initial, turns)?];
        let window = config.size("sliding_window")?.unwrap_or(128);
        let windowed: Vec<bool> = (0..numbers.layers.len()).map(|layer| layer % 2 == 0).collect();
        set_windows(&mut numbers, &windowed, window);
        numbers.head_rows = Some(numbers.vocab_size);
        Ok(InSafetensors { numbers, names: ORIGINAL, experts: &ORIGINAL_EXPERTS })
    }

    /// Whether the experts of a layer are in MXFP4.
    fn has_blocks(&self, checkpoint: &Checkpoint, layer: usize) -> bool {
        let name = self.names.part(layer, self.experts.up);
        checkpoint.tensor(&format!("{name}{}", self.experts.blocks)).is_some()
    }

    /// The decoder, with the names and layouts of the file.
    pub fn decoder(&self, checkpoint: &Checkpoint) -> DecoderSource {
        let Numbers { hidden, intermediate, experts, .. } = self.numbers;
        let mut decoder = decoder(&self.numbers, &self.names);
        if self.names.layers == ORIGINAL.layers {
            let norms = decoder
                .layers
                .iter_mut()
                .flat_map(|layer| [&mut layer.attention.norm, &mut layer.feed_forward.norm]);
            for norm in norms.chain([&mut decoder.final_norm]) {
                norm.weight.name = norm.weight.name.replace(".weight", ".scale");
            }
        }
        let count = experts.map_or(0, |experts| experts.count);
        let ExpertNames { up, up_bias, down, down_bias, blocks, scales, plain } = *self.experts;
        for (index, layer) in decoder.layers.iter_mut().enumerate() {
            let layout = match self.has_blocks(checkpoint, index) {
                true => Layout::Mxfp4Pair { blocks, scales },
                false => plain,
            };
            let product = |name: &str, bias: &str, outputs: usize, inputs: usize, order: Rows| {
                let weight =
                    TensorSource::matrix(self.names.part(index, name), outputs, inputs, layout);
                let bias = TensorSource::vector(self.names.part(index, bias), outputs);
                Linear {
                    weight: weight.for_each_of(count).with_order(order),
                    bias: Some(bias.for_each_of(count).with_order(order)),
                }
            };
            let rows = |start| Rows::Every { start, step: 2 };
            layer.feed_forward.up = vec![
                product(up, up_bias, intermediate, hidden, rows(0)),
                product(up, up_bias, intermediate, hidden, rows(1)),
            ];
            layer.feed_forward.down = product(down, down_bias, hidden, intermediate, Rows::All);
        }
        decoder
    }
}

fn set_windows(numbers: &mut Numbers, windowed: &[bool], window: usize) {
    for (layer, windowed) in numbers.layers.iter_mut().zip(windowed) {
        layer.window = windowed.then_some(window);
    }
}

/// The number at `key`, which makes no sense unless it is above 0.
fn positive(config: &Json, key: &str, default: f64) -> Result<f64, ModelError> {
    match config.f64(key)?.unwrap_or(default) {
        number if number > 0.0 && (number as f32).is_finite() && number as f32 > 0.0 => Ok(number),
        number => Err(config.error(key, "a positive number", number)),
    }
}

fn swiglu(config: &Json) -> Result<Nonlinearity, ModelError> {
    let alpha = config.f32("swiglu_alpha")?.unwrap_or(ALPHA);
    let limit = positive(config, "swiglu_limit", f64::from(LIMIT))? as f32;
    Ok(Nonlinearity::ClampedSwiglu { alpha, limit })
}

/// The rotation of OpenAI's code: YaRN whose bounds are not rounded, unless there is nothing to scale.
fn yarn(
    config: &Json,
    head_dim: usize,
    base: f64,
    factor: f64,
    original: usize,
    (beta_fast, beta_slow): (f64, f64),
) -> Result<RopeNumbers, ModelError> {
    if !(base > 1.0 && (base as f32).is_finite()) {
        return Err(config.error("rope_theta", "a number above 1", base));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(config.error("head_dim", "an even number", head_dim));
    }
    let magnitude = yarn_magnitude(factor, 1.0);
    let scaling = if factor > 1.0 {
        Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate: false, magnitude }
    } else {
        Scaling::None
    };
    Ok(RopeNumbers { base, dims: head_dim, scaling })
}
