//! Q6_K: blocks of 256 numbers of 6 bits; each 16 share a scale of 8 bits; `block_q6_K` in `ggml-common.h`.
//!
//! | bytes      | content                                                                           |
//! | ---------- | --------------------------------------------------------------------------------- |
//! | 0 to 127   | the lower 4 bits of `q`: 128 values in 64 bytes: 0 to 63 low, 64 to 127 above     |
//! | 128 to 191 | the upper 2 bits of `q`: 128 values in 32 bytes: 0 to 31 in bits 0 and 1, ...     |
//! | 192 to 207 | `scale`: 16 signed bytes                                                          |
//! | 208 to 209 | `d`, the scale of the scales: F16, little endian                                  |
//!
//! A value is `(d * scale) * (q - 32)`; 11 + 7 + 5 significant bits make it exact in F32. A denormal or maximal `d` is a
//! number as any other; zero gives zeros; infinity gives infinities, and NaN where a factor is 0; NaN gives NaN.

use super::fit_super::scaled;
use super::pack::{f16_at, for_each_block, for_each_block_mut, pack, unpack};

const BLOCK_SIZE: usize = 256;
const BLOCK_BYTES: usize = 210;

/// 256 values per 210 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let d = f16_at(block, 208);
        let (mut low, mut high) = ([0; BLOCK_SIZE], [0; BLOCK_SIZE]);
        for (half, (low, high)) in
            low.chunks_exact_mut(128).zip(high.chunks_exact_mut(128)).enumerate()
        {
            unpack::<4>(&block[half * 64..][..64], low);
            unpack::<2>(&block[128 + half * 32..][..32], high);
        }
        for (i, values) in values.chunks_exact_mut(16).enumerate() {
            let scale = d * f32::from(block[192 + i] as i8);
            let q = low[i * 16..].iter().zip(&high[i * 16..]);
            for (value, (low, high)) in values.iter_mut().zip(q) {
                *value = scale * (f32::from(low | high << 4) - 32.0);
            }
        }
    });
}

/// 256 values per 210 bytes. The lengths have been checked, and the values are finite.
pub(super) fn quantize(values: &[f32], out: &mut [u8]) {
    for_each_block_mut(values, out, |x: &[f32; BLOCK_SIZE], block: &mut [u8; BLOCK_BYTES]| {
        let fitted = scaled::<16, 16>(x, -32.0, -128.0);
        let q = fitted.levels.map(|level| (level + 32) as u8);
        let (low, high) = (q.map(|q| q & 15), q.map(|q| q >> 4));
        for half in 0..2 {
            pack::<4>(&low[half * 128..][..128], &mut block[half * 64..][..64]);
            pack::<2>(&high[half * 128..][..128], &mut block[128 + half * 32..][..32]);
        }
        for (byte, scale) in block[192..208].iter_mut().zip(fitted.scales) {
            *byte = scale as u8;
        }
        [block[208], block[209]] = fitted.d.to_le_bytes();
    });
}
