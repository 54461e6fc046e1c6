//! Q2_K: blocks of 256 numbers of 2 bits; each 16 share a scale and a minimum of 4 bits; `block_q2_K` in
//! `ggml-common.h`.
//!
//! | bytes    | content                                                                    |
//! | -------- | -------------------------------------------------------------------------- |
//! | 0 to 15  | for each 16 values `scale` (low nibble) and `min` (high nibble)            |
//! | 16 to 79 | `q`: 2 bits each, 128 values in 32 bytes: 0 to 31 in bits 0 and 1, and so on |
//! | 80 to 81 | `d`, the scale of the scales: F16, little endian                           |
//! | 82 to 83 | `dmin`, the scale of the minima: F16, little endian                        |
//!
//! A value is `(d * scale) * q - dmin * min`; the products are exact in F32 and the difference is rounded. Denormal and
//! maximal `d` and `dmin` are numbers as any others; zeros give zeros. An infinite or NaN `d` or `dmin` gives an infinity
//! or NaN, and NaN where what it is multiplied with is 0.

use super::fit_super::affine;
use super::pack::{f16_at, for_each_block, for_each_block_mut, pack, unpack};

const BLOCK_SIZE: usize = 256;
const BLOCK_BYTES: usize = 84;

/// 256 values per 84 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
        let mut q = [0; BLOCK_SIZE];
        for (q, packed) in q.chunks_exact_mut(128).zip(block[16..80].chunks_exact(32)) {
            unpack::<2>(packed, q);
        }
        let groups = values.chunks_exact_mut(16).zip(q.chunks_exact(16));
        for ((values, q), levels) in groups.zip(&block[..16]) {
            let (scale, min) = (d * f32::from(levels & 15), dmin * f32::from(levels >> 4));
            for (value, q) in values.iter_mut().zip(q) {
                *value = scale * f32::from(*q) - min;
            }
        }
    });
}

/// 256 values per 84 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let fitted = affine::<16, 16>(x, 3.0, 15.0);
        let levels = fitted.scales.into_iter().zip(fitted.mins);
        for (byte, (scale, min)) in block.iter_mut().zip(levels) {
            *byte = scale | min << 4;
        }
        for (q, packed) in fitted.q.chunks_exact(128).zip(block[16..80].chunks_exact_mut(32)) {
            pack::<2>(q, packed);
        }
        [block[80], block[81]] = fitted.d.to_le_bytes();
        [block[82], block[83]] = fitted.dmin.to_le_bytes();
    });
}
