//! IQ4_NL: blocks of 32 indices into a table of sixteen uneven steps, with one scale; `block_iq4_nl` and
//! `kvalues_iq4nl` in `ggml-common.h`.
//!
//! | bytes   | content                                                       |
//! | ------- | ------------------------------------------------------------- |
//! | 0 to 1  | `d`, the scale: F16, little endian                            |
//! | 2 to 17 | `q`: 4 bits each, 0 to 15 in the low nibbles, 16 to 31 above  |
//!
//! Value `i` of a block is `d * STEPS[q[i]]`, exact in F32. A denormal or maximal scale is a number as any other; zero
//! gives zeros; infinity gives infinities, since no step is 0; NaN gives NaN.

use super::fit::{block_scale, levels};
use super::pack::{f16_at, for_each_block, for_each_block_mut, nibbles, pack_nibbles};

const BLOCK_SIZE: usize = 32;
const BLOCK_BYTES: usize = 18;

/// Narrow about zero, where most weights are. IQ4_XS has the same.
pub(crate) const STEPS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 values per 18 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let d = f16_at(block, 0);
        for (value, q) in values.iter_mut().zip(nibbles(&block[2..])) {
            *value = d * f32::from(STEPS[usize::from(q)]);
        }
    });
}

/// The step nearest to a number.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    let mut nearest = f32::from(STEPS[0]);
    for pair in STEPS.windows(2) {
        let (below, above) = (f32::from(pair[0]), f32::from(pair[1]));
        nearest = if x > 0.5 * (below + above) { above } else { nearest };
    }
    nearest
}

/// 32 values per 18 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    let steps = STEPS.map(f32::from);
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let d = block_scale(x, steps[0], steps[15], steps.into_iter(), nearest);
        let q = levels(x, d.to_f32(), nearest)
            .map(|level| steps.iter().take_while(|step| **step < level).count() as u8);
        [block[0], block[1]] = d.to_le_bytes();
        pack_nibbles(&q, &mut block[2..]);
    });
}
