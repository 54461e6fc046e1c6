//! Products of a few rows of activations with matrices of weights, and what is computed before and after them on the way.

use crate::activate::{Activation, Gated};
use crate::driver::Gpu;
use crate::error::CudaError;

use crate::memory::Buf;
use crate::moe::{
    GROUP_SIZE, GROUP_WORDS, RoutesOut, Routing, group_params, max_groups, route_params,
};
use crate::norm::Norm;
use crate::params::{Part, ProductParams, RouterParams};
use crate::ring;
use crate::weights::{Matrix, WeightType, kernel_names};

const THREADS: u32 = 512;
/// The most matrices of one launch.
const MOST_PARTS: usize = 3;
/// The most experts whose products are summed by one launch.
const MOST_CHOICES: usize = 8;
/// Shared memory that a block may have beyond what the kernels have for themselves.
const SHARED_BYTES: usize = (227 << 10) - (18 << 10);

/// The kernels for one row and for up to eight, without and with a gate beside each output. An output has the same bits from
/// each.
const ONE: [&str; 16] = kernel_names!("matvec_", "_1_1");
const ONE_GATED: [&str; 16] = kernel_names!("matvec_", "_1_2");
const EIGHT: [&str; 16] = kernel_names!("matvec_", "_8_1");
const EIGHT_GATED: [&str; 16] = kernel_names!("matvec_", "_8_2");

/// Where the outputs of a product go: row `r` to `stride * r + start` and what follows.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Elements before the first output of a row.
    pub start: usize,
    /// Elements from row to row.
    pub stride: usize,
}

impl Place {
    pub(crate) fn check(&self, out: &Buf<f32>, rows: usize, outputs: usize) {
        assert!(self.start + outputs <= self.stride, "outputs do not fit into a row");
        assert!(rows * self.stride <= out.len(), "out is too short");
    }
}

/// Which slots meet which expert, as [`crate::group_slots`] wrote it.
#[derive(Clone, Copy)]
pub struct Grouped<'a> {
    /// The groups.
    pub groups: &'a Buf<i32>,
    /// Rows.
    pub rows: usize,
    /// Experts of one row: there are `rows * top_k` slots.
    pub top_k: usize,
    /// Experts in all, whose weights lie one after another.
    pub experts: usize,
}

/// The experts that a row goes to, and their shares in its sum, as [`crate::route`] wrote them.
#[derive(Clone, Copy)]
pub struct Choices<'a> {
    /// Of each slot.
    pub experts: &'a Buf<i32>,
    /// Of each slot.
    pub shares: &'a Buf<f32>,
    /// Slots.
    pub top_k: usize,
    /// Experts in all, whose weights lie one after another.
    pub experts_in_all: usize,
}

/// The weights that outputs are made with.
#[derive(Clone, Copy)]
pub struct Outputs<'a> {
    /// (outputs, width of x), of all experts one after another.
    pub weight: &'a Matrix,
    /// Of each output.
    pub bias: Option<&'a Buf<f32>>,
}

/// What becomes of `v = weight * x + bias`.
#[derive(Clone, Copy)]
pub enum Ending {
    /// `out = v`
    Store,
    /// `out += v`
    Add,
    /// `out = activation(v)`
    Activate(Activation),
    /// `out = gated(gate, up)`, of which one matrix has the rows of both, or two have one each.
    Gated(Gated),
}

/// What a product reads.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// (rows, columns of the weights)
    pub x: &'a Buf<f32>,
    /// The row of `x` for each token, where it is another.
    pub x_rows: Option<&'a Buf<u32>>,
    /// Applied to `x` first.
    pub norm: Option<Norm<'a>>,
}

impl<'a> Inputs<'a> {
    /// Rows as they are.
    pub fn plain(x: &'a Buf<f32>) -> Self {
        Inputs { x, x_rows: None, norm: None }
    }
}

/// As `cuda/matvec.cuh` numbers them.
const STORE: i32 = 0;
const ADD: i32 = 1;
const ACTIVATE: i32 = 2;
pub(crate) const GATED: i32 = 3;
const COMBINE: i32 = 4;

/// As `cuda/activation.cuh` numbers it.
const CLAMPED_SWIGLU: i32 = 6;

/// Whether [`product_combined`] takes weights like `weight` of `experts` experts, `choices` of which are combined.
pub fn can_combine(gpu: &Gpu, weight: &Matrix, choices: usize, experts: usize) -> bool {
    choices <= MOST_CHOICES
        && if ring::takes(gpu, weight, experts) {
            ring::ring_for(weight, false, choices, true).is_some()
        } else {
            shared_bytes(weight, choices, true) <= SHARED_BYTES
        }
}

/// Rows of a matrix (of each of its experts) that become outputs.
pub(crate) struct Piece<'a> {
    pub outputs: Outputs<'a>,
    pub rows: std::ops::Range<usize>,
    /// Where the outputs begin in a row of out.
    pub start: usize,
}

/// Matrices one after another, or a gate and an up beside each other, from one matrix or two.
pub(crate) fn pieces<'a>(
    outputs: &[Outputs<'a>],
    experts: usize,
    ending: Ending,
) -> impl Iterator<Item = Piece<'a>> {
    let rows = |outputs: &Outputs<'_>| {
        let Outputs { weight, bias } = *outputs;
        assert!(weight.rows().is_multiple_of(experts), "{} rows of {experts}", weight.rows());
        assert!(bias.is_none_or(|bias| bias.len() >= weight.rows()), "the bias is too short");
        weight.rows() / experts
    };
    let piece = |outputs: &Outputs<'a>, rows, start| Piece { outputs: *outputs, rows, start };
    let pieces = match (ending, outputs) {
        (Ending::Gated(_), [one]) => {
            let half = rows(one) / 2;
            vec![piece(one, 0..half, 0), piece(one, half..2 * half, 0)]
        }
        (Ending::Gated(_), [gate, up]) => {
            assert_eq!(rows(gate), rows(up), "as many gates as ups");
            vec![piece(gate, 0..rows(gate), 0), piece(up, 0..rows(up), 0)]
        }
        (Ending::Gated(_), _) => panic!("a gate and an up are in one matrix or two"),
        _ => {
            let mut start = 0;
            let after_another = outputs.iter().map(|one| {
                start += rows(one);
                piece(one, 0..rows(one), start - rows(one))
            });
            after_another.collect()
        }
    };
    pieces.into_iter()
}

/// The parts of a launch, with the first in unused places, and how many there are.
pub(crate) fn filled<T: Copy>(parts: impl Iterator<Item = T>) -> (usize, [T; MOST_PARTS]) {
    let parts: Vec<T> = parts.collect();
    assert!((1..=MOST_PARTS).contains(&parts.len()), "{} matrices", parts.len());
    (parts.len(), std::array::from_fn(|i| *parts.get(i).unwrap_or(&parts[0])))
}

/// An ending as the kernels take it.
pub(crate) struct EndingCode {
    pub ending: i32,
    pub activation: i32,
    pub limit: f32,
    pub alpha: f32,
}

impl Ending {
    pub(crate) fn code(self) -> EndingCode {
        let plain = |ending, activation| EndingCode { ending, activation, limit: 0.0, alpha: 0.0 };
        match self {
            Ending::Store => plain(STORE, 0),
            Ending::Add => plain(ADD, 0),
            Ending::Activate(activation) => plain(ACTIVATE, activation as i32),
            Ending::Gated(Gated::Plain(activation)) => plain(GATED, activation as i32),
            Ending::Gated(Gated::ClampedSwiglu { limit, alpha }) => {
                EndingCode { ending: GATED, activation: CLAMPED_SWIGLU, limit, alpha }
            }
        }
    }
}

/// Parameters that are ready but for what the kind of product adds.
fn params(
    out: &Buf<f32>,
    place: Place,
    inputs: Inputs<'_>,
    outputs: &[Outputs<'_>],
    experts: usize,
    ending: Ending,
) -> ProductParams {
    let first = outputs.first().expect("a product has weights");
    let cols = first.weight.cols();
    let parts = pieces(outputs, experts, ending).map(|piece| {
        let Piece { outputs: Outputs { weight, bias }, rows, start } = piece;
        assert!(weight.kind() == first.weight.kind() && weight.cols() == cols, "weights differ");
        Part {
            weight: weight.planes(),
            bias: bias.map_or(0, Buf::address),
            rows: rows.len() as i32,
            first_row: rows.start as i32,
            matrix_rows: (weight.rows() / experts) as i32,
            start: start as i32,
        }
    });
    let (count, parts) = filled(parts);
    let EndingCode { ending, activation, limit, alpha } = ending.code();
    let norm = inputs.norm;
    assert!(norm.is_none_or(|norm| norm.weight.len() >= cols), "the norm is too short");
    let norm_bias = norm.and_then(|norm| norm.bias);
    assert!(norm_bias.is_none_or(|bias| bias.len() >= cols), "the norm's bias is too short");
    ProductParams {
        parts,
        x: inputs.x.address(),
        x_rows: inputs.x_rows.map_or(0, Buf::address),
        norm_weight: norm.map_or(0, |norm| norm.weight.address()),
        norm_bias: norm_bias.map_or(0, Buf::address),
        groups: 0,
        experts: 0,
        shares: 0,
        out: out.address() + 4 * place.start as u64,
        n_parts: count as i32,
        cols: cols as i32,
        chunks: first.weight.chunks() as i32,
        tokens: 1,
        at_once: 1,
        x_stride: cols as i32,
        out_stride: place.stride as i32,
        slots_per_row: 1,
        ending,
        activation,
        choices: 1,
        centered: norm.is_some_and(|norm| norm.centered).into(),
        eps: norm.map_or(0.0, |norm| norm.eps),
        limit,
        alpha,
        stages: 0,
        piece: 0,
        n_groups: 0,
    }
}

/// Outputs of one row.
pub(crate) fn width(outputs: &[Outputs<'_>], experts: usize, ending: Ending) -> usize {
    let all: usize = outputs.iter().map(|outputs| outputs.weight.rows() / experts).sum();
    if matches!(ending, Ending::Gated(_)) { all / 2 } else { all }
}

/// Lanes that share a row of weights, and rows of a tile.
fn tile(weight: &Matrix) -> (usize, usize) {
    match weight.kind() {
        WeightType::F32 | WeightType::BF16 => (32, 1),
        _ => (4, 8),
    }
}

/// Bytes of a lane's chunk on its way, `BYTES` of `Operand<TYPE>`.
fn lane_bytes(weight: &Matrix) -> usize {
    match weight.kind() {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 | WeightType::Q2_K => 16,
        WeightType::Q8_0 | WeightType::Q4_0 | WeightType::Q4_1 => 20,
        WeightType::IQ4_NL | WeightType::MXFP4 => 20,
        WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q3_K | WeightType::IQ4_XS => 24,
        WeightType::Q4_K | WeightType::Q6_K => 32,
        WeightType::Q5_K => 36,
    }
}

/// Shared memory that a launch asks for: rings of weights, and `rows` rows of x with a scale for each chunk.
fn shared_bytes(weight: &Matrix, rows: usize, one: bool) -> usize {
    // A gate and an up are two rows of half as many steps.
    let stages = if one { 6 } else { 4 };
    let ring = THREADS as usize * stages * lane_bytes(weight);
    let chunks = weight.chunks().next_multiple_of(tile(weight).0);
    ring + rows * chunks * (4 * weight.chunk_values() + 4)
}

/// Whether `rows` rows of x fit into the shared memory of a launch.
fn fits(gpu: &Gpu, weight: &Matrix, params: &ProductParams, experts: usize, rows: usize) -> bool {
    if ring::takes(gpu, weight, experts) {
        ring::ring_for(weight, params.ending == GATED, rows, false).is_some()
    } else {
        shared_bytes(weight, rows, rows == 1) <= SHARED_BYTES
    }
}

/// Launches with `blocks` groups, or runs of tokens, whose rows of x are at most `rows` at once.
fn launch(
    gpu: &Gpu,
    weight: &Matrix,
    params: &mut ProductParams,
    experts: usize,
    blocks: usize,
    rows: usize,
) -> Result<(), CudaError> {
    let parts = &params.parts[..params.n_parts as usize];
    let outputs: usize = parts.iter().map(|part| part.rows as usize).sum();
    let matrices = if params.groups != 0 { blocks } else { params.choices as usize };
    gpu.reads(weight.kind().matrix_bytes(outputs * matrices, weight.cols()));
    if ring::takes(gpu, weight, experts) {
        return launch_ring(gpu, weight, params, blocks, rows);
    }
    let (one, gated) = (params.at_once == 1, params.ending == GATED);
    let kernel = match (one, gated) {
        (true, false) => ONE,
        (true, true) => ONE_GATED,
        (false, false) => EIGHT,
        (false, true) => EIGHT_GATED,
    }[weight.kind() as usize];
    let tiles = tiles(params, tile(weight).1);
    // One block for each multiprocessor leaves room for the first blocks of what comes next, whose weights are then already
    // on their way.
    let share = multiprocessors(gpu).div_ceil(blocks.max(1));
    // Groups may be fewer than there is room for.
    let share = if params.groups != 0 && !one { share.max(BLOCKS_OF_A_GROUP) } else { share };
    let grid = [tiles.min(share), blocks, 1];
    gpu.launch_early(kernel, grid, THREADS, shared_bytes(weight, rows, one), params)
}

/// As [`launch`], by way of a ring in shared memory.
fn launch_ring(
    gpu: &Gpu,
    weight: &Matrix,
    params: &mut ProductParams,
    blocks: usize,
    rows: usize,
) -> Result<(), CudaError> {
    let (one, gated, combined) =
        (params.at_once == 1, params.ending == GATED, params.ending == COMBINE);
    let kernel = ring::kernel(weight.kind(), one, gated, combined);
    let ring = ring::ring_for(weight, gated, rows, combined);
    let ring = ring.unwrap_or_else(|| panic!("rows of {} elements", weight.cols()));
    params.stages = ring.stages as i32;
    params.piece = ring.piece as i32;
    let tiles = tiles(params, ring::TILE_ROWS);
    let launch = |grid, params: &ProductParams| {
        gpu.launch_early(kernel, grid, ring::THREADS, ring.shared, params)
    };
    if params.groups == 0 || one {
        // A block more than there are multiprocessors would wait until one of the others has ended.
        let share = (multiprocessors(gpu) / blocks.max(1)).max(1);
        return launch([tiles.min(share), blocks, 1], params);
    }
    for first in (0..blocks).step_by(ring::MOST_GROUPS) {
        let groups = ring::MOST_GROUPS.min(blocks - first);
        let mut params = *params;
        params.groups += (first * GROUP_WORDS * size_of::<i32>()) as u64;
        params.n_groups = groups as i32;
        launch([multiprocessors(gpu).min(groups * tiles), 1, 1], &params)?;
    }
    Ok(())
}

fn multiprocessors(gpu: &Gpu) -> usize {
    gpu.info().multiprocessors as usize
}

/// Tiles of `tile` outputs, or of as many gates and their ups.
fn tiles(params: &ProductParams, tile: usize) -> usize {
    let parts = &params.parts[..if params.ending == GATED { 1 } else { params.n_parts as usize }];
    parts.iter().map(|part| (part.rows as usize).div_ceil(tile)).sum()
}

/// Blocks that share the tiles of a group, where it is not known how many groups there are.
const BLOCKS_OF_A_GROUP: usize = 33;

/// `ending(norm(x) * weights.transposed() + biases)` for `tokens` rows. The weights are of one type, their outputs one after
/// another.
///
/// # Errors
/// When the driver fails.
pub fn product_of(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    inputs: Inputs<'_>,
    outputs: &[Outputs<'_>],
    ending: Ending,
    tokens: usize,
) -> Result<(), CudaError> {
    place.check(out, tokens, width(outputs, 1, ending));
    let weight = outputs[0].weight;
    match inputs.x_rows {
        None => assert!(tokens * weight.cols() <= inputs.x.len(), "x is too short"),
        Some(rows) => assert!(tokens <= rows.len(), "too few rows are named"),
    }
    let mut params = params(out, place, inputs, outputs, 1, ending);
    let most = tokens.clamp(1, 8).next_power_of_two();
    let fits = |rows: &usize| *rows <= most && fits(gpu, weight, &params, 1, *rows);
    let at_once = [8, 4, 2, 1].into_iter().find(fits);
    let at_once = at_once.unwrap_or_else(|| panic!("rows of {} elements", weight.cols()));
    params.tokens = tokens as i32;
    params.at_once = at_once as i32;
    launch(gpu, weight, &mut params, 1, tokens.div_ceil(at_once), at_once)
}

/// `out = x * weight.transposed() + bias`, or added to `out`. `x` is (tokens, weight columns).
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn product(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    x: &Buf<f32>,
    weight: &Matrix,
    bias: Option<&Buf<f32>>,
    tokens: usize,
    accumulate: bool,
) -> Result<(), CudaError> {
    let ending = if accumulate { Ending::Add } else { Ending::Store };
    product_of(gpu, out, place, Inputs::plain(x), &[Outputs { weight, bias }], ending, tokens)
}

/// Slots of a group where there are `rows` rows: no row chooses an expert twice.
pub(crate) fn group_size(rows: usize) -> usize {
    match rows {
        0 | 1 => 1,
        2..=4 => 4,
        _ => GROUP_SIZE,
    }
}

/// `out[slot] = ending(x[row of the slot] * weights[expert of the slot].transposed() + biases[expert])`, with a norm before it
/// if there is one. `x` is (rows, weight columns), or (slots, weight columns) with `by_slot`.
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn product_grouped_of(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    inputs: Inputs<'_>,
    outputs: &[Outputs<'_>],
    ending: Ending,
    grouped: Grouped<'_>,
    by_slot: bool,
) -> Result<(), CudaError> {
    let Grouped { groups, rows, top_k, experts } = grouped;
    let (slots, weight) = (rows * top_k, outputs[0].weight);
    let size = group_size(rows);
    let count = max_groups(slots, experts, size);
    assert!(count * GROUP_WORDS <= groups.len(), "too few groups");
    place.check(out, slots, width(outputs, experts, ending));
    let x_rows = if by_slot { slots } else { rows };
    assert!(x_rows * weight.cols() <= inputs.x.len() && inputs.x_rows.is_none(), "x is too short");
    let mut params = params(out, place, inputs, outputs, experts, ending);
    assert!(fits(gpu, weight, &params, experts, size), "rows of {} elements", weight.cols());
    params.groups = groups.address();
    params.at_once = size as i32;
    params.slots_per_row = if by_slot { 1 } else { top_k as i32 };
    launch(gpu, weight, &mut params, experts, count, size)
}

/// `out[slot] = x[row of the slot] * weight[expert of the slot].transposed() + bias[expert]`.
///
/// # Errors
/// When the driver fails.
#[allow(clippy::too_many_arguments, reason = "they are the kernel's")]
pub fn product_grouped(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    place: Place,
    x: &Buf<f32>,
    weight: &Matrix,
    bias: Option<&Buf<f32>>,
    grouped: Grouped<'_>,
    by_slot: bool,
) -> Result<(), CudaError> {
    let (inputs, outputs) = (Inputs::plain(x), [Outputs { weight, bias }]);
    product_grouped_of(gpu, out, place, inputs, &outputs, Ending::Store, grouped, by_slot)
}

/// `out += sum over k of shares[k] * (x[k] * weight[experts[k]].transposed() + bias[experts[k]])` for one row, whose slots are
/// the rows of `x`.
///
/// # Errors
/// When the driver fails.
pub fn product_combined(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    x: &Buf<f32>,
    outputs: Outputs<'_>,
    choices: Choices<'_>,
) -> Result<(), CudaError> {
    let Choices { experts, shares, top_k, experts_in_all } = choices;
    let weight = outputs.weight;
    assert!(can_combine(gpu, weight, top_k, experts_in_all), "{top_k} rows of {}", weight.cols());
    assert!(top_k <= experts.len() && top_k <= shares.len());
    assert!(top_k * weight.cols() <= x.len(), "x is too short");
    let place = Place { start: 0, stride: weight.rows() / experts_in_all };
    place.check(out, 1, place.stride);
    let inputs = Inputs::plain(x);
    let mut params = params(out, place, inputs, &[outputs], experts_in_all, Ending::Add);
    params.ending = COMBINE;
    params.experts = experts.address();
    params.shares = shares.address();
    params.choices = top_k as i32;
    launch(gpu, weight, &mut params, experts_in_all, 1, top_k)
}

/// The kernels that choose experts in the launch that computes their logits, for one row and for up to eight.
fn router_kernel(weight: &Matrix, one: bool) -> Option<&'static str> {
    let [of_one, of_eight] = match weight.kind() {
        WeightType::F32 => ["router_f32_1", "router_f32_8"],
        WeightType::F16 => ["router_f16_1", "router_f16_8"],
        WeightType::BF16 => ["router_bf16_1", "router_bf16_8"],
        _ => return None,
    };
    Some(if one { of_one } else { of_eight })
}

/// Whether [`router`] takes `rows` rows and this matrix.
pub fn can_route(gpu: &Gpu, router: &Matrix, rows: usize, routing: &Routing) -> bool {
    let shared = shared_bytes(router, rows.next_power_of_two(), rows == 1);
    (1..=8).contains(&rows)
        && !ring::takes(gpu, router, 1)
        && router_kernel(router, rows == 1).is_some()
        && shared <= SHARED_BYTES
        && 4 * (rows * routing.experts + 1) <= shared
}

/// Logits of all experts for `rows` rows, as [`product_of`] computes them, then [`crate::route`] and [`crate::group_slots`], in
/// one launch. `arrived` holds a zero before and after it.
///
/// # Errors
/// When the driver fails.
pub fn router(
    gpu: &Gpu,
    logits: &mut Buf<f32>,
    inputs: Inputs<'_>,
    outputs: Outputs<'_>,
    routes: RoutesOut<'_>,
    rows: usize,
    routing: Routing,
) -> Result<(), CudaError> {
    let weight = outputs.weight;
    assert!(can_route(gpu, weight, rows, &routing) && weight.rows() == routing.experts);
    assert!(rows * weight.cols() <= inputs.x.len() && inputs.x_rows.is_none(), "x is too short");
    let place = Place { start: 0, stride: routing.experts };
    place.check(logits, rows, routing.experts);
    assert!(!routes.arrived.is_empty(), "a counter");
    let route = route_params(routes.experts, routes.weights, logits, rows, routing);
    let group = group_params(routes.groups, routes.experts, rows, routing);
    let mut product = params(logits, place, inputs, &[outputs], 1, Ending::Store);
    let at_once = rows.next_power_of_two();
    product.tokens = rows as i32;
    product.at_once = at_once as i32;
    let grid =
        [weight.rows().div_ceil(tile(weight).1).min(gpu.info().multiprocessors as usize), 1, 1];
    let name = router_kernel(weight, rows == 1).expect("`can_route` knows it");
    let params = RouterParams { product, route, group, arrived: routes.arrived.address() };
    gpu.reads(weight.kind().matrix_bytes(weight.rows(), weight.cols()));
    gpu.launch_early(name, grid, THREADS, shared_bytes(weight, at_once, rows == 1), &params)
}
