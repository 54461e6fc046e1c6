//! Q5_0: blocks of 32 numbers of 5 bits with one scale; `block_q5_0` in `ggml-common.h`.
//!
//! | bytes   | content                                                                |
//! | ------- | ---------------------------------------------------------------------- |
//! | 0 to 1  | `d`, the scale: F16, little endian                                     |
//! | 2 to 5  | the fifth bits of `q`: bit `i` of a little-endian number for `q[i]`    |
//! | 6 to 21 | the lower 4 bits of `q`: 0 to 15 in the low nibbles, 16 to 31 above    |
//!
//! Value `i` of a block is `d * (q[i] - 16)`, exact in F32. A denormal or maximal scale is a number as any other; zero
//! gives zeros; infinity gives infinities, and NaN where `q` is 16; NaN gives NaN.

use super::fit::{block_scale, integer, levels, whole};
use super::pack::{f16_at, five_bits, for_each_block, for_each_block_mut, pack_five_bits};

const BLOCK_SIZE: usize = 32;
const BLOCK_BYTES: usize = 22;

/// 32 values per 22 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let d = f16_at(block, 0);
        for (value, q) in values.iter_mut().zip(five_bits(&block[2..])) {
            *value = d * (f32::from(q) - 16.0);
        }
    });
}

/// 32 values per 22 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    let nearest = integer(-16.0, 15.0);
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let d = block_scale(x, -16.0, 15.0, whole::<16>(), nearest);
        let q = levels(x, d.to_f32(), nearest).map(|level| (level + 16.0) as u8);
        [block[0], block[1]] = d.to_le_bytes();
        pack_five_bits(&q, &mut block[2..]);
    });
}
