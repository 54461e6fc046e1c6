//! What a device must compute: the operations of the mathematics, each on a whole ragged batch.

pub mod cpu;
pub mod cuda;
pub mod reference;

use crate::batch::{Batch, BlockTables};
use crate::format::{Bytes, DType};
use crate::kv::KvLayout;
use crate::model::forward::Scratch;
use crate::model::spec::{AttentionShape, Choice, Decoder, Linear, Nonlinearity, Norm, Rope};
use crate::sampler::{Pick, Picked};
use std::ops::Range;

/// A matrix of weights as the file has it, rows of `cols` elements one after another.
#[derive(Clone, Debug)]
pub struct HostMatrix {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The type of the elements; a supported one.
    pub dtype: DType,
    /// `rows` rows of equal length.
    pub bytes: Bytes,
}

impl HostMatrix {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.bytes.len() / self.rows
    }

    /// The bytes of row `row`.
    pub fn row(&self, row: usize) -> &[u8] {
        &self.bytes[row * self.row_bytes()..][..self.row_bytes()]
    }
}

/// What a launch adds to the time of a pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaunchTime {
    /// The kernel.
    pub kernel: &'static str,
    /// Bytes of weights that it reads; of experts that many rows share, the most that it may.
    pub bytes: u64,
    /// The time to the end of this launch without what follows, less the same of the one before.
    pub seconds: f64,
}

/// Why a device cannot be used, or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The driver, the device or a kernel.
    #[error("cuda:{ordinal}: {reason}")]
    Cuda {
        /// Which device.
        ordinal: usize,
        /// Why.
        reason: oxgpt_kernels::CudaError,
    },
    /// A model that the kernels do not take.
    #[error(
        "cuda:{ordinal}: attention heads are {found} wide, but the kernels take at most {most}"
    )]
    HeadWidth {
        /// Which device.
        ordinal: usize,
        /// The model's.
        found: usize,
        /// The kernels'.
        most: usize,
    },
}

/// The operations of a forward pass.
///
/// Buffers hold rows of activations. An operation that writes a buffer sets its number of rows; the capacity given
/// to [`Backend::buffer`] is never exceeded. Arguments were checked when the model was opened, so operations do not
/// fail. Each element's sums run in an order that depends neither on the other rows nor on the number of threads:
/// a row gets bit for bit the same result in every batch.
pub trait Backend: Send {
    /// A matrix of weights in the backend's own layout.
    type Matrix: Send + Sync;
    /// A vector of weights.
    type Vector: Send + Sync;
    /// Activations.
    type Buffer: Send + Sync;
    /// The keys and values of one layer.
    type Kv: Send + Sync;
    /// The experts that compute each row, and the weights of their outputs.
    type Routes: Send + Sync;

    /// Takes a matrix over.
    fn matrix(&mut self, matrix: HostMatrix) -> Self::Matrix;
    /// Takes a vector over.
    fn vector(&mut self, vector: Vec<f32>) -> Self::Vector;
    /// Room for `rows` rows of `width` activations.
    fn buffer(&mut self, rows: usize, width: usize) -> Self::Buffer;
    /// Room for the routes of `rows` rows to at most `chosen` experts each.
    fn routes(&mut self, rows: usize, chosen: usize) -> Self::Routes;
    /// Room for `blocks` blocks of keys and values.
    fn kv(&mut self, blocks: usize, shape: &AttentionShape) -> Self::Kv;

    /// Whether everything asked for so far could be done; first called when the weights are there.
    ///
    /// # Errors
    /// When the device failed. Operations after that do nothing.
    fn status(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Goes through passes that may come, before any does, so that nothing has to be made ready for them later: `pass` runs the
    /// operations for a batch.
    fn rehearse(&mut self, _pass: &mut dyn FnMut(&mut Self, &Batch))
    where
        Self: Sized,
    {
    }

    /// What each launch of a pass of generated tokens takes, in their order; nothing where passes are not launches. `pass` runs the
    /// operations for a batch, and they are run many times for the same tokens.
    fn profile(
        &mut self,
        _batch: &Batch,
        _pass: &mut dyn FnMut(&mut Self, &Batch),
    ) -> Vec<LaunchTime>
    where
        Self: Sized,
    {
        Vec::new()
    }

    /// Takes over the batch that the next operations are about. Where it says `true`, it knew the whole pass and `logits` is what
    /// comes of it: the operations are left out.
    fn begin(&mut self, _batch: &Batch, _logits: &mut Self::Buffer) -> bool {
        false
    }

    /// Computes a whole pass in a way of its own, with the same bits as the operations, and leaves the logits in `scratch`. Where it
    /// says `false`, it has none for this pass and did nothing.
    fn pass(
        &mut self,
        _decoder: &Decoder<Self::Matrix, Self::Vector>,
        _layout: &KvLayout,
        _kv: &mut [Self::Kv],
        _batch: &Batch,
        _scratch: &mut Scratch<Self>,
    ) -> bool
    where
        Self: Sized,
    {
        false
    }

    /// `out[r] = table[rows[r]] * scale`
    fn embed(&mut self, out: &mut Self::Buffer, table: &Self::Matrix, rows: &[u32], scale: f32);
    /// `out[r] += table[rows[r]]`
    fn add_rows(&mut self, out: &mut Self::Buffer, table: &Self::Matrix, rows: &[u32]);
    /// `out[r] = norm(x[r])`
    fn norm(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, norm: &Norm<Self::Vector>);
    /// Norms each of these heads of every row, as many elements at once as the norm has weights.
    fn norm_heads(&mut self, x: &mut Self::Buffer, heads: Range<usize>, norm: &Norm<Self::Vector>);
    /// `out = x * weight.transposed() + bias`, the outputs of several one after another.
    fn matmul(
        &mut self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        linears: &[Linear<Self::Matrix, Self::Vector>],
    );
    /// `out += x * weight.transposed() + bias`
    fn matmul_add(
        &mut self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        linear: &Linear<Self::Matrix, Self::Vector>,
    );
    /// `out = x * weight.transposed()`
    fn project(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, weight: &Self::Matrix);
    /// `out += x`
    fn add(&mut self, out: &mut Self::Buffer, x: &Self::Buffer);
    /// As many rows of zeros as `like` has.
    fn zero_like(&mut self, out: &mut Self::Buffer, like: &Self::Buffer);
    /// `x = cap * tanh(x / cap)`, element by element.
    fn soft_cap(&mut self, x: &mut Self::Buffer, cap: f32);
    /// For each row the cosines, then the sines, of all pairs at its position ([`Rope::rotation`]).
    fn rotations(&mut self, out: &mut Self::Buffer, rope: &Rope, batch: &Batch);
    /// Rotates the queries and keys of every row. Pair (a, b) of a head becomes (a cos - b sin, b cos + a sin).
    fn rotate(
        &mut self,
        qkv: &mut Self::Buffer,
        rotations: &Self::Buffer,
        rope: &Rope,
        shape: &AttentionShape,
    );
    /// Stores the keys and values of every row at its position.
    fn append(
        &mut self,
        kv: &mut Self::Kv,
        qkv: &Self::Buffer,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
    );
    /// Per row and head: `out = softmax(scale * q * keys.transposed()) * values`, over the positions that the row sees.
    /// A soft cap comes after the scale; the head's sink is one more score of the softmax, whose value is zero.
    #[expect(clippy::too_many_arguments, reason = "what attention depends on")]
    fn attend(
        &mut self,
        out: &mut Self::Buffer,
        qkv: &Self::Buffer,
        kv: &Self::Kv,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
        sinks: Option<&Self::Vector>,
    );
    /// `out = nonlinearity(x)`, row by row; a gated one makes half as many elements.
    fn activate(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, nonlinearity: Nonlinearity);
    /// Chooses the experts of each row by its router outputs.
    fn route(&mut self, routes: &mut Self::Routes, router: &Self::Buffer, choice: Choice);
    /// [`Backend::matmul`] of each row with each expert of its routes: `out[r * chosen + c]` is that of row `r` with
    /// the expert chosen as number `c`. The matrices and biases hold those of all experts one after another.
    fn expert_matmul(
        &mut self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        linears: &[Linear<Self::Matrix, Self::Vector>],
        routes: &Self::Routes,
    );
    /// `out[r]` grows by the weighted sum over the routes of row `r` of `x[r * chosen + c] * weight.transposed() + bias`
    /// of the expert chosen as number `c`, in the order of the choice.
    fn expert_matmul_add(
        &mut self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        linear: &Linear<Self::Matrix, Self::Vector>,
        routes: &Self::Routes,
    );
    /// `out[i] = x[rows[i]]`
    fn gather(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, rows: &[u32]);
    /// Copies a buffer's rows to the host.
    fn read(&mut self, out: &mut Vec<f32>, x: &Self::Buffer);
    /// Makes each of the choices by its row of `logits`, `width` wide, which may be changed. `host` is room for logits. `None` where the
    /// choices are made while the host goes on; [`Backend::chosen`] has them then.
    fn choose(
        &mut self,
        logits: &mut Self::Buffer,
        width: usize,
        picks: &mut [Pick<'_>],
        host: &mut Vec<f32>,
    ) -> Option<Vec<Picked>> {
        self.read(host, logits);
        let picked = picks.iter_mut().map(|pick| pick.among(&host[pick.row * width..][..width]));
        Some(picked.collect())
    }

    /// What was chosen, of the choices that were begun first and not asked for yet.
    fn chosen(&mut self) -> Vec<Picked> {
        Vec::new()
    }

    /// Whether a batch may follow choices that were only begun ([`Batch::follows`]).
    fn runs_ahead(&self) -> bool {
        false
    }
}
