//! The decoder as data: what a model computes, without saying how.
//!
//! [`Decoder`] is generic over what stands for a weight. A family file builds it with [`TensorSource`]s, which only
//! name tensors; the same structure with a backend's own matrices and vectors is what the forward pass runs.

/// A decoder-only transformer. `M` stands for a matrix and `V` for a vector of weights.
#[derive(Clone, Debug)]
pub struct Decoder<M, V> {
    /// Width of the residual stream.
    pub hidden: usize,
    /// The most positions a sequence can have.
    pub context_length: usize,
    /// Tokens (and positions) to the residual stream.
    pub embedding: Embedding<M>,
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
    /// (heads * head_dim + 2 * kv_heads * head_dim, hidden): queries, then keys, then values.
    pub qkv: Linear<M, V>,
    /// (hidden, heads * head_dim)
    pub output: Linear<M, V>,
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

    /// The first position that a query at `position` sees.
    pub fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// `down(activation(up(norm(x))))`
#[derive(Clone, Debug)]
pub struct FeedForward<M, V> {
    /// Applied to the residual stream first.
    pub norm: Norm<V>,
    /// (intermediate, hidden)
    pub up: Linear<M, V>,
    /// Between the two.
    pub activation: Activation,
    /// (hidden, intermediate)
    pub down: Linear<M, V>,
    /// Rows of `up`.
    pub intermediate: usize,
}

/// `x * weight.transposed() + bias`
#[derive(Clone, Debug)]
pub struct Linear<M, V> {
    /// (outputs, inputs)
    pub weight: M,
    /// (outputs)
    pub bias: Option<V>,
}

/// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`, the variance without Bessel's correction.
#[derive(Clone, Debug)]
pub struct Norm<V> {
    /// (hidden)
    pub weight: V,
    /// (hidden)
    pub bias: V,
    /// Added to the variance.
    pub eps: f32,
}

/// The function between the two products of a feed-forward part.
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
}

/// Where a weight comes from: a tensor of the checkpoint, and the shape that the model needs it to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSource {
    /// The tensor's name.
    pub name: String,
    /// Outputs; 1 for a vector.
    pub rows: usize,
    /// Inputs; the length of a vector.
    pub cols: usize,
    /// How the file stores it.
    pub layout: Layout,
}

/// How a file stores a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (cols)
    Vector,
    /// (rows, cols)
    RowMajor,
    /// (cols, rows), as the `Conv1D` module of GPT-2 in `transformers` has it.
    Transposed,
}

impl TensorSource {
    /// A vector of `cols` elements.
    pub fn vector(name: impl Into<String>, cols: usize) -> Self {
        TensorSource { name: name.into(), rows: 1, cols, layout: Layout::Vector }
    }

    /// A matrix of `rows` outputs and `cols` inputs.
    pub fn matrix(name: impl Into<String>, rows: usize, cols: usize, layout: Layout) -> Self {
        TensorSource { name: name.into(), rows, cols, layout }
    }

    /// The shape that the tensor must have in the file, outermost dimension first.
    pub fn shape_in_file(&self) -> Vec<usize> {
        match self.layout {
            Layout::Vector => vec![self.cols],
            Layout::RowMajor => vec![self.rows, self.cols],
            Layout::Transposed => vec![self.cols, self.rows],
        }
    }
}

/// Turns one kind of weight into another: names into checked names, names into a backend's matrices.
pub trait MapWeights<M, V> {
    /// The new matrix.
    type Matrix;
    /// The new vector.
    type Vector;
    /// Why a weight could not be turned.
    type Error;

    /// Turns a matrix.
    fn matrix(&mut self, matrix: &M) -> Result<Self::Matrix, Self::Error>;
    /// Turns a vector.
    fn vector(&mut self, vector: &V) -> Result<Self::Vector, Self::Error>;
}

impl<M, V> Decoder<M, V> {
    /// The same decoder with every weight turned by `map`, in the order in which the forward pass uses them.
    pub fn map<F: MapWeights<M, V>>(
        &self,
        map: &mut F,
    ) -> Result<Decoder<F::Matrix, F::Vector>, F::Error> {
        let embedding = Embedding {
            tokens: map.matrix(&self.embedding.tokens)?,
            vocab_size: self.embedding.vocab_size,
            positions: self.embedding.positions.as_ref().map(|m| map.matrix(m)).transpose()?,
        };
        let layers = self.layers.iter().map(|layer| layer.map(map)).collect::<Result<_, _>>()?;
        let final_norm = self.final_norm.map(map)?;
        let head = Head {
            weight: self.head.weight.as_ref().map(|m| map.matrix(m)).transpose()?,
            rows: self.head.rows,
        };
        Ok(Decoder {
            hidden: self.hidden,
            context_length: self.context_length,
            embedding,
            layers,
            final_norm,
            head,
        })
    }

    /// The matrix of the last product.
    pub fn head_matrix(&self) -> &M {
        self.head.weight.as_ref().unwrap_or(&self.embedding.tokens)
    }

    /// The widest row of queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        self.layers.iter().map(|layer| layer.attention.shape.qkv_width()).max().unwrap_or(0)
    }

    /// The widest row of queries.
    pub fn query_width(&self) -> usize {
        self.layers.iter().map(|layer| layer.attention.shape.query_width()).max().unwrap_or(0)
    }

    /// The widest row inside a feed-forward part.
    pub fn intermediate(&self) -> usize {
        self.layers.iter().map(|layer| layer.feed_forward.intermediate).max().unwrap_or(0)
    }
}

impl<M, V> Layer<M, V> {
    fn map<F: MapWeights<M, V>>(
        &self,
        map: &mut F,
    ) -> Result<Layer<F::Matrix, F::Vector>, F::Error> {
        let Attention { norm, qkv, output, shape } = &self.attention;
        let attention = Attention {
            norm: norm.map(map)?,
            qkv: qkv.map(map)?,
            output: output.map(map)?,
            shape: *shape,
        };
        let FeedForward { norm, up, activation, down, intermediate } = &self.feed_forward;
        let feed_forward = FeedForward {
            norm: norm.map(map)?,
            up: up.map(map)?,
            activation: *activation,
            down: down.map(map)?,
            intermediate: *intermediate,
        };
        Ok(Layer { attention, feed_forward })
    }
}

impl<M, V> Linear<M, V> {
    fn map<F: MapWeights<M, V>>(
        &self,
        map: &mut F,
    ) -> Result<Linear<F::Matrix, F::Vector>, F::Error> {
        let weight = map.matrix(&self.weight)?;
        let bias = self.bias.as_ref().map(|bias| map.vector(bias)).transpose()?;
        Ok(Linear { weight, bias })
    }
}

impl<V> Norm<V> {
    fn map<M, F: MapWeights<M, V>>(&self, map: &mut F) -> Result<Norm<F::Vector>, F::Error> {
        Ok(Norm { weight: map.vector(&self.weight)?, bias: map.vector(&self.bias)?, eps: self.eps })
    }
}
