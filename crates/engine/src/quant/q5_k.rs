//! Q5_K: blocks of 256 numbers of 5 bits; each 32 share a scale and a minimum of 6 bits; `block_q5_K` in
//! `ggml-common.h`.
//!
//! | bytes     | content                                                                           |
//! | --------- | --------------------------------------------------------------------------------- |
//! | 0 to 1    | `d`, the scale of the scales: F16, little endian                                  |
//! | 2 to 3    | `dmin`, the scale of the minima: F16, little endian                               |
//! | 4 to 15   | 8 times `scale` and `min`, packed as `pack::scales_and_mins` says                 |
//! | 16 to 47  | the fifth bits of `q`: 0 to 31 in bit 0 of each byte, 32 to 63 in bit 1, ...      |
//! | 48 to 175 | the lower 4 bits of `q`: 64 values in 32 bytes: 0 to 31 low, 32 to 63 above       |
//!
//! A value is `(d * scale) * q - dmin * min`, and special `d` and `dmin` give what they give in Q4_K: only infinities and
//! NaN make anything but numbers.

use super::fit_super::affine;
use super::pack::{
    dequantize_eighths, for_each_block, for_each_block_mut, pack, pack_header, unpack,
};

const BLOCK_SIZE: usize = 256;
const BLOCK_BYTES: usize = 176;

/// 256 values per 176 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let (mut q, mut high) = ([0; BLOCK_SIZE], [0; BLOCK_SIZE]);
        unpack::<1>(&block[16..48], &mut high);
        for (q, packed) in q.chunks_exact_mut(64).zip(block[48..].chunks_exact(32)) {
            unpack::<4>(packed, q);
        }
        for (q, high) in q.iter_mut().zip(high) {
            *q |= high << 4;
        }
        dequantize_eighths(block, &q, values);
    });
}

/// 256 values per 176 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let fitted = affine::<32, 8>(x, 31.0, 63.0);
        pack_header(&fitted, block);
        pack::<1>(&fitted.q.map(|q| q >> 4), &mut block[16..48]);
        let low = fitted.q.map(|q| q & 15);
        for (low, packed) in low.chunks_exact(64).zip(block[48..].chunks_exact_mut(32)) {
            pack::<4>(low, packed);
        }
    });
}
