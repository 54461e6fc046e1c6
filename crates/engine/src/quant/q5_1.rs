//! Q5_1: blocks of 32 numbers of 5 bits with a scale and a minimum; `block_q5_1` in `ggml-common.h`.
//!
//! | bytes   | content                                                                |
//! | ------- | ---------------------------------------------------------------------- |
//! | 0 to 1  | `d`, the scale: F16, little endian                                     |
//! | 2 to 3  | `m`, the minimum: F16, little endian                                   |
//! | 4 to 7  | the fifth bits of `q`: bit `i` of a little-endian number for `q[i]`    |
//! | 8 to 23 | the lower 4 bits of `q`: 0 to 15 in the low nibbles, 16 to 31 above    |
//!
//! Value `i` of a block is `d * q[i] + m`, the product exact in F32 and the sum rounded. Special `d` and `m` give what
//! they give in Q4_1: only infinities and NaN make anything but numbers, and infinite `d` gives NaN where `q` is 0 or `m`
//! the opposite infinity.

use super::fit::block_line;
use super::pack::{f16_at, five_bits, for_each_block, for_each_block_mut, pack_five_bits};

const BLOCK_SIZE: usize = 32;
const BLOCK_BYTES: usize = 24;

/// 32 values per 24 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        for (value, q) in values.iter_mut().zip(five_bits(&block[4..])) {
            *value = d * f32::from(q) + m;
        }
    });
}

/// 32 values per 24 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let (d, m, q) = block_line(x, 31);
        [block[0], block[1]] = d.to_le_bytes();
        [block[2], block[3]] = m.to_le_bytes();
        pack_five_bits(&q, &mut block[4..]);
    });
}
