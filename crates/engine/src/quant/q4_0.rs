//! Q4_0: blocks of 32 numbers of 4 bits with one scale; `block_q4_0` in `ggml-common.h`.
//!
//! | bytes   | content                                                       |
//! | ------- | ------------------------------------------------------------- |
//! | 0 to 1  | `d`, the scale: F16, little endian                            |
//! | 2 to 17 | `q`: 4 bits each, 0 to 15 in the low nibbles, 16 to 31 above  |
//!
//! Value `i` of a block is `d * (q[i] - 8)`, exact in F32. A denormal or maximal scale is a number as any other; zero
//! gives zeros; infinity gives infinities, and NaN where `q` is 8; NaN gives NaN.

use super::fit::{block_scale, integer, levels, whole};
use super::pack::{f16_at, for_each_block, for_each_block_mut, nibbles, pack_nibbles};

const BLOCK_SIZE: usize = 32;
const BLOCK_BYTES: usize = 18;

/// 32 values per 18 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let d = f16_at(block, 0);
        for (value, q) in values.iter_mut().zip(nibbles(&block[2..])) {
            *value = d * (f32::from(q) - 8.0);
        }
    });
}

/// 32 values per 18 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    let nearest = integer(-8.0, 7.0);
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let d = block_scale(x, -8.0, 7.0, whole::<8>(), nearest);
        let q = levels(x, d.to_f32(), nearest).map(|level| (level + 8.0) as u8);
        [block[0], block[1]] = d.to_le_bytes();
        pack_nibbles(&q, &mut block[2..]);
    });
}
