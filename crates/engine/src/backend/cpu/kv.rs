//! Keys and values of one layer, in f32 or in 8 bits.
//!
//! In 8 bits, every 32 elements of a key or a value of a head at a position share a scale, which is a half: 8.5 bits an element.
//! They are rounded once, when they are stored, and turned back into f32 a block of a head at a time, so what a row sees of them
//! does not depend on what is computed beside it.

use super::Buffer;
use super::simd::LANES;
use crate::batch::{Batch, BlockTables};
use crate::kv::{BLOCK_SIZE, KvType, SCALED_TOGETHER};
use crate::model::spec::AttentionShape;
use half::f16;
use std::array::from_fn;

/// The largest code.
const MOST: f32 = 127.0;

/// Keys and values of one layer, in blocks of (kv_heads) heads of 32 positions.
pub enum Kv {
    /// As they were computed.
    Full {
        /// (blocks, kv_heads, head_dim, BLOCK_SIZE)
        keys: Vec<f32>,
        /// (blocks, kv_heads, BLOCK_SIZE, head_dim), and a vector more that may be read.
        values: Vec<f32>,
    },
    /// Rounded to 8 bits.
    Q8 {
        /// Codes as the keys above, scales (blocks, kv_heads, pieces, BLOCK_SIZE).
        keys: Codes,
        /// Codes as the values above, scales (blocks, kv_heads, BLOCK_SIZE, pieces).
        values: Codes,
    },
}

/// Numbers in 8 bits, each a code times a scale.
pub struct Codes {
    pub(super) codes: Vec<i8>,
    pub(super) scales: Vec<f16>,
}

/// Scales of a head at a position.
fn pieces(head_dim: usize) -> usize {
    head_dim.div_ceil(SCALED_TOGETHER)
}

impl Kv {
    /// Room for `blocks` blocks.
    pub fn new(blocks: usize, shape: &AttentionShape, kind: KvType) -> Self {
        let elements = blocks * BLOCK_SIZE * shape.kv_width();
        let scales = blocks * BLOCK_SIZE * shape.kv_heads * pieces(shape.head_dim);
        let codes = || Codes { codes: vec![0; elements], scales: vec![f16::ZERO; scales] };
        match kind {
            KvType::Full => {
                Kv::Full { keys: vec![0.0; elements], values: vec![0.0; elements + LANES] }
            }
            KvType::Q8 => Kv::Q8 { keys: codes(), values: codes() },
        }
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
            let block = tables.of(sequence)[position / BLOCK_SIZE] as usize;
            let place = position % BLOCK_SIZE;
            let (keys, values) = qkv.row(row)[shape.query_width()..].split_at(shape.kv_width());
            let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
            for (kv_head, (key, value)) in heads.enumerate() {
                self.store(block * shape.kv_heads + kv_head, place, key, value);
            }
        }
    }

    /// Stores a key and a value at a place of a block of a head.
    fn store(&mut self, block: usize, place: usize, key: &[f32], value: &[f32]) {
        let head_dim = key.len();
        let start = block * BLOCK_SIZE * head_dim;
        match self {
            Kv::Full { keys, values } => {
                let columns = keys[start..][..BLOCK_SIZE * head_dim].chunks_exact_mut(BLOCK_SIZE);
                columns.zip(key).for_each(|(column, key)| column[place] = *key);
                values[start + place * head_dim..][..head_dim].copy_from_slice(value);
            }
            Kv::Q8 { keys, values } => {
                let pieces = pieces(head_dim);
                let scales = block * BLOCK_SIZE * pieces;
                for (piece, (key, value)) in
                    key.chunks(SCALED_TOGETHER).zip(value.chunks(SCALED_TOGETHER)).enumerate()
                {
                    let first = piece * SCALED_TOGETHER;
                    let scale = scale_of(key);
                    keys.scales[scales + piece * BLOCK_SIZE + place] = scale;
                    for (i, key) in key.iter().enumerate() {
                        keys.codes[start + (first + i) * BLOCK_SIZE + place] = code(*key, scale);
                    }
                    let scale = scale_of(value);
                    values.scales[scales + place * pieces + piece] = scale;
                    for (i, value) in value.iter().enumerate() {
                        values.codes[start + place * head_dim + first + i] = code(*value, scale);
                    }
                }
            }
        }
    }

    /// Elements of scratch that [`Kv::block`] needs.
    pub fn scratch_len(&self, head_dim: usize) -> usize {
        match self {
            Kv::Full { .. } => 0,
            Kv::Q8 { .. } => 2 * BLOCK_SIZE * head_dim + LANES,
        }
    }

    /// The keys of a block of a head, (head_dim, BLOCK_SIZE), and its values, (BLOCK_SIZE, head_dim), with [`LANES`] more elements,
    /// whose values do not matter.
    #[inline(always)]
    pub fn block<'a>(
        &'a self,
        block: usize,
        head_dim: usize,
        scratch: &'a mut [f32],
    ) -> (&'a [f32], &'a [f32]) {
        let (start, length) = (block * BLOCK_SIZE * head_dim, BLOCK_SIZE * head_dim);
        match self {
            Kv::Full { keys, values } => {
                (&keys[start..][..length], &values[start..][..length + LANES])
            }
            Kv::Q8 { keys, values } => {
                let pieces = pieces(head_dim);
                let scales = block * BLOCK_SIZE * pieces..(block + 1) * BLOCK_SIZE * pieces;
                let (to_keys, to_values) = scratch.split_at_mut(length);
                let rows = keys.codes[start..][..length].chunks_exact(BLOCK_SIZE);
                let mut rows = rows.zip(to_keys.chunks_exact_mut(BLOCK_SIZE));
                for scales in keys.scales[scales.clone()].chunks_exact(BLOCK_SIZE) {
                    let scales: [f32; BLOCK_SIZE] = from_fn(|place| scales[place].to_f32());
                    for (codes, out) in rows.by_ref().take(SCALED_TOGETHER) {
                        for place in 0..BLOCK_SIZE {
                            out[place] = f32::from(codes[place]) * scales[place];
                        }
                    }
                }
                let rows = values.codes[start..][..length].chunks_exact(head_dim);
                let rows = rows.zip(to_values[..length].chunks_exact_mut(head_dim));
                for ((codes, out), scales) in rows.zip(values.scales[scales].chunks_exact(pieces)) {
                    let codes = codes.chunks(SCALED_TOGETHER);
                    let out = out.chunks_mut(SCALED_TOGETHER);
                    for ((codes, out), scale) in codes.zip(out).zip(scales) {
                        let scale = scale.to_f32();
                        for (out, code) in out.iter_mut().zip(codes) {
                            *out = f32::from(*code) * scale;
                        }
                    }
                }
                (to_keys, to_values)
            }
        }
    }
}

/// The scale with which the largest element has the largest code.
fn scale_of(elements: &[f32]) -> f16 {
    let most = elements.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    f16::from_f32((most / MOST).min(f16::MAX.to_f32()))
}

/// The code that is nearest; what a scale is too small for is zero.
fn code(x: f32, scale: f16) -> i8 {
    let scale = scale.to_f32();
    if scale == 0.0 { 0 } else { (x / scale).round().clamp(-MOST, MOST) as i8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::tests::numbers;

    fn shape(head_dim: usize) -> AttentionShape {
        AttentionShape { heads: 1, kv_heads: 1, head_dim, scale: 1.0, window: None, soft_cap: None }
    }

    /// A code is at most half a step away, and a step is at most a 127th of the largest of 32, rounded to a half.
    #[test]
    fn elements_are_half_a_step_away() {
        for head_dim in [1, 5, 32, 33, 64, 80] {
            let mut kv = Kv::new(2, &shape(head_dim), KvType::Q8);
            let rows: Vec<Vec<f32>> = (0..2 * BLOCK_SIZE as u64)
                .map(|row| {
                    let factor = [1.0, 1e-3, 2e4, 0.0][row as usize % 4];
                    numbers(head_dim, row + 1).iter().map(|x| x * factor).collect()
                })
                .collect();
            for place in 0..BLOCK_SIZE {
                kv.store(1, place, &rows[place], &rows[BLOCK_SIZE + place]);
            }
            let mut scratch = vec![f32::NAN; kv.scratch_len(head_dim)];
            let (keys, values) = kv.block(1, head_dim, &mut scratch);
            for place in 0..BLOCK_SIZE {
                let key: Vec<f32> = (0..head_dim).map(|d| keys[d * BLOCK_SIZE + place]).collect();
                let value = &values[place * head_dim..][..head_dim];
                for (found, exact) in [(&key[..], &rows[place]), (value, &rows[BLOCK_SIZE + place])]
                {
                    for (found, exact) in found.chunks(32).zip(exact.chunks(32)) {
                        let most = exact.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                        for (found, exact) in found.iter().zip(exact) {
                            let error = (found - exact).abs();
                            // A scale below the least normal half is less exact.
                            assert!(error <= 0.504 * most / 127.0 + 2e-6, "{found} {exact} {most}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_beyond_all_halves_become_the_largest() {
        let mut kv = Kv::new(1, &shape(2), KvType::Q8);
        kv.store(0, 3, &[f32::INFINITY, -1.0], &[1e30, f32::NAN]);
        let mut scratch = vec![0.0; kv.scratch_len(2)];
        let (keys, values) = kv.block(0, 2, &mut scratch);
        assert_eq!((keys[3], keys[BLOCK_SIZE + 3]), (65504.0 * 127.0, 0.0));
        assert_eq!((values[6], values[7]), (65504.0 * 127.0, 0.0));
    }
}
