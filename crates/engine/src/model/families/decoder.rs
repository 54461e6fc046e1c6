//! The decoder that the families after GPT-2 share: RMSNorm before each part, rotary positions, grouped-query attention
//! and a gated feed-forward part. A family reads its numbers, names its tensors, and has its decoder from here.

use super::super::spec::{
    Attention, AttentionShape, Decoder, Embedding, FeedForward, Head, Layer, Layout, Linear, Norm,
    NormKind, RopeStyle, Router, TensorSource,
};
use super::super::{DecoderSource, GenerationSettings, ModelDescription, ModelError};
use super::json::Json;
use super::numbers::{LayerNumbers, Numbers};
use crate::format::Checkpoint;

/// How a format names and stores the weights. Names of parts of a layer come after its prefix and number, and before
/// `.weight` or `.bias`.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Before all names but that of the head.
    pub prefix: &'static str,
    /// The token embedding.
    pub tokens: &'static str,
    /// Before the number of a layer.
    pub layers: &'static str,
    /// Before attention.
    pub attention_norm: &'static str,
    /// Queries, keys and values: one name if they are one matrix.
    pub qkv: &'static [&'static str],
    /// Of each head of the queries.
    pub query_norm: Option<&'static str>,
    /// Of each head of the keys.
    pub key_norm: Option<&'static str>,
    /// The whole name of the sinks.
    pub sinks: Option<&'static str>,
    /// The output of attention.
    pub attention_output: &'static str,
    /// After attention.
    pub attention_post_norm: Option<&'static str>,
    /// Before the feed-forward part.
    pub feed_forward_norm: &'static str,
    /// The router, where there are experts.
    pub router: &'static str,
    /// Gate and up: one name if they are one matrix.
    pub up: &'static [&'static str],
    /// Down.
    pub down: &'static str,
    /// How the matrices of experts are stored, where there are any; [`Layout::TensorForEach`] wants `{}` in the names.
    pub experts: Layout,
    /// After the feed-forward part.
    pub feed_forward_post_norm: Option<&'static str>,
    /// Before the head.
    pub final_norm: &'static str,
    /// The whole name of the head.
    pub head: &'static str,
    /// Whether the file has nothing but the head, which is the token embedding too.
    pub only_head: bool,
    /// Added to the weights of all norms.
    pub norm_plus: f32,
    /// Which two elements of a head are rotated together.
    pub rope_style: RopeStyle,
}

/// The names of llama.cpp that most architectures have in common.
pub const GGUF: Names = Names {
    prefix: "",
    tokens: "token_embd",
    layers: "blk",
    attention_norm: "attn_norm",
    qkv: &["attn_q", "attn_k", "attn_v"],
    query_norm: None,
    key_norm: None,
    sinks: None,
    attention_output: "attn_output",
    attention_post_norm: None,
    feed_forward_norm: "ffn_norm",
    router: "ffn_gate_inp",
    up: &["ffn_gate", "ffn_up"],
    down: "ffn_down",
    experts: Layout::RowMajor,
    feed_forward_post_norm: None,
    final_norm: "output_norm",
    head: "output.weight",
    only_head: false,
    norm_plus: 0.0,
    rope_style: RopeStyle::Halves,
};

/// The names of `transformers` that most families have in common.
pub const HUGGING_FACE: Names = Names {
    prefix: "model.",
    tokens: "embed_tokens",
    layers: "layers",
    attention_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    query_norm: None,
    key_norm: None,
    sinks: None,
    attention_output: "self_attn.o_proj",
    attention_post_norm: None,
    feed_forward_norm: "post_attention_layernorm",
    router: "mlp.gate",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    experts: Layout::TensorForEach,
    feed_forward_post_norm: None,
    final_norm: "norm",
    head: "lm_head.weight",
    only_head: false,
    norm_plus: 0.0,
    rope_style: RopeStyle::Halves,
};

impl Names {
    /// The names as this checkpoint has them: saved with its head or from the bare decoder, which has no prefix. Also
    /// whether it has a head of its own.
    ///
    /// # Errors
    /// When `tie_word_embeddings` is no truth value.
    pub fn in_checkpoint(
        mut self,
        checkpoint: &Checkpoint,
        config: &Json,
        tied_by_default: bool,
    ) -> Result<(Self, bool), ModelError> {
        let has = |name: &str| checkpoint.tensor(name).is_some();
        let final_norm = self.final_norm;
        if !has(&format!("{}{final_norm}.weight", self.prefix))
            && has(&format!("{final_norm}.weight"))
        {
            self.prefix = "";
        }
        // As in `transformers`, a head that is in the file counts, whatever the configuration says.
        let tied = config.bool("tie_word_embeddings")?.unwrap_or(tied_by_default);
        let (has_tokens, has_head) = (has(&self.tokens()), has(self.head));
        self.only_head = tied && !has_tokens && has_head;
        Ok((self, !tied || (has_tokens && has_head)))
    }

    /// The whole name of the token embedding.
    fn tokens(&self) -> String {
        match self.only_head {
            true => self.head.to_string(),
            false => format!("{}{}.weight", self.prefix, self.tokens),
        }
    }

    /// The whole name of a part of a layer.
    pub fn part(&self, layer: usize, part: &str) -> String {
        format!("{}{}.{layer}.{part}", self.prefix, self.layers)
    }
}

/// The description of a model of `family` with these numbers and names.
pub fn describe(family: &'static str, numbers: &Numbers, names: &Names) -> ModelDescription {
    ModelDescription {
        family,
        name: None,
        decoder: decoder(numbers, names),
        end_tokens: Vec::new(),
        generation: GenerationSettings::default(),
    }
}

/// The decoder of these numbers, with these names.
pub fn decoder(numbers: &Numbers, names: &Names) -> DecoderSource {
    let Numbers { hidden, vocab_size, .. } = *numbers;
    let matrix = |name: &str, rows| TensorSource::matrix(name, rows, hidden, Layout::RowMajor);
    let layers = numbers.layers.iter().enumerate().map(|(index, layer)| Layer {
        attention: attention(numbers, names, index, layer),
        feed_forward: feed_forward(numbers, names, index),
    });
    Decoder {
        hidden,
        context_length: numbers.context_length,
        embedding: Embedding {
            tokens: matrix(&names.tokens(), vocab_size),
            vocab_size,
            scale: numbers.embedding_scale,
            positions: None,
        },
        ropes: numbers.ropes.iter().map(|rope| rope.rope(names.rope_style)).collect(),
        layers: layers.collect(),
        final_norm: norm(format!("{}{}", names.prefix, names.final_norm), hidden, numbers, names),
        head: Head {
            weight: numbers.head_rows.map(|rows| matrix(names.head, rows)),
            rows: numbers.head_rows.unwrap_or(vocab_size),
            soft_cap: numbers.soft_cap,
        },
    }
}

fn attention(
    numbers: &Numbers,
    names: &Names,
    index: usize,
    layer: &LayerNumbers,
) -> Attention<TensorSource, TensorSource> {
    let Numbers { hidden, heads, kv_heads, head_dim, scale, biases, .. } = *numbers;
    let name = |part: &str| names.part(index, part);
    let shape =
        AttentionShape { heads, kv_heads, head_dim, scale, window: layer.window, soft_cap: None };
    let widths = [shape.query_width(), shape.kv_width(), shape.kv_width()];
    let qkv = match names.qkv {
        [fused] => vec![linear(name(fused), shape.qkv_width(), hidden, biases.qkv)],
        parts => {
            let parts = parts.iter().zip(widths);
            parts.map(|(part, width)| linear(name(part), width, hidden, biases.qkv)).collect()
        }
    };
    let head_norm = |part: &str| norm(name(part), head_dim, numbers, names);
    Attention {
        norm: norm(name(names.attention_norm), hidden, numbers, names),
        qkv,
        query_norm: names.query_norm.map(head_norm),
        key_norm: names.key_norm.map(head_norm),
        rope: Some(layer.rope),
        sinks: names.sinks.map(|sinks| TensorSource::vector(name(sinks), heads)),
        output: linear(
            name(names.attention_output),
            hidden,
            shape.query_width(),
            biases.attention_output,
        ),
        post_norm: names.attention_post_norm.map(|part| norm(name(part), hidden, numbers, names)),
        shape,
    }
}

fn feed_forward(
    numbers: &Numbers,
    names: &Names,
    index: usize,
) -> FeedForward<TensorSource, TensorSource> {
    let Numbers { hidden, intermediate, biases, experts, .. } = *numbers;
    let name = |part: &str| names.part(index, part);
    // Of one network, or of each of the experts.
    let product = |part: &str, outputs, inputs| {
        let mut product = linear(name(part), outputs, inputs, biases.feed_forward);
        if let Some(experts) = experts {
            product.weight.layout = names.experts;
            product.weight = product.weight.for_each_of(experts.count);
            product.bias = product.bias.map(|bias| bias.for_each_of(experts.count));
        }
        product
    };
    let up = match names.up {
        [fused] => vec![product(fused, 2 * intermediate, hidden)],
        parts => parts.iter().map(|part| product(part, intermediate, hidden)).collect(),
    };
    FeedForward {
        norm: norm(name(names.feed_forward_norm), hidden, numbers, names),
        router: experts.map(|experts| Router {
            linear: linear(name(names.router), experts.count, hidden, biases.router),
            experts: experts.count,
            choice: experts.choice,
        }),
        up,
        nonlinearity: numbers.nonlinearity,
        down: product(names.down, hidden, intermediate),
        post_norm: names
            .feed_forward_post_norm
            .map(|part| norm(name(part), hidden, numbers, names)),
        intermediate,
    }
}

/// The norm whose weight has this name before `.weight`.
fn norm(name: String, width: usize, numbers: &Numbers, names: &Names) -> Norm<TensorSource> {
    Norm {
        kind: NormKind::RmsNorm,
        weight: TensorSource::vector(format!("{name}.weight"), width).with_plus(names.norm_plus),
        bias: None,
        eps: numbers.eps,
    }
}

/// The product whose weight and bias have this name before `.weight` and `.bias`.
fn linear(
    name: String,
    outputs: usize,
    inputs: usize,
    has_bias: bool,
) -> Linear<TensorSource, TensorSource> {
    let weight = format!("{name}.weight");
    Linear {
        weight: TensorSource::matrix(weight, outputs, inputs, Layout::RowMajor),
        bias: has_bias.then(|| TensorSource::vector(format!("{name}.bias"), outputs)),
    }
}
