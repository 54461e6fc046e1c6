//! From tensors of a checkpoint to weights of a backend: checked first, loaded second.

use super::spec::{Layout, MapWeights, TensorSource};
use super::{ModelError, file_name};
use crate::backend::{Backend, HostMatrix};
use crate::format::{Bytes, Checkpoint, TensorInfo};
use crate::quant;

/// Checks that every tensor is there, with the right shape and a type that we can run.
pub struct Check<'a> {
    /// Where the tensors are.
    pub checkpoint: &'a Checkpoint,
}

impl Check<'_> {
    fn check(&self, source: &TensorSource) -> Result<(), ModelError> {
        let file = || file_name(self.checkpoint);
        let expected = source.shape_in_file();
        let Some(tensor) = self.checkpoint.tensor(&source.name) else {
            return Err(ModelError::MissingTensor {
                file: file(),
                tensor: source.name.clone(),
                expected,
            });
        };
        if tensor.shape != expected {
            return Err(ModelError::TensorShape {
                file: file(),
                tensor: source.name.clone(),
                expected,
                found: tensor.shape.clone(),
            });
        }
        // A block must not straddle rows, and a transposed block type has no rows to read.
        let blocks = tensor.dtype.block_size();
        let runnable = quant::is_supported(tensor.dtype)
            && (blocks == 1
                || (source.layout != Layout::Transposed && source.cols.is_multiple_of(blocks)));
        if !runnable {
            let supported: Vec<_> = quant::SUPPORTED.iter().map(|dtype| dtype.name()).collect();
            return Err(ModelError::TensorType {
                file: file(),
                tensor: source.name.clone(),
                found: tensor.dtype.name().to_string(),
                supported: supported.join(", "),
            });
        }
        Ok(())
    }
}

impl MapWeights<TensorSource, TensorSource> for Check<'_> {
    type Matrix = ();
    type Vector = ();
    type Error = ModelError;

    fn matrix(&mut self, source: &TensorSource) -> Result<(), ModelError> {
        self.check(source)
    }

    fn vector(&mut self, source: &TensorSource) -> Result<(), ModelError> {
        self.check(source)
    }
}

/// Loads checked tensors into a backend.
pub struct Load<'a, B: Backend> {
    /// Where the tensors are.
    pub checkpoint: &'a Checkpoint,
    /// Where they go.
    pub backend: &'a mut B,
    /// Told the bytes of every tensor that was loaded.
    pub loaded: &'a mut dyn FnMut(usize),
}

impl<B: Backend> Load<'_, B> {
    fn tensor(&self, source: &TensorSource) -> Result<&TensorInfo, ModelError> {
        self.checkpoint.tensor(&source.name).ok_or_else(|| ModelError::MissingTensor {
            file: file_name(self.checkpoint),
            tensor: source.name.clone(),
            expected: source.shape_in_file(),
        })
    }
}

impl<B: Backend> MapWeights<TensorSource, TensorSource> for Load<'_, B> {
    type Matrix = B::Matrix;
    type Vector = B::Vector;
    type Error = ModelError;

    fn matrix(&mut self, source: &TensorSource) -> Result<B::Matrix, ModelError> {
        let tensor = self.tensor(source)?;
        let stored = self.checkpoint.bytes(tensor);
        let (dtype, length) = (tensor.dtype, stored.len());
        let bytes = match source.layout {
            Layout::Vector | Layout::RowMajor => stored,
            Layout::Transposed => {
                Bytes::from(transpose(&stored, source.cols, source.rows, dtype.block_bytes()))
            }
        };
        let matrix = HostMatrix { rows: source.rows, cols: source.cols, dtype, bytes };
        let matrix = self.backend.matrix(matrix);
        (self.loaded)(length);
        Ok(matrix)
    }

    fn vector(&mut self, source: &TensorSource) -> Result<B::Vector, ModelError> {
        let tensor = self.tensor(source)?;
        let stored = self.checkpoint.bytes(tensor);
        let mut vector = vec![0.0; source.cols];
        quant::dequantize(tensor.dtype, &stored, &mut vector)
            .expect("the type and the length were checked before");
        let length = stored.len();
        let vector = self.backend.vector(vector);
        (self.loaded)(length);
        Ok(vector)
    }
}

/// Transposes a (rows, cols) matrix of elements of `element` bytes.
///
/// In square tiles, so that neither side is walked with a stride of a whole row for each element.
pub(crate) fn transpose(bytes: &[u8], rows: usize, cols: usize, element: usize) -> Vec<u8> {
    const TILE: usize = 32;
    let mut transposed = vec![0; bytes.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for col_tile in (0..cols).step_by(TILE) {
            for row in row_tile..(row_tile + TILE).min(rows) {
                for col in col_tile..(col_tile + TILE).min(cols) {
                    let (from, to) = ((row * cols + col) * element, (col * rows + row) * element);
                    transposed[to..to + element].copy_from_slice(&bytes[from..from + element]);
                }
            }
        }
    }
    transposed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transpose_moves_every_element() {
        let (rows, cols) = (37, 70);
        let original: Vec<u8> = (0..rows * cols).flat_map(|i| (i as u16).to_le_bytes()).collect();
        let transposed = transpose(&original, rows, cols, 2);
        for row in 0..rows {
            for col in 0..cols {
                let at = (col * rows + row) * 2;
                let value = u16::from_le_bytes([transposed[at], transposed[at + 1]]);
                assert_eq!(usize::from(value), row * cols + col);
            }
        }
    }
}
