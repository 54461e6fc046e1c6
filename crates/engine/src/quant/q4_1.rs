//! Q4_1: blocks of 32 numbers of 4 bits with a scale and a minimum; `block_q4_1` in `ggml-common.h`.
//!
//! | bytes   | content                                                       |
//! | ------- | ------------------------------------------------------------- |
//! | 0 to 1  | `d`, the scale: F16, little endian                            |
//! | 2 to 3  | `m`, the minimum: F16, little endian                          |
//! | 4 to 19 | `q`: 4 bits each, 0 to 15 in the low nibbles, 16 to 31 above  |
//!
//! Value `i` of a block is `d * q[i] + m`, the product exact in F32 and the sum rounded. Denormal and maximal `d` and `m`
//! are numbers as any others; zero `d` gives `m` throughout. Infinite `d` gives infinities, and NaN where `q` is 0 or
//! `m` the opposite infinity; infinite `m` gives that infinity; NaN in either gives NaN.

use super::fit::block_line;
use super::pack::{f16_at, for_each_block, for_each_block_mut, nibbles, pack_nibbles};

const BLOCK_SIZE: usize = 32;
const BLOCK_BYTES: usize = 20;

/// 32 values per 20 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        for (value, q) in values.iter_mut().zip(nibbles(&block[4..])) {
            *value = d * f32::from(q) + m;
        }
    });
}

/// 32 values per 20 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let (d, m, q) = block_line(x, 15);
        [block[0], block[1]] = d.to_le_bytes();
        [block[2], block[3]] = m.to_le_bytes();
        pack_nibbles(&q, &mut block[4..]);
    });
}
