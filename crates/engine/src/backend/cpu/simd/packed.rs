//! Weights as products read them: in groups of sixteen rows, packed once at load.

use super::arena::{Arena, Region};
use super::block_types::{self as blocks, BlockType};
use super::one_row::OneRow;
use super::tiles::PlainType;
use super::{BLOCK, GROUP};
use crate::backend::HostMatrix;
use crate::backend::cpu::threads::Threads;
use crate::format::DType;

/// Calls a generic function with the type that stands for a [`DType`]: `$block` for block types and `$plain` for others.
macro_rules! for_type {
    ($dtype:expr, $name:ident => blocks $block:expr, plain $plain:expr $(,)?) => {{
        use crate::backend::cpu::simd::{block_types as blocks, tiles};
        macro_rules! block {
            ($type:ident) => {{
                type $name = blocks::$type;
                $block
            }};
        }
        macro_rules! plain {
            ($type:ident) => {{
                #[allow(dead_code, reason = "not every expression names it")]
                type $name = tiles::$type;
                $plain
            }};
        }
        match $dtype {
            DType::F32 => plain!(F32),
            DType::F16 => plain!(F16),
            DType::BF16 => plain!(BF16),
            DType::Q8_0 => block!(Q8_0),
            DType::Q4_0 => block!(Q4_0),
            DType::Q4_1 => block!(Q4_1),
            DType::Q5_0 => block!(Q5_0),
            DType::Q5_1 => block!(Q5_1),
            DType::Q2_K => block!(Q2K),
            DType::Q3_K => block!(Q3K),
            DType::Q4_K => block!(Q4K),
            DType::Q5_K => block!(Q5K),
            DType::Q6_K => block!(Q6K),
            DType::IQ4_NL => block!(Iq4Nl),
            DType::IQ4_XS => block!(Iq4Xs),
            DType::MXFP4 => block!(Mxfp4),
            other => unreachable!("{other} was refused when the model was opened"),
        }
    }};
}
pub(super) use for_type;

/// A matrix of weights in groups of sixteen rows; see `block_types`. The last group is filled up with zeros.
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    dtype: DType,
    /// Bytes of a group.
    group: usize,
    data: Region,
}

impl PackedMatrix {
    /// Packs a matrix.
    pub fn new(matrix: &HostMatrix, arena: &mut Arena, threads: &mut Threads) -> Self {
        let HostMatrix { rows, cols, dtype, .. } = *matrix;
        let group = for_type!(dtype, T =>
            blocks cols / (T::BLOCKS * BLOCK) * T::STEP_BYTES,
            plain cols * T::BYTES * GROUP,
        );
        let mut data = arena.allocate(rows.div_ceil(GROUP) * group);
        // Enough for a thread to be worth waking.
        let groups_at_once = (1 << 18) / group.max(1) + 1;
        threads.for_each_chunk(&mut data, groups_at_once * group.max(1), |piece, groups| {
            for (index, group) in groups.chunks_exact_mut(group).enumerate() {
                let first = (piece * groups_at_once + index) * GROUP;
                for_type!(dtype, T =>
                    blocks pack_blocks::<T>(group, matrix, first),
                    plain pack_plain::<T>(group, matrix, first),
                );
            }
        });
        PackedMatrix { rows, cols, dtype, group, data }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type that the file has the weights in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes that the weights take in memory.
    pub fn byte_len(&self) -> usize {
        self.data.len()
    }

    /// Bytes of a group.
    pub(super) fn group_bytes(&self) -> usize {
        self.group
    }

    /// The groups from `first` to before `end`.
    pub(super) fn groups(&self, first: usize, end: usize) -> &[u8] {
        &self.data[first * self.group..end * self.group]
    }

    /// The weights of a row, exactly as `quant` defines them.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "the row exists");
        let group = self.groups(row / GROUP, row / GROUP + 1);
        for_type!(self.dtype, T =>
            blocks unpack_blocks::<T>(group, row % GROUP, out),
            plain unpack_plain::<T>(group, row % GROUP, out),
        );
    }
}

/// The rows of `matrix` that are in the group which starts with row `first`.
fn rows_of_group(matrix: &HostMatrix, first: usize) -> impl Iterator<Item = (usize, &[u8])> {
    (first..(first + GROUP).min(matrix.rows)).map(|row| matrix.row(row)).enumerate()
}

fn pack_blocks<T: BlockType>(group: &mut [u8], matrix: &HostMatrix, first: usize) {
    for (row, bytes) in rows_of_group(matrix, first) {
        let blocks = bytes.chunks_exact(T::FILE_BYTES);
        for (block, step) in blocks.zip(group.chunks_exact_mut(T::STEP_BYTES)) {
            T::pack(block, row, step);
        }
    }
}

fn pack_plain<T: PlainType>(group: &mut [u8], matrix: &HostMatrix, first: usize) {
    for (row, bytes) in rows_of_group(matrix, first) {
        let elements = bytes.chunks_exact(T::BYTES);
        for (element, column) in elements.zip(group.chunks_exact_mut(T::BYTES * GROUP)) {
            column[row * T::BYTES..][..T::BYTES].copy_from_slice(element);
        }
    }
}

#[allow(unsafe_code)]
fn unpack_blocks<T: BlockType>(group: &[u8], row: usize, out: &mut [f32]) {
    let steps = group.chunks_exact(T::STEP_BYTES);
    for (step, out) in steps.zip(out.chunks_exact_mut(T::BLOCKS * BLOCK)) {
        // SAFETY: one row needs no instruction set, and a step is there.
        let header = unsafe { T::header::<OneRow>(step.as_ptr(), row) };
        let parts = step[T::HEADER_BYTES..].chunks_exact(T::SCALE_BYTES + T::LINES * blocks::LINE);
        for (part, out) in parts.zip(out.chunks_exact_mut(BLOCK)) {
            // SAFETY: as above; scales and lines of 32 columns are there.
            let (scales, minima) = unsafe {
                (
                    T::scales::<OneRow>(header, part.as_ptr(), row),
                    T::minima::<OneRow>(header, part.as_ptr(), row),
                )
            };
            for (j, out) in out.chunks_exact_mut(4).enumerate() {
                // SAFETY: as above.
                let word = unsafe { T::line::<OneRow>(part[T::SCALE_BYTES..].as_ptr(), row, j) };
                for (out, code) in out.iter_mut().zip(word.to_le_bytes()) {
                    let product = scales[j / 4] * (i32::from(code) - T::ZERO) as f32;
                    *out = if T::MINIMA { product + minima[j / 4] } else { product };
                }
            }
        }
    }
}

#[allow(unsafe_code)]
fn unpack_plain<T: PlainType>(group: &[u8], row: usize, out: &mut [f32]) {
    for (column, out) in group.chunks_exact(T::BYTES * GROUP).zip(out) {
        // SAFETY: one row needs no instruction set, and a column is there.
        *out = unsafe { T::load::<OneRow>(column.as_ptr(), row) };
    }
}
