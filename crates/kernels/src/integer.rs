//! Which products the integer tensor cores take, and the shared memory of their kernels (`cuda/integer.cuh`).

use crate::driver::Gpu;
use crate::weights::{Matrix, WeightType};

/// Threads of a block: eight warps that multiply, and one that fetches.
pub(crate) const THREADS: u32 = 288;

/// Weights of a row that share a scale.
const BLOCK: usize = 32;
/// Rows of a tile, of gates or ups.
pub(crate) const TILE_ROWS: usize = 8;
/// Multiplying warps.
const WARPS: usize = 8;
const MOST_STAGES: usize = 8;
/// Fewer stages than these leave too little on its way.
const LEAST_STAGES: usize = 2;
/// What a stage should not be larger than, so that some fit.
const STAGE_BYTES: usize = 26 << 10;
/// Shared memory of a block, two of which fit on a multiprocessor, and of one that is there alone.
const SHARED_OF_TWO: usize = 110 << 10;
const SHARED_OF_ONE: usize = 225 << 10;

/// The ring of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    /// Stages.
    pub stages: usize,
    /// Blocks of a row in a stage.
    pub piece: usize,
    /// Shared memory that the launch asks for.
    pub shared: usize,
}

/// Bytes of a block of 32 weights in the planes `low` and `scales`, and between rows in shared memory: `Codes<TYPE>`.
fn codes(kind: WeightType) -> Option<(usize, usize, usize)> {
    match kind {
        WeightType::Q8_0 => Some((32, 2, 32)),
        WeightType::MXFP4 => Some((16, 1, 16)),
        _ => None,
    }
}

/// Whether products with `weight` of `experts` experts are computed like this: the same for any number of rows and whatever else
/// the product does, since the bits depend on it.
pub(crate) fn takes(gpu: &Gpu, weight: &Matrix, experts: usize) -> bool {
    let fits = |rows, room| ring(weight, true, rows, 1, room).is_some();
    gpu.info().capability >= (9, 0)
        && weight.cols().is_multiple_of(2 * BLOCK)
        // Tiles are whole, and their scales begin at multiples of 16 bytes, also where gates and ups are halves of a matrix.
        && (weight.rows() / experts).is_multiple_of(2 * TILE_ROWS)
        && fits(1, SHARED_OF_TWO)
        && (experts == 1 || fits(8, SHARED_OF_ONE))
}

/// The ring for up to `rows` rows of x, or for one token with that many combined experts.
pub(crate) fn ring_for(weight: &Matrix, gated: bool, rows: usize, combined: bool) -> Option<Ring> {
    let choices = if combined { rows } else { 1 };
    let room = if rows == 1 || combined { SHARED_OF_TWO } else { SHARED_OF_ONE };
    ring(weight, gated, rows, choices, room)
}

fn ring(weight: &Matrix, gated: bool, rows: usize, choices: usize, room: usize) -> Option<Ring> {
    let (low, scales, pad) = codes(weight.kind())?;
    let blocks = weight.cols() / BLOCK;
    let halves = if gated { 2 } else { 1 };
    let most = (STAGE_BYTES / (halves * TILE_ROWS * low)).max(2 * WARPS);
    // Warps take the same pairs of blocks whatever the piece.
    let piece = blocks.div_ceil(blocks.div_ceil(most)).next_multiple_of(2 * WARPS);
    let pieces = blocks.div_ceil(piece);
    let stage = halves * TILE_ROWS * (piece * low + pad);
    let tile_scales = halves * TILE_ROWS * blocks * scales;
    let tokens = if choices > 1 { 1 } else { rows.next_power_of_two() };
    let sums = 2 * choices * WARPS * halves * tokens * TILE_ROWS * 4;
    let x = rows.next_power_of_two().max(choices) * (4 * weight.cols() + 4 * blocks);
    let shared =
        |stages: usize| stages * stage + (stages.div_ceil(pieces) + 1) * tile_scales + sums + x;
    let stages = (LEAST_STAGES..=MOST_STAGES).rev().find(|stages| shared(*stages) <= room)?;
    Some(Ring { stages, piece, shared: shared(stages) })
}

/// The kernel for one row or more, with a gate beside each output, or with experts combined.
pub(crate) fn kernel(kind: WeightType, one: bool, gated: bool, combined: bool) -> &'static str {
    let names = match kind {
        WeightType::Q8_0 => [
            "integer_q8_0_1_1",
            "integer_q8_0_1_2",
            "integer_q8_0_8_1",
            "integer_q8_0_8_2",
            "integer_q8_0_combined",
        ],
        WeightType::MXFP4 => [
            "integer_mxfp4_1_1",
            "integer_mxfp4_1_2",
            "integer_mxfp4_8_1",
            "integer_mxfp4_8_2",
            "integer_mxfp4_combined",
        ],
        _ => unreachable!("`takes` knows the types"),
    };
    if combined { names[4] } else { names[usize::from(gated) + 2 * usize::from(!one)] }
}
