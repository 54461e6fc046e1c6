//! GPT-2: learned positions, LayerNorm before each part, multi-head attention with fused QKV, GELU.
//!
//! Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). The options are those of
//! `GPT2Config` in `transformers`; GGUF has no keys for the attention options, so there they are at their defaults.

use super::super::spec::{
    Activation, Attention, AttentionShape, Decoder, Embedding, FeedForward, Head, Layer, Layout,
    Linear, Nonlinearity, Norm, NormKind, TensorSource,
};
use super::super::{DecoderSource, GenerationSettings, ModelDescription, ModelError, file_name};
use super::json::Json;
use super::numbers::activation;
use crate::format::{Checkpoint, gguf};

/// The numbers of a GPT-2, whichever file they come from.
pub(super) struct Config {
    pub vocab_size: usize,
    pub context_length: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub eps: f32,
    pub activation: Activation,
    /// Whether scores are divided by the square root of the head's width.
    pub scale_attention: bool,
    /// Whether scores of layer `i` are also divided by `i + 1`.
    pub scale_by_layer: bool,
    /// Rows of a head of its own; `None` where the token embedding serves.
    pub head_rows: Option<usize>,
}

/// How a format names and stores the weights.
pub(super) struct Names {
    tokens: &'static str,
    positions: &'static str,
    /// Before the number of a layer.
    layer: &'static str,
    attention_norm: &'static str,
    qkv: &'static str,
    attention_output: &'static str,
    feed_forward_norm: &'static str,
    up: &'static str,
    down: &'static str,
    final_norm: &'static str,
    head: &'static str,
    /// How the matrices of the layers are stored.
    layout: Layout,
    /// What the names may have before them.
    optional_prefix: &'static str,
}

/// The names and layouts of llama.cpp.
pub(super) const GGUF: Names = Names {
    tokens: "token_embd.weight",
    positions: "position_embd.weight",
    layer: "blk",
    attention_norm: "attn_norm",
    qkv: "attn_qkv",
    attention_output: "attn_output",
    feed_forward_norm: "ffn_norm",
    up: "ffn_up",
    down: "ffn_down",
    final_norm: "output_norm",
    head: "output.weight",
    layout: Layout::RowMajor,
    optional_prefix: "",
};

/// From `general.architecture = gpt2`, with the names and layouts of llama.cpp.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    metadata: &gguf::Metadata,
) -> Result<ModelDescription, ModelError> {
    let error = |key: &str, expected: &str, found: String| ModelError::Configuration {
        file: file_name(checkpoint),
        key: key.to_string(),
        expected: expected.to_string(),
        found,
    };
    let size = |key: &str| match metadata.require_usize(key)? {
        0 => Err(error(key, "a positive integer", "0".to_string())),
        size => Ok(size),
    };
    let heads = size("gpt2.attention.head_count")?;
    if let Some(kv_heads) = metadata.usize("gpt2.attention.head_count_kv")?
        && kv_heads != heads
    {
        let expected = format!("{heads}, the number of heads");
        return Err(error("gpt2.attention.head_count_kv", &expected, kv_heads.to_string()));
    }
    let rows = |tensor: &str| checkpoint.tensor(tensor).and_then(|t| t.shape.first().copied());
    let config = Config {
        // GGUF has no key for it; a missing embedding is reported by name when the weights are checked.
        vocab_size: rows("token_embd.weight").unwrap_or(0),
        context_length: size("gpt2.context_length")?,
        hidden: size("gpt2.embedding_length")?,
        intermediate: size("gpt2.feed_forward_length")?,
        layers: size("gpt2.block_count")?,
        heads,
        eps: metadata.require_f32("gpt2.attention.layer_norm_epsilon")?,
        activation: Activation::GeluTanh,
        scale_attention: true,
        scale_by_layer: false,
        head_rows: rows("output.weight"),
    };
    describe(checkpoint, &config, &GGUF)
}

/// From `model_type = gpt2`, with the names and layouts of `transformers`.
pub fn from_hugging_face(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<ModelDescription, ModelError> {
    let numbers = hugging_face_config(checkpoint, config)?;
    let has = |tensor: &str| checkpoint.tensor(tensor).is_some();
    // A file with nothing but a head uses it for both.
    let only_head = numbers.head_rows.is_none() && !has_tokens(checkpoint) && has("lm_head.weight");
    let names = Names {
        tokens: if only_head { "lm_head.weight" } else { "wte.weight" },
        positions: "wpe.weight",
        layer: "h",
        attention_norm: "ln_1",
        qkv: "attn.c_attn",
        attention_output: "attn.c_proj",
        feed_forward_norm: "ln_2",
        up: "mlp.c_fc",
        down: "mlp.c_proj",
        final_norm: "ln_f",
        head: "lm_head.weight",
        layout: Layout::Transposed,
        // The first published GPT-2 checkpoints were saved from the bare decoder, without this prefix.
        optional_prefix: "transformer.",
    };
    describe(checkpoint, &numbers, &names)
}

fn has_tokens(checkpoint: &Checkpoint) -> bool {
    ["wte.weight", "transformer.wte.weight"].iter().any(|name| checkpoint.tensor(name).is_some())
}

/// The numbers in `config.json`.
pub(super) fn hugging_face_config(
    checkpoint: &Checkpoint,
    config: &Json,
) -> Result<Config, ModelError> {
    if config.bool("add_cross_attention")?.unwrap_or(false) {
        return Err(config.error("add_cross_attention", "false (a decoder alone)", "true"));
    }
    let hidden = config.required_size("n_embd")?;
    let vocab_size = config.required_size("vocab_size")?;
    // As in `transformers`, a head that is in the file counts, whatever the configuration says.
    let tied = config.bool("tie_word_embeddings")?.unwrap_or(true);
    let has_head = checkpoint.tensor("lm_head.weight").is_some();
    let own_head = !tied || (has_tokens(checkpoint) && has_head);
    Ok(Config {
        vocab_size,
        context_length: config.required_size("n_positions")?,
        hidden,
        intermediate: config.size("n_inner")?.unwrap_or(hidden.saturating_mul(4)),
        layers: config.required_size("n_layer")?,
        heads: config.required_size("n_head")?,
        eps: config.f32("layer_norm_epsilon")?.unwrap_or(1e-5),
        activation: activation(config, "activation_function", "gelu_new")?,
        scale_attention: config.bool("scale_attn_weights")?.unwrap_or(true),
        scale_by_layer: config.bool("scale_attn_by_inverse_layer_idx")?.unwrap_or(false),
        head_rows: own_head.then_some(vocab_size),
    })
}

fn describe(
    checkpoint: &Checkpoint,
    config: &Config,
    names: &Names,
) -> Result<ModelDescription, ModelError> {
    check(checkpoint, config)?;
    let in_file = |name: String| match checkpoint.tensor(&name) {
        Some(_) => name,
        None => format!("{}{name}", names.optional_prefix),
    };
    Ok(ModelDescription {
        family: "gpt2",
        name: None,
        decoder: decoder(config, names, &in_file),
        end_tokens: Vec::new(),
        generation: GenerationSettings::default(),
    })
}

/// The decoder of these numbers, with these names as `in_file` says that the file has them.
pub(super) fn decoder(
    config: &Config,
    names: &Names,
    in_file: &dyn Fn(String) -> String,
) -> DecoderSource {
    let Config { hidden, intermediate, vocab_size, .. } = *config;
    let vector = |name: String, width| TensorSource::vector(in_file(name), width);
    let norm = |name: String| Norm {
        kind: NormKind::LayerNorm,
        weight: vector(format!("{name}.weight"), hidden),
        bias: Some(vector(format!("{name}.bias"), hidden)),
        eps: config.eps,
    };
    let linear = |name: String, outputs: usize, inputs: usize| {
        let weight = in_file(format!("{name}.weight"));
        Linear {
            weight: TensorSource::matrix(weight, outputs, inputs, names.layout),
            bias: Some(vector(format!("{name}.bias"), outputs)),
        }
    };
    let layer = |index: usize| {
        let name = |part: &str| format!("{}.{index}.{part}", names.layer);
        Layer {
            attention: Attention {
                norm: norm(name(names.attention_norm)),
                qkv: vec![linear(name(names.qkv), 3 * hidden, hidden)],
                query_norm: None,
                key_norm: None,
                rope: None,
                sinks: None,
                output: linear(name(names.attention_output), hidden, hidden),
                post_norm: None,
                shape: attention_shape(config, index),
            },
            feed_forward: FeedForward {
                norm: norm(name(names.feed_forward_norm)),
                router: None,
                up: vec![linear(name(names.up), intermediate, hidden)],
                nonlinearity: Nonlinearity::Plain(config.activation),
                down: linear(name(names.down), hidden, intermediate),
                post_norm: None,
                intermediate,
            },
        }
    };
    let matrix = |name: &str, rows| {
        TensorSource::matrix(in_file(name.to_string()), rows, hidden, Layout::RowMajor)
    };
    Decoder {
        hidden,
        context_length: config.context_length,
        embedding: Embedding {
            tokens: matrix(names.tokens, vocab_size),
            vocab_size,
            scale: 1.0,
            positions: Some(matrix(names.positions, config.context_length)),
        },
        ropes: Vec::new(),
        layers: (0..config.layers).map(layer).collect(),
        final_norm: norm(names.final_norm.to_string()),
        head: Head {
            weight: config.head_rows.map(|rows| matrix(names.head, rows)),
            rows: config.head_rows.unwrap_or(vocab_size),
            soft_cap: None,
        },
    }
}

fn attention_shape(config: &Config, layer: usize) -> AttentionShape {
    let head_dim = config.hidden / config.heads;
    let mut scale = 1.0;
    if config.scale_attention {
        scale /= (head_dim as f64).sqrt();
    }
    if config.scale_by_layer {
        scale /= (layer + 1) as f64;
    }
    AttentionShape {
        heads: config.heads,
        kv_heads: config.heads,
        head_dim,
        scale: scale as f32,
        window: None,
        soft_cap: None,
    }
}

/// Checks what no tensor's shape would show.
fn check(checkpoint: &Checkpoint, config: &Config) -> Result<(), ModelError> {
    let error = |key: &str, expected: String, found: String| {
        Err(ModelError::Configuration {
            file: file_name(checkpoint),
            key: key.to_string(),
            expected,
            found,
        })
    };
    if !config.hidden.is_multiple_of(config.heads) {
        let expected = format!("a divisor of the hidden size {}", config.hidden);
        return error("number of heads", expected, config.heads.to_string());
    }
    if !(config.eps.is_finite() && config.eps >= 0.0) {
        let expected = "a number that is not negative".to_string();
        return error("layer norm epsilon", expected, config.eps.to_string());
    }
    // Before a list of that many layers is built from an untrusted number.
    let tensors = checkpoint.tensors().len();
    if config.layers > tensors {
        let expected = format!("no more than its {tensors} tensors allow");
        return error("number of layers", expected, config.layers.to_string());
    }
    Ok(())
}
