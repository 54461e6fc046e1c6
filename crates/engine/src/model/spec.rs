//! The decoder as data: what a model computes, without saying how.
//!
//! [`Decoder`] is generic over what stands for a weight. A family file builds it with [`TensorSource`]s, which only
//! name tensors; the same structure with a backend's own matrices and vectors is what the forward pass runs.

mod map;
mod rope;
mod source;

pub use map::MapWeights;
pub use rope::{Longer, Rope, RopeStyle};
pub use source::{Layout, Rows, TensorSource};

use std::ops::Range;

/// A decoder-only transformer. `M` stands for a matrix and `V` for a vector of weights.
#[derive(Clone, Debug)]
pub struct Decoder<M, V> {
    /// Width of the residual stream.
    pub hidden: usize,
    /// The most positions a sequence can have.
    pub context_length: usize,
    /// Tokens (and positions) to the residual stream.
    pub embedding: Embedding<M>,
    /// The rotations that layers apply to queries and keys; see [`Attention::rope`].
    pub ropes: Vec<Rope>,
    /// The layers in order.
    pub layers: Vec<Layer<M, V>>,
    /// The norm before the head.
    pub final_norm: Norm<V>,
    /// The residual stream to logits.
    pub head: Head<M>,
}

/// Token embedding and, where the family has them, learned absolute positions.
#[derive(Clone, Debug)]
pub struct Embedding<M> {
    /// (vocabulary, hidden)
    pub tokens: M,
    /// Rows of `tokens`: every token id is below it.
    pub vocab_size: usize,
    /// What a token's row is multiplied with.
    pub scale: f32,
    /// (context_length, hidden), added to the token's row.
    pub positions: Option<M>,
}

/// One layer: attention, then feed-forward, each on its own normed copy of the residual stream and added to it.
#[derive(Clone, Debug)]
pub struct Layer<M, V> {
    /// The attention part.
    pub attention: Attention<M, V>,
    /// The feed-forward part.
    pub feed_forward: FeedForward<M, V>,
}

/// Causal self-attention. Multi-head attention is `heads == kv_heads`; with fewer KV heads, consecutive groups of
/// `heads / kv_heads` query heads share one.
#[derive(Clone, Debug)]
pub struct Attention<M, V> {
    /// Applied to the residual stream first.
    pub norm: Norm<V>,
    /// Queries, then keys, then values, (heads * head_dim + 2 * kv_heads * head_dim, hidden) together: in one matrix or
    /// in several whose outputs lie one after another.
    pub qkv: Vec<Linear<M, V>>,
    /// Applied to each head of the queries, (head_dim), before the rotation.
    pub query_norm: Option<Norm<V>>,
    /// Applied to each head of the keys, (head_dim), before the rotation.
    pub key_norm: Option<Norm<V>>,
    /// The rotation of queries and keys, by its place in [`Decoder::ropes`].
    pub rope: Option<usize>,
    /// (heads): for each query head a score without a value, which takes its share of the softmax.
    pub sinks: Option<V>,
    /// (hidden, heads * head_dim)
    pub output: Linear<M, V>,
    /// Applied to the output before it is added to the residual stream.
    pub post_norm: Option<Norm<V>>,
    /// What each head computes.
    pub shape: AttentionShape,
}

/// The numbers of an attention part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What a query times a key is multiplied with before the softmax.
    pub scale: f32,
    /// How many of the latest positions a query sees, its own included; all of them if `None`.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)` takes the place of each scaled score.
    pub soft_cap: Option<f32>,
}

impl AttentionShape {
    /// Width of the queries of one row.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the keys (or of the values) of one row.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of queries, keys and values of one row.
    pub fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }

    /// Where the query heads lie in a row of queries, keys and values, in heads.
    pub fn query_heads(&self) -> Range<usize> {
        0..self.heads
    }

    /// Where the key heads lie in a row of queries, keys and values, in heads.
    pub fn key_heads(&self) -> Range<usize> {
        self.heads..self.heads + self.kv_heads
    }

    /// The first position that a query at `position` sees.
    pub fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// `down(nonlinearity(up(norm(x))))`, by one network or by a few out of many.
#[derive(Clone, Debug)]
pub struct FeedForward<M, V> {
    /// Applied to the residual stream first.
    pub norm: Norm<V>,
    /// Which networks compute a row; one computes all rows if `None`.
    pub router: Option<Router<M, V>>,
    /// (intermediate, hidden), or gate and up, (2 * intermediate, hidden) together, where the nonlinearity is gated: in
    /// one matrix or in several whose outputs lie one after another. With a router each matrix and bias holds those
    /// of all experts one after another.
    pub up: Vec<Linear<M, V>>,
    /// Between the two.
    pub nonlinearity: Nonlinearity,
    /// (hidden, intermediate); with a router those of all experts one after another.
    pub down: Linear<M, V>,
    /// Applied to the output before it is added to the residual stream.
    pub post_norm: Option<Norm<V>>,
    /// Width between the two products, of one expert if there are several.
    pub intermediate: usize,
}

/// Chooses the experts of a row and the weights of their outputs in the sum.
#[derive(Clone, Debug)]
pub struct Router<M, V> {
    /// (experts, hidden)
    pub linear: Linear<M, V>,
    /// How many experts there are.
    pub experts: usize,
    /// How its outputs become a choice.
    pub choice: Choice,
}

/// The `count` largest router outputs of a row, the lower expert among equals, and their weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Experts that compute a row.
    pub count: usize,
    /// What the weights are.
    pub weights: ChoiceWeights,
}

/// What the outputs of the chosen experts are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChoiceWeights {
    /// The softmax over the chosen router outputs; the same as that over all, divided by the sum of the chosen.
    SoftmaxOfChosen,
    /// The softmax over all router outputs.
    SoftmaxOfAll,
}

/// What stands between the two products of a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Nonlinearity {
    /// `f(x)`
    Plain(Activation),
    /// `f(gate) * up`
    Gated(Activation),
    /// `g * sigmoid(alpha * g) * (u + 1)` with `g = min(gate, limit)` and `u = clamp(up, -limit, limit)`; the SwiGLU of
    /// gpt-oss.
    ClampedSwiglu {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Where gate and up are cut.
        limit: f32,
    },
}

impl Nonlinearity {
    /// Whether its input is a gate and an up of the same width, one after the other.
    pub fn is_gated(self) -> bool {
        !matches!(self, Nonlinearity::Plain(_))
    }
}

/// `x * weight.transposed() + bias`
#[derive(Clone, Debug)]
pub struct Linear<M, V> {
    /// (outputs, inputs)
    pub weight: M,
    /// (outputs)
    pub bias: Option<V>,
}

/// Brings a row, or a head, to unit scale.
#[derive(Clone, Debug)]
pub struct Norm<V> {
    /// What is computed.
    pub kind: NormKind,
    /// (width)
    pub weight: V,
    /// (width)
    pub bias: Option<V>,
    /// Added to the variance or the mean square.
    pub eps: f32,
}

/// The two norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`, the variance without Bessel's correction.
    LayerNorm,
    /// `x / sqrt(mean(x^2) + eps) * weight + bias`. Families that store `weight - 1` have it added when it is loaded.
    RmsNorm,
}

/// An elementary function of a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `0.5 x (1 + erf(x / sqrt(2)))`
    GeluErf,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `x sigmoid(1.702 x)`
    GeluSigmoid,
    /// `max(x, 0)`
    Relu,
    /// `x sigmoid(x)`
    Silu,
    /// `tanh(x)`
    Tanh,
}

/// The last product.
#[derive(Clone, Debug)]
pub struct Head<M> {
    /// (rows, hidden); `None` uses the token embedding.
    pub weight: Option<M>,
    /// Rows: the width of the logits.
    pub rows: usize,
    /// `cap * tanh(logit / cap)` takes the place of each logit.
    pub soft_cap: Option<f32>,
}

impl<M, V> Decoder<M, V> {
    /// The matrix of the last product.
    pub fn head_matrix(&self) -> &M {
        self.head.weight.as_ref().unwrap_or(&self.embedding.tokens)
    }

    /// The length up to which a sequence is rotated as the shorter ones are; `None` where all are rotated alike.
    pub fn short_context(&self) -> Option<usize> {
        self.ropes.iter().find_map(|rope| rope.longer.as_ref().map(|longer| longer.than))
    }
}

impl<M, V> FeedForward<M, V> {
    /// Width of what `up` gives.
    pub fn up_width(&self) -> usize {
        if self.nonlinearity.is_gated() { 2 * self.intermediate } else { self.intermediate }
    }

    /// Experts that compute a row: 1 without a router.
    pub fn chosen(&self) -> usize {
        self.router.as_ref().map_or(1, |router| router.choice.count)
    }
}
