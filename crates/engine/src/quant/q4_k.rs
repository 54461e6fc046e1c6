//! Q4_K: blocks of 256 numbers of 4 bits; each 32 share a scale and a minimum of 6 bits; `block_q4_K` in
//! `ggml-common.h`.
//!
//! | bytes     | content                                                                          |
//! | --------- | -------------------------------------------------------------------------------- |
//! | 0 to 1    | `d`, the scale of the scales: F16, little endian                                 |
//! | 2 to 3    | `dmin`, the scale of the minima: F16, little endian                              |
//! | 4 to 15   | 8 times `scale` and `min`, packed as `pack::scales_and_mins` says                |
//! | 16 to 143 | `q`: 64 values in 32 bytes: 0 to 31 in the low nibbles, 32 to 63 above           |
//!
//! A value is `(d * scale) * q - dmin * min`; the products are exact in F32 and the difference is rounded. Denormal and
//! maximal `d` and `dmin` are numbers as any others; zeros give zeros. An infinite or NaN `d` or `dmin` gives an infinity
//! or NaN, and NaN where what it is multiplied with is 0.

use super::fit_super::affine;
use super::pack::{
    dequantize_eighths, for_each_block, for_each_block_mut, pack, pack_header, unpack,
};

const BLOCK_SIZE: usize = 256;
const BLOCK_BYTES: usize = 144;

/// 256 values per 144 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let mut q = [0; BLOCK_SIZE];
        for (q, packed) in q.chunks_exact_mut(64).zip(block[16..].chunks_exact(32)) {
            unpack::<4>(packed, q);
        }
        dequantize_eighths(block, &q, values);
    });
}

/// 256 values per 144 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let fitted = affine::<32, 8>(x, 15.0, 63.0);
        pack_header(&fitted, block);
        for (q, packed) in fitted.q.chunks_exact(64).zip(block[16..].chunks_exact_mut(32)) {
            pack::<4>(q, packed);
        }
    });
}
