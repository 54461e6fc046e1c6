//! What a device must compute: the operations of the mathematics, each on a whole ragged batch.

pub mod cpu;
pub mod reference;

use crate::batch::{Batch, BlockTables};
use crate::format::{Bytes, DType};
use crate::model::spec::{Activation, AttentionShape, Linear, Norm};

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

    /// Takes a matrix over.
    fn matrix(&mut self, matrix: HostMatrix) -> Self::Matrix;
    /// Takes a vector over.
    fn vector(&mut self, vector: Vec<f32>) -> Self::Vector;
    /// Room for `rows` rows of `width` activations.
    fn buffer(&mut self, rows: usize, width: usize) -> Self::Buffer;
    /// Room for `blocks` blocks of keys and values.
    fn kv(&mut self, blocks: usize, shape: &AttentionShape) -> Self::Kv;

    /// Runs `work` where the backend's operations are cheap to call (on its own threads, say).
    fn run<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R {
        work(self)
    }

    /// `out[r] = table[rows[r]]`
    fn embed(&mut self, out: &mut Self::Buffer, table: &Self::Matrix, rows: &[u32]);
    /// `out[r] += table[rows[r]]`
    fn add_rows(&mut self, out: &mut Self::Buffer, table: &Self::Matrix, rows: &[u32]);
    /// `out[r] = norm(x[r])`
    fn norm(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, norm: &Norm<Self::Vector>);
    /// `out = x * weight.transposed() + bias`
    fn matmul(
        &mut self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        linear: &Linear<Self::Matrix, Self::Vector>,
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
    /// Stores the keys and values of every row at its position.
    fn append(
        &mut self,
        kv: &mut Self::Kv,
        qkv: &Self::Buffer,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
    );
    /// Per row and head: `out = softmax(scale * q * keys.transposed()) * values`, over the positions that the row
    /// sees.
    fn attend(
        &mut self,
        out: &mut Self::Buffer,
        qkv: &Self::Buffer,
        kv: &Self::Kv,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
    );
    /// `x = activation(x)`, element by element.
    fn activate(&mut self, x: &mut Self::Buffer, activation: Activation);
    /// `out[i] = x[rows[i]]`
    fn gather(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, rows: &[u32]);
    /// Copies a buffer's rows to the host.
    fn read(&mut self, out: &mut Vec<f32>, x: &Self::Buffer);
}
