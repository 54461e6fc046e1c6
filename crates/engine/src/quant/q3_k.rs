//! Q3_K: blocks of 256 numbers of 3 bits; each 16 share a signed scale of 6 bits; `block_q3_K` in `ggml-common.h`.
//!
//! | bytes      | content                                                                        |
//! | ---------- | ------------------------------------------------------------------------------ |
//! | 0 to 31    | the third bits of `q`: 0 to 31 in bit 0 of each byte, 32 to 63 in bit 1, ...   |
//! | 32 to 95   | the lower 2 bits of `q`: 128 values in 32 bytes: 0 to 31 in bits 0 and 1, ...  |
//! | 96 to 103  | the lower 4 bits of `scale`: 0 to 7 in the low nibbles, 8 to 15 above          |
//! | 104 to 107 | the upper 2 bits of `scale`: 0 to 3 in bits 0 and 1, 4 to 7 in 2 and 3, ...    |
//! | 108 to 109 | `d`, the scale of the scales: F16, little endian                               |
//!
//! A value is `(d * (scale - 32)) * (q - 4)`, exact in F32. A denormal or maximal `d` is a number as any other; zero gives
//! zeros; infinity gives infinities, and NaN where a factor is 0; NaN gives NaN.

use super::fit_super::scaled;
use super::pack::{f16_at, for_each_block, for_each_block_mut, pack, unpack};

const BLOCK_SIZE: usize = 256;
const BLOCK_BYTES: usize = 110;

/// 256 values per 110 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let d = f16_at(block, 108);
        let (mut low, mut high) = ([0; BLOCK_SIZE], [0; BLOCK_SIZE]);
        unpack::<1>(&block[..32], &mut high);
        for (low, packed) in low.chunks_exact_mut(128).zip(block[32..96].chunks_exact(32)) {
            unpack::<2>(packed, low);
        }
        let (mut scale_low, mut scale_high) = ([0; 16], [0; 16]);
        unpack::<4>(&block[96..104], &mut scale_low);
        unpack::<2>(&block[104..108], &mut scale_high);
        for (i, values) in values.chunks_exact_mut(16).enumerate() {
            let scale = d * (f32::from(scale_low[i] | scale_high[i] << 4) - 32.0);
            let q = low[i * 16..].iter().zip(&high[i * 16..]);
            for (value, (low, high)) in values.iter_mut().zip(q) {
                *value = scale * (f32::from(low | high << 2) - 4.0);
            }
        }
    });
}

/// 256 values per 110 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let fitted = scaled::<16, 16>(x, -4.0, -32.0);
        let q = fitted.levels.map(|level| (level + 4) as u8);
        pack::<1>(&q.map(|q| q >> 2), &mut block[..32]);
        let low = q.map(|q| q & 3);
        for (low, packed) in low.chunks_exact(128).zip(block[32..96].chunks_exact_mut(32)) {
            pack::<2>(low, packed);
        }
        let scales = fitted.scales.map(|scale| (scale + 32) as u8);
        pack::<4>(&scales.map(|scale| scale & 15), &mut block[96..104]);
        pack::<2>(&scales.map(|scale| scale >> 4), &mut block[104..108]);
        [block[108], block[109]] = fitted.d.to_le_bytes();
    });
}
