//! From tensors of a checkpoint to weights of a backend: checked first, loaded second.

use super::spec::{Layout, MapWeights, Rows, TensorSource};
use super::{ModelError, file_name};
use crate::backend::{Backend, HostMatrix};
use crate::format::{Bytes, Checkpoint, DType, TensorInfo};
use crate::quant;

/// Checks that every tensor is there, with the right shape and a type that we can run.
pub struct Check<'a> {
    /// Where the tensors are.
    pub checkpoint: &'a Checkpoint,
}

impl Check<'_> {
    fn check(&self, source: &TensorSource) -> Result<(), ModelError> {
        let mut first = None;
        for (name, expected) in source.tensors() {
            let tensor = find(self.checkpoint, &name, &expected)?;
            if tensor.shape != expected {
                return Err(ModelError::TensorShape {
                    file: file_name(self.checkpoint),
                    tensor: name,
                    expected,
                    found: tensor.shape.clone(),
                });
            }
            // A block must not straddle rows, and a block that is not along a row has no rows to read.
            let blocks = tensor.dtype.block_size();
            let runnable = match source.layout {
                Layout::Mxfp4Pair { .. } => tensor.dtype == DType::U8,
                Layout::Vector => blocks == 1 && quant::is_supported(tensor.dtype),
                Layout::Transposed => blocks == 1 && quant::is_supported(tensor.dtype),
                Layout::RowMajor | Layout::TensorForEach => {
                    quant::is_supported(tensor.dtype) && source.cols.is_multiple_of(blocks)
                }
            };
            // The experts of one matrix have one type.
            let same = *first.get_or_insert(tensor.dtype) == tensor.dtype;
            if !runnable || !same {
                let supported = match (source.layout, first) {
                    (Layout::Mxfp4Pair { .. }, _) => DType::U8.name().to_string(),
                    (_, Some(first)) if runnable => first.name().to_string(),
                    _ => quant::names(quant::SUPPORTED),
                };
                return Err(ModelError::TensorType {
                    file: file_name(self.checkpoint),
                    tensor: name,
                    found: tensor.dtype.name().to_string(),
                    supported,
                });
            }
        }
        Ok(())
    }
}

/// The tensor of that name; `expected` is for the error.
fn find<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    expected: &[usize],
) -> Result<&'a TensorInfo, ModelError> {
    checkpoint.tensor(name).ok_or_else(|| ModelError::MissingTensor {
        file: file_name(checkpoint),
        tensor: name.to_string(),
        expected: expected.to_vec(),
    })
}

/// The type that a weight has once it is read, or `None` if its first tensor is missing.
pub(crate) fn stored_type(checkpoint: &Checkpoint, source: &TensorSource) -> Option<DType> {
    match source.layout {
        Layout::Mxfp4Pair { .. } => Some(DType::MXFP4),
        _ => Some(checkpoint.tensor(&source.tensors().first()?.0)?.dtype),
    }
}

/// Bytes of a weight once it is read; 0 if its first tensor is missing.
pub(crate) fn stored_bytes(checkpoint: &Checkpoint, source: &TensorSource) -> usize {
    let dtype = stored_type(checkpoint, source);
    dtype.and_then(|dtype| dtype.bytes_for(source.elements())).unwrap_or(0)
}

/// A checked weight as rows of one output each: without a copy where the file has it so.
///
/// # Errors
/// When a tensor is missing.
pub(crate) fn read(
    checkpoint: &Checkpoint,
    source: &TensorSource,
) -> Result<HostMatrix, ModelError> {
    let mut stored = Vec::new();
    for (name, shape) in source.tensors() {
        let tensor = find(checkpoint, &name, &shape)?;
        stored.push((tensor.dtype, checkpoint.bytes(tensor)));
    }
    let (dtype, all) = match (source.layout, &stored[..]) {
        (Layout::Mxfp4Pair { .. }, [(_, blocks), (_, scales)]) => {
            let mut bytes = vec![0; scales.len() * DType::MXFP4.block_bytes()];
            quant::mxfp4_from_pair(blocks, scales, &mut bytes)
                .expect("the shapes were checked before");
            stored.iter().for_each(|(_, copied)| copied.release());
            (DType::MXFP4, Bytes::from(bytes))
        }
        (Layout::Transposed, [(dtype, bytes)]) => {
            let rows = source.order.in_file(source.rows_of_each());
            let each = source.cols * rows * dtype.block_bytes();
            let turned = bytes
                .chunks_exact(each.max(1))
                .flat_map(|expert| transpose(expert, source.cols, rows, dtype.block_bytes()));
            let turned = turned.collect::<Vec<u8>>();
            bytes.release();
            (*dtype, Bytes::from(turned))
        }
        (_, [(dtype, bytes)]) => (*dtype, bytes.clone()),
        _ => {
            let parts: Vec<&[u8]> = stored.iter().map(|(_, bytes)| &**bytes).collect();
            (stored[0].0, Bytes::from(parts.concat()))
        }
    };
    let bytes = in_order(all, dtype, source);
    Ok(HostMatrix { rows: source.rows, cols: source.cols, dtype, bytes })
}

/// The numbers of a vector that configures a model, checked and read.
///
/// # Errors
/// When it is missing, or has another shape or a type that we cannot run.
pub(crate) fn read_vector(
    checkpoint: &Checkpoint,
    source: &TensorSource,
) -> Result<Vec<f32>, ModelError> {
    Check { checkpoint }.check(source)?;
    numbers(checkpoint, source)
}

/// The numbers of a checked vector.
fn numbers(checkpoint: &Checkpoint, source: &TensorSource) -> Result<Vec<f32>, ModelError> {
    let stored = read(checkpoint, source)?;
    let mut vector = vec![0.0; source.cols];
    quant::dequantize(stored.dtype, &stored.bytes, &mut vector)
        .expect("the type and the length were checked before");
    if source.plus != 0.0 {
        vector.iter_mut().for_each(|element| *element += source.plus);
    }
    Ok(vector)
}

/// The rows that the weight wants, in its order.
fn in_order(all: Bytes, dtype: DType, source: &TensorSource) -> Bytes {
    if source.order == Rows::All {
        return all;
    }
    let row_bytes = match source.layout {
        Layout::Vector => dtype.block_bytes(),
        _ => dtype.bytes_for(source.cols).expect("the type and the shape were checked before"),
    };
    let (rows, experts) = (source.rows_of_each(), source.experts.unwrap_or(1));
    let in_file = source.order.in_file(rows);
    if let (Rows::From { start, .. }, 1) = (source.order, experts) {
        let range = start * row_bytes..(start + rows) * row_bytes;
        return all.slice(range).expect("the family chose rows inside the tensor");
    }
    let mut bytes = Vec::with_capacity(experts * rows * row_bytes);
    for expert in 0..experts {
        for row in 0..rows {
            let from = (expert * in_file + source.order.source(row)) * row_bytes;
            bytes.extend_from_slice(&all[from..from + row_bytes]);
        }
    }
    Bytes::from(bytes)
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

impl<B: Backend> MapWeights<TensorSource, TensorSource> for Load<'_, B> {
    type Matrix = B::Matrix;
    type Vector = B::Vector;
    type Error = ModelError;

    fn matrix(&mut self, source: &TensorSource) -> Result<B::Matrix, ModelError> {
        let matrix = read(self.checkpoint, source)?;
        let length = matrix.bytes.len();
        let matrix = self.backend.matrix(matrix);
        (self.loaded)(length);
        Ok(matrix)
    }

    fn vector(&mut self, source: &TensorSource) -> Result<B::Vector, ModelError> {
        let vector = self.backend.vector(numbers(self.checkpoint, source)?);
        (self.loaded)(stored_bytes(self.checkpoint, source));
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
mod tests;
