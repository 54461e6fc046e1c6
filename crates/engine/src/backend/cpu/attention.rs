//! Attention over blocks, one block of positions at a time with a running softmax.
//!
//! The running softmax is that of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). It starts
//! anew at every multiple of [`SPLIT`] positions, and the results are merged in order (as Flash-Decoding does, Dao and
//! others, 2023): threads can share a long context of few heads. Blocks and splits lie at absolute positions, so a
//! row's result depends neither on how the prompt was cut nor on who computed what.

use super::kv::Kv;
use super::simd::Isa;
use super::simd::attention::{Tile, start, state_len};
use super::{Buffer, Cpu};
use crate::batch::{Batch, BlockTables};
use crate::kv::BLOCK_SIZE;
use crate::model::spec::AttentionShape;
use std::cell::RefCell;
use std::ops::Range;

/// Positions after which the softmax starts anew.
const SPLIT: usize = 16 * BLOCK_SIZE;

/// Queries that are computed together: enough to read keys and values from the first-level cache mostly.
const TILE_QUERIES: usize = 16;

/// Multiplications below which work is not worth sharing: some microseconds of one thread.
const WORK_PER_PIECE: usize = 1 << 17;

/// What one thread computes at once. Several rows have all heads, so that their results lie side by side.
struct Task {
    sequence: usize,
    rows: Range<usize>,
    kv_heads: Range<usize>,
}

/// Lists of the caller, kept from one call to the next.
#[derive(Default)]
pub struct Plan {
    tasks: Vec<Task>,
    /// Where the results of each task end.
    ends: Vec<usize>,
    /// The states of all splits of the queries of a row and a KV head, one row and KV head after another.
    states: Vec<f32>,
}

/// What is computed, for all threads.
struct Attention<'a> {
    isa: Isa,
    qkv: &'a Buffer,
    kv: &'a Kv,
    batch: &'a Batch,
    tables: &'a BlockTables,
    shape: &'a AttentionShape,
    sinks: Option<&'a [f32]>,
}

/// The memory of one thread for one tile.
#[derive(Default)]
struct Workspace {
    /// (queries, head_dim)
    queries: Vec<f32>,
    visible: Vec<Range<usize>>,
    /// (queries, state_len)
    total: Vec<f32>,
    /// (queries, state_len)
    part: Vec<f32>,
    /// (queries, BLOCK_SIZE)
    weights: Vec<f32>,
    /// See [`Kv::scratch_len`].
    block: Vec<f32>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// See [`crate::backend::Backend::attend`].
#[expect(clippy::too_many_arguments, reason = "what attention depends on")]
pub fn attend(
    cpu: &mut Cpu,
    out: &mut Buffer,
    qkv: &Buffer,
    kv: &Kv,
    batch: &Batch,
    tables: &BlockTables,
    shape: &AttentionShape,
    sinks: Option<&[f32]>,
) {
    out.set_shape(batch.rows(), shape.query_width());
    let attention = Attention { isa: cpu.isa, qkv, kv, batch, tables, shape, sinks };
    let Cpu { threads, attention: plan, .. } = cpu;
    let longest = (0..batch.rows()).map(|row| attention.visible(row).len()).max().unwrap_or(0);
    if batch.rows() * shape.kv_heads < 2 * threads.count() && longest > SPLIT {
        return attention.share_splits(out, plan, threads);
    }
    plan.make(&attention, threads.count());
    threads.for_each_part(&mut out.data, &plan.ends, |index, out| {
        WORKSPACE.with_borrow_mut(|work| attention.compute(out, &plan.tasks[index], work));
    });
}

impl Plan {
    /// Cuts the batch into tasks, in the order of their results.
    fn make(&mut self, attention: &Attention<'_>, threads: usize) {
        self.tasks.clear();
        self.ends.clear();
        let (batch, shape) = (attention.batch, attention.shape);
        let (group, width) = (shape.heads / shape.kv_heads, shape.query_width());
        for sequence in 0..batch.sequences() {
            let rows =
                batch.row_offsets[sequence] as usize..batch.row_offsets[sequence + 1] as usize;
            let Some(last) = rows.clone().last() else { continue };
            let work = 2 * attention.visible(last).len() * group * shape.head_dim;
            let least = WORK_PER_PIECE.div_ceil(work * shape.kv_heads);
            let most = rows.len().div_ceil(2 * threads);
            let height = (TILE_QUERIES / group).clamp(1, most).max(least);
            let heads = if height > 1 { shape.kv_heads } else { WORK_PER_PIECE.div_ceil(work) };
            for first in rows.clone().step_by(height) {
                let rows = first..rows.end.min(first + height);
                for head in (0..shape.kv_heads).step_by(heads) {
                    let kv_heads = head..shape.kv_heads.min(head + heads);
                    let last_row = (rows.end - 1) * width;
                    self.ends.push(last_row + kv_heads.end * group * shape.head_dim);
                    self.tasks.push(Task { sequence, rows: rows.clone(), kv_heads });
                }
            }
        }
    }
}

impl Attention<'_> {
    /// The positions that a row sees.
    fn visible(&self, row: usize) -> Range<usize> {
        let position = self.batch.positions[row] as usize;
        self.shape.first_visible(position)..position + 1
    }

    /// Query heads of a KV head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// The results of a task.
    fn compute(&self, out: &mut [f32], task: &Task, work: &mut Workspace) {
        let head_dim = self.shape.head_dim;
        let width = self.group() * head_dim;
        for kv_head in task.kv_heads.clone() {
            self.attend_head(task, kv_head, work);
            let states = work.total.chunks_exact(self.group() * state_len(head_dim));
            for (row, states) in states.enumerate() {
                let first =
                    row * self.shape.query_width() + (kv_head - task.kv_heads.start) * width;
                self.finish(&mut out[first..][..width], states, kv_head);
            }
        }
    }

    /// The running softmax of some rows and the query heads of one KV head over all that they see, in `work.total`.
    fn attend_head(&self, task: &Task, kv_head: usize, work: &mut Workspace) {
        let length = state_len(self.shape.head_dim);
        self.load_queries(task.rows.clone(), kv_head, work);
        let count = work.visible.len();
        work.total.resize(count * length, 0.0);
        work.part.resize(count * length, 0.0);
        work.weights.resize(count * BLOCK_SIZE, 0.0);
        work.block.resize(self.kv.scratch_len(self.shape.head_dim), 0.0);
        work.total.chunks_exact_mut(length).for_each(start);
        // Positions ascend with the rows.
        let first = work.visible.first().map_or(0, |visible| visible.start);
        let end = work.visible.last().map_or(0, |visible| visible.end);
        let tile = self.tile(task.sequence, kv_head, &work.queries, &work.visible);
        for split in first / SPLIT..end.div_ceil(SPLIT) {
            let positions = split * SPLIT..(split + 1) * SPLIT;
            let scratch = (&mut work.weights[..], &mut work.block[..]);
            self.isa.attend(&mut work.part, scratch, &tile, positions.clone());
            let states = work.total.chunks_exact_mut(length).zip(work.part.chunks_exact(length));
            for ((total, part), visible) in states.zip(&work.visible) {
                if visible.start < positions.end && positions.start < visible.end {
                    self.isa.merge(total, part);
                }
            }
        }
    }

    fn load_queries(&self, rows: Range<usize>, kv_head: usize, work: &mut Workspace) {
        let width = self.group() * self.shape.head_dim;
        work.queries.clear();
        work.visible.clear();
        for row in rows {
            work.queries.extend_from_slice(&self.qkv.row(row)[kv_head * width..][..width]);
            work.visible.extend(std::iter::repeat_n(self.visible(row), self.group()));
        }
    }

    fn tile<'t>(
        &'t self,
        sequence: usize,
        kv_head: usize,
        queries: &'t [f32],
        visible: &'t [Range<usize>],
    ) -> Tile<'t> {
        Tile {
            queries,
            visible,
            head_dim: self.shape.head_dim,
            scale: self.shape.scale,
            soft_cap: self.shape.soft_cap,
            kv: self.kv,
            table: self.tables.of(sequence),
            heads: self.shape.kv_heads,
            head: kv_head,
        }
    }

    /// The results of one row and the query heads of one KV head from their states.
    fn finish(&self, out: &mut [f32], states: &[f32], kv_head: usize) {
        let head_dim = self.shape.head_dim;
        let heads = out.chunks_exact_mut(head_dim).zip(states.chunks_exact(state_len(head_dim)));
        for (index, (out, state)) in heads.enumerate() {
            let sink = self.sinks.map(|sinks| sinks[kv_head * self.group() + index]);
            self.isa.finish(out, state, sink);
        }
    }

    /// Few rows and KV heads with a long context: threads share the splits. The sums are those of [`Self::compute`].
    fn share_splits(&self, out: &mut Buffer, plan: &mut Plan, threads: &mut super::Threads) {
        let (head_dim, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        let (length, width) = (state_len(head_dim), self.group() * head_dim);
        let states_len = self.group() * length;
        for (row, sequence) in self.batch.rows_with_sequence() {
            let visible = self.visible(row);
            let splits = visible.start / SPLIT..visible.end.div_ceil(SPLIT);
            plan.states.resize(kv_heads * splits.len() * states_len, 0.0);
            threads.for_each_chunk(&mut plan.states, states_len, |index, states| {
                let (kv_head, split) = (index / splits.len(), splits.start + index % splits.len());
                WORKSPACE.with_borrow_mut(|work| {
                    self.load_queries(row..row + 1, kv_head, work);
                    work.weights.resize(self.group() * BLOCK_SIZE, 0.0);
                    work.block.resize(self.kv.scratch_len(head_dim), 0.0);
                    let tile = self.tile(sequence, kv_head, &work.queries, &work.visible);
                    let positions = split * SPLIT..(split + 1) * SPLIT;
                    let scratch = (&mut work.weights[..], &mut work.block[..]);
                    self.isa.attend(states, scratch, &tile, positions);
                });
            });
            let mut total = vec![0.0; states_len];
            let of_heads = plan.states.chunks_exact(splits.len() * states_len);
            for (kv_head, splits) in of_heads.enumerate() {
                total.chunks_exact_mut(length).for_each(start);
                for states in splits.chunks_exact(states_len) {
                    let queries = total.chunks_exact_mut(length).zip(states.chunks_exact(length));
                    queries.for_each(|(total, part)| self.isa.merge(total, part));
                }
                let out =
                    &mut out.data[row * self.shape.query_width() + kv_head * width..][..width];
                self.finish(out, &total, kv_head);
            }
        }
    }
}

#[cfg(test)]
mod tests;
