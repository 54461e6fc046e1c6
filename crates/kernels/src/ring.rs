//! Which products go by way of a ring in shared memory, and how large it is (`cuda/ring.cuh`).

use crate::driver::Gpu;
use crate::weights::{Matrix, WeightType};

/// Threads of a block: sixteen warps that multiply, one that fetches and one that writes outputs.
pub(crate) const THREADS: u32 = 576;

/// Weights of a row that meet the same scale of x.
const BLOCK: usize = 32;
/// Rows of a tile, of gates or ups.
pub(crate) const TILE_ROWS: usize = 8;
/// Multiplying warps of a team, which share the rows of a tile.
const TEAM_WARPS: usize = 8;
/// The most rows of x at once, and the most groups of slots of one launch.
const MOST_ROWS: usize = 8;
pub(crate) const MOST_GROUPS: usize = 64;
/// Tiles whose sums wait to be added.
const SUMMED: usize = 4;
const MOST_STAGES: usize = 8;
/// Fewer stages than these leave too little on its way.
const LEAST_STAGES: usize = 2;
/// What a stage should not be larger than, so that some fit.
const STAGE_BYTES: usize = 26 << 10;
/// Shared memory of a block for one row, beside which a block of attention fits on a multiprocessor, and for more rows.
const SHARED_OF_ONE_ROW: usize = 200 << 10;
const SHARED_OF_MORE: usize = 222 << 10;
/// So much that there is never room for two blocks.
const SHARED_AT_LEAST: usize = 116 << 10;
/// What a block must be able to have, with what the kernels have for themselves.
const SHARED_NEEDED: usize = 227 << 10;

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

/// `Codes<TYPE>` of `cuda/digits.cuh`.
struct Codes {
    /// Bytes of a block in the plane `low`.
    low: usize,
    /// Bytes of a block's scales.
    scales: usize,
    /// Bytes between rows in shared memory.
    pad: usize,
    /// Whether sums of x are kept beside its scales.
    minima: bool,
}

fn codes(kind: WeightType) -> Option<Codes> {
    let codes = |low, scales, pad, minima| Some(Codes { low, scales, pad, minima });
    match kind {
        WeightType::F16 => codes(64, 0, 64, false),
        WeightType::Q8_0 => codes(32, 2, 32, false),
        WeightType::Q4_K => codes(16, 2, 16, true),
        WeightType::MXFP4 => codes(16, 1, 16, false),
        _ => None,
    }
}

/// Whether products with `weight` of `experts` experts are computed like this: the same for any number of rows and whatever else
/// the product does, since the bits depend on it.
pub(crate) fn takes(gpu: &Gpu, weight: &Matrix, experts: usize) -> bool {
    let Some(Codes { scales, .. }) = codes(weight.kind()) else { return false };
    let fits = |rows, room| ring(weight, true, rows, 1, room).is_some();
    let (rows, row_scales) = (weight.rows(), weight.cols() / BLOCK * scales);
    gpu.info().capability >= (9, 0)
        && gpu.info().shared_bytes >= SHARED_NEEDED
        && weight.cols().is_multiple_of(2 * BLOCK)
        // Tiles are whole, also where gates and ups are halves of a matrix, which an odd number of rows cannot be. Scales are fetched
        // in multiples of 16 bytes.
        && ((rows / experts).is_multiple_of(2 * TILE_ROWS)
            || experts == 1 && rows % 2 == 1 && row_scales.is_multiple_of(16))
        && fits(1, SHARED_OF_ONE_ROW)
        && (experts == 1 || fits(8, SHARED_OF_MORE))
}

/// The ring for up to `rows` rows of x, or for one token with that many combined experts.
pub(crate) fn ring_for(weight: &Matrix, gated: bool, rows: usize, combined: bool) -> Option<Ring> {
    let choices = if combined { rows } else { 1 };
    let room = if rows == 1 || combined { SHARED_OF_ONE_ROW } else { SHARED_OF_MORE };
    ring(weight, gated, rows, choices, room)
}

fn ring(weight: &Matrix, gated: bool, rows: usize, choices: usize, room: usize) -> Option<Ring> {
    let Codes { low, scales, pad, minima } = codes(weight.kind())?;
    let blocks = weight.cols() / BLOCK;
    let halves = if gated { 2 } else { 1 };
    let most = (STAGE_BYTES / (halves * TILE_ROWS * low)).max(2 * TEAM_WARPS);
    // Warps take the same pairs of blocks whatever the piece.
    let piece = blocks.div_ceil(blocks.div_ceil(most)).next_multiple_of(2 * TEAM_WARPS);
    let pieces = blocks.div_ceil(piece);
    let stage = halves * TILE_ROWS * (piece * low + pad);
    let tile_scales = halves * TILE_ROWS * blocks * scales;
    // The kernels for more rows than one have room for sums of as many as there can be.
    let tokens = if rows == 1 || choices > 1 { 1 } else { MOST_ROWS };
    let sums = SUMMED * TEAM_WARPS * halves * tokens * TILE_ROWS * 4;
    let x_scale = if minima { 8 } else { 4 };
    let x = rows.next_power_of_two().max(choices) * (4 * weight.cols() + x_scale * blocks);
    let shared =
        |stages: usize| stages * stage + (stages.div_ceil(pieces) + 1) * tile_scales + sums + x;
    let stages = (LEAST_STAGES..=MOST_STAGES).rev().find(|stages| shared(*stages) <= room)?;
    Some(Ring { stages, piece, shared: shared(stages).max(SHARED_AT_LEAST) })
}

/// The kernel for one row or more, with a gate beside each output, or with experts combined.
pub(crate) fn kernel(kind: WeightType, one: bool, gated: bool, combined: bool) -> &'static str {
    macro_rules! names {
        ($name:literal) => {
            [
                concat!("ring_", $name, "_1_1"),
                concat!("ring_", $name, "_1_2"),
                concat!("ring_", $name, "_8_1"),
                concat!("ring_", $name, "_8_2"),
                concat!("ring_", $name, "_combined"),
            ]
        };
    }
    let names = match kind {
        WeightType::F16 => names!("f16"),
        WeightType::Q8_0 => names!("q8_0"),
        WeightType::Q4_K => names!("q4_k"),
        WeightType::MXFP4 => names!("mxfp4"),
        _ => unreachable!("`takes` knows the types"),
    };
    if combined { names[4] } else { names[usize::from(gated) + 2 * usize::from(!one)] }
}
