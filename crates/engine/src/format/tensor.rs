//! Where a stored tensor lies, and what it is.

use std::ops::Range;

use super::dtype::DType;

/// A tensor of a checkpoint: its name, type and shape, and where its bytes are.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// The type of the elements.
    pub dtype: DType,
    /// The dimensions, outermost first (row-major), whichever order the file has. Empty for a single
    /// number.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's files.
    pub(super) file: usize,
    /// Where in that file.
    pub(super) range: Range<usize>,
}

impl TensorInfo {
    /// The number of elements: the product of the dimensions.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of bytes the elements take in the file.
    pub fn byte_len(&self) -> usize {
        self.range.len()
    }
}
