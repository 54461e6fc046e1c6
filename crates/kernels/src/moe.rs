//! Mixtures of experts: the choice, the groups, the weighted sum.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::Buf;
use crate::params::{CombineParams, GroupParams, RouteParams};
use crate::product::group_size;

/// The most slots of one expert that a product takes at once.
pub(crate) const GROUP_SIZE: usize = 8;

/// Words of a group: expert, slots in it, the slots.
pub(crate) const GROUP_WORDS: usize = 2 + GROUP_SIZE;

/// How experts are chosen and weighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Experts.
    pub experts: usize,
    /// How many of them a row goes to.
    pub top_k: usize,
    /// The softmax is over all experts and comes before the choice; else it is over the chosen ones.
    pub softmax_before: bool,
    /// The weights of the chosen are made to sum to 1, which they do anyway unless `softmax_before`.
    pub renormalize: bool,
}

/// The most groups that `slots` slots can make.
pub(crate) fn max_groups(slots: usize, experts: usize, group_size: usize) -> usize {
    // All groups of an expert but one are full.
    slots.min(slots / group_size + experts)
}

/// Words that the groups of up to `rows` rows take up.
pub fn group_words(routing: &Routing, rows: usize) -> usize {
    // Groups of fewer rows hold fewer slots, so there can be more of them: each size at its most rows.
    let groups = [1, 4, rows].map(|most| {
        let rows = rows.min(most);
        max_groups(rows * routing.top_k, routing.experts, group_size(rows))
    });
    groups.into_iter().max().unwrap_or(0) * GROUP_WORDS
}

/// Chooses the `top_k` experts with the largest logits for each of `rows` rows, and their weights. `logits` is (rows,
/// experts); `experts` and `weights` are (rows, top_k).
///
/// # Errors
/// When the driver fails.
pub fn route(
    gpu: &Gpu,
    experts: &mut Buf<i32>,
    weights: &mut Buf<f32>,
    logits: &Buf<f32>,
    rows: usize,
    routing: Routing,
) -> Result<(), CudaError> {
    let params = route_params(experts, weights, logits, rows, routing);
    gpu.launch_early("route", [rows, 1, 1], 32, 4 * routing.experts, &params)
}

/// Where the choice of experts goes: see [`route`] and [`group_slots`].
pub struct RoutesOut<'a> {
    /// (rows, top_k)
    pub experts: &'a mut Buf<i32>,
    /// (rows, top_k)
    pub weights: &'a mut Buf<f32>,
    /// Groups of slots.
    pub groups: &'a mut Buf<i32>,
    /// One zero.
    pub arrived: &'a mut Buf<u32>,
}

pub(crate) fn route_params(
    experts: &Buf<i32>,
    weights: &Buf<f32>,
    logits: &Buf<f32>,
    rows: usize,
    routing: Routing,
) -> RouteParams {
    let slots = rows * routing.top_k;
    assert!(slots <= experts.len() && slots <= weights.len());
    assert!(rows * routing.experts <= logits.len());
    assert!(routing.top_k <= routing.experts && routing.experts <= 8192);
    RouteParams {
        logits: logits.address(),
        experts: experts.address(),
        weights: weights.address(),
        rows: rows as i32,
        n_experts: routing.experts as i32,
        top_k: routing.top_k as i32,
        softmax_before: routing.softmax_before.into(),
        renormalize: routing.renormalize.into(),
        unused: 0,
    }
}

/// Gathers the slots of each expert for [`crate::product_grouped`].
///
/// # Errors
/// When the driver fails.
pub fn group_slots(
    gpu: &Gpu,
    groups: &mut Buf<i32>,
    experts: &Buf<i32>,
    rows: usize,
    routing: Routing,
) -> Result<(), CudaError> {
    let params = group_params(groups, experts, rows, routing);
    gpu.launch_early("group_slots", [1, 1, 1], 256, 4 * (routing.experts + 1), &params)
}

pub(crate) fn group_params(
    groups: &Buf<i32>,
    experts: &Buf<i32>,
    rows: usize,
    routing: Routing,
) -> GroupParams {
    let slots = rows * routing.top_k;
    let group_size = group_size(rows);
    let max_groups = max_groups(slots, routing.experts, group_size);
    assert!(slots <= experts.len() && max_groups * GROUP_WORDS <= groups.len());
    GroupParams {
        experts: experts.address(),
        groups: groups.address(),
        slots: slots as i32,
        n_experts: routing.experts as i32,
        group_size: group_size as i32,
        max_groups: max_groups as i32,
    }
}

/// `out[r] += sum over k of weights[r][k] * x[r * top_k + k]` for `rows` rows of `width` elements.
///
/// # Errors
/// When the driver fails.
pub fn combine(
    gpu: &Gpu,
    out: &mut Buf<f32>,
    x: &Buf<f32>,
    weights: &Buf<f32>,
    (rows, width): (usize, usize),
    top_k: usize,
) -> Result<(), CudaError> {
    assert!(rows * top_k <= weights.len());
    assert!(rows * top_k * width <= x.len() && rows * width <= out.len());
    let params = CombineParams {
        x: x.address(),
        weights: weights.address(),
        out: out.address(),
        width: width as i32,
        top_k: top_k as i32,
    };
    gpu.launch_early("combine", [width.div_ceil(256), rows, 1], 256, 0, &params)
}
