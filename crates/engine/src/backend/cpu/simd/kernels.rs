//! The kernels, once for all instruction sets.
//!
//! Everything here is inlined into the entry points of an instruction set (see [`entry_points`]), which is what
//! makes the compiler use that set. Each element of a result has one accumulator of sixteen lanes that walks along K
//! from start to end: how many rows or tokens are computed at once does not change a bit of it.
#![allow(unsafe_code)]

use super::weight_types::{self as types, WeightType};
use super::{LANES, Lanes};
use crate::backend::HostMatrix;
use crate::format::DType;
use crate::quant;
use std::cell::RefCell;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// See [`super::Isa::matmul_rows`]. `ROWS` and `TOKENS` are the size of a register tile: as many sums as the instruction
/// set has registers for, beside the weights and the activations that they are made of.
///
/// # Safety
/// `L` must be usable. The lengths were checked by the caller.
#[inline(always)]
pub unsafe fn matmul_rows<L: Lanes, const ROWS: usize, const TOKENS: usize>(
    out: &mut [f32],
    weights: &HostMatrix,
    first_row: usize,
    x: &[f32],
) {
    // SAFETY: passed on.
    unsafe {
        match weights.dtype {
            DType::F32 => {
                typed_matmul_rows::<L, types::F32, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::F16 => {
                typed_matmul_rows::<L, types::F16, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::BF16 => {
                typed_matmul_rows::<L, types::BF16, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::Q8_0 => {
                typed_matmul_rows::<L, types::Q8_0, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::Q4_0 => {
                typed_matmul_rows::<L, types::Q4_0, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::Q4_1 => {
                typed_matmul_rows::<L, types::Q4_1, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::Q5_0 => {
                typed_matmul_rows::<L, types::Q5_0, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::Q5_1 => {
                typed_matmul_rows::<L, types::Q5_1, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::Q4_K => {
                typed_matmul_rows::<L, types::Q4K, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::Q5_K => {
                typed_matmul_rows::<L, types::Q5K, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::Q6_K => {
                typed_matmul_rows::<L, types::Q6K, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::IQ4_NL => {
                typed_matmul_rows::<L, types::Iq4Nl, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::IQ4_XS => {
                typed_matmul_rows::<L, types::Iq4Xs, ROWS, TOKENS>(out, weights, first_row, x)
            }
            DType::MXFP4 => {
                typed_matmul_rows::<L, types::Mxfp4, ROWS, TOKENS>(out, weights, first_row, x)
            }
            _ => dequantized_matmul_rows::<L, ROWS, TOKENS>(out, weights, first_row, x),
        }
    }
}

#[inline(always)]
unsafe fn typed_matmul_rows<L: Lanes, W: WeightType, const ROWS: usize, const TOKENS: usize>(
    out: &mut [f32],
    weights: &HostMatrix,
    first_row: usize,
    x: &[f32],
) {
    let tokens = x.len() / weights.cols;
    let rows = out.len() / tokens;
    for row in (0..rows).step_by(ROWS) {
        let height = ROWS.min(rows - row);
        // A tile that sticks out repeats its last row, so that there is one kernel.
        let tile_rows = std::array::from_fn(|i| weights.row(first_row + row + i.min(height - 1)));
        let out = &mut out[row * tokens..];
        // SAFETY: `L` is usable; the rows and tokens have `weights.cols` elements.
        unsafe { tiles::<L, W, ROWS, TOKENS>(out, tokens, height, tile_rows, x, weights.cols) }
    }
}

thread_local! {
    /// The dequantized rows of a tile; kept, since a product takes them again and again.
    static DEQUANTIZED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The way of the types that have no reader of their own: the rows of a tile are dequantized, then are F32 rows. The
/// result is that of the dequantized matrix bit for bit.
#[inline(always)]
unsafe fn dequantized_matmul_rows<L: Lanes, const ROWS: usize, const TOKENS: usize>(
    out: &mut [f32],
    weights: &HostMatrix,
    first_row: usize,
    x: &[f32],
) {
    let cols = weights.cols;
    let tokens = x.len() / cols;
    let rows = out.len() / tokens;
    DEQUANTIZED.with_borrow_mut(|values| {
        values.resize(ROWS * cols, 0.0);
        for row in (0..rows).step_by(ROWS) {
            let height = ROWS.min(rows - row);
            for (i, values) in values.chunks_exact_mut(cols).take(height).enumerate() {
                quant::dequantize(weights.dtype, weights.row(first_row + row + i), values)
                    .expect("types and lengths were checked when the model was opened");
            }
            // SAFETY: any f32 is four bytes.
            let bytes = unsafe { values.align_to::<u8>().1 };
            let row_bytes = |i: usize| &bytes[i * cols * 4..][..cols * 4];
            let tile_rows = std::array::from_fn(|i| row_bytes(i.min(height - 1)));
            let out = &mut out[row * tokens..];
            // SAFETY: `L` is usable; the rows and tokens have `cols` elements.
            unsafe { tiles::<L, types::F32, ROWS, TOKENS>(out, tokens, height, tile_rows, x, cols) }
        }
    });
}

/// All tokens with the rows of one tile.
#[inline(always)]
unsafe fn tiles<L: Lanes, W: WeightType, const ROWS: usize, const TOKENS: usize>(
    out: &mut [f32],
    tokens: usize,
    height: usize,
    rows: [&[u8]; ROWS],
    x: &[f32],
    cols: usize,
) {
    let mut token = 0;
    while token < tokens {
        let left = tokens - token;
        let (out, x) = (&mut out[token..], &x[token * cols..]);
        // SAFETY: `L` is usable; the rows and `left` tokens have `cols` elements.
        unsafe {
            if left >= TOKENS {
                tile::<L, W, ROWS, TOKENS>(out, tokens, height, rows, x, cols);
                token += TOKENS;
            } else if left >= 2 {
                tile::<L, W, ROWS, 2>(out, tokens, height, rows, x, cols);
                token += 2;
            } else {
                tile::<L, W, ROWS, 1>(out, tokens, height, rows, x, cols);
                token += 1;
            }
        }
    }
}

/// `out[r * stride + t] = rows[r] . x[t]` for a register tile of `ROWS` rows (the first `height` of them
/// written) and `T` tokens.
#[inline(always)]
unsafe fn tile<L: Lanes, W: WeightType, const ROWS: usize, const T: usize>(
    out: &mut [f32],
    stride: usize,
    height: usize,
    rows: [&[u8]; ROWS],
    x: &[f32],
    cols: usize,
) {
    // SAFETY: `L` is usable. Whole steps lie inside the rows and tokens, each `cols` elements long; what is left is
    // first copied into a padded step.
    unsafe {
        let mut sums = [[L::zero(); T]; ROWS];
        let steps = cols / W::STEP;
        let mut row_pointers: [*const u8; ROWS] = std::array::from_fn(|r| rows[r].as_ptr());
        let mut x_pointers: [*const f32; T] = std::array::from_fn(|t| x[t * cols..].as_ptr());
        // One token at a time waits for memory, and the processor's own prefetching loses the thread at the end of
        // each row: ask for the same place of the next tile.
        let next_tile = ROWS * rows[0].len();
        for _ in 0..steps {
            if T == 1 {
                for row in row_pointers {
                    for line in (0..W::STEP_BYTES).step_by(CACHE_LINE) {
                        L::prefetch(row.wrapping_add(next_tile + line));
                    }
                }
            }
            accumulate::<L, W, ROWS, T>(&mut sums, &row_pointers, &x_pointers);
            row_pointers = row_pointers.map(|pointer| pointer.add(W::STEP_BYTES));
            x_pointers = x_pointers.map(|pointer| pointer.add(W::STEP));
        }
        let rest = cols - steps * W::STEP;
        if rest > 0 {
            // Only types of single elements have a rest, and those have steps of at most 16 * 4 bytes.
            let mut padded_rows = [[0u8; LANES * 4]; ROWS];
            let mut padded_x = [[0f32; LANES]; T];
            for (padded, row) in padded_rows.iter_mut().zip(rows) {
                let row = &row[steps * W::STEP_BYTES..];
                padded[..row.len()].copy_from_slice(row);
            }
            for (t, padded) in padded_x.iter_mut().enumerate() {
                padded[..rest].copy_from_slice(&x[t * cols + steps * W::STEP..][..rest]);
            }
            let row_pointers = std::array::from_fn(|r| padded_rows[r].as_ptr());
            let x_pointers = std::array::from_fn(|t| padded_x[t].as_ptr());
            accumulate::<L, W, ROWS, T>(&mut sums, &row_pointers, &x_pointers);
        }
        for (r, sums) in sums.iter().enumerate().take(height) {
            for (t, sum) in sums.iter().enumerate() {
                out[r * stride + t] = sum.sum();
            }
        }
    }
}

/// Adds one step of products to the sums of a tile.
#[inline(always)]
unsafe fn accumulate<L: Lanes, W: WeightType, const ROWS: usize, const T: usize>(
    sums: &mut [[L; T]; ROWS],
    rows: &[*const u8; ROWS],
    x: &[*const f32; T],
) {
    // SAFETY: the pointers are valid for a step.
    unsafe {
        let headers: [W::Header; ROWS] = std::array::from_fn(|r| W::header::<L>(rows[r]));
        for part in 0..W::STEP / LANES {
            let tokens: [L; T] = std::array::from_fn(|t| L::load(x[t].add(part * LANES)));
            for r in 0..ROWS {
                let weights: L = W::load(rows[r], &headers[r], part);
                for t in 0..T {
                    sums[r][t] = sums[r][t].mul_add(weights, tokens[t]);
                }
            }
        }
    }
}

/// The entry points of an instruction set: the kernels for its lanes and its size of register tile (rows x tokens),
/// compiled with its features.
macro_rules! entry_points {
    ($lanes:ty, $rows:literal x $tokens:literal $(, $feature:literal)?) => {
        /// See [`kernels::matmul_rows`].
        ///
        /// # Safety
        /// The instruction set must have been detected; the lengths are checked by the caller.
        $(#[target_feature(enable = $feature)])?
        pub unsafe fn matmul_rows(
            out: &mut [f32],
            weights: &HostMatrix,
            first_row: usize,
            x: &[f32],
        ) {
            // SAFETY: passed on.
            unsafe { kernels::matmul_rows::<$lanes, $rows, $tokens>(out, weights, first_row, x) }
        }

        /// Runs a kernel.
        ///
        /// # Safety
        /// The instruction set must have been detected.
        $(#[target_feature(enable = $feature)])?
        pub unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: passed on.
            unsafe { kernel.run::<$lanes, $rows, $tokens>() }
        }

    };
}
pub(super) use entry_points;
