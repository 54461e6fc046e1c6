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
use crate::params::{GemmParams, GemmPart, SortParams};
use crate::product::{Ending, EndingCode, GATED, Outputs, Piece, Place, filled, pieces, width};
use crate::weights::{WeightType, kernel_names};

const KERNELS: [&str; 16] = kernel_names!("gemm_", "");
/// For up to [`FEW_TOKENS`] tokens in each tile, and with a gate beside each output.
const KERNELS_FEW: [&str; 16] = kernel_names!("gemm_", "_64");
const KERNELS_PAIRS: [&str; 16] = kernel_names!("gemm_", "_pairs");

/// Outputs and tokens of a block of the kernels.
const OUTPUTS: usize = 128;
const TOKENS: usize = 256;
const FEW_TOKENS: usize = 64;
/// Columns of a group, in which K is walked along.
const GROUP_COLS: usize = 128;
/// Bytes that a token has in a stage of a block's ring, what aligns the ring, and the most stages that are of use.
const TOKEN_BYTES: usize = 128;
const RING_ALIGNMENT: usize = 1024;
const MOST_STAGES: usize = 6;
const MOST_STAGES_FEW: usize = 12;
/// Shared memory that a block has beside the ring.
const OWN_BYTES: usize = 4 << 10;
/// The most blocks of a cluster on every device that has clusters.
const MOST_SPLITS: usize = 8;
/// Weights with so many tiles of outputs are always cut along K, into parts of so many groups, as long as prompts of two tiles then
/// keep a large device busy.
const FEW_TILES: usize = 16;
const SHAPE_GROUPS: usize = 6;
const SHAPE_SPLITS: usize = 4;
const SHAPE_TILES: usize = 66;

/// Shared memory that sorting may take for its counts, in words.
const SORT_WORDS: usize = (48 << 10) / 4;

/// Words of a tile: expert, first place in the order of slots, how many slots.
const TILE_WORDS: usize = 3;

/// What a product of packed rows depends on, beside which of them meet which weights.
fn params(
    out: &Buf<f32>,
    place: Place,
    x: &Packed,
    outputs: &[Outputs<'_>],
    experts: usize,
    ending: Ending,
) -> GemmParams {
    let first = outputs.first().expect("a product has weights").weight;
    let parts = pieces(outputs, experts, ending).map(|piece| {
        let Piece { outputs: Outputs { weight, bias }, rows, start } = piece;
        assert!(weight.kind() == first.kind() && x.suits(weight), "x was packed for other weights");
        GemmPart {
            weight: weight.planes(),
            largest: weight.largest(),
            bias: bias.map_or(0, Buf::address),
            rows: rows.len() as i32,
            first_row: rows.start as i32,
            matrix_rows: (weight.rows() / experts) as i32,
            start: start as i32,
        }
    });
    let (count, parts) = filled(parts);
    let EndingCode { ending, activation, limit, alpha } = ending.code();
    let (tokens16, scales) = x.addresses();
    GemmParams {
        parts,
        tokens16,
        scales,
        out: out.address() + 4 * place.start as u64,
        tiles: 0,
        order: 0,
        n_parts: count as i32,
        cols: first.cols() as i32,
        chunks: first.chunks() as i32,
        tokens: 0,
        places: x.places as i32,
        out_stride: place.stride as i32,
        ending,
        activation,
        stages: 0,
        tile_tokens: TOKENS as i32,
        splits: 1,
        limit,
        alpha,
        unused: 0,
    }
}

/// Tiles of outputs.
fn output_tiles(params: &GemmParams) -> usize {
    let parts = &params.parts[..params.n_parts as usize];
    match params.ending {
        GATED => (parts[0].rows as usize).div_ceil(OUTPUTS / 2),
        _ => parts.iter().map(|part| (part.rows as usize).div_ceil(OUTPUTS)).sum(),
    }
}

/// Launches for `tiles` tiles of at most `most` tokens.
fn launch(
    gpu: &Gpu,
    kind: WeightType,
    tiles: usize,
    most: usize,
    params: &mut GemmParams,
) -> Result<(), CudaError> {
    let few = most <= FEW_TOKENS;
    let (kernels, tokens, stages) = match few {
        true if params.ending == GATED => (&KERNELS_PAIRS, FEW_TOKENS, MOST_STAGES_FEW),
        true => (&KERNELS_FEW, FEW_TOKENS, MOST_STAGES_FEW),
        false => (&KERNELS, TOKENS, MOST_STAGES),
    };
    assert!(few || params.ending != GATED, "gates are for tiles of few tokens");
    let ring = gpu.info().shared_bytes - RING_ALIGNMENT - OWN_BYTES;
    let stages = (ring / (tokens * TOKEN_BYTES)).min(stages);
    params.stages = stages as i32;
    let shared = stages * tokens * TOKEN_BYTES + RING_ALIGNMENT;
    let grid = [output_tiles(params), tiles, params.splits as usize];
    gpu.launch_split(kernels[kind as usize], grid, 256, shared, params)
}

/// How many tokens a block should take of `tokens` that meet the same weights, of which there are so many tiles of outputs.
fn tile_tokens(gpu: &Gpu, tiles: usize, tokens: usize, ending: Ending, sums: Sums) -> usize {
    if matches!(ending, Ending::Gated(_)) {
        return FEW_TOKENS;
    }
    // What a block takes for so many tokens, measured, and how many share a multiprocessor: with few, it waits for weights.
    const COSTS: [(usize, usize, usize); 3] =
        [(TOKENS, 8, 1), (TOKENS / 2, 6, 1), (FEW_TOKENS, 5, 2)];
    let multiprocessors = gpu.info().multiprocessors as usize;
    let cost = |(tile, cost, at_once): &(usize, usize, usize)| {
        (tiles * tokens.div_ceil(*tile)).div_ceil(multiprocessors * at_once) * cost
    };
    // Many tokens are prompts, whose products are waited for: two blocks beside each other take longer than one.
    let costs = if sums == Sums::Parts { &COSTS[..] } else { &COSTS[..2] };
    costs.iter().min_by_key(|entry| cost(entry)).map_or(TOKENS, |(tile, ..)| *tile)
}

/// In how many parts K should be cut, so that all multiprocessors have something to do.
fn splits(gpu: &Gpu, blocks: usize, cols: usize) -> usize {
    if gpu.info().capability < (9, 0) {
        return 1;
    }
    let groups = cols.div_ceil(GROUP_COLS);
    let room = 2 * gpu.info().multiprocessors as usize;
    // Fewer groups than four take a block less time than to begin.
    let most = (room / blocks.max(1)).min(groups / 4).clamp(1, MOST_SPLITS);
    even(groups, most)
}

/// The number of parts, up to `most`, that so many groups are cut into, none of which is empty.
fn even(groups: usize, most: usize) -> usize {
    groups.div_ceil(groups.div_ceil(most))
}

/// In how many parts K is cut for weights of so many outputs and columns, whatever the rows: of few outputs there are few tiles, and
/// most multiprocessors would wait.
fn splits_of_shape(gpu: &Gpu, outputs: usize, cols: usize) -> usize {
    let (tiles, groups) = (outputs.div_ceil(OUTPUTS), cols.div_ceil(GROUP_COLS));
    if gpu.info().capability < (9, 0) || tiles > FEW_TILES {
        return 1;
    }
    let most = (SHAPE_TILES / tiles.max(1)).min(groups / SHAPE_GROUPS);
    even(groups, most.clamp(1, SHAPE_SPLITS))
}

/// Whether it is worth while that [`gemm`] ends in gates for so many rows, which it takes few at a time then.
pub fn can_gate(rows: usize) -> bool {
    rows <= 2 * FEW_TOKENS
}

/// Whether and how products of many rows may be cut along K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// In as many parts as the shape of the weights says: a row has the same bits whatever is beside it.
    OfShape,
    /// In as many parts as keep the device busy, which are summed in order: a row's bits depend on how many there are.
    Parts,
}

/// `ending(x * weights.transposed() + biases)` for the rows that [`Packed::rows`] packed; the weights are of one type, their outputs
/// one after another.
///
/// # Errors
/// When the driver fails.
pub fn gemm(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    x: &Packed,
    outputs: &[Outputs<'_>],
    ending: Ending,
    sums: Sums,
) -> Result<(), CudaError> {
    let (first, end) = x.rows;
    place.check(out, end, width(outputs, 1, ending));
    let tokens = end.saturating_sub(first);
    let mut params = params(out, place, x, outputs, 1, ending);
    params.out += (4 * first * place.stride) as u64;
    params.tokens = tokens as i32;
    // As many whether gates and ups are ended together or not.
    let all = outputs.iter().map(|one| one.weight.rows()).sum();
    let (output_tiles, cols) = (output_tiles(&params), params.cols as usize);
    let of_shape = splits_of_shape(gpu, all, cols);
    let tile = tile_tokens(gpu, of_shape * output_tiles, tokens, ending, sums);
    params.tile_tokens = tile as i32;
    let (tiles, most) = (tokens.div_ceil(tile), tokens.min(tile));
    params.splits = match sums {
        Sums::Parts if most <= FEW_TOKENS => splits(gpu, output_tiles * tiles, cols),
        Sums::OfShape | Sums::Parts => of_shape,
    } as i32;
    launch(gpu, outputs[0].weight.kind(), tiles, most, &mut params)
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
fn max_tiles(slots: usize, experts: usize, tile: usize) -> usize {
    // All tiles of an expert but one are full.
    slots.min(slots / tile + experts)
}

/// Slots of a tile at most, where `rows` rows choose. Few of an expert leave room for two blocks on a multiprocessor.
fn tile_slots(rows: usize, routing: &Routing) -> usize {
    match rows * routing.top_k <= FEW_TOKENS * 3 / 4 * routing.experts || rows <= FEW_TOKENS {
        true => FEW_TOKENS,
        false => TOKENS,
    }
}

/// Whether [`gemm_sorted`] can end in gates for so many rows.
pub fn can_gate_sorted(rows: usize, routing: Routing) -> bool {
    tile_slots(rows, &routing) == FEW_TOKENS
}

/// Places that the slots of up to `rows` rows take, for [`crate::PackedRoom`].
pub fn sorted_places(routing: &Routing, rows: usize) -> usize {
    places(rows * routing.top_k, routing.experts)
}

/// Words that [`sort_slots`] writes for up to `rows` rows.
pub fn sorted_words(routing: &Routing, rows: usize) -> usize {
    let slots = rows * routing.top_k;
    places(slots, routing.experts) + TILE_WORDS * max_tiles(slots, routing.experts, FEW_TOKENS)
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
    let tile_slots = tile_slots(end.saturating_sub(first), &routing);
    let places = places(count, routing.experts);
    let max_tiles = max_tiles(count, routing.experts, tile_slots);
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
        tile_slots: tile_slots as i32,
    };
    // As many warps as have room for counts of their own.
    let warps = (SORT_WORDS / routing.experts.max(1)).saturating_sub(1).clamp(1, 32);
    let shared = 4 * (warps + 1) * routing.experts;
    gpu.launch_early("sort_slots", [1, 1, 1], 32 * warps as u32, shared, &params)
}

/// `out[slot] = ending(x[row of the slot] * weights[expert of the slot].transposed() + biases[expert])` for the sorted slots, of
/// which [`Packed::slots`] packed the rows; the weights are of one type, their outputs one after another. An ending in gates is for
/// where [`can_gate_sorted`] says so.
///
/// # Errors
/// When the driver fails.
pub fn gemm_sorted(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    x: &Packed,
    outputs: &[Outputs<'_>],
    ending: Ending,
    sorted: Sorted<'_>,
) -> Result<(), CudaError> {
    let Sorted { words, rows: (first, end), top_k, experts } = sorted;
    assert!(x.rows == sorted.rows && x.places == sorted.places(), "other rows were packed");
    let routing = Routing { experts, top_k, softmax_before: false, renormalize: false };
    let tile = tile_slots(end.saturating_sub(first), &routing);
    let tiles = max_tiles(sorted.slots(), experts, tile);
    assert!(x.places + TILE_WORDS * tiles <= words.len(), "too few words");
    place.check(out, end * top_k, width(outputs, experts, ending));
    let mut params = params(out, place, x, outputs, experts, ending);
    params.order = words.address();
    params.tiles = words.address() + 4 * x.places as u64;
    launch(gpu, outputs[0].weight.kind(), tiles, tile, &mut params)
}
