//! One tile of queries against the keys and values of one head, on lanes.
//!
//! Keys lie transposed in their blocks, (head_dim, BLOCK_SIZE), so that the scores of a block are sums in lanes; values
//! lie by position, (BLOCK_SIZE, head_dim), so that their weighted sum is too. Every score and every element of the
//! result has an accumulator of its own that walks in one order: how many queries are computed at once, and which of
//! them see how much of a block, changes no bit.
#![allow(unsafe_code)]

use super::elementary::{exp, tanh};
use super::{Isa, Kernel, LANES, Lanes};
use crate::backend::cpu::kv::Kv;
use crate::kv::BLOCK_SIZE;
use std::array::from_fn;
use std::ops::Range;

/// Vectors that the scores of a block fill.
const SCORE_VECTORS: usize = BLOCK_SIZE / LANES;

/// Queries that see the same head of the keys and values of one sequence.
pub struct Tile<'a> {
    /// (queries, head_dim)
    pub queries: &'a [f32],
    /// For each query the positions that it sees.
    pub visible: &'a [Range<usize>],
    /// Width of a head.
    pub head_dim: usize,
    /// What a score is multiplied with.
    pub scale: f32,
    /// `cap * tanh(score / cap)` takes the place of a scaled score.
    pub soft_cap: Option<f32>,
    /// Keys and values of the layer.
    pub kv: &'a Kv,
    /// Physical block of every logical block.
    pub table: &'a [u32],
    /// Blocks of keys and values for one physical block.
    pub heads: usize,
    /// The head's place among them.
    pub head: usize,
}

/// Elements of the running softmax of one query: the weighted sum of values, padded to whole vectors, the sum of
/// weights in lanes, and the largest score in all lanes.
pub fn state_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES) + 2 * LANES
}

/// Makes a state that of no position at all.
pub fn start(state: &mut [f32]) {
    let (sums, max) = state.split_at_mut(state.len() - LANES);
    sums.fill(0.0);
    max.fill(f32::NEG_INFINITY);
}

impl Isa {
    /// The running softmax of each query over those of `positions` that it sees: (queries, [`state_len`]).
    /// Scratch is for the weights, (queries, BLOCK_SIZE), and for a block of keys and values, `Kv::scratch_len`.
    pub fn attend(
        self,
        states: &mut [f32],
        (weights, block): (&mut [f32], &mut [f32]),
        tile: &Tile<'_>,
        positions: Range<usize>,
    ) {
        let count = tile.visible.len();
        assert_eq!(tile.queries.len(), count * tile.head_dim, "a query for each range");
        assert_eq!(states.len(), count * state_len(tile.head_dim), "a state for each query");
        assert_eq!(weights.len(), count * BLOCK_SIZE, "room for the weights of a block");
        assert_eq!(block.len(), tile.kv.scratch_len(tile.head_dim), "room for a block");
        self.run(Attend { states, tile, positions, weights, block });
    }

    /// Continues the running softmax `state` with that of later positions.
    pub fn merge(self, state: &mut [f32], later: &[f32]) {
        assert_eq!(state.len(), later.len(), "two states of the same head");
        self.run(Merge { state, later });
    }

    /// The attention of a query: the weighted sum of the values divided by the sum of the weights, to which a sink adds
    /// one more score without a value.
    pub fn finish(self, out: &mut [f32], state: &[f32], sink: Option<f32>) {
        assert_eq!(state.len(), state_len(out.len()), "the state of this head");
        self.run(Finish { out, state, sink });
    }
}

struct Attend<'a> {
    states: &'a mut [f32],
    tile: &'a Tile<'a>,
    positions: Range<usize>,
    /// (queries, BLOCK_SIZE)
    weights: &'a mut [f32],
    /// Of a block of keys and values.
    block: &'a mut [f32],
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize, const COLS: usize>(self) {
        let Attend { states, tile, positions, weights, block: scratch } = self;
        let (head_dim, count) = (tile.head_dim, tile.visible.len());
        let length = state_len(head_dim);
        states.chunks_exact_mut(length).for_each(start);
        let first = tile.visible.iter().map(|visible| visible.start).min().unwrap_or(0);
        let end = tile.visible.iter().map(|visible| visible.end).max().unwrap_or(0);
        let (first, end) = (first.max(positions.start), end.min(positions.end));
        if first >= end {
            return;
        }
        let place = |block: usize| tile.table[block] as usize * tile.heads + tile.head;
        let last_block = (end - 1) / BLOCK_SIZE;
        for block in first / BLOCK_SIZE..=last_block {
            let start = block * BLOCK_SIZE;
            let (keys, values) = tile.kv.block(place(block), head_dim, scratch);
            // What this query sees of the block.
            let seen = |query: usize| {
                let visible = &tile.visible[query];
                let place = |position: usize| position.saturating_sub(start).min(BLOCK_SIZE);
                let (first, end) =
                    (visible.start.max(positions.start), visible.end.min(positions.end));
                place(first)..place(end)
            };
            // One query waits for memory, and blocks lie apart: ask for the next one.
            let next = place(last_block.min(block + 1)) * head_dim * BLOCK_SIZE;
            let prefetch = match tile.kv {
                Kv::Full { keys, values } if count == 1 => {
                    Some((keys.as_ptr().wrapping_add(next), values.as_ptr().wrapping_add(next)))
                }
                _ => None,
            };
            let mut query = 0;
            while query < count {
                let left = count - query;
                let queries = &tile.queries[query * head_dim..];
                let states = &mut states[query * length..];
                let weights = &mut weights[query * BLOCK_SIZE..];
                // SAFETY: `L` is usable. There are as many queries, states and rows of weights as each is told; keys and
                // values have their lengths.
                unsafe {
                    if left >= ROWS {
                        let seen = from_fn(|i| seen(query + i));
                        block_of_queries::<L, ROWS, COLS>(
                            tile, states, weights, queries, seen, keys, values, prefetch,
                        );
                        query += ROWS;
                    } else {
                        let seen = [seen(query)];
                        block_of_queries::<L, 1, COLS>(
                            tile, states, weights, queries, seen, keys, values, prefetch,
                        );
                        query += 1;
                    }
                }
            }
        }
    }
}

/// Goes on with the running softmax of `Q` queries by what they see of a block.
///
/// # Safety
/// `L` must be usable; there are `Q` queries, states and rows of weights, and a whole block of keys and values (with
/// [`LANES`] elements after the values).
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one step of a loop, named")]
unsafe fn block_of_queries<L: Lanes, const Q: usize, const COLS: usize>(
    tile: &Tile<'_>,
    states: &mut [f32],
    weights: &mut [f32],
    queries: &[f32],
    seen: [Range<usize>; Q],
    keys: &[f32],
    values: &[f32],
    prefetch: Option<(*const f32, *const f32)>,
) {
    if seen.iter().all(|seen| seen.is_empty()) {
        return;
    }
    let (head_dim, length) = (tile.head_dim, state_len(tile.head_dim));
    // SAFETY: passed on.
    unsafe {
        let scores = scores::<L, Q>(queries, keys, head_dim, prefetch.map(|(keys, _)| keys));
        for (query, (scores, seen)) in scores.into_iter().zip(&seen).enumerate() {
            let weights = &mut weights[query * BLOCK_SIZE..][..BLOCK_SIZE];
            let state = &mut states[query * length..][..length];
            if !seen.is_empty() {
                softmax_step::<L>(state, weights, scores, seen, tile);
            }
        }
        // Positions that all queries see, side by side; before and after them, each query its own. The order is
        // ascending for each.
        let prefetch = prefetch.map(|(_, values)| values);
        let common = seen.iter().map(|seen| seen.start).max().unwrap_or(0)
            ..seen.iter().map(|seen| seen.end).min().unwrap_or(0);
        if common.is_empty() {
            for (query, seen) in seen.into_iter().enumerate() {
                let weights = &weights[query * BLOCK_SIZE..];
                let state = &mut states[query * length..][..length];
                add_values::<L, 1, COLS>(state, weights, values, seen, head_dim, prefetch);
            }
            return;
        }
        for (query, seen) in seen.iter().enumerate() {
            let weights = &weights[query * BLOCK_SIZE..];
            let state = &mut states[query * length..][..length];
            let before = seen.start..common.start;
            add_values::<L, 1, COLS>(state, weights, values, before, head_dim, None);
        }
        add_values::<L, Q, COLS>(states, weights, values, common.clone(), head_dim, prefetch);
        for (query, seen) in seen.iter().enumerate() {
            let weights = &weights[query * BLOCK_SIZE..];
            let state = &mut states[query * length..][..length];
            let after = common.end..seen.end;
            add_values::<L, 1, COLS>(state, weights, values, after, head_dim, None);
        }
    }
}

/// The products of `Q` queries with the keys of a block.
///
/// # Safety
/// `L` must be usable; there are `Q` queries and a block of keys.
#[inline(always)]
unsafe fn scores<L: Lanes, const Q: usize>(
    queries: &[f32],
    keys: &[f32],
    head_dim: usize,
    prefetch: Option<*const f32>,
) -> [[L; SCORE_VECTORS]; Q] {
    // SAFETY: element `d < head_dim` of every query and row `d` of the keys are there.
    unsafe {
        let mut sums = [[L::zero(); SCORE_VECTORS]; Q];
        for d in 0..head_dim {
            if let Some(next) = prefetch {
                for line in 0..SCORE_VECTORS {
                    L::prefetch(next.wrapping_add(d * BLOCK_SIZE + line * LANES).cast());
                }
            }
            let keys: [L; SCORE_VECTORS] =
                from_fn(|v| L::load(keys.as_ptr().add(d * BLOCK_SIZE + v * LANES)));
            for (query, sums) in sums.iter_mut().enumerate() {
                let element = L::splat(*queries.as_ptr().add(query * head_dim + d));
                for (sum, keys) in sums.iter_mut().zip(keys) {
                    *sum = sum.mul_add(element, keys);
                }
            }
        }
        sums
    }
}

/// Turns scores into weights relative to the largest score so far, and the state to the same.
///
/// # Safety
/// `L` must be usable; `state` and `weights` have their lengths.
#[inline(always)]
unsafe fn softmax_step<L: Lanes>(
    state: &mut [f32],
    weights: &mut [f32],
    scores: [L; SCORE_VECTORS],
    seen: &Range<usize>,
    tile: &Tile<'_>,
) {
    let padded = tile.head_dim.next_multiple_of(LANES);
    let below = |end: usize| ((1u64 << end) - 1) as u32;
    let seen = below(seen.end) & !below(seen.start);
    // SAFETY: the offsets lie inside `state` and `weights`.
    unsafe {
        let mut largest = f32::NEG_INFINITY;
        let scores: [L; SCORE_VECTORS] = from_fn(|v| {
            let mut score = scores[v].mul(L::splat(tile.scale));
            if let Some(cap) = tile.soft_cap {
                score = tanh(score.div(L::splat(cap))).mul(L::splat(cap));
            }
            let score = score.where_set((seen >> (v * LANES)) as u16, L::splat(f32::NEG_INFINITY));
            largest = largest.max(score.max_lane());
            score
        });
        let max = state[padded + LANES];
        let new_max = max.max(largest);
        let state = state.as_mut_ptr();
        if new_max != max {
            let rescale = exp(L::splat(max - new_max));
            for v in (0..padded + LANES).step_by(LANES) {
                L::load(state.add(v)).mul(rescale).store(state.add(v));
            }
            L::splat(new_max).store(state.add(padded + LANES));
        }
        let sums = state.add(padded);
        let mut sum = L::load(sums);
        for (v, score) in scores.into_iter().enumerate() {
            let weight = exp(score.sub(L::splat(new_max)));
            weight.store(weights.as_mut_ptr().add(v * LANES));
            sum = sum.add(weight);
        }
        sum.store(sums);
    }
}

/// Adds the values at `positions` of a block, weighted, to the states of `Q` queries.
///
/// # Safety
/// `L` must be usable; there are `Q` states and rows of weights, and a block of values with [`LANES`] elements after it.
#[inline(always)]
unsafe fn add_values<L: Lanes, const Q: usize, const COLS: usize>(
    states: &mut [f32],
    weights: &[f32],
    values: &[f32],
    positions: Range<usize>,
    head_dim: usize,
    prefetch: Option<*const f32>,
) {
    if positions.is_empty() {
        return;
    }
    let vectors = head_dim.div_ceil(LANES);
    let whole = vectors / COLS * COLS;
    // SAFETY: vectors up to `vectors` lie inside the states. Those of a value end less than a vector after it; what
    // the last one reads beyond lands in lanes that pad the state.
    unsafe {
        for vector in (0..whole).step_by(COLS) {
            columns::<L, Q, COLS>(states, weights, values, &positions, head_dim, vector, prefetch);
        }
        for vector in whole..vectors {
            columns::<L, Q, 1>(states, weights, values, &positions, head_dim, vector, prefetch);
        }
    }
}

/// [`add_values`] for `C` vectors of the head.
///
/// # Safety
/// As there; the vectors lie inside the padded head.
#[inline(always)]
unsafe fn columns<L: Lanes, const Q: usize, const C: usize>(
    states: &mut [f32],
    weights: &[f32],
    values: &[f32],
    positions: &Range<usize>,
    head_dim: usize,
    vector: usize,
    prefetch: Option<*const f32>,
) {
    let length = state_len(head_dim);
    // SAFETY: the caller's promise.
    unsafe {
        let state = |query: usize, c: usize| query * length + (vector + c) * LANES;
        let mut sums: [[L; C]; Q] =
            from_fn(|query| from_fn(|c| L::load(states.as_ptr().add(state(query, c)))));
        for position in positions.clone() {
            let offset = position * head_dim + vector * LANES;
            if let Some(next) = prefetch {
                for c in 0..C {
                    L::prefetch(next.wrapping_add(offset + c * LANES).cast());
                }
            }
            let values: [L; C] = from_fn(|c| L::load(values.as_ptr().add(offset + c * LANES)));
            for (query, sums) in sums.iter_mut().enumerate() {
                let weight = L::splat(*weights.as_ptr().add(query * BLOCK_SIZE + position));
                for (sum, values) in sums.iter_mut().zip(values) {
                    *sum = sum.mul_add(weight, values);
                }
            }
        }
        for (query, sums) in sums.into_iter().enumerate() {
            for (c, sum) in sums.into_iter().enumerate() {
                sum.store(states.as_mut_ptr().add(state(query, c)));
            }
        }
    }
}

struct Merge<'a> {
    state: &'a mut [f32],
    later: &'a [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize, const COLS: usize>(self) {
        let Merge { state, later } = self;
        let end = state.len() - LANES;
        let (max, later_max) = (state[end], later[end]);
        let new_max = max.max(later_max);
        // SAFETY: `L` is usable; both states have whole vectors.
        unsafe {
            let scale = exp(L::splat(max - new_max));
            let later_scale = exp(L::splat(later_max - new_max));
            let state = state.as_mut_ptr();
            for v in (0..end).step_by(LANES) {
                let scaled = L::load(state.add(v)).mul(scale);
                let sum = scaled.mul_add(L::load(later.as_ptr().add(v)), later_scale);
                sum.store(state.add(v));
            }
            L::splat(new_max).store(state.add(end));
        }
    }
}

struct Finish<'a> {
    out: &'a mut [f32],
    state: &'a [f32],
    sink: Option<f32>,
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize, const COLS: usize>(self) {
        let Finish { out, state, sink } = self;
        let end = state.len() - LANES;
        let max = state[end];
        let sink = sink.unwrap_or(f32::NEG_INFINITY);
        let new_max = max.max(sink);
        // SAFETY: `L` is usable; the state has whole vectors.
        unsafe {
            let scale = exp(L::splat(max - new_max));
            let sum = L::splat(L::load(state.as_ptr().add(end - LANES)).sum());
            let sum = exp(L::splat(sink - new_max)).mul_add(sum, scale);
            for (out, state) in out.chunks_mut(LANES).zip(state.chunks(LANES)) {
                L::load_some(state).mul(scale).div(sum).store_some(out);
            }
        }
    }
}
