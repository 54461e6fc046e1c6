//! Keys and values in blocks.

use crate::attention::{AttentionShape, Positions};
use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{Arena, Buf};
use crate::params::AppendParams;

/// Positions of a block of keys and values.
pub const BLOCK_POSITIONS: usize = 32;

/// Dimensions of the widest head that the kernels take.
pub const MAX_HEAD_DIM: usize = 256;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvElement {
    /// Exactly as they are computed.
    F32,
    /// In half of the memory.
    F16,
    /// In 8 bits: each 32 of a head at a position are codes times a scale, which is a half of up to 515.5.
    Q8,
}

/// Elements of a head that share a scale.
const SCALED_TOGETHER: usize = 32;

impl KvElement {
    /// Bytes of a key, or of a value, of one head at one position.
    fn vector_bytes(self, padded_dim: usize) -> usize {
        match self {
            KvElement::F32 => 4 * padded_dim,
            KvElement::F16 => 2 * padded_dim,
            KvElement::Q8 => padded_dim + 2 * padded_dim.div_ceil(SCALED_TOGETHER),
        }
    }
}

/// The keys and values of one layer.
pub struct KvPool {
    element: KvElement,
    /// Bytes of one block over all heads.
    block: usize,
    blocks: usize,
    keys: Buf<u8>,
    values: Buf<u8>,
}

impl KvPool {
    /// Bytes that the keys of a pool take, and its values again.
    fn plane_bytes(blocks: usize, shape: &AttentionShape, element: KvElement) -> usize {
        blocks * Self::block_bytes(shape, element)
    }

    fn block_bytes(shape: &AttentionShape, element: KvElement) -> usize {
        shape.kv_heads * BLOCK_POSITIONS * element.vector_bytes(shape.padded_dim())
    }

    /// Bytes that a pool takes up in an arena.
    pub fn bytes(blocks: usize, shape: &AttentionShape, element: KvElement) -> u64 {
        2 * Arena::padded(Self::plane_bytes(blocks, shape, element) as u64)
    }

    /// Room for `blocks` blocks.
    ///
    /// # Errors
    /// When the arena is full.
    pub fn new(
        arena: &mut Arena,
        blocks: usize,
        shape: &AttentionShape,
        element: KvElement,
    ) -> Result<Self, CudaError> {
        assert!(shape.head_dim <= MAX_HEAD_DIM, "heads of {}", shape.head_dim);
        let bytes = Self::plane_bytes(blocks, shape, element);
        Ok(KvPool {
            element,
            block: Self::block_bytes(shape, element),
            blocks,
            keys: arena.buffer(bytes)?,
            values: arena.buffer(bytes)?,
        })
    }

    /// Sets every byte of keys and values.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn fill_bytes(&mut self, byte: u8) -> Result<(), CudaError> {
        self.keys.fill_bytes(byte)?;
        self.values.fill_bytes(byte)
    }

    /// Blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    pub(crate) fn element(&self) -> KvElement {
        self.element
    }

    /// Where keys and values start.
    pub(crate) fn addresses(&self) -> (u64, u64) {
        (self.keys.address(), self.values.address())
    }

    pub(crate) fn check(&self, shape: &AttentionShape) {
        assert_eq!(self.block, Self::block_bytes(shape, self.element));
        assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads));
    }
}

/// Stores the keys and values of `qkv`, which is (rows, queries, keys, values), in the pool.
///
/// # Errors
/// When the driver fails.
pub fn append(
    gpu: &Gpu,
    pool: &mut KvPool,
    qkv: &Buf<f32>,
    at: Positions<'_>,
    shape: &AttentionShape,
) -> Result<(), CudaError> {
    pool.check(shape);
    assert!(at.rows * shape.qkv_width() <= qkv.len(), "qkv is too short");
    assert!(at.rows <= at.positions.len() && at.rows <= at.sequences.len());
    let params = AppendParams {
        qkv: qkv.address(),
        keys: pool.keys.address(),
        values: pool.values.address(),
        positions: at.positions.address(),
        sequences: at.sequences.address(),
        table_offsets: at.table_offsets.address(),
        blocks: at.blocks.address(),
        stride: shape.qkv_width() as i32,
        heads: shape.heads as i32,
        kv_heads: shape.kv_heads as i32,
        head_dim: shape.head_dim as i32,
        padded_dim: shape.padded_dim() as i32,
        unused: 0,
    };
    let name = match pool.element {
        KvElement::F32 => "append_f32",
        KvElement::F16 => "append_f16",
        KvElement::Q8 => "append_q8",
    };
    gpu.launch(name, [at.rows, 1, 1], 256, 0, &params)
}
