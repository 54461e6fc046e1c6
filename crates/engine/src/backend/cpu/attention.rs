//! Attention over blocks, one block of positions at a time with a running softmax.
//!
//! The running softmax is that of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). Its
//! steps are the blocks at their absolute positions, so a row's result does not depend on how the prompt was cut.

use super::math::exp;
use super::simd::Isa;
use super::{Buffer, Cpu, Kv, soft_cap};
use crate::batch::{Batch, BlockTables};
use crate::kv::BLOCK_SIZE;
use crate::model::spec::AttentionShape;

impl Kv {
    /// Room for `blocks` blocks: keys and values each (blocks, kv_heads, BLOCK_SIZE, head_dim), so that the
    /// positions of one head lie side by side.
    pub fn new(blocks: usize, shape: &AttentionShape) -> Self {
        let elements = blocks * BLOCK_SIZE * shape.kv_width();
        Kv { keys: vec![0.0; elements], values: vec![0.0; elements] }
    }

    /// Where the rows of a block and a head start.
    fn offset(block: u32, kv_head: usize, shape: &AttentionShape) -> usize {
        (block as usize * shape.kv_heads + kv_head) * BLOCK_SIZE * shape.head_dim
    }

    /// Stores the keys and values of every row of the batch.
    pub fn append(
        &mut self,
        qkv: &Buffer,
        batch: &Batch,
        tables: &BlockTables,
        shape: &AttentionShape,
    ) {
        let head_dim = shape.head_dim;
        for (row, sequence) in batch.rows_with_sequence() {
            let position = batch.positions[row] as usize;
            let block = tables.of(sequence)[position / BLOCK_SIZE];
            let (keys, values) = qkv.row(row)[shape.query_width()..].split_at(shape.kv_width());
            for kv_head in 0..shape.kv_heads {
                let to = Self::offset(block, kv_head, shape) + position % BLOCK_SIZE * head_dim;
                let from = kv_head * head_dim;
                self.keys[to..][..head_dim].copy_from_slice(&keys[from..][..head_dim]);
                self.values[to..][..head_dim].copy_from_slice(&values[from..][..head_dim]);
            }
        }
    }
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
    sinks: Option<&Vec<f32>>,
) {
    let head_dim = shape.head_dim;
    out.set_shape(batch.rows(), shape.query_width());
    let sequences: Vec<usize> = batch.rows_with_sequence().map(|(_, sequence)| sequence).collect();
    let isa = cpu.isa;
    cpu.threads.for_each_chunk(&mut out.data, head_dim, |index, out| {
        let (row, head) = (index / shape.heads, index % shape.heads);
        let query = &qkv.row(row)[head * head_dim..][..head_dim];
        let position = batch.positions[row] as usize;
        let sink = sinks.map(|sinks| sinks[head]);
        attend_head(isa, out, query, kv, tables.of(sequences[row]), position, head, shape, sink);
    });
}

/// One query of one head against all positions that it sees.
#[expect(clippy::too_many_arguments, reason = "the innermost step of attention, called once")]
fn attend_head(
    isa: Isa,
    out: &mut [f32],
    query: &[f32],
    kv: &Kv,
    table: &[u32],
    position: usize,
    head: usize,
    shape: &AttentionShape,
    sink: Option<f32>,
) {
    let head_dim = shape.head_dim;
    let kv_head = head / (shape.heads / shape.kv_heads);
    let first_visible = shape.first_visible(position);
    // The sink is a score like any other, but has no value.
    let (mut max, mut sum) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
    out.fill(0.0);
    let blocks = first_visible / BLOCK_SIZE..=position / BLOCK_SIZE;
    for (index, block) in blocks.clone().zip(&table[blocks]) {
        let block_start = index * BLOCK_SIZE;
        let first = first_visible.max(block_start) - block_start;
        let count = (position + 1 - block_start).min(BLOCK_SIZE) - first;
        let offset = Kv::offset(*block, kv_head, shape) + first * head_dim;
        let keys = &kv.keys[offset..][..count * head_dim];
        let values = &kv.values[offset..][..count * head_dim];

        let mut weights = [0.0; BLOCK_SIZE];
        let weights = &mut weights[..count];
        let mut new_max = max;
        for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(head_dim)) {
            *weight = isa.dot(query, key) * shape.scale;
            if let Some(cap) = shape.soft_cap {
                *weight = soft_cap(*weight, cap);
            }
            new_max = new_max.max(*weight);
        }
        for weight in weights.iter_mut() {
            *weight = exp(*weight - new_max);
        }
        let rescale = exp(max - new_max);
        sum = sum * rescale + weights.iter().sum::<f32>();
        isa.add_weighted_rows(out, rescale, weights, values);
        max = new_max;
    }
    for out in out {
        *out /= sum;
    }
}
