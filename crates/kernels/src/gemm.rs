//! Products of many rows of activations with a matrix of weights, on the tensor cores.
//!
//! Activations and weights are rounded to halves (11 significant bits), which moves a product by some 3e-4 of its length. Both are
//! scaled by powers of two before, so the range of halves is no limit. An output has the same bits whatever rows are beside it,
//! but other bits than [`crate::product()`] gives.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::moe::Routing;
use crate::pack::{Packed, places};
use crate::params::{GemmParams, SortParams};
use crate::product::Place;
use crate::weights::{Matrix, kernel_names};

const KERNELS: [&str; 16] = kernel_names!("gemm_", "");
/// For up to [`FEW_TOKENS`] tokens in each tile.
const KERNELS_FEW: [&str; 16] = kernel_names!("gemm_", "_64");

/// Outputs and tokens of a block of the kernels.
const OUTPUTS: usize = 128;
const TOKENS: usize = 256;
const FEW_TOKENS: usize = 64;
/// Bytes that a token has in a stage of a block's ring, what aligns the ring, and the most stages that are of use.
const TOKEN_BYTES: usize = 128;
const RING_ALIGNMENT: usize = 1024;
const MOST_STAGES: usize = 6;
/// Shared memory that a block has beside the ring.
const OWN_BYTES: usize = 4 << 10;

/// Words of shared memory that sorting may take for its counts.
const SORT_WORDS: usize = (48 << 10) / 4;

/// Words of a tile: expert, first place in the order of slots, how many slots.
const TILE_WORDS: usize = 3;

/// What a product of packed rows with `weight` depends on, beside which of them meet which weights.
fn params(
    gpu: &Gpu,
    out: &Buf<f32>,
    place: Place,
    x: &Packed,
    weight: &Matrix,
    bias: Option<&Buf<f32>>,
) -> GemmParams {
    assert!(bias.is_none_or(|bias| bias.len() >= weight.rows()), "the bias is too short");
    assert!(x.suits(weight), "x was packed for other weights");
    let (tokens16, scales) = x.addresses();
    let ring = gpu.info().shared_bytes - RING_ALIGNMENT - OWN_BYTES;
    GemmParams {
        weight: weight.planes(),
        largest: weight.largest(),
        tokens16,
        scales,
        bias: bias.map_or(0, Buf::address),
        out: out.address() + 4 * place.start as u64,
        tiles: 0,
        order: 0,
        rows: weight.rows() as i32,
        cols: weight.cols() as i32,
        chunks: weight.chunks() as i32,
        tokens: 0,
        places: x.places as i32,
        out_stride: place.stride as i32,
        accumulate: 0,
        stages: (ring / (TOKENS * TOKEN_BYTES)).min(MOST_STAGES) as i32,
        tile_tokens: TOKENS as i32,
        unused: 0,
    }
}

/// Launches for tiles of at most `most` tokens.
fn launch(
    gpu: &Gpu,
    weight: &Matrix,
    tiles: usize,
    most: usize,
    params: &GemmParams,
) -> Result<(), CudaError> {
    let (kernels, tokens) =
        if most <= FEW_TOKENS { (&KERNELS_FEW, FEW_TOKENS) } else { (&KERNELS, TOKENS) };
    let shared = params.stages as usize * tokens * TOKEN_BYTES + RING_ALIGNMENT;
    let grid = [(params.rows as usize).div_ceil(OUTPUTS), tiles, 1];
    gpu.launch(kernels[weight.kind() as usize], grid, 256, shared, params)
}

/// How many tokens a block should take of `tokens` that meet the same weights.
fn tile_tokens(gpu: &Gpu, outputs: usize, tokens: usize) -> usize {
    // What a block takes for so many tokens, measured: with few, it waits for weights.
    const COSTS: [(usize, usize); 2] = [(TOKENS, 4), (TOKENS / 2, 3)];
    let at_once = gpu.info().multiprocessors as usize;
    let cost = |(tile, cost): &(usize, usize)| {
        (outputs.div_ceil(OUTPUTS) * tokens.div_ceil(*tile)).div_ceil(at_once) * cost
    };
    COSTS.iter().min_by_key(|entry| cost(entry)).map_or(TOKENS, |(tile, _)| *tile)
}

/// `out = x * weight.transposed() + bias` for the rows that [`Packed::rows`] packed, or added to `out`.
///
/// # Errors
/// When the driver fails.
pub fn gemm(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    x: &Packed,
    weight: &Matrix,
    bias: Option<&Buf<f32>>,
    accumulate: bool,
) -> Result<(), CudaError> {
    let (first, end) = x.rows;
    place.check(out, end, weight.rows());
    let tokens = end.saturating_sub(first);
    let mut params = params(gpu, out, place, x, weight, bias);
    params.out += (4 * first * place.stride) as u64;
    params.tokens = tokens as i32;
    params.accumulate = accumulate.into();
    let tile = tile_tokens(gpu, weight.rows(), tokens);
    params.tile_tokens = tile as i32;
    launch(gpu, weight, tokens.div_ceil(tile), tokens.min(tile), &params)
}

/// Slots by expert, as [`sort_slots`] wrote them.
#[derive(Clone, Copy)]
pub struct Sorted<'a> {
    /// The slots, experts and slots ascending; then the tiles.
    pub words: &'a Buf<i32>,
    /// The first row that was sorted, and the one after the last.
    pub rows: (usize, usize),
    /// Experts of one row: there are `rows * top_k` slots.
    pub top_k: usize,
    /// Experts in all, whose weights lie one after another.
    pub experts: usize,
}

impl Sorted<'_> {
    fn slots(&self) -> usize {
        (self.rows.1 - self.rows.0) * self.top_k
    }

    /// Places in the order of slots, with those that have none.
    pub(crate) fn places(&self) -> usize {
        places(self.slots(), self.experts)
    }
}

/// The most tiles that `slots` slots can make.
fn max_tiles(slots: usize, experts: usize) -> usize {
    // All tiles of an expert but one are full.
    slots.min(slots / TOKENS + experts)
}

/// Places that the slots of up to `rows` rows take, for [`crate::PackedRoom`].
pub fn sorted_places(routing: &Routing, rows: usize) -> usize {
    places(rows * routing.top_k, routing.experts)
}

/// Words that [`sort_slots`] writes for up to `rows` rows.
pub fn sorted_words(routing: &Routing, rows: usize) -> usize {
    let slots = rows * routing.top_k;
    places(slots, routing.experts) + TILE_WORDS * max_tiles(slots, routing.experts)
}

/// Sorts the slots of the rows from `first` to before `end` by expert, for [`gemm_sorted`].
///
/// # Errors
/// When the driver fails.
pub fn sort_slots(
    gpu: &Gpu,
    words: &mut Buf<i32>,
    experts: &Buf<i32>,
    (first, end): (usize, usize),
    routing: Routing,
) -> Result<(), CudaError> {
    let (first_slot, slots) = (first * routing.top_k, end * routing.top_k);
    let count = slots - first_slot;
    let (places, max_tiles) = (places(count, routing.experts), max_tiles(count, routing.experts));
    assert!(slots <= experts.len() && places + TILE_WORDS * max_tiles <= words.len());
    let params = SortParams {
        experts: experts.address(),
        order: words.address(),
        tiles: words.address() + 4 * places as u64,
        first_slot: first_slot as i32,
        slots: slots as i32,
        n_experts: routing.experts as i32,
        places: places as i32,
        max_tiles: max_tiles as i32,
        unused: 0,
    };
    // As many warps as have room for counts of their own.
    let warps = (SORT_WORDS / routing.experts.max(1)).saturating_sub(1).clamp(1, 32);
    let shared = 4 * (warps + 1) * routing.experts;
    gpu.launch("sort_slots", [1, 1, 1], 32 * warps as u32, shared, &params)
}

/// `out[slot] = x[row of the slot] * weight[expert of the slot].transposed() + bias[expert]` for the sorted slots, of which
/// [`Packed::slots`] packed the rows.
///
/// # Errors
/// When the driver fails.
pub fn gemm_sorted(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    x: &Packed,
    weight: &Matrix,
    bias: Option<&Buf<f32>>,
    sorted: Sorted<'_>,
) -> Result<(), CudaError> {
    let Sorted { words, rows: (first, end), top_k, experts } = sorted;
    assert!(weight.rows().is_multiple_of(experts), "{} rows of {experts}", weight.rows());
    assert!(x.rows == sorted.rows && x.places == sorted.places(), "other rows were packed");
    let (outputs, tiles) = (weight.rows() / experts, max_tiles(sorted.slots(), experts));
    assert!(x.places + TILE_WORDS * tiles <= words.len(), "too few words");
    place.check(out, end * top_k, outputs);
    let mut params = params(gpu, out, place, x, weight, bias);
    params.rows = outputs as i32;
    params.order = words.address();
    params.tiles = words.address() + 4 * x.places as u64;
    // No row chooses an expert twice.
    launch(gpu, weight, tiles, (end - first).min(TOKENS), &params)
}
