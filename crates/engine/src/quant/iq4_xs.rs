//! IQ4_XS: blocks of 256 indices into the table of IQ4_NL; each 32 share a signed scale of 6 bits; `block_iq4_xs` in
//! `ggml-common.h`.
//!
//! | bytes    | content                                                                            |
//! | -------- | ---------------------------------------------------------------------------------- |
//! | 0 to 1   | `d`, the scale of the scales: F16, little endian                                   |
//! | 2 to 3   | the upper 2 bits of `scale`: bits `2 * i` of a little-endian number for `scale[i]` |
//! | 4 to 7   | the lower 4 bits of `scale`: two neighbours to a byte, the first one low           |
//! | 8 to 135 | `q`: 32 values in 16 bytes: 0 to 15 in the low nibbles, 16 to 31 above             |
//!
//! A value is `(d * (scale - 32)) * STEPS[q]`; 11 + 5 + 7 significant bits make it exact in F32. A denormal or maximal
//! `d` is a number as any other; zero gives zeros; infinity gives infinities, and NaN where `scale` is 32; NaN gives NaN.

use super::iq4_nl::STEPS;
use super::pack::{f16_at, for_each_block, nibbles};

const BLOCK_SIZE: usize = 256;
const BLOCK_BYTES: usize = 136;

/// 256 values per 136 bytes. The lengths have been checked.
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for_each_block(bytes, out, |block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_SIZE]| {
        let d = f16_at(block, 0);
        let groups = values.chunks_exact_mut(32).zip(block[8..].chunks_exact(16));
        for (i, (values, q)) in groups.enumerate() {
            let low = block[4 + i / 2] >> (i % 2 * 4) & 15;
            let high = block[2 + i / 4] >> (i % 4 * 2) & 3;
            let scale = d * (f32::from(low | high << 4) - 32.0);
            for (value, q) in values.iter_mut().zip(nibbles(q)) {
                *value = scale * f32::from(STEPS[usize::from(q)]);
            }
        }
    });
}
