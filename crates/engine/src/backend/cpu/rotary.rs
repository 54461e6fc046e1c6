//! Rotary positions.

use super::{Buffer, Cpu};
use crate::batch::Batch;
use crate::model::spec::{AttentionShape, Rope, RopeStyle};

/// See [`crate::backend::Backend::rotations`].
pub fn rotations(cpu: &mut Cpu, out: &mut Buffer, rope: &Rope, batch: &Batch) {
    let pairs = rope.pairs();
    out.set_shape(batch.rows(), 2 * pairs);
    let sequences: Vec<usize> = batch.rows_with_sequence().map(|(_, sequence)| sequence).collect();
    cpu.for_each_row(out, |row, out| {
        let (cosines, sines) = out.split_at_mut(pairs);
        for pair in 0..pairs {
            let is_long = batch.is_long[sequences[row]];
            let (cosine, sine) = rope.rotation(pair, batch.positions[row], is_long);
            (cosines[pair], sines[pair]) = (cosine as f32, sine as f32);
        }
    });
}

/// See [`crate::backend::Backend::rotate`].
pub fn rotate(
    cpu: &mut Cpu,
    qkv: &mut Buffer,
    rotations: &Buffer,
    rope: &Rope,
    shape: &AttentionShape,
) {
    let pairs = rope.pairs();
    let heads = 0..shape.key_heads().end * shape.head_dim;
    cpu.for_each_row(qkv, |index, row| {
        let (cosines, sines) = rotations.row(index).split_at(pairs);
        for head in row[heads.clone()].chunks_exact_mut(shape.head_dim) {
            match rope.style {
                RopeStyle::Halves => {
                    let (firsts, seconds) = head[..2 * pairs].split_at_mut(pairs);
                    let turns = cosines.iter().zip(sines);
                    for ((a, b), turn) in firsts.iter_mut().zip(seconds).zip(turns) {
                        (*a, *b) = turned(*a, *b, turn);
                    }
                }
                RopeStyle::Pairs => {
                    let turns = cosines.iter().zip(sines);
                    for ([a, b], turn) in head.as_chunks_mut().0.iter_mut().zip(turns) {
                        (*a, *b) = turned(*a, *b, turn);
                    }
                }
            }
        }
    });
}

#[inline(always)]
fn turned(a: f32, b: f32, (cosine, sine): (&f32, &f32)) -> (f32, f32) {
    (a * cosine - b * sine, b * cosine + a * sine)
}
