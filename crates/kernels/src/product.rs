//! Products of rows of activations with a matrix of weights.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::moe::{GROUP_SIZE, GROUP_WORDS, max_groups};
use crate::params::ProductParams;
use crate::weights::{Matrix, kernel_names};

/// Outputs of a block of the kernels, divided by the rows of a warp.
const WARPS: usize = 8;

/// The kernels by how many tokens and how many rows a warp takes at once.
const ONE_TOKEN_ONE_ROW: [&str; 16] = kernel_names!("matvec_", "_1_1");
const ONE_TOKEN: [&str; 16] = kernel_names!("matvec_", "_1_4");
const FOUR_TOKENS: [&str; 16] = kernel_names!("matvec_", "_4_2");
const EIGHT_TOKENS: [&str; 16] = kernel_names!("matvec_", "_8_2");

/// The kernel for `tokens` tokens that meet the same `outputs` rows of weights, with its tokens and its rows for each warp. An
/// output has the same bits from each.
fn kernel(
    gpu: &Gpu,
    weight: &Matrix,
    outputs: usize,
    tokens: usize,
) -> (&'static str, usize, usize) {
    let kind = weight.kind() as usize;
    // Few rows are spread over more warps, or multiprocessors would have nothing to do.
    let few = 2 * gpu.info().multiprocessors as usize * WARPS * 4;
    match tokens {
        0 | 1 if outputs < few => (ONE_TOKEN_ONE_ROW[kind], 1, 1),
        0 | 1 => (ONE_TOKEN[kind], 1, 4),
        2..=4 => (FOUR_TOKENS[kind], 4, 2),
        _ => (EIGHT_TOKENS[kind], 8, 2),
    }
}

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

fn params(
    out: &Buf<f32>,
    place: Place,
    x: &Buf<f32>,
    weight: &Matrix,
    bias: Option<&Buf<f32>>,
) -> ProductParams {
    assert!(bias.is_none_or(|bias| bias.len() >= weight.rows()), "the bias is too short");
    ProductParams {
        weight: weight.planes(),
        x: x.address(),
        bias: bias.map_or(0, Buf::address),
        out: out.address() + 4 * place.start as u64,
        groups: 0,
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
    place.check(out, tokens, weight.rows());
    assert!(tokens * weight.cols() <= x.len(), "x is too short");
    let (kernel, at_once, rows) = kernel(gpu, weight, weight.rows(), tokens);
    let mut params = params(out, place, x, weight, bias);
    params.tokens = tokens as i32;
    params.accumulate = accumulate.into();
    let grid = [weight.rows().div_ceil(WARPS * rows), tokens.div_ceil(at_once), 1];
    gpu.launch(kernel, grid, 32 * WARPS as u32, 0, &params)
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

/// Slots of a group where there are `rows` rows: no row chooses an expert twice.
pub(crate) fn group_size(rows: usize) -> usize {
    match rows {
        0 | 1 => 1,
        2..=4 => 4,
        _ => GROUP_SIZE,
    }
}

/// `out[slot] = x[row of the slot] * weight[expert of the slot].transposed() + bias[expert]`. `x` is (rows, weight columns), or
/// (slots, weight columns) with `by_slot`.
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
    let Grouped { groups, rows, top_k, experts } = grouped;
    assert!(weight.rows().is_multiple_of(experts), "{} rows of {experts}", weight.rows());
    let (slots, outputs) = (rows * top_k, weight.rows() / experts);
    let size = group_size(rows);
    let count = max_groups(slots, experts, size);
    assert!(count * GROUP_WORDS <= groups.len(), "too few groups");
    place.check(out, slots, outputs);
    let x_rows = if by_slot { slots } else { rows };
    assert!(x_rows * weight.cols() <= x.len(), "x is too short");
    let (kernel, at_once, warp_rows) = kernel(gpu, weight, outputs, size);
    assert_eq!(at_once, size, "a group is what a kernel takes at once");
    let mut params = params(out, place, x, weight, bias);
    params.rows = outputs as i32;
    params.groups = groups.address();
    params.slots_per_row = if by_slot { 1 } else { top_k as i32 };
    let grid = [outputs.div_ceil(WARPS * warp_rows), count, 1];
    gpu.launch(kernel, grid, 32 * WARPS as u32, 0, &params)
}
