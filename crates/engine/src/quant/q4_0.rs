//! Q4_0: blocks of 32 numbers of 4 bits with one scale; `block_q4_0` in `ggml-common.h`.
//!
//! | bytes   | content                                                       |
//! | ------- | ------------------------------------------------------------- |
//! | 0 to 1  | `d`, the scale: F16, little endian                            |
//! | 2 to 17 | `q`: 4 bits each, 0 to 15 in the low nibbles, 16 to 31 above  |
//!
//! Value `i` of a block is `d * (q[i] - 8)`, exact in F32. A denormal or maximal scale is a number as any other; zero
//! gives zeros; infinity gives infinities, and NaN where `q` is 8; NaN gives NaN.

use super::pack::{f16_at, for_each_block, nibbles};

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
