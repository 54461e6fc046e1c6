//! Products of many rows of activations with a matrix of weights, on the tensor cores.
//!
//! They round activations and weights to TF32 (11 significant bits), which moves a product by some 4e-4 of its length. An
//! output has the same bits whatever rows are beside it, but other bits than [`crate::product()`] gives.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::moe::Routing;
use crate::params::{GemmParams, SortParams};
use crate::product::Place;
use crate::weights::{Matrix, kernel_names};

/// Outputs of a block of the kernels.
const OUTPUTS: usize = 128;
/// Floats of shared memory for each row of a block's two inputs: two buffers of a step along K, with what keeps the lanes
/// of a fragment in different banks.
const FLOATS_PER_ROW: usize = 2 * (32 + 4);

/// Words of a tile: expert, first place in the order of slots, how many slots.
const TILE_WORDS: usize = 3;

/// The kernels by how many tokens a block takes.
const KERNELS: [(usize, [&str; 16]); 2] =
    [(32, kernel_names!("gemm_", "_1")), (128, kernel_names!("gemm_", "_4"))];

/// The kernel for weights that meet about `tokens` tokens, and how many of them a block takes.
fn kernel(weight: &Matrix, tokens: usize) -> (usize, &'static str) {
    // Half a tile of 128 in vain costs about as much as the weights that three tiles of 32 read again.
    let (tile, names) = KERNELS[usize::from(tokens > 64)];
    (tile, names[weight.kind() as usize])
}

fn params(
    out: &Buf<f32>,
    place: Place,
    x: &Buf<f32>,
    weight: &Matrix,
    bias: Option<&Buf<f32>>,
) -> GemmParams {
    assert!(bias.is_none_or(|bias| bias.len() >= weight.rows()), "the bias is too short");
    GemmParams {
        weight: weight.planes(),
        x: x.address(),
        bias: bias.map_or(0, Buf::address),
        out: out.address() + 4 * place.start as u64,
        tiles: 0,
        order: 0,
        rows: weight.rows() as i32,
        cols: weight.cols() as i32,
        chunks: weight.chunks() as i32,
        tokens: 0,
        x_stride: weight.cols() as i32,
        out_stride: place.stride as i32,
        accumulate: 0,
        slots_per_row: 1,
    }
}

fn launch(
    gpu: &Gpu,
    (tile, kernel): (usize, &'static str),
    tiles: usize,
    params: &GemmParams,
) -> Result<(), CudaError> {
    let shared = 4 * FLOATS_PER_ROW * (tile + OUTPUTS);
    gpu.launch(kernel, [(params.rows as usize).div_ceil(OUTPUTS), tiles, 1], 256, shared, params)
}

/// `out = x * weight.transposed() + bias` for the rows from `first` to before `end`, or added to `out`. `x` is (rows, weight
/// columns).
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn gemm(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    x: &Buf<f32>,
    weight: &Matrix,
    bias: Option<&Buf<f32>>,
    (first, end): (usize, usize),
    accumulate: bool,
) -> Result<(), CudaError> {
    place.check(out, end, weight.rows());
    assert!(end * weight.cols() <= x.len(), "x is too short");
    let tokens = end.saturating_sub(first);
    let mut params = params(out, place, x, weight, bias);
    params.x += (4 * first * weight.cols()) as u64;
    params.out += (4 * first * place.stride) as u64;
    params.tokens = tokens as i32;
    params.accumulate = accumulate.into();
    let kernel = kernel(weight, tokens);
    launch(gpu, kernel, tokens.div_ceil(kernel.0), &params)
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

/// Slots that meet an expert if they are spread evenly.
fn slots_per_expert(rows: usize, top_k: usize, experts: usize) -> usize {
    (rows * top_k).div_ceil(experts.max(1))
}

/// The slots of a tile for so many rows.
fn tile_slots(rows: usize, top_k: usize, experts: usize) -> usize {
    KERNELS[usize::from(slots_per_expert(rows, top_k, experts) > 64)].0
}

/// The most tiles that `slots` slots can make.
fn max_tiles(slots: usize, experts: usize, tile: usize) -> usize {
    // All tiles of an expert but one are full.
    slots.min(slots / tile + experts)
}

/// Words that [`sort_slots`] writes for up to `rows` rows.
pub fn sorted_words(routing: &Routing, rows: usize) -> usize {
    let slots = rows * routing.top_k;
    slots + TILE_WORDS * max_tiles(slots, routing.experts, KERNELS[0].0)
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
    let tile = tile_slots(end - first, routing.top_k, routing.experts);
    let max_tiles = max_tiles(count, routing.experts, tile);
    assert!(slots <= experts.len() && count + TILE_WORDS * max_tiles <= words.len());
    let params = SortParams {
        experts: experts.address(),
        order: words.address(),
        tiles: words.address() + 4 * count as u64,
        first_slot: first_slot as i32,
        slots: slots as i32,
        n_experts: routing.experts as i32,
        tile_slots: tile as i32,
        max_tiles: max_tiles as i32,
        unused: 0,
    };
    gpu.launch("sort_slots", [1, 1, 1], 1024, 8 * routing.experts, &params)
}

/// `out[slot] = x[row of the slot] * weight[expert of the slot].transposed() + bias[expert]` for the sorted slots. `x` is (rows,
/// weight columns), or (slots, weight columns) with `by_slot`.
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn gemm_sorted(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    x: &Buf<f32>,
    weight: &Matrix,
    bias: Option<&Buf<f32>>,
    sorted: Sorted<'_>,
    by_slot: bool,
) -> Result<(), CudaError> {
    let Sorted { words, rows: (first, end), top_k, experts } = sorted;
    assert!(weight.rows().is_multiple_of(experts), "{} rows of {experts}", weight.rows());
    let (count, outputs) = ((end - first) * top_k, weight.rows() / experts);
    let kernel = kernel(weight, slots_per_expert(end - first, top_k, experts));
    let tiles = max_tiles(count, experts, kernel.0);
    assert!(count + TILE_WORDS * tiles <= words.len(), "too few words");
    place.check(out, end * top_k, outputs);
    let x_rows = if by_slot { end * top_k } else { end };
    assert!(x_rows * weight.cols() <= x.len(), "x is too short");
    let mut params = params(out, place, x, weight, bias);
    params.rows = outputs as i32;
    params.order = words.address();
    params.tiles = words.address() + 4 * count as u64;
    params.slots_per_row = if by_slot { 1 } else { top_k as i32 };
    launch(gpu, kernel, tiles, &params)
}
